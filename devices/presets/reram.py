"""Resistive memory that learns by pulses: fits of single cells and of arrays. Normalised weights.

The sources give weights, not siemens: the window is a choice and a setting. By default it is so far from 0 S that the
spread of the bounds is rarely cut off there. All fits are read from aihwkit, not from the papers' figures.
"""

from __future__ import annotations

from devices.anchored_soft_bounds import AnchoredSoftBoundsPulses
from devices.cell import MemoryCell
from devices.exponential_step import ExponentialPulses
from devices.step_pulses import StepPulses
from devices.window import Window
from devices.write_noise import HiddenStateNoise


def _write_noise(weight: float, pulses: StepPulses) -> HiddenStateNoise:
    """Write noise of this standard deviation, in weights where the window is 2 wide."""
    return HiddenStateNoise(weight / (2 * pulses.step_siemens(Window(0.0, 1.0))))


def reram_exponential(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """ReRAM fitted by exponential steps, with write noise on a hidden state.

    Source: fit to Gong et al., Nat. Commun. 9:2102 (2018), as published with aihwkit (ReRamESPresetDevice), in
    weights w = -1..1: dw_min 0.00135 with down steps 0.259359 smaller; z = -0.5 (w + 1);

        up    0.00135 (1 + 1.18445 e^(5 z))              0.0029490 at -1, 0.0014813 at 0, 0.0013608 at 1
        down  0.00135 0.740641 (1 + 0.081404 e^(-5 z))   0.0010813 at -1, 0.0019914 at 0, 0.0130797 at 1

    equal at w = -0.217230, the symmetry point; cycle-to-cycle 5 times the move; write noise 75 x 0.00135 = 0.10125;
    spreads 0.2 (step), 0.05 (asymmetry), 0.3 (bounds). In the form used here:

    - the mean of both prefactors is 0.00135 (1 + 0.740641) / 2 = 0.00117493: steps = 2 / 0.00117493 = 1702.23;
    - asymmetry = 0.259359 / 1.740641 = 0.149002;
    - z = slope u + offset with u = w on the window: both are -0.5;
    - the nominal step at w = 0 is (0.0014813 + 0.0019914) / 2 = 0.0017363: write noise 58.31 steps.

    Where this departs: the spread of the asymmetry multiplies that of the step, there it is added to it; where bounds
    vary, u is -1 and 1 at the cell's own bounds, there w = 0 stays u = 0.
    """
    down = 1 - 0.259359
    pulses = ExponentialPulses(
        steps=2 / (0.00135 * (1 + down) / 2),
        sigma_dtod=0.2,
        sigma_c2c=5.0,
        asymmetry=(1 - down) / (1 + down),
        sigma_asymmetry=0.05,
        sigma_bounds=0.3,
        a_up=-1.18445,
        a_down=-0.081404,
        gamma_up=5.0,
        gamma_down=5.0,
        slope=-0.5,
        offset=-0.5,
    )
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=pulses,
        write_noise=_write_noise(75 * 0.00135, pulses),
        source="exponential fit to Gong et al., Nat. Commun. 9:2102 (2018), values from aihwkit; window chosen",
    )


