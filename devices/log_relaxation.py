"""Relaxation with the logarithm of time, as filamentary and analog oxide cells do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like
from devices.drift import Drift
from devices.read_noise import ReadNoise
from devices.window import Window


@dataclass(frozen=True)
class LogarithmicDrift(Drift):
    """`g(t) = g + slope L + (sigma + sigma_slope L) xi`, L = ln((t + t0) / t0), t in seconds since the write.

    xi is drawn once per write, so that a cell keeps its rank. Mean and spread are the same at every conductance.

    slope_siemens        shift of the mean per e-fold of time, S, -1 to 1
    sigma_siemens        spread at the first measurement, S, 0 to 1
    sigma_slope_siemens  its growth per e-fold of time, S, 0 to 1
    t0_seconds           first measurement of the fit, at t = 0 here; 1e-9 to 1e9 s
    """

    slope_siemens: float
    sigma_siemens: float = 0.0
    sigma_slope_siemens: float = 0.0
    t0_seconds: float = 1.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        micro = "It is in siemens: 0.1 microsiemens is 0.1e-6."
        check_number(f"{owner}.slope_siemens", self.slope_siemens, -1, 1, micro)
        check_number(f"{owner}.sigma_siemens", self.sigma_siemens, 0, 1, micro)
        check_number(f"{owner}.sigma_slope_siemens", self.sigma_slope_siemens, 0, 1, micro)
        check_number(f"{owner}.t0_seconds", self.t0_seconds, 1e-9, 1e9, "It is in seconds.")

    def check_pulses(self) -> None:
        if self.sigma_siemens:
            raise ValueError(
                f"LogarithmicDrift.sigma_siemens = {self.sigma_siemens!r} is not allowed beside pulses, each of which "
                "would add it again: leave it at 0 and give the cell write_noise, or leave the pulses out."
            )

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`relaxation`, standard normal."""
        return {"relaxation": normal_like(g, rng)}

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The formula above."""
        folds = torch.log1p(since / self.t0_seconds).to(g.dtype)
        spread = self.sigma_siemens + self.sigma_slope_siemens * folds
        return g + self.slope_siemens * folds + spread * params["relaxation"]


@dataclass(frozen=True)
class LogarithmicReadNoise(ReadNoise):
    """1/f noise that grows with the logarithm of the conductance, accumulated up to the time of reading:

        sigma = c log10(g / 1 uS) sqrt(ln((t + t_read) / (2 t_read))),  0 below 1 uS

    with t = seconds since the last write + t0.

    sigma_siemens   c, S, 0 to 1
    t0_seconds      first measurement of the fit, at least t_read_seconds
    t_read_seconds  duration of a read, 1e-12 to 1 s
    """

    sigma_siemens: float
    t0_seconds: float = 1.0
    t_read_seconds: float = 1e-6

    def __post_init__(self) -> None:
        owner = type(self).__name__
        way_out = "It is in siemens: 0.1 microsiemens is 0.1e-6."
        check_number(f"{owner}.sigma_siemens", self.sigma_siemens, 0, 1, way_out)
        check_number(f"{owner}.t_read_seconds", self.t_read_seconds, 1e-12, 1, "It is in seconds.")
        check_number(f"{owner}.t0_seconds", self.t0_seconds, self.t_read_seconds, 1e9, "It is in seconds.")

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor:
        """The formula above, (rows, cols) S."""
        t = since.to(g.dtype) + self.t0_seconds
        spectrum = ((t + self.t_read_seconds) / (2 * self.t_read_seconds)).log_().sqrt_()
        return self.sigma_siemens * (1e6 * g).clamp_(min=1).log10_() * spectrum
