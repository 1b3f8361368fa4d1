import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from mep_sim.trace import Axis, Trace, Variable

WEIGHT = "conductances/layers.0.weight"
CONFIG = {"beta": 0.1, "circuit": {"layers": [4, 3]}}


def create(path, overwrite=False):
    return Trace.create(path, config=CONFIG, seed=7, overwrite=overwrite)


def declare(trace):
    trace.declare(
        "training",
        along="step",
        variables={"loss": Variable("nats", "training loss"), "pulses": Variable("1", dtype="int64")},
    )
    trace.declare(
        WEIGHT,
        along="epoch",
        dims={"row": 40, "column": 30},
        variables={"conductance": Variable("S", "cell conductance", ("row", "column"), "float32")},
    )


def record(trace, steps):
    for step in steps:
        trace.append("training", step, {"loss": 1 / (step + 1), "pulses": step * step})
        if step % 5 == 0:
            trace.append(WEIGHT, step, {"conductance": torch.full((40, 30), 1e-6 * step)})
            trace.write(
                f"transients/step_{step}",
                variables={"voltage": Variable("V", dims=("time", "node"))},
                values={"voltage": np.full((6, 2), step)},
                dims={"time": Axis(np.linspace(0, 1e-6, 6), "s", "time since the input"), "node": 2},
            )


def contents(path):
    """Every dataset and attribute of a file, but for the time of creation."""
    found = {}

    def keep(name, item):
        found[name] = {key: str(value) for key, value in item.attrs.items() if "LIST" not in key}
        if isinstance(item, h5py.Dataset):
            found[name] |= {"values": item[()].tolist(), "maxshape": item.maxshape, "dtype": item.dtype}

    with h5py.File(path) as file:
        file.visititems(keep)
        return found, {key: value for key, value in file.attrs.items() if key != "created"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.h5"


def test_rows_come_back_with_their_coordinates(path):
    with create(path) as trace:
        declare(trace)
        record(trace, range(7))
        assert trace.lengths() == {
            "training": 7,
            WEIGHT: 2,
            "transients/step_0": None,
            "transients/step_5": None,
        }
        np.testing.assert_array_equal(trace.read("training")["pulses"], np.arange(7) ** 2)
    with Trace.open(path) as trace:
        assert trace.groups == (WEIGHT, "training", "transients/step_0", "transients/step_5")
        training, weight = trace.read("training"), trace.read(WEIGHT)
        transient = trace.read("transients/step_5")
    np.testing.assert_array_equal(training["step"], np.arange(7))
    np.testing.assert_allclose(training["loss"], 1 / np.arange(1, 8), rtol=0)
    np.testing.assert_array_equal(weight["epoch"], [0, 5])
    assert weight["conductance"].shape == (2, 40, 30)
    assert weight["conductance"].dtype == np.float32
    np.testing.assert_array_equal(transient["time"], np.linspace(0, 1e-6, 6))
    np.testing.assert_array_equal(transient["voltage"], np.full((6, 2), 5.0))


def test_the_file_says_which_run_it_belongs_to(path):
    create(path).close()
    with Trace.open(path) as trace:
        metadata = trace.metadata
    assert json.loads(metadata["config"]) == CONFIG
    assert (metadata["seed"], metadata["format_version"]) == (7, 1)
    assert metadata["created"].endswith("+00:00")
    assert {
        f"{name}_version" for name in ("python", "torch", "numpy", "torchdiffeq", "mep_sim")
    } < metadata.keys()


@pytest.mark.filterwarnings("error")
def test_xarray_sees_named_dimensions_coordinates_and_units(path):
    with create(path) as trace:
        declare(trace)
        record(trace, range(7))
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        dimensions = {str(d) for node in tree.subtree for d in node.dims}
        assert dimensions == {"step", "epoch", "row", "column", "time", "node"}
        assert all(name in tree[place].coords for place, names in tree_dims(tree) for name in names)
        for node in tree.subtree:
            assert all("units" in variable.attrs for variable in node.variables.values())
        weight = tree[WEIGHT]["conductance"]
        assert weight.dims == ("epoch", "row", "column")
        assert weight.attrs == {"units": "S", "long_name": "cell conductance"}
        time = tree["transients/step_0"]["time"]
        assert (time.dtype, time.attrs["units"]) == (np.float64, "s")
        np.testing.assert_array_equal(tree["training"]["loss"].sel(step=3), 0.25)


def tree_dims(tree):
    return [(node.path, node.dims) for node in tree.subtree]


def test_large_arrays_are_compressed_and_no_chunk_exceeds_a_mebibyte(path):
    with create(path) as trace:
        declare(trace)
        record(trace, [0])
        trace.declare(
            "big", along="n", dims={"a": 2000, "b": 300}, variables={"x": Variable("1", dims=("a", "b"))}
        )
    with h5py.File(path) as file:
        assert file["big/x"].chunks == (1, 250, 300)
        weight = file[f"{WEIGHT}/conductance"]
        assert (weight.chunks, weight.compression, weight.shuffle) == ((1, 40, 30), "gzip", True)
        assert file["training/loss"].chunks == (1024,)


def test_nan_scalar_tensors_and_bfloat16_are_values(path):
    with create(path) as trace:
        trace.declare(
            "a", along="step", dims={"i": 2}, variables={"x": Variable("1"), "y": Variable("1", dims=("i",))}
        )
        trace.append("a", 0, {"x": float("nan"), "y": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)})
        trace.append("a", 1, {"x": torch.tensor(2.0, requires_grad=True), "y": [3, 4]})
        trace.flush()
        read = trace.read("a")
    np.testing.assert_array_equal(read["x"], [np.nan, 2.0])
    np.testing.assert_array_equal(read["y"], [[1.5, 2.0], [3.0, 4.0]])