def reram_soft_bounds(g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6) -> MemoryCell:
    """ReRAM fitted by soft bounds, with write noise on a hidden state.

    Source: fit to Gong et al., Nat. Commun. 9:2102 (2018), as published with aihwkit (ReRamSBPresetDevice), in
    weights w = -0.75..1.25: up 0.002 (1 - w/1.25), down 0.002 (1 + w/0.75), equal at w = 0; spreads 0.3 (step), 0.01
    (asymmetry), 0.3 of each bound, i.e. 0.3/1.25 = 0.24 and 0.3/0.75 = 0.4 of it; cycle-to-cycle 3.75 x 0.002 =
    0.0075 at every w; write noise 56 x 0.002 = 0.112. In the form used here:

    - zero lies at 0.75 / 2 = 0.375 of the window, g_min + 0.375 span: the symmetry point, *not* mid-window, is the
      natural zero of a weight; steps = 2 / 0.002 = 1000, counted there;
    - at mid-window (w = 0.25) up 0.0016, down 0.0026667, so the nominal step is 0.0021333: write noise 52.5 steps.

    Where this departs: the spread of the asymmetry multiplies that of the step, there it is added to it.
    """
    pulses = AnchoredSoftBoundsPulses(
        steps=1000,
        sigma_dtod=0.3,
        sigma_c2c=3.75,
        c2c_of="step",
        sigma_asymmetry=0.01,
        zero=0.375,
        sigma_upper=0.24,
        sigma_lower=0.4,
    )
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=pulses,
        write_noise=_write_noise(56 * 0.002, pulses),
        source="soft-bounds fit to Gong et al., Nat. Commun. 9:2102 (2018), values from aihwkit; window chosen",
    )


def reram_array_optimised(
    g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6, fraction_stuck: float = 0.1348
) -> MemoryCell:
    """ReRAM array of an optimised material: few, large soft-bounds steps of wide spread.

    Source: Gong, Rasch et al., IEDM 2022, as published with aihwkit (ReRamArrayOMPresetDevice), in weights w =
    -1..1: dw_min 0.0949 (up 0.0949 (1 - w), down 0.0949 (1 + w)), steps = 2 / 0.0949 = 21.07; log-normal spread of
    the step 0.7829, so that dw_min is the median and the mean e^(0.7829^2 / 2) = 1.3586 times it; spreads of the upper
    and lower bound 0.3499 and 0.5695, of the asymmetry 0.01; cycle-to-cycle 0.4158 x 0.0949 at every w; write noise
    1.4113 steps. 13.48 % of the cells are stuck within 0.01 of w = 0 (aihwkit leaves them out: fraction_stuck=0).

    Not modelled: the error (0.05) of subtracting each cell's symmetry point by a reference; use a mapping with a
    reference. The measured bounds, 1.4839 and -0.6192, are scaled to 1 and -1 in the source.
    """
    return _array(
        g_min_siemens, g_max_siemens, 0.0949, 0.7829, 0.4158, (0.3499, 0.5695), 1.4113, fraction_stuck
    )


def reram_array_baseline(
    g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6, fraction_stuck: float = 0.0977
) -> MemoryCell:
    """HfO2 ReRAM array, the baseline of the optimised one: four steps across its range.

    Source, form and what is not modelled: as reram-array-optimised (aihwkit: ReRamArrayHfO2PresetDevice), with dw_min
    0.4622 (steps = 2 / 0.4622 = 4.327), log-normal spread 0.7125 (mean 1.2890 times the median), bounds 0.4295 and
    0.5990, cycle-to-cycle 0.2174, write noise 0.5841 steps, 9.77 % stuck; measured bounds 1.1490 and -1.0284.
    """
    return _array(
        g_min_siemens, g_max_siemens, 0.4622, 0.7125, 0.2174, (0.4295, 0.5990), 0.5841, fraction_stuck
    )


def _array(
    g_min_siemens: float,
    g_max_siemens: float,
    dw_min: float,
    sigma_dtod: float,
    sigma_c2c: float,
    sigma_bounds: tuple[float, float],
    write_noise: float,
    fraction_stuck: float,
) -> MemoryCell:
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=AnchoredSoftBoundsPulses(
            steps=2 / dw_min,
            sigma_dtod=sigma_dtod,
            dtod="log-normal",
            sigma_c2c=sigma_c2c,
            c2c_of="step",
            sigma_asymmetry=0.01,
            sigma_upper=sigma_bounds[0],
            sigma_lower=sigma_bounds[1],
            fraction_stuck=fraction_stuck,
        ),
        write_noise=HiddenStateNoise(write_noise),
        source="Gong, Rasch et al., IEDM 2022, values from aihwkit; window chosen",
    )


PRESETS = (reram_exponential, reram_soft_bounds, reram_array_optimised, reram_array_baseline)
