"""ngspice against closed forms, a replay against fresh runs, and its ways to fail."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import lambertw

from circuits.netlist import (
    CCCS,
    PWL,
    VCCS,
    VCVS,
    Capacitor,
    CurrentSource,
    Diode,
    DiodeModel,
    Instance,
    Netlist,
    Resistor,
    Subcircuit,
    TransientAnalysis,
    VoltageSource,
)
from circuits.ngspice import DEFAULT, TIGHT, NgspiceError, available, replay, run, thermal_volts, version
from tests.marks import needs_ngspice

DIVIDER = Netlist(
    "Divider",
    [VoltageSource("in", "a", "0", 3.0), Resistor("1", "a", "b", 1e3), Resistor("2", "b", "0", 2e3)],
    options=DEFAULT,
)


@needs_ngspice
def test_a_divider_and_the_current_through_its_source():
    solution = run(DIVIDER)
    np.testing.assert_allclose(solution.volts(["a", "b", "gnd"]), [[3.0, 2.0, 0.0]], rtol=1e-12)
    np.testing.assert_allclose(solution.amperes("vin"), [-1e-3], rtol=1e-12)
    assert solution.analysis_seconds >= 0
    assert version().split(".")[0].isdigit()


@needs_ngspice
def test_saved_nodes_only_also_within_an_instance():
    half = Subcircuit("half", ("p",), [Resistor("1", "p", "mid", 1.0), Resistor("2", "mid", "0", 1.0)])
    elements = [VoltageSource("in", "a", "0", 1.0), Instance("h", ("a",), "half")]
    solution = run(Netlist("Half", elements, [half], saved=["xh.mid"]))
    assert solution.names == ("v(xh.mid)",)
    np.testing.assert_allclose(solution.volts("xh.mid"), [0.5], rtol=1e-12)


@needs_ngspice
@pytest.mark.parametrize("place", ["capacitor", "node"])
def test_an_rc_discharges_to_the_source_exponentially_from_its_initial_voltage(place):
    tau, start, drive = 1e-6, -0.25, 1.0
    rc = Netlist(
        "RC",
        [
            VoltageSource("in", "a", "0", drive),
            Resistor("1", "a", "b", 1e3),
            Capacitor("1", "b", "0", 1e-9, start if place == "capacitor" else None),
        ],
        options=TIGHT,
        analysis=TransientAnalysis(tau / 1000, 5 * tau, tau / 500),
        initial_volts={} if place == "capacitor" else {"b": start},
    )
    solution = run(rc)
    assert solution.seconds[-1] == pytest.approx(5 * tau)
    expected = drive + (start - drive) * np.exp(-solution.seconds / tau)
    np.testing.assert_allclose(solution.volts("b"), expected, rtol=0, atol=1e-6)


@needs_ngspice
def test_an_rc_follows_a_ramp_and_what_comes_after():
    tau, edge = 1e-6, 0.5e-6
    solution = run(
        Netlist(
            "Ramp",
            [
                VoltageSource("in", "a", "0", PWL(((0.0, 0.0), (edge, 1.0)))),
                Resistor("1", "a", "b", 1e3),
                Capacitor("1", "b", "0", 1e-9),
            ],
            options=TIGHT,
            analysis=TransientAnalysis(tau / 1000, 3 * tau, tau / 500),
        )
    )
    t = solution.seconds

    def ramp(since):  # the response to a ramp of 1 V per `edge` from time 0 on
        since = np.maximum(since, 0)
        return (since - tau * (1 - np.exp(-since / tau))) / edge

    np.testing.assert_allclose(solution.volts("b"), ramp(t) - ramp(t - edge), rtol=0, atol=1e-6)


@needs_ngspice
@pytest.mark.parametrize("ideality", [1.0, 1.8])
@pytest.mark.parametrize("volts", [0.1, 0.4, 0.9])
def test_a_diode_with_series_resistance_by_lambert_w(ideality, volts):
    saturation, inner, outer = 1e-12, 50.0, 950.0
    solution = run(
        Netlist(
            "Diode",
            [
                VoltageSource("in", "a", "0", volts),
                Resistor("1", "a", "b", outer),
                Diode("1", "b", "0", "shockley"),
            ],
            models=[DiodeModel("shockley", saturation, ideality, inner)],
            options=TIGHT,
        )
    )
    scale, ohm = ideality * thermal_volts(), inner + outer
    leak = saturation * ohm / scale
    amperes = scale / ohm * lambertw(leak * math.exp(volts / scale + leak)).real - saturation
    beside = 1.1 * TIGHT["gmin"] * volts  # a conductance that ngspice puts across every junction
    np.testing.assert_allclose(solution.amperes("vin"), [-amperes], rtol=1e-7, atol=beside)
    np.testing.assert_allclose(solution.volts("b"), [volts - amperes * outer], rtol=0, atol=1e-10)


@needs_ngspice
def test_controlled_sources_and_their_signs():
    solution = run(
        Netlist(
            "Controlled",
            [
                VoltageSource("in", "a", "0", 2.0),
                VCVS("1", "e", "0", "a", "0", -1.5),
                Resistor("e", "e", "0", 1e3),
                VCCS("1", "0", "g", "a", "0", 1e-3),  # its current enters g
                Resistor("g", "g", "0", 500.0),
                VoltageSource("sense", "a", "s", 0.0),
                Resistor("s", "s", "0", 1e3),  # 2 mA through the sense source
                CCCS("1", "f", "0", "vsense", 0.25),  # its current leaves f
                Resistor("f", "f", "0", 1e3),
                CurrentSource("1", "0", "i", 1e-3),
                Resistor("i", "i", "0", 7e3),
            ],
        )
    )
    np.testing.assert_allclose(solution.volts(["e", "g", "f", "i"]), [[-3.0, 1.0, -0.5, 7.0]], rtol=1e-6)
    np.testing.assert_allclose(solution.amperes("vsense"), [2e-3], rtol=1e-6)


@needs_ngspice
def test_an_amplifier_forward_and_its_current_backward_transform_the_load():
    gain, source_ohm, load_ohm = 4.0, 1e3, 2e3
    amplifier = Subcircuit(
        "amplifier",
        ("n", "out"),
        [
            VCVS("forward", "drive", "0", "n", "0", gain),
            VoltageSource("sense", "drive", "out", 0.0),
            CCCS("back", "n", "0", "vsense", 1 / gain),
        ],
    )
    solution = run(
        Netlist(
            "Bidirectional amplifier",
            [
                VoltageSource("in", "a", "0", 1.0),
                Resistor("1", "a", "n", source_ohm),
                Instance("amplifier", ("n", "out"), "amplifier"),
                Resistor("load", "out", "0", load_ohm),
            ],
            [amplifier],
            options=TIGHT,
        )
    )
    # the node draws (1/A) (A v) / R: it sees R itself, and the load sees A times the voltage
    volts = load_ohm / (source_ohm + load_ohm)
    np.testing.assert_allclose(solution.volts(["n", "out"]), [[volts, gain * volts]], rtol=1e-9)


def clipped_net(rng, sizes=(4, 6, 3)):
    """Crossbars of random conductances, with diodes at the nodes between them."""
    inputs, hidden, outputs = ([f"{name}{i}" for i in range(n)] for name, n in zip("xho", sizes, strict=True))

    def crossbar(tag, above, below):
        return [Resistor(f"{tag}_{a}_{b}", a, b, 1 / rng.uniform(1e-6, 1e-5)) for a in above for b in below]

    diodes = [
        Diode(f"{node}", *((node, "0") if i % 2 else ("0", node)), "shockley")
        for i, node in enumerate(hidden)
    ]
    elements = [VoltageSource(x, x, "0", 0.0) for x in inputs]
    elements += [*crossbar("a", hidden, inputs), *diodes, *crossbar("b", outputs, hidden)]
    return Netlist("Net", elements, models=[DiodeModel("shockley", 1e-12)], options=TIGHT), [
        *hidden,
        *outputs,
    ]


@needs_ngspice
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_a_replay_agrees_with_fresh_runs(monkeypatch, samples):
    monkeypatch.setattr("circuits.ngspice.SAMPLES_PER_RUN", 4)
    rng = np.random.default_rng(0)
    net, nodes = clipped_net(rng)
    drives = rng.uniform(-1, 1, (samples, 3))
    solution = replay(net, ["vx2", "VX0", "vx3"], drives)  # vx1 keeps its 0 V
    assert solution.volts(nodes).shape == (samples, len(nodes))
    for row, drive in enumerate(drives):
        set_to = dict(zip(("vx2", "vx0", "vx3"), drive, strict=True))
        elements = [
            replace(element, volts=set_to[element.name]) if element.name in set_to else element
            for element in net.elements
        ]
        fresh = run(replace(net, elements=elements))
        np.testing.assert_allclose(solution.volts(nodes)[row], fresh.volts(nodes)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("netlist", "sources", "volts", "message"),
    [
        (DIVIDER, ["vin"], [1.0, 2.0], r"volts \(2,\); give finite \(S >= 1, 1\)"),
        (DIVIDER, ["vin"], np.zeros((0, 1)), "S >= 1"),
        (DIVIDER, ["vin"], [[math.nan]], "finite"),
        (DIVIDER, ["vin", "VIN"], [[1.0, 2.0]], "named twice"),
        (DIVIDER, ["vout"], [[1.0]], "no voltage source vout"),
        (replace(DIVIDER, analysis=TransientAnalysis(1, 1, 1)), ["vin"], [[1.0]], "operating point"),
        (
            replace(DIVIDER, elements=(*DIVIDER.elements, CCCS("back", "b", "0", "vin", 1.0))),
            ["vin"],
            [[1.0]],
            "fback measures vin",
        ),
    ],
)
def test_a_replay_of_something_else_is_refused(netlist, sources, volts, message):
    with pytest.raises(ValueError, match=message):
        replay(netlist, sources, volts)


@needs_ngspice
def test_what_has_no_solution_is_told_in_the_words_of_ngspice():
    elements = (*DIVIDER.elements, VoltageSource("other", "a", "0", 1.0))
    with pytest.raises(NgspiceError, match=r"doAnalyses: OP: .*\n.*aborted"):
        run(replace(DIVIDER, elements=elements))


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not available()
    for call in (version, lambda: run(DIVIDER)):
        with pytest.raises(NgspiceError, match=r"apt-get install ngspice.*brew install ngspice.*https://"):
            call()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Error: no such device'; exit 3", "exited with 3:\nError: no such device"),
        ("echo 'all quiet'; exit 1", "exited with 1:\nall quiet"),
        ("echo 'doAnalyses: iteration limit reached'", "gave up:\ndoAnalyses: iteration limit reached"),
        ("echo 'run simulation(s) aborted'", "gave up"),
        ("echo 'Note: nothing to do'", "left no solution:\nNote: nothing to do"),
        ("true", "it said nothing"),
        ("exec sleep 5", "more than timeout_s = 0.5"),
    ],
)
def test_failures_show_what_the_program_said(monkeypatch, tmp_path, script, message):
    program = tmp_path / "ngspice"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NgspiceError) as error:
        run(DIVIDER, timeout_s=0.5)
    assert message in str(error.value)


def test_a_transient_that_stops_early_is_an_error(monkeypatch, tmp_path):
    raw = (
        "Title: t\\nPlotname: Transient Analysis\\nFlags: real\\nNo. Variables: 1\\nNo. Points: 1\\n"
        "Variables:\\n\\t0\\ttime\\ttime\\nValues:\\n 0\\t0.5\\n"
    )
    program = tmp_path / "ngspice"
    program.write_text(f"#!/bin/sh\nprintf '{raw}' > out.raw\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NgspiceError, match=r"stopped at 0.5 s of 1.0 s"):
        run(replace(DIVIDER, analysis=TransientAnalysis(1, 1, 1)))


def test_the_thermal_voltage_is_that_of_ngspice():
    volts_per_kelvin = 8.6173303e-5  # CODATA 2014
    assert thermal_volts() == pytest.approx(300.15 * volts_per_kelvin, rel=1e-8)
    assert thermal_volts(-273.15) == 0
