"""What outlives a killed run: its checkpoint, and the folder that says which run it was and whether it ended.

Every file here is written whole to a neighbour and then renamed, so that each name always holds either the
old content or the new, never a part.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

FORMAT = "mep-sim checkpoint"
FORMAT_VERSION = 1

# What `torch.load(weights_only=True)` gives back unchanged.
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


def save(path: str | Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint atomically: killed at any moment, `path` holds the old state or the new.

    Args:
        path: usually `RunFolder.checkpoint`.
        state: tensors, numbers, strings and None in dicts, lists and tuples, such as `state_dict()`s,
            `rng.get_state()` and `trace.lengths()`.

    Raises:
        ValueError: the state holds something that `load` would refuse; found before anything is written.
        OSError: the folder is not writable, or the disk is full.
    """
    state = dict(state)
    _check_plain(state, "state")
    content = {"format": FORMAT, "version": FORMAT_VERSION, "state": state}
    _write_atomically(Path(path), lambda file: torch.save(content, file))


def load(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, object]:
    """The state last saved at `path`, its tensors on `map_location`. Runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, no checkpoint of ours, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: check the path, or start the run anew")
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # torch raises a dozen kinds on foreign or cut files, OSError among them
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{path} cannot be read as a checkpoint on {map_location} "
                f"({type(error).__name__}: {reason}); use another one or start the run anew"
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds no {FORMAT}; give a file that mep_sim.checkpoint.save wrote")
    if content["version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {content['version']}, this mep-sim knows up to {FORMAT_VERSION}; "
            "update mep-sim"
        )
    return content["state"]


def restore_generator(rng: torch.Generator, state: Tensor) -> None:
    """Put a generator where `rng.get_state()` was, also when `load` has moved that state to a GPU.

    Raises:
        ValueError: the state is that of a generator on another kind of device.
    """
    try:
        rng.set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"a state of {state.numel()} bytes does not fit a generator on {rng.device}; "
            "resume on the kind of device that the run began on"
        ) from error


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: `config.json`, `trace.h5`, `checkpoint.pt`, and then `results.json`, `finished`.

        folder = RunFolder.open(out, config, resume)
        if folder.resumable:
            state = load(folder.checkpoint)
            trace = Trace.resume(folder.trace, state["trace"])
        else:
            trace = Trace.create(folder.trace, config=config, seed=seed, overwrite=True)
        ...
        folder.finish(results)

    There, `overwrite=True` can only meet the trace of this same run, killed before its first checkpoint.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, object], resume: bool = False) -> RunFolder:
        """Create the folder of a new run, or go back to that of a run begun with the same `config`.

        Resuming where nothing was begun begins, so that a job that may be killed at any time can always be
        started with --resume.

        Args:
            path: the folder; made if need be, parents included.
            config: all that decides the results, in what JSON can hold; so without `out` and `resume`.
            resume: go on with the run that the folder holds.

        Raises:
            FileExistsError: the folder holds another run, or the resumed one is finished.
            ValueError: the resumed run was begun with another `config`.
            OSError: the folder cannot be made or written to.
        """
        folder = cls(Path(path))
        text = to_json(dict(config))
        _make_writable(folder.path)
        if folder.finished:
            raise FileExistsError(
                f"{path} holds a finished run, see its results.json; choose another --out for a new one"
            )
        if resume and folder._config.exists():
            folder._check_same_config(json.loads(text))
            return folder
        held = [file.name for file in folder._files if file.exists()]
        if held:
            way_out = "choose another --out" if resume else "choose another --out, or --resume"
            raise FileExistsError(f"{path} holds another run ({', '.join(held)}); {way_out}")
        _write_text(folder._config, text)
        return folder

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def trace(self) -> Path:
        return self.path / "trace.h5"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoint.exists()

    @property
    def finished(self) -> bool:
        """Whether `finish` has run to its end."""
        return self._marker.exists()

    def finish(self, results: Mapping[str, object]) -> None:
        """Write `results.json`, then mark the run as finished.

        Numbers may be tensors or NumPy; what is not finite is written as Python's NaN and Infinity.

        Raises:
            ValueError: `results` holds what JSON cannot.
            OSError: the folder is not writable, or the disk is full.
        """
        _write_text(self.results, to_json(dict(results)))
        _write_text(self._marker, datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    @property
    def _marker(self) -> Path:
        return self.path / "finished"

    @property
    def _files(self) -> tuple[Path, ...]:
        return self._config, self.trace, self.checkpoint, self.results, self._marker

    def _check_same_config(self, config: dict[str, object]) -> None:
        try:
            begun = _flat(json.loads(self._config.read_text()))
        except ValueError as error:
            raise ValueError(f"{self._config} is no JSON ({error}); choose another --out") from error
        now = _flat(config)
        keys = [key for key in sorted(begun.keys() | now.keys()) if begun.get(key) != now.get(key)]
        if keys:
            differences = ", ".join(
                f"{k} was {begun.get(k, 'absent')}, is {now.get(k, 'absent')}" for k in keys
            )
            raise ValueError(
                f"{self.path} was begun with another configuration: {differences}; "
                "resume with the same, or choose another --out"
            )


def to_json(value: object) -> str:
    """JSON text of plain values, NumPy and torch numbers and arrays.

    Raises:
        ValueError: the value holds something else; the message names its type.
    """

    def convert(item: object) -> object:
        if hasattr(item, "tolist"):  # NumPy and torch, scalars and arrays
            return item.tolist()
        raise ValueError(
            f"{item!r} of type {type(item).__name__} has no place in JSON; "
            "give numbers, strings, lists and dicts (str(...) of a path, dataclasses.asdict of settings)"
        )

    return json.dumps(value, indent=2, default=convert)


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Nested dicts as one, keys joined by dots, values as JSON (in which NaN equals itself)."""
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    nested = (_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: text for part in nested for key, text in part.items()}


def _check_plain(value: object, where: str) -> None:
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"key {key!r} of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif kind not in (*PLAIN, Tensor, torch.nn.Parameter):
        raise ValueError(
            f"{where} is of type {kind.__name__}: a checkpoint holds tensors, numbers, strings and None in "
            "dicts, lists and tuples; convert it (.item(), .tolist(), torch.from_numpy, .state_dict())"
        )


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the one sure way to know
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write to the folder {folder} ({error.strerror}); choose another --out"
        ) from error


def _write_text(path: Path, text: str) -> None:
    _write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    part = path.with_name(
        f"{path.name}.part"
    )  # in the same folder, for a rename is atomic only within a disk
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # make the rename itself last through a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
