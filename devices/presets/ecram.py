"""Electrochemical memory: many small, nearly symmetric steps. Normalised weights.

Both are linear-step fits as published with aihwkit, shifted so that up and down steps are equal at w = 0, which lies at
0.414 of the window, not at its middle. The window is a choice. Departures from the fit: slopes are relative to the
cell's own bounds, there to the nominal ones, and their spread (0.05) is not modelled; the spread of the bounds, 5 % of
each bound there, is 5 % of half the window here.
"""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.linear_step import LinearPulses


def li_ecram(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Lithium-ion electrochemical memory.

    Source: Tang et al., IEDM 2018, fit of aihwkit (EcRamPresetDevice), in weights w = -0.8276..1.1724: up
    0.002 (1 - 0.1153 w/1.1724), down 0.002 (1 + 0.5085 w/0.8276); about 1020 pulses either way; cycle-to-cycle 0.3
    times the move; spreads 0.1 (step), 0.01 (asymmetry), 0.05 (bounds). At mid-window, w = 0.1724, up is 0.00196609
    and down 0.00221185: steps = 2 / 0.00208897 = 957.4, asymmetry -0.0588.
    """
    pulses = LinearPulses.in_weights(
        0.002, -0.8276, 1.1724, 0.1153, 0.5085, sigma_dtod=0.1, sigma_c2c=0.3, **_SPREADS
    )
    source = "linear fit to Tang et al., IEDM 2018, values from aihwkit; window chosen"
    return MemoryCell(g_min_siemens, g_max_siemens, pulses=pulses, source=source)


def mo_ecram(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Metal-oxide electrochemical memory: very small steps, noisier than they are large.

    Source: Kim et al., IEDM 2019, fit of aihwkit (EcRamMOPresetDevice), in weights w = -0.8286..1.1714: up
    2.8214e-4 (1 - 0.4152 w/1.1714), down 2.8214e-4 (1 + 0.7342 w/0.8286); about 8000 pulses either way;
    cycle-to-cycle 2 times the move; other spreads as li-ecram.
    """
    pulses = LinearPulses.in_weights(
        2.8214e-4, -0.8286, 1.1714, 0.4152, 0.7342, sigma_dtod=0.1, sigma_c2c=2.0, **_SPREADS
    )
    source = "linear fit to Kim et al., IEDM 2019, values from aihwkit; window chosen"
    return MemoryCell(g_min_siemens, g_max_siemens, pulses=pulses, source=source)


_SPREADS = {"sigma_asymmetry": 0.01, "sigma_bounds": 0.05}
PRESETS = (li_ecram, mo_ecram)
