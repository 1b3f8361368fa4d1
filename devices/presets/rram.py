"""Filamentary resistive memory programmed for inference: how far from its target a conductance is found. No pulses."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.checks import check_number
from devices.micro_noise import MicrosiemensProgrammingNoise

_WAN_LATER = {  # quartics in g = G / 40 uS, c0 first, sigma in uS
    1: (0.701, 22.086, -50.773, 47.095, -16.458),
    2: (0.782, 20.274, -43.507, 37.062, -11.934),
}


def rram_wan(days: int = 0) -> MemoryCell:
    """HfOx RRAM of the NeuRRAM chip, 1 to 39.26 uS: spread of programmed cells after relaxation.

    Source: Wan et al., Nature 608:504 (2022). days = 0, 1 s after programming, as CrossSim states it: sigma = 1.053 +
    0.2374 G - 0.01167 G^2 + 1.536e-4 G^3 uS, G in uS. days = 1 and 2 as aihwkit states them: sigma = c0 + c1 g + ... +
    c4 g^4 uS with g = G / 40 uS; here the coefficients are divided by powers of 40. aihwkit has another fit for 1 s,
    14 % lower at mid-window.

    days  when the array is used, 0, 1 or 2: relaxation is part of the programming noise and does not go on with time
    The lower end, 1 uS, is a choice; the source gives none.
    """
    check_number("rram_wan.days", days, 0, 2, "The source measured 1 s, 1 day and 2 days.", whole=True)
    coefficients = (1.053, 0.2374, -0.01167, 1.536e-4)
    if days:
        coefficients = tuple(c / 40**k for k, c in enumerate(_WAN_LATER[days]))
    return MemoryCell(
        1e-6,
        39.26e-6,
        programming=MicrosiemensProgrammingNoise(coefficients, 0.0, 39.26),
        source="Wan et al., Nature 608:504 (2022), values from CrossSim and aihwkit",
    )


def rram_milo() -> MemoryCell:
    """HfO2 RRAM, 50 to 225 uS: the lower the conductance, the larger its spread.

    Source: Milo et al., IRPS 2021, as CrossSim states it: sigma = 4.782321 - 0.009107 G uS, G in uS. Holds for reads
    below 0.5 V, and is linear only well below: the source has I = G V + N2(G) V^2 + N3(G) V^3, at 100 uS with N2 =
    -8.2e-6 A/V^2 and N3 = -6e-7 A/V^3, i.e. 47.9 uA rather than 50 uA at 0.5 V; accurate from 62.5 to 110 uS. That
    curve is not modelled: a cell here is a resistor.
    """
    return MemoryCell(
        50e-6,
        225e-6,
        programming=MicrosiemensProgrammingNoise((4.782321, -0.009107), 50.0, 225.0),
        source="Milo et al., IRPS 2021, values from CrossSim",
    )


PRESETS = (rram_wan, rram_milo)
