"""The main job from end to end, on digits and tiny: what it leaves, that it goes on, what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import devices
from circuits import FeedforwardCircuit
from experiments import crossbar_mnist, figures, recording
from experiments.common import launch
from experiments.crossbar_mnist import COLUMNS, Config, run
from mep_sim import checkpoint
from mep_sim.settling import ODE
from mep_sim.trace import Trace

ROOT = Path(__file__).parents[1]
FILES = {"config.json", "results.json", "trace.h5", "checkpoint.pt", "finished"}
PNGS = {f"{name}.png" for name in ("learning_curves", "settling", "transient", "conductances", "programmed")}
STEPS = 2  # of a tiny epoch
TINY = ("--samples", "60", "--batch-size", "30", "--epochs", "1", "--hidden", "8")


def briefly(_tolerance: float, **settings) -> ODE:
    """The solver of recorded transients, which soon have an end."""
    return ODE(0.1, **settings)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Pictures and long transients take longer than all the rest; `smoke` has both in a process of its own."""
    patch.setattr(figures, "draw", lambda *_: None)
    patch.setattr(recording, "ODE", briefly)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def tiny(out: Path, **settings) -> Config:
    """Two steps an epoch, two epochs, 64-8-10 units."""
    size = {"dataset": "digits", "samples": 60, "batch_size": 30, "epochs": 2, "hidden": (8,)}
    return Config(**{**size, "out": out, **settings})


def python(*arguments: str | Path) -> subprocess.CompletedProcess:
    """A process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def refused(monkeypatch, capsys, *arguments: str | Path) -> str:
    """The one line in which the command line ends, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["crossbar_mnist", "--dataset", "digits", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        launch(Config, run)
    last = capsys.readouterr().out.splitlines()[-1]
    assert end.value.code == 2
    assert last.startswith("error: ")
    return last


# -- what a run leaves --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """The folder and the terminal of `python -m experiments.crossbar_mnist --smoke`."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    done = python("-m", "experiments.crossbar_mnist", "--smoke", "--dataset", "digits", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # no warnings either
    return out, done.stdout


def test_smoke_leaves_every_file(smoke):
    out, _ = smoke
    assert {file.name for file in out.iterdir()} == FILES | PNGS
    for name in PNGS:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert (out / name).stat().st_size > 10_000
    assert json.loads((out / "config.json").read_text())["smoke"] is True


def test_smoke_prints_the_table_it_stores(smoke):
    out, terminal = smoke
    results = json.loads((out / "results.json").read_text())
    assert "…" not in terminal  # nothing cut short
    for row in results["rows"]:
        assert set(row) == set(COLUMNS)
        assert f"│ {row['learner']} " in terminal
        assert f" {row['test accuracy']:.2%} " in terminal
    assert results["source"] in terminal
    assert str(out) in terminal


def test_smoke_settles_by_the_ode(smoke):
    rows = json.loads((smoke[0] / "results.json").read_text())["rows"]
    ep, config = rows[0], Config()
    assert ep["settled"] == 1
    assert ep["evaluations"] > 0
    assert ep["time"] > 0
    assert 0 < ep["free residual"] <= config.free_tolerance
    assert 0 < ep["nudged residual"] <= config.nudged_tolerance
    assert ep["pulses/device"] > 0
    assert all(0 <= row["test accuracy"] <= 1 for row in rows)


def test_trace_opens_as_labelled_arrays(smoke):
    tree = xarray.open_datatree(smoke[0] / "trace.h5", engine="h5netcdf")
    groups = {path: node for path, node in tree.subtree_with_keys if node.data_vars}
    for path, node in groups.items():
        assert not [dim for dim in node.dims if "phony" in dim], path
        for name, variable in node.variables.items():
            assert variable.attrs.get("units"), f"{path}/{name}"
    arrays = [node for path, node in groups.items() if path.startswith("conductances_")]
    assert len(arrays) == 2  # two layers
    for node in arrays:
        assert node["epoch"].values.tolist() == [0, 1, 2]
        assert node["plus"].attrs["units"] == "S"
        assert float(node["plus"].min()) > 0
    for epoch in (1, 2):
        assert (np.diff(groups[f"transient_epoch_{epoch}"]["time"]) > 0).all()
    for path in (path for path in groups if path.startswith("training_")):
        assert groups[path]["step"].values.tolist() == list(range(1, 9))
        assert np.isfinite(groups[path]["loss"]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"circuit": "hopfield"},
        {"solver": "sweep"},
        {"solver": "dopri5"},
        {"cell": "none"},
        {"cell": "pcm"},
        {"cell": "levels-4bit", "read_noise": 0.01},
        {"bits": 3, "write": "stochastic"},
        {"phases": "centred", "activation": "tanh", "loss": "mse"},
        {"phases": "one_sweep"},
        {"independent_reads": True, "read_noise": 1e-4, "nudged_tolerance": 0.05},
        {"update": "dion"},
        {"update": "plain", "gamma": 0.0},
        {"update": "adam"},
        {"hidden": (8, 8), "activation": "softplus"},
        {"sizes": (64, 10)},
    ],
    ids=lambda settings: "-".join(f"{v}" for v in settings.values()),
)
def test_every_choice_runs_and_settles(tmp_path, settings):
    config = tiny(tmp_path / "run", epochs=1, **settings)
    results = run(config)
    ep = results.rows[0]
    assert (results.folder / "finished").exists()
    assert ep["free residual"] <= config.free_tolerance
    assert ep["evaluations"] > 0
    assert (ep["time"] > 0) == (config.solver != "sweep")
    if config.phases == "one_sweep":  # no equilibrium, so none is claimed
        assert np.isnan(ep["settled"])
    else:
        assert ep["settled"] == 1
        assert ep["nudged residual"] <= config.nudged_tolerance
    assert (ep["pulses/device"] is None) == (config.cell == "none")
    assert len({row["learner"] for row in results.rows}) == 3  # as keys of checkpoint and trace


