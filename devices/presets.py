"""Named devices. Every preset says where its numbers come from; vary them by `dataclasses.replace`.

Models published in normalised weights say nothing about siemens: their window is a choice, and a setting.
Weights w in [w_min, w_max] correspond to [g_min, g_max] linearly.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from devices.base import Device
from devices.bits import with_bits
from devices.cell import MemoryCell
from devices.constant_step import ConstantStepPulses
from devices.drift import PCMDrift
from devices.ideal import Ideal
from devices.level_pulses import LevelPulses
from devices.programming import PolynomialProgrammingNoise, WindowProgrammingNoise
from devices.read_noise import PCMReadNoise, WhiteReadNoise
from devices.soft_bounds import SoftBoundsPulses


def ideal() -> Ideal:
    """Exact analog cell, 1 to 100 uS, programmed without error and without pulses."""
    return Ideal(1e-6, 100e-6, source="generic: no imperfection")


def levels_8bit() -> MemoryCell:
    """256 exact levels, 1 to 100 uS; one pulse is one level."""
    source = "generic: finite resolution is the only imperfection"
    return MemoryCell(1e-6, 100e-6, levels=256, pulses=LevelPulses(), source=source)


def levels_6bit() -> MemoryCell:
    """64 exact levels, 1 to 100 uS; one pulse is one level."""
    return with_bits(levels_8bit(), 6)


def levels_4bit() -> MemoryCell:
    """16 exact levels, 1 to 100 uS; one pulse is one level."""
    return with_bits(levels_8bit(), 4)


def soft_bounds_6bit() -> MemoryCell:
    """Generic study cell: 63 soft-bounds steps over 1 to 100 uS, realistic noise.

    30 % step spread from device to device and from cycle to cycle (the specification of Gokmen & Vlasov,
    Front. Neurosci. 10:333, 2016), 1 % programming and 2 % read noise of the window's span. Not measured.
    """
    return MemoryCell(
        1e-6,
        100e-6,
        pulses=SoftBoundsPulses(steps=63, sigma_dtod=0.3, sigma_c2c=0.3),
        programming=WindowProgrammingNoise(0.01),
        read_noise=WhiteReadNoise(0.02),
        source="generic study cell; step spreads as in Gokmen & Vlasov, Front. Neurosci. 10:333 (2016)",
    )


def soft_bounds_4bit() -> MemoryCell:
    """Generic study cell of 4 bits: 15 soft-bounds steps, otherwise as soft-bounds-6bit."""
    return with_bits(soft_bounds_6bit(), 4)


def reram_soft_bounds() -> MemoryCell:
    """ReRAM fitted by soft bounds, in a chosen window of 40 to 100 uS.

    Source: fit to Gong et al., Nat. Commun. 9:2102 (2018) as published with aihwkit (ReRamSBPresetDevice), in
    normalised weights: dw_min 0.002 at w = 0, w from -0.75 to 1.25, spreads 0.3 (step), 0.01 (asymmetry),
    0.3 (bounds), cycle-to-cycle 3.75. In the form used here:

    - The range is 2 wide and its middle is w = 0.25. The fit moves up by dw_min (1 - w/1.25) and down by
      dw_min (1 + w/0.75): at the middle up 0.8 dw_min = 0.0016, down 4/3 dw_min = 0.0026667.
    - Their mean is 0.0021333: steps = 2 / 0.0021333 = 937.5.
    - Asymmetry = (0.0016 - 0.0026667) / (0.0016 + 0.0026667) = -0.25.
    - So both moves are those of the fit at every w, and equal at w = 0, i.e. g_min + 0.375 span: the symmetry
      point, *not* mid-window, is the natural zero of a weight.

    Where this departs from the fit: there cycle-to-cycle noise is additive, here it multiplies the move
    (equal at w = 0, less towards the bound ahead); there each cell keeps its symmetry point, here it moves
    with the cell's bounds; and the write noise on top of a hidden state (56 dw_min) is not modelled yet.
    The window is a choice: wide enough from 0 S that the spread of the bounds is hardly ever cut off there.
    """
    return MemoryCell(
        40e-6,
        100e-6,
        pulses=SoftBoundsPulses(
            steps=937.5,
            sigma_dtod=0.3,
            sigma_c2c=3.75,
            asymmetry=-0.25,
            sigma_asymmetry=0.01,
            sigma_bounds=0.3,
        ),
        source="soft-bounds fit to Gong et al., Nat. Commun. 9:2102 (2018), values from aihwkit; window "
        "chosen; write noise on the hidden state not modelled",
    )


def rpu() -> MemoryCell:
    """Specification cell of a resistive processing unit: constant steps, in a chosen window of 40 to 100 uS.

    Source: Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), scaled to weights -1..1 as published with
    aihwkit (GokmenVlasovPresetDevice): dw_min 0.0016, so steps = 2 / 0.0016 = 1250 (the paper has about
    1200), spreads 0.3 (step), 0.3 (cycle), 0.3 (bounds), 0.01 (asymmetry). Normalised: the window is a
    choice, wide enough from 0 S that the spread of the bounds is hardly ever cut off there.
    """
    return MemoryCell(
        40e-6,
        100e-6,
        pulses=ConstantStepPulses(
            steps=1250, sigma_dtod=0.3, sigma_c2c=0.3, sigma_asymmetry=0.01, sigma_bounds=0.3
        ),
        source="Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), scaled as in aihwkit; window chosen",
    )


def pcm() -> MemoryCell:
    """Phase-change memory, 0 to 25 uS: programming noise, drift and 1/f read noise; no pulses.

    Source: Nandakumar et al., ICECS 2019; the values as public simulators (aihwkit) state them.
    """
    return MemoryCell(
        0.0,
        25e-6,
        programming=PolynomialProgrammingNoise((0.26348e-6, 1.9650e-6, -1.1731e-6)),
        drift=PCMDrift(t0_seconds=20.0),
        read_noise=PCMReadNoise(t0_seconds=20.0, t_read_seconds=250e-9),
        source="Nandakumar et al., ICECS 2019",
    )


_PRESETS: dict[str, Callable[[], Device]] = {
    "ideal": ideal,
    "levels-4bit": levels_4bit,
    "levels-6bit": levels_6bit,
    "levels-8bit": levels_8bit,
    "soft-bounds-4bit": soft_bounds_4bit,
    "soft-bounds-6bit": soft_bounds_6bit,
    "reram-soft-bounds": reram_soft_bounds,
    "rpu": rpu,
    "pcm": pcm,
}


def preset_names() -> tuple[str, ...]:
    """All names that `preset` knows."""
    return tuple(_PRESETS)


def preset(name: str) -> Device:
    """The device called `name`; ValueError lists the known names."""
    return _maker(name)()


def describe(name: str) -> str:
    """One line about a preset: what it is and where its numbers come from."""
    make = _maker(name)
    return f"{name}: {make.__doc__.splitlines()[0]} Source: {make().source}."


def _maker(name: str) -> Callable[[], Device]:
    if name in _PRESETS:
        return _PRESETS[name]
    near = difflib.get_close_matches(str(name), _PRESETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown device {name!r}.{hint} Known presets: {', '.join(_PRESETS)}; or give the path of a "
        ".json file."
    )
