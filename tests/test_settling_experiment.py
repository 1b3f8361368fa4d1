"""How physical circuits come to rest: settling times of closed form, and the experiment's tables and pictures."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from circuits import cost, ngspice
from circuits.diodes import IdealDiode, PiecewiseLinearDiode
from experiments import settling
from experiments.common import generator
from experiments.settling_networks import FARADS, WINDOW, bound, inputs, network
from experiments.settling_solvers import radau, ways
from experiments.settling_times import Sampling, last_crossing, settling_seconds
from experiments.settling_transients import descent, overlay, save_times
from mep_sim.settling import Sweep, settle
from tests.marks import needs_ngspice

TOLERANCE = 1e-3


def one_node(samples=3):
    """A linear circuit with a single node."""
    circuit = network((4, 1), rng=generator(0))
    return bound(circuit, inputs(circuit, samples, generator(1)))


# -- networks


def test_spread_leaves_the_mean_conductance_and_sets_the_logarithms_deviation():
    plain, spread = (network((400, 100), rng=generator(3), spread=s).layers[0].weight for s in (0.0, 0.5))
    assert plain.min() >= WINDOW[0]
    assert plain.max() <= sum(WINDOW) / 2
    factors = (spread / plain).log()  # the same draws of the uniform part
    assert factors.std().item() == pytest.approx(0.5, rel=0.01)
    assert factors.exp().mean().item() == pytest.approx(1, rel=0.01)


def test_negative_spread_is_refused():
    with pytest.raises(ValueError, match="standard deviation >= 0"):
        network((2, 2), rng=generator(0), spread=-0.1)


# -- settling times


def test_last_crossing_of_exponentials_is_exact_between_coarse_times():
    seconds, rates = torch.linspace(0, 10, 6), torch.tensor([1.0, 2.0, 4.0])
    left = torch.exp(-seconds[:, None] * rates)
    torch.testing.assert_close(last_crossing(seconds, left, TOLERANCE), -math.log(TOLERANCE) / rates)


def test_last_crossing_counts_the_last_one_and_says_where_there_is_none():
    seconds = torch.tensor([0.0, 1.0, 2.0, 3.0])
    left = torch.tensor([[1.0, 1.0, 0.01], [0.01, 1.0, 0.01], [1.0, 1.0, 0.01], [0.01, 1.0, 0.01]])
    assert last_crossing(seconds, left, 0.1).tolist() == pytest.approx([2.5, math.inf, 0.0])


def test_a_node_settles_after_the_logarithm_of_the_tolerance_in_time_constants():
    system = one_node()
    seconds = FARADS / system.conductances[0].item() * -math.log(TOLERANCE)
    assert settling_seconds(system, TOLERANCE).tolist() == pytest.approx([seconds] * 3, rel=1e-2)


@pytest.mark.parametrize("share", [-0.9, 0.5, 4.0])
def test_a_nudge_changes_the_pace_by_its_own_conductance(share):
    system, squares = one_node(), cost("mse")
    conductance = system.conductances[0].item()
    assert system.largest_beta(squares) == pytest.approx(conductance)
    nudged = system.nudged(squares, torch.zeros(3, 1, dtype=torch.float64), share * conductance)
    seconds = FARADS / (conductance * (1 + share)) * -math.log(TOLERANCE)
    found = settling_seconds(nudged, TOLERANCE, settle(system, solver=Sweep(1e-12)))
    assert found.tolist() == pytest.approx([seconds] * 3, rel=1e-2)


def test_amplifiers_leave_the_pace_of_a_network_without_diodes():
    """In units of its gain's powers it is the same network."""
    linear = PiecewiseLinearDiode(on_siemens=1e-15, off_siemens=0.0)
    found = []
    for gain in (1.0, 4.0):
        circuit = network((6, 5, 4, 3), linear, rng=generator(0), amplification=gain)
        circuit.bias_volts = None
        circuit.lines = tuple(dataclasses.replace(lines, bias_volts=None) for lines in circuit.lines)
        params = {name: p.detach()[:, :-2].contiguous() for name, p in circuit.params().items()}
        found.append(settling_seconds(circuit.bind(params, inputs(circuit, 2, generator(1))), TOLERANCE))
    torch.testing.assert_close(*found, rtol=1e-2, atol=0)


def test_points_are_quantiles_over_all_networks_and_inputs():
    sampling = Sampling(range(4), 11, TOLERANCE, 1.0)
    point = sampling.point("x", 2.0, lambda rng: 1e-9 * torch.arange(11.0, dtype=torch.float64))
    assert point.nanoseconds == pytest.approx((1.0, 5.0, 9.0), abs=0.8)
    assert point.nanoseconds[1] == pytest.approx(5.0)


# -- transients


def test_times_to_save_are_geometric_and_end_where_told():
    times = save_times(2e-8, 9)
    assert times[0] == 0
    assert times[-1].item() == pytest.approx(2e-8)
    assert torch.allclose(times[2:] / times[1:-1], torch.tensor(1e4 ** (1 / 8), dtype=torch.float64))


