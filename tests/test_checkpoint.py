import json
import os
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mep_sim import checkpoint
from mep_sim.checkpoint import RunFolder, load, restore_generator, save, to_json


def training_state():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "trace": {"training": 12, "transients/epoch_0": None},
        "epoch": 3,
        "loss": float("nan"),
        "names": ["a", ("b", torch.float32, torch.Size([2, 3]))],
        "rng": torch.Generator().manual_seed(3).get_state(),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_a_state_comes_back_as_it_was(path):
    state = training_state()
    save(path, state)
    loaded = load(path)
    assert loaded.keys() == state.keys()
    assert isinstance(loaded["model"], OrderedDict)
    for name, tensor in state["model"].items():
        assert torch.equal(loaded["model"][name], tensor)
    torch.testing.assert_close(loaded["optimizer"], state["optimizer"], rtol=0, atol=0)
    assert loaded["trace"] == state["trace"]
    assert loaded["names"] == state["names"]
    assert loaded["loss"] != loaded["loss"]


def test_a_restored_generator_goes_on_where_it_was(path):
    rng = torch.Generator().manual_seed(1)
    torch.rand(10, generator=rng)
    save(path, {"rng": rng.get_state()})
    expected = torch.rand(10, generator=rng)
    other = torch.Generator()
    restore_generator(other, load(path)["rng"])
    assert torch.equal(torch.rand(10, generator=other), expected)


def test_a_state_of_another_kind_of_generator_is_refused():
    with pytest.raises(ValueError, match=r"16 bytes does not fit a generator on cpu"):
        restore_generator(torch.Generator(), torch.zeros(16, dtype=torch.uint8))


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "os.replace"])
def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_litter(path, monkeypatch, moment):
    save(path, {"epoch": 1})

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    module, name = moment.split(".")
    monkeypatch.setattr({"torch": torch, "os": os}[module], name, fail)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"epoch": 2})
    monkeypatch.undo()
    assert load(path) == {"epoch": 1}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, np.float64(2.0)]}}, r"state\['a'\]\['b'\]\[1\] is of type float64: .*\.item\(\)"),
        ({"config": object()}, r"state\['config'\] is of type object"),
        ({"x": np.zeros(2)}, r"state\['x'\] is of type ndarray"),
        ({("a", object): 1}, r"key .* is of type type"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(path, state, message):
    with pytest.raises(ValueError, match=message):
        save(path, state)
    assert not path.exists()


def test_every_plain_type_is_one_that_loads(path):
    values = [None, True, 2, 2.5, "text", torch.int8, torch.device("cpu"), torch.Size([1])]
    assert {type(value) for value in values} == set(checkpoint.PLAIN)
    save(path, {"values": values})
    assert load(path)["values"] == values


def test_a_missing_checkpoint_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*checkpoint.pt: check the path"):
        load(path)


@pytest.mark.parametrize("keep", [0, 1, 100, -30])
def test_a_cut_checkpoint_is_refused(path, keep):
    save(path, training_state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read as a checkpoint on cpu"):
        load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(1000)])
def test_foreign_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt"):
        load(path)


def test_a_file_that_would_run_code_is_refused(path):
    torch.save({"format": checkpoint.FORMAT, "version": 1, "state": os.getcwd}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(path)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"format": "other", "version": 1}])
def test_files_of_others_are_refused(path, content):
    torch.save(content, path)
    with pytest.raises(ValueError, match="holds no mep-sim checkpoint"):
        load(path)


def test_a_newer_format_is_refused(path):
    torch.save({"format": checkpoint.FORMAT, "version": 2, "state": {}}, path)
    with pytest.raises(ValueError, match=r"format version 2, this mep-sim knows up to 1; update"):
        load(path)


# The run folder

CONFIG = {"beta": 0.1, "layers": (4, 3), "device": {"name": "PCM", "noise": 0.02}}


def test_a_new_run_gets_its_folder_and_config(tmp_path):
    folder = RunFolder.open(tmp_path / "runs" / "a", CONFIG)
    assert json.loads((folder.path / "config.json").read_text()) == {**CONFIG, "layers": [4, 3]}
    assert not folder.resumable
    assert not folder.finished


@pytest.mark.parametrize("name", ["config.json", "trace.h5", "checkpoint.pt", "results.json"])
def test_a_folder_with_another_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        FileExistsError, match=rf"holds another run \({name}\); choose another --out, or --resume"
    ):
        RunFolder.open(tmp_path, CONFIG)
    assert os.listdir(tmp_path) == [name]


def test_a_run_is_resumed_with_its_own_config(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    assert not RunFolder.open(tmp_path, CONFIG, resume=True).resumable
    save(tmp_path / "checkpoint.pt", {"epoch": 1})
    folder = RunFolder.open(tmp_path, CONFIG, resume=True)
    assert folder.resumable
    assert load(folder.checkpoint) == {"epoch": 1}


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    other = {"layers": (4, 3), "device": {"name": "PCM", "noise": 0.03}, "seed": 1}
    with pytest.raises(ValueError, match=r"configuration: ") as error:
        RunFolder.open(tmp_path, other, resume=True)
    assert (
        "beta was 0.1, is absent, device.noise was 0.02, is 0.03, seed was absent, is 1; resume with the same"
    ) in str(error.value)


def test_resuming_where_nothing_was_begun_begins(tmp_path):
    folder = RunFolder.open(tmp_path / "new", CONFIG, resume=True)
    assert not folder.resumable
    assert (folder.path / "config.json").exists()


def test_a_checkpoint_without_its_config_is_not_resumed(tmp_path):
    save(tmp_path / "checkpoint.pt", {})
    with pytest.raises(FileExistsError, match=r"holds another run \(checkpoint.pt\); choose another --out$"):
        RunFolder.open(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_neither_resumed_nor_replaced(tmp_path, resume):
    RunFolder.open(tmp_path, CONFIG).finish({"accuracy": torch.tensor(0.5), "losses": np.array([1.0, 2.0])})
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy": 0.5, "losses": [1.0, 2.0]}
    with pytest.raises(
        FileExistsError, match=r"holds a finished run, see its results.json; choose another --out"
    ):
        RunFolder.open(tmp_path, CONFIG, resume)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_run_killed_while_finishing_is_not_finished(tmp_path, monkeypatch, writes):
    folder = RunFolder.open(tmp_path, CONFIG)
    real, done = os.replace, []

    def killed(source, target):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.finish({"accuracy": 0.5})
    monkeypatch.undo()
    assert not folder.finished
    assert folder.results.exists() == (writes == 1)
    RunFolder.open(tmp_path, CONFIG, resume=True).finish({"accuracy": 0.6})
    assert folder.finished
    assert json.loads(folder.results.read_text()) == {"accuracy": 0.6}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the folder .*file/run \(.*\); choose another --out"):
        RunFolder.open(tmp_path / "file" / "run", CONFIG)

    def refuse(**settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"\(Permission denied\); choose another --out"):
        RunFolder.open(tmp_path / "run", CONFIG)


def test_a_config_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"of type PosixPath has no place in JSON; .*str\("):
        RunFolder.open(tmp_path / "run", {"data": tmp_path})
    assert not (tmp_path / "run").exists()


def test_json_takes_numpy_and_torch_numbers():
    assert json.loads(to_json({"a": np.int64(1), "b": torch.ones(2), "c": np.float32(0.5)})) == {
        "a": 1,
        "b": [1.0, 1.0],
        "c": 0.5,
    }