def test_a_cell_can_be_ones_own_file(tmp_path):
    path = tmp_path / "mine [a].json"
    devices.save(devices.preset("levels-6bit"), path)
    own = run(tiny(tmp_path / "own", epochs=1, cell=str(path)))
    same = run(tiny(tmp_path / "same", epochs=1, cell="levels-6bit"))
    assert own.rows[0]["learner"].endswith("on mine [a]")
    compare(own.folder, same.folder, learners=False)


def test_one_seed_gives_one_result(tmp_path):
    one, again, other = tmp_path / "one", tmp_path / "again", tmp_path / "other"
    for out, seed in ((one, 0), (again, 0), (other, 1)):
        run(tiny(out, epochs=1, seed=seed))
    compare(one, again)
    with pytest.raises(AssertionError):
        compare(one, other)


# -- going on -----------------------------------------------------------------------------------------


def same(one: object, other: object) -> bool:
    """Bit for bit, but for the seconds that it took."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.is_floating_point())
    return one == other or (one != one and other != other)


def compare(folder: Path, reference: Path, learners: bool = True) -> None:
    """Two runs hold the same: final state of every learner, and every series of the trace."""
    states = [checkpoint.load(path / "checkpoint.pt")["learners"] for path in (folder, reference)]
    if not learners:  # their names differ
        states = [list(state.values()) for state in states]
    assert same(*states)
    with Trace.open(folder / "trace.h5") as one, Trace.open(reference / "trace.h5") as other:
        groups = [[g for g in trace.groups if learners or "EP" not in g] for trace in (one, other)]
        assert groups[0] == groups[1]
        for group in groups[0]:
            values, expected = one.read(group), other.read(group)
            for name in expected.keys() - {"seconds"}:
                np.testing.assert_array_equal(values[name], expected[name], err_msg=f"{group}/{name}")


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt_at(monkeypatch, count: int) -> None:
    """Break off at the `count`-th training step of the run, all learners counted."""
    calls, record = iter(range(1, 10**6)), recording.step

    def step(*arguments):
        record(*arguments)
        if next(calls) == count:
            raise Interrupted

    monkeypatch.setattr(recording, "step", step)


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (1, {}),  # before the first checkpoint
        (STEPS + 2, {"read_noise": 0.02, "write": "stochastic", "update": "dion"}),
        (STEPS + 1, {"cell": "pcm", "update": "adam", "independent_reads": True, "step_seconds": 10.0}),
        (3 * STEPS + 1, {"circuit": "hopfield", "solver": "sweep"}),  # the chip is done, its baseline is not
    ],
)
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, count, settings):
    reference = run(tiny(tmp_path / "reference", **settings))
    config = tiny(tmp_path / "run", **settings)
    with monkeypatch.context() as patched:
        interrupt_at(patched, count)
        with pytest.raises(Interrupted):
            run(config)
    assert not (config.out / "finished").exists()
    resumed = run(dataclasses.replace(config, resume=True))
    compare(resumed.folder, reference.folder)
    assert same(resumed.rows, reference.rows)
    assert (config.out / "finished").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from experiments import recording
from tests.test_crossbar_mnist import STEPS, quicken, run, tiny

quicken(pytest.MonkeyPatch())
record = recording.step
def step(trace, learner, number, metrics):
    record(trace, learner, number, metrics)
    if number == STEPS + 1:
        os.kill(os.getpid(), signal.SIGKILL)
recording.step = step
run(tiny(Path(sys.argv[1]), read_noise=0.02))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_run_leaves_a_trace_that_opens_and_resumes(tmp_path):
    reference = run(tiny(tmp_path / "reference", read_noise=0.02))
    out = tmp_path / "run"
    assert python("-c", KILLED, out).returncode == -signal.SIGKILL
    assert {file.name for file in out.iterdir()} == FILES - {"results.json", "finished"}
    with xarray.open_datatree(out / "trace.h5", engine="h5netcdf") as tree:
        for array in (node for path, node in tree.subtree_with_keys if path.startswith("conductances_")):
            assert array["epoch"].values.tolist() == [0, 1]  # as of the checkpoint
    compare(run(tiny(out, read_noise=0.02, resume=True)).folder, reference.folder)


def test_resume_where_nothing_was_begun_begins(tmp_path):
    assert (run(tiny(tmp_path / "run", epochs=1, resume=True)).folder / "finished").exists()


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--cell soft-bound-6bit", "Known presets: ideal, levels-4bit"),
        ("--cell nowhere.json", "nowhere.json"),
        ("--read-noise -0.1", "[0, 1]"),
        ("--read-noise 1.5", "[0, 1]"),
        ("--beta 0", "beta > 0"),
        ("--beta -0.1", "beta > 0"),
        ("--beta 1e6 --phases centred", "only for beta < 0."),
        ("--phases both", "one_sided, centred, random_sign, one_sweep"),
        ("--phases one_sweep --circuit hopfield", "feedforward energy only"),
        ("--sizes 784 8 10", "64 inputs and 10 classes"),
        ("--sizes 64 0 10", "each >= 1"),
        ("--solver dopri6", "euler, midpoint"),
        ("--free-tolerance 0", "0 < tolerance < 1"),
        ("--nudged-tolerance 2", "0 < tolerance < 1"),
        ("--max-evaluations 0", "at least 1"),
        ("--epochs 0", "at least 1"),
        ("--samples 0", "at least 1"),
        ("--samples 100000", "from 1 to 1294"),
        ("--dataset cifar", "'mnist' or 'digits'"),
        ("--update sgd", "muon, dion, plain, adam"),
        ("--circuit cnn", "feedforward or hopfield"),
        ("--activation swish", "relu"),
        ("--circuit hopfield --box 4 0", "box"),
        ("--loss hinge", "cross_entropy, mse"),
        ("--write up", "residual, mixed_precision, rounded"),
        ("--mapping triple", "auto, pair, one_sided, offset, symmetry"),
        ("--write trains", "needs update = plain, gamma = 0 and momentum = 0, not muon, 2.0 and 0.9"),
        ("--gamma -1", "gamma > 0"),
        ("--gamma nan", "gamma > 0"),
        ("--momentum 1", "beta < 1"),
        ("--lr inf", "finite learning rate > 0"),
        ("--adam-lr 0", "learning rate > 0"),
        ("--w-range 0", "w_range > 0"),
        ("--w-range 1e30", "diverged"),
        ("--adc-bits 8 --write trains --update plain --gamma 0 --momentum 0", "for a digital contrast"),
        ("--adc-bits 8 --phases one_sweep", "for a digital contrast"),
        ("--adc-bits 1", "bits = 1 of a converter; choose 2 to 24"),
        ("--step-seconds nan", "time >= 0"),
        ("--bits 0", "from 1 to 16"),
        ("--bits 40", "from 1 to 16"),
        ("--bits 4 --cell none", "choose a cell"),
        ("--read-noise 0.1 --cell ideal", "choose a memory cell"),
        ("--device tpu", "choose cpu or cuda"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys, line, message):
    out = tmp_path / "run"
    assert message in refused(monkeypatch, capsys, "--hidden", "8", "--out", out, *line.split())
    assert not out.exists()


def test_malformed_device_file_is_named(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "cell.json", tmp_path / "run"
    path.write_text('{"type": "MemoryCell",')
    line = refused(monkeypatch, capsys, "--cell", path, "--out", out)
    assert str(path) in line
    assert "not valid JSON" in line
    assert not out.exists()


@pytest.mark.parametrize("part", ["train_x", "validation_x", "test_x"])
def test_nan_in_the_data_is_refused(tmp_path, monkeypatch, part):
    data = crossbar_mnist.load("digits")
    getattr(data, part)[-1, 3] = torch.nan
    monkeypatch.setattr(crossbar_mnist, "load", lambda *_, **__: data)
    with pytest.raises(ValueError, match=f"{part} holds NaN"):
        run(tiny(tmp_path / "run", samples=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cell", ["none", "levels-6bit"])
def test_nan_in_the_weights_is_refused(tmp_path, monkeypatch, cell):
    def broken(_config, _kind, sizes):
        circuit = FeedforwardCircuit.from_sizes(sizes)
        next(circuit.parameters()).data[0, 0] = torch.nan
        return circuit

    monkeypatch.setattr(Config, "network", broken)
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)nan|finite"):
        run(tiny(tmp_path / "run", cell=cell))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ["--lr 1e30", "--lr 1e30 --gamma 0 --cell none", "--adam-lr 1e30"])
def test_divergence_is_an_error_and_no_result(tmp_path, monkeypatch, capsys, line):
    assert "diverged" in refused(monkeypatch, capsys, *TINY, *line.split(), "--out", tmp_path)
    assert not {"finished", "results.json"} & {file.name for file in tmp_path.iterdir()}


def test_folder_of_another_run_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert "holds another run" in refused(monkeypatch, capsys, *TINY, "--out", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_resume_wants_the_same_run_unfinished(tmp_path, monkeypatch, capsys):
    cell, out = tmp_path / "cell.json", tmp_path / "run"
    devices.save(devices.preset("levels-6bit"), cell)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 1)
        with pytest.raises(Interrupted):
            run(tiny(out, epochs=1, cell=str(cell)))
    again = (*TINY, "--cell", cell, "--resume", "--out", out)
    assert "beta was 0.1, is 0.2" in refused(monkeypatch, capsys, *again, "--beta", "0.2")
    devices.save(devices.preset("levels-4bit"), cell)  # another cell under the same name
    assert "another configuration: cell_settings." in refused(monkeypatch, capsys, *again)
    assert "--out" in refused(monkeypatch, capsys, *TINY, "--resume")
    assert not (out / "finished").exists()
    devices.save(devices.preset("levels-6bit"), cell)
    run(tiny(out, epochs=1, cell=str(cell), resume=True))
    assert "holds a finished run" in refused(monkeypatch, capsys, *again)


def test_auto_resumes_with_the_data_it_began_with(tmp_path, monkeypatch):
    digits = crossbar_mnist.load("digits", samples=60)
    monkeypatch.setattr(crossbar_mnist, "load", lambda *_, **__: digits)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 1)
        with pytest.raises(Interrupted):
            run(tiny(tmp_path, dataset="auto"))
    since = dataclasses.replace(digits, name="mnist")  # as if it had turned up
    monkeypatch.setattr(crossbar_mnist, "load", lambda *_, **__: since)
    with pytest.raises(ValueError, match='dataset was "digits", is "mnist"'):
        run(tiny(tmp_path, dataset="auto", resume=True))


def test_unwritable_folder_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"  # not even root can make it
    monkeypatch.setattr(sys, "argv", ["crossbar_mnist", "--dataset", "digits", "--smoke", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        launch(Config, run)
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    assert printed.out.startswith(f"error: cannot write to the folder {out} (")
