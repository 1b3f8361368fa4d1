"""The resistive job from end to end, on digits and tiny: what it leaves, that it goes on, what it refuses."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import netlist_parser, ngspice
from experiments import recording, resistive_figures, resistive_measures
from experiments.common import launch
from experiments.resistive_config import PRESETS, Config, preset_of
from experiments.resistive_mnist import COLUMNS, make_learners, run
from mep_sim import checkpoint
from mep_sim.trace import Trace
from tests.marks import needs_ngspice

ROOT = Path(__file__).parents[1]
FILES = {"config.json", "results.json", "trace.h5", "checkpoint.pt", "finished", "network.cir"}
PNGS = {"errors.png", "settling.png", "heat.png"}
STEPS = 2  # of a tiny epoch


def tiny(out: Path, **settings) -> Config:
    """Two steps an epoch, two epochs, 64-8-10 units."""
    size = {
        "dataset": "digits",
        "samples": 60,
        "batch_size": 30,
        "epochs": 2,
        "hidden": (8,),
        "readout_gain": 50.0,
    }
    return Config(**{**size, "transients": 2, "replay": 0, "out": out, **settings})


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, and few points of transients: what takes long."""
    monkeypatch.setattr(resistive_measures, "POINTS", 21)
    monkeypatch.setattr(resistive_figures, "draw", lambda *_: None)


def test_smoke_leaves_every_file_and_prints_the_table_it_stores(tmp_path):
    out = tmp_path / "run"
    arguments = ["--smoke", "--dataset", "digits", "--readout-gain", "50", "--out", out]
    command = [sys.executable, "-m", "experiments.resistive_mnist", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # no warnings either
    assert {file.name for file in out.iterdir()} == FILES | PNGS
    for name in PNGS:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    for row in results["rows"]:
        assert set(COLUMNS) <= set(row)
        assert row["learner"] in done.stdout
        assert f" {row['test error']:.2%} " in done.stdout
    ep = results["rows"][0]
    assert ep["settled"] == 1
    assert ep["nudged residual"] <= Config().nudged_tolerance
    energy = results["energy"]
    by_layer = energy["free"][0]["joules_by_layer"]
    assert len(by_layer) == 2
    assert sum(by_layer) == pytest.approx(ep["inference (J)"])
    assert results["replay"]["samples"] == 2
    # the netlist is one that the parser knows
    text = (out / "network.cir").read_text()
    assert netlist_parser.parse(text).title.startswith("Resistive network 64-16-20")


@needs_ngspice
def test_ngspice_finds_the_trained_network_where_sweeps_do(tmp_path, undrawn):
    results = run(tiny(tmp_path / "run", replay=3, diode="shockley", epochs=1))
    assert results.replayed.largest_volts < 1e-6
    assert results.replayed.equal_decisions == 1


def test_without_ngspice_the_table_says_so(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(ngspice.shutil, "which", lambda _: None)
    results = run(tiny(tmp_path / "run", replay=2, epochs=1))
    assert results.rows[0]["replay"] == "skipped: no ngspice"
    assert (results.folder / "network.cir").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"diode": "linear", "loss": "mse", "readout_gain": 1.0, "update": "plain", "lr": 1e-9},
        {"phases": "centred", "update": "muon", "arrangement": "pair", "offset_volts": 0.01},
        {"hidden": (8, 8), "amplification": 4.0, "paired_output": False},
        {"cell": "soft-bounds-6bit", "lr": 1e-5},
    ],
    ids=lambda settings: "-".join(f"{v}" for v in settings.values()),
)
def test_every_choice_runs_and_settles(tmp_path, undrawn, settings):
    results = run(tiny(tmp_path / "run", epochs=1, **settings))
    ep = results.rows[0]
    assert ep["settled"] == 1
    assert len(results.energy.nudged) == (2 if settings.get("phases") == "centred" else 1)
    phases = (results.energy.free, *results.energy.nudged)
    # at rest the heat stays: the total is at most power there times the time, plus what charging took
    for phase in phases:
        assert phase.joules.shape == (2, len(results.energy.free.watts[-1]))
        assert (phase.joules > 0).all()
    per_sample = sum(phase.joules.sum(1).mean().item() for phase in phases)
    if settings.get("cell") is None:
        assert results.energy.update_joules == pytest.approx(30 * per_sample, rel=1e-12)


