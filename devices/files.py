"""Devices as JSON files: settings by name, parts by the name of their type.

    {"type": "MemoryCell", "g_min_siemens": 1e-06, "g_max_siemens": 0.0001,
     "read_noise": {"type": "WhiteReadNoise", "sigma_relative": 0.02}}

Settings left out take their defaults; anything unknown is an error.
"""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from devices.anchored_soft_bounds import AnchoredSoftBoundsPulses
from devices.base import Device
from devices.cell import MemoryCell
from devices.constant_step import ConstantStepPulses
from devices.drift import Leak, PCMDrift, PowerLawDrift
from devices.exponential_step import ExponentialPulses
from devices.faults import Endurance, StuckCells
from devices.hermes import HermesDrift, HermesReadNoise
from devices.ideal import Ideal
from devices.level_pulses import LevelPulses
from devices.linear_step import LinearPulses
from devices.log_relaxation import LogarithmicDrift, LogarithmicReadNoise
from devices.micro_noise import MicrosiemensProgrammingNoise
from devices.operation import Operation
from devices.power_step import PowerPulses
from devices.presets import preset
from devices.programming import PolynomialProgrammingNoise, WindowProgrammingNoise
from devices.read_noise import FlickerReadNoise, PCMReadNoise, WhiteReadNoise
from devices.saturating_noise import SaturatingProgrammingNoise, SaturatingReadNoise
from devices.soft_bounds import SoftBoundsPulses
from devices.sonos_drift import SonosDrift
from devices.table_step import TablePulses
from devices.write_noise import HiddenStateNoise

_TYPES = (
    Ideal,
    MemoryCell,
    LevelPulses,
    SoftBoundsPulses,
    AnchoredSoftBoundsPulses,
    ConstantStepPulses,
    LinearPulses,
    ExponentialPulses,
    PowerPulses,
    TablePulses,
    WindowProgrammingNoise,
    PolynomialProgrammingNoise,
    MicrosiemensProgrammingNoise,
    SaturatingProgrammingNoise,
    WhiteReadNoise,
    FlickerReadNoise,
    PCMReadNoise,
    HermesReadNoise,
    SaturatingReadNoise,
    LogarithmicReadNoise,
    PowerLawDrift,
    PCMDrift,
    HermesDrift,
    SonosDrift,
    LogarithmicDrift,
    Leak,
    StuckCells,
    Endurance,
    HiddenStateNoise,
    Operation,
)


def save(device: Device, path: str | Path) -> None:
    """Write `device` to `path` as JSON; `load` gives back an equal device."""
    Path(path).write_text(json.dumps(_to_plain(device), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load(path: str | Path, own_types: Sequence[type] = ()) -> Device:
    """Read a device from a JSON file.

    own_types  frozen dataclasses of one's own (devices, parts) that the file may name as well

    ValueError names the file and the place: malformed JSON, unknown type or setting, wrong kind of value,
    missing setting, value out of range. FileNotFoundError if there is no such file.
    """
    known = {t.__name__: t for t in (*_TYPES, *own_types)}
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
        device = _build(data, known, "device")
        if not isinstance(device, Device):
            raise ValueError(
                f"device: type {data['type']!r} is a part, not a device. Put it into a 'MemoryCell'."
            )
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON: {error}. Compare with a file written by devices.save."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return device


def resolve(name_or_path: str | Path) -> Device:
    """A device from a command line: a path ending in .json is loaded, anything else is a preset's name."""
    return load(name_or_path) if str(name_or_path).endswith(".json") else preset(str(name_or_path))


def _to_plain(value: object) -> object:
    if is_dataclass(value):
        return {"type": type(value).__name__} | {
            f.name: _to_plain(getattr(value, f.name)) for f in fields(value)
        }
    return list(value) if isinstance(value, tuple) else value


def _unique(pairs: list[tuple[str, object]]) -> dict:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"setting(s) {twice} given twice in one object. Keep one of them.")
    return data


def _build(data: object, known: dict[str, type], where: str) -> object:
    """The dataclass that `data` describes; `where` is its place in the file, for messages."""
    if not isinstance(data, dict) or "type" not in data:
        raise ValueError(f"{where} = {data!r}: expected an object with a 'type', one of {', '.join(known)}.")
    if data["type"] not in known:
        raise ValueError(f"{where}: unknown type {data['type']!r}. Known types: {', '.join(known)}.")
    cls = known[data["type"]]
    settings = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(settings) - {"type"})
    if unknown:
        raise ValueError(f"{where}: {cls.__name__} has no setting {unknown}. It has: {', '.join(settings)}.")
    missing = [name for name, f in settings.items() if name not in data and f.default is MISSING]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs the setting(s) {missing}.")
    hints = get_type_hints(cls)
    given = {name: value for name, value in data.items() if name != "type"}
    return cls(
        **{name: _convert(value, hints[name], known, f"{where}.{name}") for name, value in given.items()}
    )


def _convert(value: object, hint: object, known: dict[str, type], where: str) -> object:
    """`value` as the annotation `hint` wants it; ValueError if it is of another kind."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _convert(value, hint, known, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(
            f"{where} = {value!r} is not allowed: choose one of {', '.join(map(repr, arguments))}."
        )
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(v, arguments[0], known, f"{where}[{k}]") for k, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is hint:
            return value
        raise ValueError(f"{where} = {value!r} is not allowed: expected {hint.__name__}.")
    if origin is tuple:
        raise ValueError(f"{where} = {value!r} is not allowed: expected a list.")
    part = _build(value, known, where)
    if not isinstance(part, hint):
        raise ValueError(f"{where}: {type(part).__name__} does not fit here: expected a {hint.__name__}.")
    return part
