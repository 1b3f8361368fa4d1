"""Retention of charge-trap (SONOS) cells: shift and spread measured day by day."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like
from devices.drift import Drift
from devices.polynomial import polynomial
from devices.window import Window

DAY_SECONDS = 86400.0

# days 0 to 5: spread of the current I, sigma = a (1 - exp(-I / b)), all nA
_SPREAD = (
    (19.88665, 176.3115),
    (25.59102, 186.85544),
    (28.72753, 193.56834),
    (31.04318, 198.90332),
    (33.76214, 204.77023),
    (34.57909, 207.34309),
)

# days 1 to 5: shift of the current, c0 + c1 I + ... + c10 I^10, nA
# fmt: off
_SHIFT = (
    (1.72684e-01, 5.72552e-02, -6.85715e-04, 3.50271e-06, -9.37682e-09, 1.40575e-11,
     -1.19803e-14, 5.41293e-18, -8.85448e-22, -1.66869e-25, 5.95180e-29),
    (2.50712e-01, 6.62195e-02, -6.83218e-04, 2.99442e-06, -6.78255e-09, 7.70482e-12,
     -3.04983e-15, -2.15919e-18, 2.94617e-21, -1.23359e-24, 1.85329e-28),
    (-1.75300e-02, 9.76883e-02, -9.63791e-04, 4.55551e-06, -1.22391e-08, 1.93786e-11,
     -1.85899e-14, 1.07659e-17, -3.58211e-21, 5.96785e-25, -3.30410e-29),
    (4.03338e-02, 1.03111e-01, -1.04740e-03, 4.83961e-06, -1.28132e-08, 1.99484e-11,
     -1.85139e-14, 1.00008e-17, -2.84944e-21, 3.01008e-25, 1.18747e-29),
    (3.19927e-01, 1.06596e-01, -1.04054e-03, 4.50290e-06, -1.10352e-08, 1.56477e-11,
     -1.27592e-14, 5.45513e-18, -7.26841e-22, -2.43893e-25, 7.14608e-29),
)
# fmt: on


@dataclass(frozen=True)
class SonosDrift(Drift):
    """Shift and growing spread of the current I = g read_volts of a SONOS cell, measured on days 0 to 5.

        g(t) = g + [shift(I, t) + sqrt(sigma(I, t)^2 - sigma(I, 0)^2) xi] / read_volts

    with sigma = a(t) (1 - exp(-I / b(t))) and the shift a polynomial of degree 10; a, b and the polynomial's
    coefficients are interpolated linearly between the days. What is programmed with the spread of day 0 so has that of
    day t. xi is drawn once per write: a cell keeps its rank. Times beyond 5 days raise ValueError. The shift is fitted
    up to 1800 nA and taken from there for what programming noise has put higher.
    Source: Agrawal et al., IEDM 2022, coefficients to six digits as published with CrossSim.

    read_volts  voltage that turns conductance into the current of the fit, 1e-3 to 10 V
    """

    read_volts: float = 0.1
    valid_seconds = 5 * DAY_SECONDS

    def __post_init__(self) -> None:
        check_number("SonosDrift.read_volts", self.read_volts, 1e-3, 10, "It is in volts.")

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`relaxation`, standard normal."""
        return {"relaxation": normal_like(g, rng)}

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The formula above."""
        if since.numel() and since.max() > self.valid_seconds:
            raise ValueError(
                f"A SONOS cell {since.max().item() / DAY_SECONDS:g} days after it was written is not known: the source "
                "measured 0 to 5 days. Read earlier, program the cells again, or leave the drift out (drift = None)."
            )
        days = since / DAY_SECONDS
        current = 1e9 * self.read_volts * g.double()
        within = current.clamp(0, 1800)
        shifts = [torch.zeros_like(current)] + [polynomial(c, within) for c in _SHIFT]
        a, b = (_between(list(series), days) for series in zip(*_SPREAD, strict=True))
        late, early = _spread(a, b, within), _spread(*_SPREAD[0], within)
        more = (late**2 - early**2).clamp(min=0).sqrt()
        moved = current + _between(shifts, days) + more * params["relaxation"]
        return (moved / (1e9 * self.read_volts)).to(g.dtype)


def _spread(a: Tensor | float, b: Tensor | float, current: Tensor) -> Tensor:
    return a * -torch.expm1(-current / b)


def _between(values: list[Tensor] | list[float], days: Tensor) -> Tensor:
    """`values` of days 0, 1, ... at `days`, by linear interpolation."""
    total = torch.zeros_like(days)
    for day, value in enumerate(values):
        total = total + value * (1 - (days - day).abs()).clamp(min=0)
    return total