def test_beta_is_a_tenth_of_what_the_outputs_bear_and_small_enough(tmp_path):
    """At that strength one-sided and centred gradients point the same way."""
    config = tiny(tmp_path, diode="shockley", samples=30)
    data, gradients = config.data(), {}
    for phases in ("one_sided", "centred"):
        learner = make_learners(dataclasses.replace(config, phases=phases), data)[0]
        gradient = learner.optimizer.gradient
        assert gradient.beta > 0
        found = gradient.estimate(
            learner.circuit, learner.circuit.params, data.train_x, data.train_y
        ).gradient
        gradients[phases] = torch.cat([g.flatten() for g in found.values()])
    assert torch.cosine_similarity(gradients["one_sided"], gradients["centred"], dim=0) > 0.99


# -- going on -----------------------------------------------------------------------------------------


def same(one: object, other: object) -> bool:
    """Bit for bit, but for the seconds that it took."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return np.array_equal(one, other, equal_nan=one.is_floating_point())
    return one == other or (one != one and other != other)


class Interrupted(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize(
    ("count", "settings"),
    [(1, {}), (STEPS + 1, {"update": "muon"}), (2 * STEPS + 1, {"cell": "soft-bounds-6bit", "lr": 1e-5})],
)
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, undrawn, count, settings):
    reference = run(tiny(tmp_path / "reference", **settings))
    config = tiny(tmp_path / "run", **settings)
    calls, record = iter(range(1, 10**6)), recording.step

    def step(*arguments):
        record(*arguments)
        if next(calls) == count:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(recording, "step", step)
        with pytest.raises(Interrupted):
            run(config)
    assert not (config.out / "finished").exists()
    resumed = run(dataclasses.replace(config, resume=True))
    states = [checkpoint.load(x.folder / "checkpoint.pt")["learners"] for x in (resumed, reference)]
    assert same(*states)
    assert same(resumed.rows, reference.rows)
    with Trace.open(resumed.folder / "trace.h5") as one, Trace.open(reference.folder / "trace.h5") as other:
        assert one.groups == other.groups
        for group in one.groups:
            values, expected = one.read(group), other.read(group)
            for name in expected.keys() - ({"seconds"} if group.startswith("epochs_") else set()):
                np.testing.assert_array_equal(values[name], expected[name], err_msg=f"{group}/{name}")


# -- what it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diode": "zener"}, "diode"),
        ({"arrangement": "bridge"}, "arrangement"),
        ({"phases": "one_sweep"}, "phases"),
        ({"loss": "hinge"}, "loss"),
        ({"update": "dion"}, "update"),
        ({"epochs": 0}, "epochs = 0"),
        ({"replay": -1}, "replay = -1"),
        ({"validation": -1}, "validation = -1"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"beta": math.inf}, "beta = inf"),
        ({"initial": 0.0}, "initial = 0.0"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"arrangement": "pair"}, "offset_volts"),
        ({"diode": "shockley", "ideality": 100.0}, "ideality = 100.0"),
        ({"cell": "soft-bounds-6bit", "window": (1e-8, 1e-4)}, "leave it out"),
        ({"preset": "ideal-1024"}, "PRESETS"),
        ({"preset": "large"}, "preset"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_bad_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_the_command_line_refuses_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["resistive_mnist", "--dataset", "digits", "--readout-gain", "-1"])
    with pytest.raises(SystemExit) as end:
        launch(Config, run)
    assert end.value.code == 2
    assert capsys.readouterr().out.startswith("error: readout_gain = -1")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_way_to_what_is_given(monkeypatch, name):
    arguments = ["--preset", name, "--hidden", "12"]
    monkeypatch.setattr(sys, "argv", ["resistive_mnist", *arguments])
    seen = []
    launch(preset_of(arguments), seen.append)
    usual = PRESETS[name]()
    assert seen == [dataclasses.replace(usual, hidden=(12,))]
    assert usual.preset == name


def test_wires_of_wide_crossbars_are_approximate_and_say_so(tmp_path, undrawn):
    results = run(tiny(tmp_path / "run", wire_ohm=5.0, samples=30, epochs=1))
    stored = json.loads((results.folder / "results.json").read_text())
    assert 0 < stored["wire_errors"]["layers.0.weight"] < 0.1
    assert "layers.1.weight" not in stored["wire_errors"]  # of 30 lines at most
    assert results.rows[0]["settled"] == 1