def test_energy_of_one_node_falls_as_a_parabola_and_heats_as_the_crossbar_does():
    system = one_node(1)
    conductance = system.conductances[0].item()
    tau = FARADS / conductance
    found = descent(system, torch.ones(1, 1, dtype=torch.float64), 1.0, save_times(20 * tau, 60))
    free, _ = found.phases
    rest = (system.drive / conductance).item()
    energy = found.energy[free, 0]
    expected = 0.5 * conductance * rest**2 * torch.exp(-2 * found.seconds[free] / tau)
    torch.testing.assert_close(energy - energy[-1], expected, rtol=0, atol=1e-4 * expected[0].item())
    assert found.beta == pytest.approx(conductance)
    assert found.rise <= 1e-9
    # settled, twice the co-content is heat
    assert found.heat[found.nudged_from - 1, 0].item() == pytest.approx(2 * energy[-1].item(), rel=1e-6)
    assert len(found.joules()) == 2


# -- solvers


def test_radau_settles_where_the_sweeps_do():
    circuit = network((6, 5, 3), rng=generator(0), volts=10.0)
    system = bound(circuit, inputs(circuit, 1, generator(1)))
    found, exact = radau(system), settle(system, solver=Sweep(1e-12)).state
    assert found.settled
    assert found.evaluations > 0
    torch.testing.assert_close(found.state, exact, rtol=0, atol=1e-5 * exact.abs().max().item())


def test_radau_follows_one_sample_without_jumps():
    assert "Radau (scipy)" in ways(PiecewiseLinearDiode(), 1)
    assert "Radau (scipy)" not in {**ways(PiecewiseLinearDiode(), 2), **ways(IdealDiode(), 1)}
    assert ("ngspice, operating point" in ways(IdealDiode(), 2)) == ngspice.available()


# -- all of it


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settling") / "run"
    return folder, settling.run(settling.Config(smoke=True, out=folder))


def test_smoke_run_leaves_pictures_and_results(smoke):
    folder, results = smoke
    for name in ("transients", "energy", "settling_times", "solvers"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((folder / "results.json").read_text())
    assert kept["transients"] == results["transients"]
    assert (folder / "finished").exists()


@needs_ngspice
def test_transients_are_those_of_ngspice(smoke):
    _, results = smoke
    assert results["judge"] == "ngspice"
    differences = {row["solver"]: row.get("max |dV| (V)") for row in results["transients"]}
    assert differences["tr_bdf2, accurate"] <= 1e-5
    assert differences["tr_bdf2, fast"] <= 5e-4
    assert differences["dopri5"] <= 1e-5


def test_co_content_never_rises(smoke):
    assert smoke[1]["energy"]["rise"] <= 1e-12


def test_every_solver_ends_at_the_same_equilibrium_or_says_why_not(smoke):
    for row in smoke[1]["solvers"]:
        if "note" in row:
            assert row["note"] == "refused"
        else:
            assert row["max error (V)"] < 1e-5
    refused = {(row["diodes"], row["solver"]) for row in smoke[1]["solvers"] if "note" in row}
    stiff = {("Shockley", method) for method in ("euler", "rk4", "bosh3", "dopri5")}
    assert refused == stiff | {("ideal", "trapezoid")}


def test_settling_times_cover_what_was_asked_for(smoke):
    rows = smoke[1]["settling times"]
    assert [row["at"] for row in rows] == [1, 2, 1, 2, -0.5, 1.0, 0.0, 1.0]
    assert all(0 < row["10 %"] <= row["median (ns)"] <= row["90 %"] < math.inf for row in rows)
    slow, fast = (row["median (ns)"] for row in rows[4:6])
    assert slow > fast


def test_without_ngspice_dopri5_is_what_is_compared_with(monkeypatch):
    monkeypatch.setattr(ngspice, "available", lambda: False)
    found = overlay(one_node(), save_times(1e-8, 5))
    assert found.judge == "dopri5"
    assert [row["solver"] for row in found.rows] == ["tr_bdf2, accurate", "tr_bdf2, fast", "dopri5"]
    assert "max |dV| (V)" not in found.rows[-1]
    assert found.rows[0]["max |dV| (V)"] < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (4, 2)}, "an input, a hidden and an output layer"),
        ({"points": 1}, "at least 2"),
        ({"rounds": 0}, "at least 1"),
        ({"volts": 0.0}, "finite value > 0"),
        ({"depths": ()}, "at least 1"),
        ({"beta_shares": (-1.0,)}, "above -1"),
        ({"beta_share": 0.0}, "other than 0"),
        ({"diodes": ("tunnel",)}, "ideal, piecewise linear, Shockley"),
        ({"tolerance": 0.5}, "0 < tolerance < 0.1"),
        ({"spreads": (-0.1,)}, "standard deviations >= 0"),
    ],
)
def test_options_out_of_range_name_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        settling.Config(**options)
