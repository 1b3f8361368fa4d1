"""Named devices: one file per family, one function per technology. Every preset says where its numbers come from.

    devices.preset("pcm")
    devices.preset("reram-exponential", g_min_siemens=10e-6, g_max_siemens=50e-6)    # what the function takes

Vary anything else by `dataclasses.replace`. Models published in normalised weights say nothing about siemens: their
window is a choice, and a setting; weights w from w_min to w_max correspond to it linearly. A preset covers what its
source measured: conductances outside its window are refused by `program`, times outside the source's by `read`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from devices.base import Device
from devices.presets import capacitor, cmo_hfox, ecram, generic, neurosim, pcm, reram, rpu, rram, sonos

_PRESETS: dict[str, Callable[..., Device]] = {
    make.__name__.replace("_", "-"): make
    for family in (generic, rpu, reram, capacitor, ecram, pcm, rram, sonos, cmo_hfox, neurosim)
    for make in family.PRESETS
}


def preset_names() -> tuple[str, ...]:
    """All names that `preset` knows."""
    return tuple(_PRESETS)


def preset(name: str, **settings: object) -> Device:
    """The device called `name`, with the settings that its function takes; ValueError lists the known ones."""
    make = _maker(name)
    known = tuple(inspect.signature(make).parameters)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        has = f"It has: {', '.join(known)}." if known else "It has none."
        raise ValueError(
            f"Preset {name!r} has no setting {', '.join(map(repr, unknown))}. {has} Vary other parts by "
            "dataclasses.replace."
        )
    return make(**settings)


def describe(name: str) -> str:
    """One line about a preset: what it is and where its numbers come from."""
    make = _maker(name)
    return f"{name}: {make.__doc__.splitlines()[0]} Source: {make().source}."


def _maker(name: str) -> Callable[..., Device]:
    if name in _PRESETS:
        return _PRESETS[name]
    near = difflib.get_close_matches(str(name), _PRESETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown device {name!r}.{hint} Known presets: {', '.join(_PRESETS)}; or give the path of a "
        ".json file."
    )
