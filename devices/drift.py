"""Drift: how a conductance relaxes after it was written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like
from devices.window import Window


class Drift(ABC):
    """Relaxation since the last write. Its parameters are drawn anew for every cell that is programmed."""

    @abstractmethod
    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """Parameters, each shaped like `g`, of cells just programmed to `g` S."""

    @abstractmethod
    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Conductances S of cells written to `g` S, `since` seconds (float64, 0 or more) ago."""


@dataclass(frozen=True)
class PowerLawDrift(Drift):
    """`g(t) = g ((t + t0) / t0)^-nu`, t in seconds since the write: defined, and without effect, at t = 0.

    nu          mean exponent, -1 to 1 (positive: the conductance falls)
    sigma_nu    spread of the exponent from write to write and cell to cell, 0 to 1
    t0_seconds  first measurement of the fit; 1e-9 to 1e9 s
    """

    nu: float
    sigma_nu: float = 0.0
    t0_seconds: float = 1.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.nu", self.nu, -1, 1, "Phase-change memory has about 0.05.")
        check_number(f"{owner}.sigma_nu", self.sigma_nu, 0, 1, "Phase-change memory has about 0.01.")
        check_number(f"{owner}.t0_seconds", self.t0_seconds, 1e-9, 1e9, "It is in seconds.")

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`nu_drift`, normal with the mean and spread above."""
        return {"nu_drift": self.nu + self.sigma_nu * normal_like(g, rng)}

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The power law above."""
        return _power_law(since, g, params["nu_drift"], self.t0_seconds)


@dataclass(frozen=True)
class PCMDrift(Drift):
    """Power-law drift of phase-change memory; low conductances (more amorphous) drift faster.

    With g = conductance just programmed / g_max, the exponent is |normal| with
        mean    clip(-0.0155 ln g + 0.0244, 0.049, 0.1)
        spread  clip(-0.0125 ln g - 0.0059, 0.008, 0.045)
    Source: Nandakumar et al., ICECS 2019, with t0 = 20 s. |.| since an amorphous phase only relaxes.

    t0_seconds  first measurement of the fit; 1e-9 to 1e9 s
    """

    t0_seconds: float = 20.0

    def __post_init__(self) -> None:
        check_number("PCMDrift.t0_seconds", self.t0_seconds, 1e-9, 1e9, "The source has 20 s.")

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`nu_drift` for cells at `g` S."""
        log_g = (g / window.g_max_siemens).clamp_(min=1e-7).log_()  # a cell at 0 S has nothing to drift
        mean = (-0.0155 * log_g + 0.0244).clamp_(0.049, 0.1)
        spread = (-0.0125 * log_g - 0.0059).clamp_(0.008, 0.045)
        return {"nu_drift": (mean + spread * normal_like(g, rng)).abs_()}

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The power law with this cell's exponent."""
        return _power_law(since, g, params["nu_drift"], self.t0_seconds)


def _power_law(since: Tensor, g: Tensor, nu: Tensor, t0_seconds: float) -> Tensor:
    # log1p in float64: exact also where since << t0
    return g * torch.exp(-nu * torch.log1p(since / t0_seconds).to(g.dtype))