def test_a_row_is_what_it_was_when_appended(path):
    weights = torch.zeros(3)
    with create(path) as trace:
        trace.declare("w", along="step", dims={"i": 3}, variables={"w": Variable("1", dims=("i",))})
        for step in range(3):
            weights += 1
            trace.append("w", step, {"w": weights})
        trace.flush()
        np.testing.assert_array_equal(trace.read("w")["w"], [[1] * 3, [2] * 3, [3] * 3])


def test_the_coordinate_may_be_a_time(path):
    with create(path) as trace:
        trace.declare("drift", along="t", variables={"g": Variable("S")}, coordinate=Variable("s", "time"))
        trace.append("drift", 0.5, {"g": 1e-6})
        trace.flush()
        assert trace.read("drift")["t"] == [0.5]


KILLED = """
    import sys, time
    from mep_sim.trace import Trace, Variable
    trace = Trace.create(sys.argv[1], config={}, seed=0)
    big = Variable("S", dims=("row", "column"), dtype="float32")
    trace.declare("training", along="step", variables={"loss": Variable("nats"), "pulses": Variable("1")})
    trace.declare("weight", along="step", dims={"row": 50, "column": 50}, variables={"conductance": big})
    for step in range(200):
        if step % 7 == 0:
            trace.flush()
        trace.append("training", step, {"loss": step, "pulses": step})
        trace.append("weight", step, {"conductance": [[step] * 50] * 50})
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_leaves_all_flushed_rows(path):
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "ready\n"
    with pytest.raises(BlockingIOError, match="being written by another process"):
        Trace.resume(path, {})
    with Trace.open(path) as trace:  # a run can be watched
        assert len(trace.read("training")["loss"]) == 196
    run.send_signal(signal.SIGKILL)
    run.communicate()
    with Trace.resume(path, {"training": 190, "weight": 190}) as trace:
        declared = Variable("nats")
        trace.declare("training", along="step", variables={"loss": declared, "pulses": Variable("1")})
        trace.append("training", 190, {"loss": 190, "pulses": 190})
    with Trace.open(path) as trace:
        training, weight = trace.read("training"), trace.read("weight")
    for name in ("step", "loss", "pulses"):
        np.testing.assert_array_equal(training[name], np.arange(191))
    np.testing.assert_array_equal(weight["conductance"][:, 49, 49], np.arange(190))


@pytest.mark.parametrize("stop", [0, 1, 8, 13, 20])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, stop):
    whole, resumed = tmp_path / "whole.h5", tmp_path / "resumed.h5"
    with create(whole) as trace:
        declare(trace)
        record(trace, range(20))
    with create(resumed) as trace:
        declare(trace)
        record(trace, range(stop))
        lengths = trace.lengths()
        record(trace, range(stop, 20))  # beyond the checkpoint, then lost
    with Trace.resume(resumed, lengths) as trace:
        declare(trace)
        record(trace, range(stop, 20))
    assert contents(resumed) == contents(whole)


def test_a_flush_that_was_broken_off_is_made_good(path, monkeypatch):
    real, calls = h5py.Dataset.__setitem__, []

    def interrupted(self, key, value):
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, key, value)

    with create(path) as trace:
        declare(trace)
        record(trace, range(3))
        with monkeypatch.context() as patch:
            patch.setattr(h5py.Dataset, "__setitem__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trace.flush()
        record(trace, range(3, 5))
    with Trace.open(path) as trace:
        read = trace.read("training")
    np.testing.assert_array_equal(read["step"], np.arange(5))
    np.testing.assert_array_equal(read["pulses"], np.arange(5) ** 2)


ACTION = st.one_of(
    st.tuples(st.just("append"), st.floats(width=32)),
    st.tuples(st.sampled_from(["flush", "checkpoint", "crash", "reopen"]), st.none()),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTION, max_size=25))
def test_a_trace_behaves_as_a_list(actions):
    """Against a plain list: `crash` goes back to the checkpoint, `reopen` closes and goes on."""
    rows, kept = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.h5"
        trace = create(path)
        variables = {"x": Variable("1", dtype="float32"), "n": Variable("1", dtype="int32")}
        trace.declare("rows", along="step", variables=variables)
        lengths = trace.lengths()
        for action, value in actions:
            if action == "append":
                trace.append("rows", len(rows), {"x": value, "n": -len(rows)})
                rows.append(value)
            elif action == "flush":
                trace.flush()
            elif action == "checkpoint":
                lengths, kept = trace.lengths(), list(rows)
            else:
                if action == "reopen":
                    lengths, kept = trace.lengths(), list(rows)
                trace.close()
                trace, rows = Trace.resume(path, lengths), list(kept)
        trace.flush()
        read = trace.read("rows")
        trace.close()
    np.testing.assert_array_equal(read["step"], np.arange(len(rows)))
    np.testing.assert_array_equal(read["n"], -np.arange(len(rows)))
    np.testing.assert_array_equal(read["x"], np.array(rows, np.float32))


def test_an_existing_file_is_kept_unless_told_otherwise(path):
    with create(path) as trace:
        declare(trace)
    with pytest.raises(FileExistsError, match=r"trace.h5 exists: .*overwrite=True"):
        create(path)
    create(path, overwrite=True).close()
    with Trace.open(path) as trace:
        assert trace.groups == ()


def test_what_is_no_trace_is_refused(path):
    with pytest.raises(FileNotFoundError, match=r"cannot open .*trace.h5"):
        Trace.open(path)
    path.write_text("not HDF5")
    with pytest.raises(ValueError, match="is no HDF5 file"):
        Trace.open(path)
    h5py.File(path, "w").close()
    with pytest.raises(ValueError, match=r"is no mep-sim trace \(format None"):
        Trace.resume(path, {})


def test_a_newer_format_is_refused(path):
    create(path).close()
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(ValueError, match=r"format version 2, this mep-sim knows up to 1; update"):
        Trace.open(path)


def test_a_damaged_group_is_named_and_the_file_let_go(path):
    with create(path) as trace:
        declare(trace)
    with h5py.File(path, "r+") as file:
        del file["training/loss"].attrs["units"]
    with pytest.raises(ValueError, match=r"trace.h5 is damaged \(.*units"):
        Trace.resume(path, {})
    create(path, overwrite=True).close()


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"cannot open .*nowhere"):
        create(tmp_path / "nowhere" / "trace.h5")

    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(PermissionError, match=r"no permission to open .*trace.h5; choose a folder"):
        create(tmp_path / "trace.h5")


@pytest.mark.parametrize("lengths", [{"training": 4}, {"other": 1}, {"training": 3, "other": None}])
def test_a_checkpoint_of_another_trace_is_refused_and_nothing_is_lost(path, lengths):
    with create(path) as trace:
        declare(trace)
        record(trace, range(3))
    before = contents(path)
    with pytest.raises(ValueError, match="belongs to another checkpoint"):
        Trace.resume(path, lengths)
    assert contents(path) == before


def test_reading_does_not_write(path):
    create(path).close()
    with Trace.open(path) as trace, pytest.raises(ValueError, match=r"open for reading: use Trace.create"):
        declare(trace)
    with pytest.raises(ValueError, match="is closed"):
        trace.flush()
    trace.close()


def test_unknown_groups_are_named(path):
    with create(path) as trace:
        declare(trace)
        with pytest.raises(ValueError, match=r"no group 'tests' to append to: .*'training'"):
            trace.append("tests", 0, {})
        with pytest.raises(ValueError, match=r"no group 'tests' in .*'training'"):
            trace.read("tests")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"loss": 1.0}, r"missing \['pulses'\], unknown \[\]"),
        ({"loss": 1.0, "pulses": 1, "lost": 2}, r"missing \[\], unknown \['lost'\]"),
        ({"loss": [1.0, 2.0], "pulses": 1}, r"'loss' .* has shape \(2,\); declared is \(\)"),
        ({"loss": 1.0, "pulses": 0.5}, r"'pulses' .* is float64 and declared as int64"),
        ({"loss": "low", "pulses": 1}, r"'loss' .* declared as float64"),
    ],
)
def test_bad_rows_are_refused_whole(path, row, message):
    with create(path) as trace:
        declare(trace)
        with pytest.raises(ValueError, match=message):
            trace.append("training", 0, row)
        assert trace.lengths()["training"] == 0


LOSS = {"loss": Variable("nats")}


@pytest.mark.parametrize(
    ("group", "along", "variables", "dims", "message"),
    [
        ("training", "step", {"loss": Variable("J")}, None, "'training' exists with other variables"),
        ("training/inner", "step", LOSS, None, "cannot hold or lie within 'training'"),
        ("conductances", "step", LOSS, None, "cannot hold or lie within 'conductances/"),
        ("/new", "step", LOSS, None, "name ''"),
        ("new", "st/ep", LOSS, None, "name 'st/ep'"),
        ("new", "loss", LOSS, None, "'loss' names the growing dimension"),
        ("new", "step", {"g": Variable("S", dims=("row",))}, None, r"unknown dimensions \['row'\]"),
        ("new", "step", LOSS, {"loss": 3}, "'loss' names a dimension and a variable"),
        ("new", "step", LOSS, {"row": 0}, r"an axis of shape \(0,\)"),
    ],
)
def test_bad_declarations_are_refused(path, group, along, variables, dims, message):
    with create(path) as trace:
        declare(trace)
        with pytest.raises(ValueError, match=message):
            trace.declare(group, along=along, variables=variables, dims=dims)


def test_a_whole_group_is_written_once(path):
    with create(path) as trace:
        record_one = ("t", {"x": Variable("1", dims=("i",))}, {"x": [1, 2]}, {"i": 2})
        trace.write(*record_one)
        with pytest.raises(ValueError, match="'t' has been recorded already"):
            trace.write(*record_one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": ""}, "units is empty"),
        ({"units": "1", "dtype": "float23"}, "dtype='float23' is no NumPy type"),
        ({"units": "1", "dtype": "U5"}, "dtype='U5': must be an integer or floating type"),
    ],
)
def test_bad_variables_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Variable(**settings)
