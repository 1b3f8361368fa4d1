"""Cells of no technology in particular: what others are compared with. Windows are choices."""

from __future__ import annotations

from devices.bits import with_bits
from devices.cell import MemoryCell
from devices.ideal import Ideal
from devices.level_pulses import LevelPulses
from devices.programming import WindowProgrammingNoise
from devices.read_noise import WhiteReadNoise
from devices.soft_bounds import SoftBoundsPulses


def ideal(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> Ideal:
    """Exact analog cell, programmed without error and without pulses."""
    return Ideal(g_min_siemens, g_max_siemens, source="generic: no imperfection")


def levels_8bit(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """256 exact levels; one pulse is one level."""
    source = "generic: finite resolution is the only imperfection"
    return MemoryCell(g_min_siemens, g_max_siemens, levels=256, pulses=LevelPulses(), source=source)


def levels_6bit(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """64 exact levels; one pulse is one level."""
    return with_bits(levels_8bit(g_min_siemens, g_max_siemens), 6)


def levels_4bit(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """16 exact levels; one pulse is one level."""
    return with_bits(levels_8bit(g_min_siemens, g_max_siemens), 4)


def soft_bounds_6bit(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Generic study cell: 63 soft-bounds steps, realistic noise.

    30 % step spread from device to device and from cycle to cycle (the specification of Gokmen & Vlasov,
    Front. Neurosci. 10:333, 2016), 1 % programming and 2 % read noise of the window's span. Not measured.
    """
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=SoftBoundsPulses(steps=63, sigma_dtod=0.3, sigma_c2c=0.3),
        programming=WindowProgrammingNoise(0.01),
        read_noise=WhiteReadNoise(0.02),
        source="generic study cell; step spreads as in Gokmen & Vlasov, Front. Neurosci. 10:333 (2016)",
    )


def soft_bounds_4bit(g_min_siemens: float = 1e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Generic study cell of 4 bits: 15 soft-bounds steps, otherwise as soft-bounds-6bit."""
    return with_bits(soft_bounds_6bit(g_min_siemens, g_max_siemens), 4)


PRESETS = (ideal, levels_4bit, levels_6bit, levels_8bit, soft_bounds_4bit, soft_bounds_6bit)
