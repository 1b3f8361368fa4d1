"""Specification cells of resistive processing units: what a technology should be like. Normalised weights."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.constant_step import ConstantStepPulses


def rpu(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Specification cell of a resistive processing unit: constant steps.

    Source: Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), scaled to weights -1..1 as published with
    aihwkit (GokmenVlasovPresetDevice): dw_min 0.0016, so steps = 2 / 0.0016 = 1250 (the paper has about
    1200), spreads 0.3 (step), 0.3 (cycle), 0.3 (bounds), 0.01 (asymmetry). Normalised: the window is a choice, wide
    enough from 0 S by default that the spread of the bounds is hardly ever cut off there.
    """
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=ConstantStepPulses(
            steps=1250, sigma_dtod=0.3, sigma_c2c=0.3, sigma_asymmetry=0.01, sigma_bounds=0.3
        ),
        source="Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), scaled as in aihwkit; window chosen",
    )


def rpu_idealised(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """Specification cell with eight times finer, perfectly symmetric steps.

    Source: Rasch et al., 2019, as published with aihwkit (IdealizedPresetDevice): dw_min 0.0002 in weights
    -1..1, so steps = 2 / 0.0002 = 10000; spreads 0.3 (step), 0.3 (cycle), 0.3 (bounds). Normalised: the window is a
    choice, as for rpu.
    """
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=ConstantStepPulses(steps=10_000, sigma_dtod=0.3, sigma_c2c=0.3, sigma_bounds=0.3),
        source="Rasch et al. (2019), as in aihwkit; window chosen",
    )


PRESETS = (rpu, rpu_idealised)
