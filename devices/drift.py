"""Drift: how a conductance relaxes after it was written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like, spread_factor
from devices.window import Window


class Drift(ABC):
    """Relaxation since the last write. Its parameters are drawn anew for every cell that is programmed.

    valid_seconds: the longest time after a write that the source knows; `after` raises ValueError beyond it.
    """

    valid_seconds: float = math.inf

    def check_pulses(self) -> None:
        """Raise ValueError where cells that are pulsed cannot drift so: a pulse makes earlier drift permanent, so that
        at t = 0 there must be none."""

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
        way_out = f"The source has {type(self).t0_seconds:g} s."
        check_number(f"{type(self).__name__}.t0_seconds", self.t0_seconds, 1e-9, 1e9, way_out)

    def exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the exponent at g over g_max, above 0."""
        log_g = g.log()
        return (-0.0155 * log_g + 0.0244).clamp_(0.049, 0.1), (-0.0125 * log_g - 0.0059).clamp_(0.008, 0.045)

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`nu_drift` for cells at `g` S."""
        mean, spread = self.exponent((g / window.g_max_siemens).clamp_(min=1e-7))  # at 0 S nothing drifts
        return {"nu_drift": (mean + spread * normal_like(g, rng)).abs_()}

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The power law with this cell's exponent."""
        return _power_law(since, g, params["nu_drift"], self.t0_seconds)


@dataclass(frozen=True)
class Leak(Drift):
    """Exponential relaxation to a rest, `g(t) = g_rest + (g - g_rest) exp(-t / tau)`: the charge of a capacitor.

    tau_seconds  time constant, 1e-9 to 1e15 s
    rest         where it relaxes to, over the window: 0 is g_min, 0.5 mid-window, 1 g_max
    sigma_tau    spread of tau from cell to cell and write to write, relative, 0 to 1
    """

    tau_seconds: float
    rest: float = 0.5
    sigma_tau: float = 0.0

    def __post_init__(self) -> None:
        check_number("Leak.tau_seconds", self.tau_seconds, 1e-9, 1e15, "It is in seconds.")
        check_number("Leak.rest", self.rest, 0, 1, "It is a share of the window: 0.5 is its middle.")
        check_number("Leak.sigma_tau", self.sigma_tau, 0, 1, "It is relative: 0.1 is 10 %.")

    def draw(self, g: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """`leak_rate`, 1/s, and `leak_rest`, S."""
        rest = torch.full_like(g, window.g_min_siemens + self.rest * window.span)
        return {
            "leak_rate": 1 / (self.tau_seconds * spread_factor(g, self.sigma_tau, rng)),
            "leak_rest": rest,
        }

    def after(self, since: Tensor, g: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The exponential above."""
        left = torch.exp(-since * params["leak_rate"]).to(g.dtype)
        return params["leak_rest"] + (g - params["leak_rest"]) * left


def _power_law(since: Tensor, g: Tensor, nu: Tensor, t0_seconds: float) -> Tensor:
    # log1p in float64: exact also where since << t0
    return g * torch.exp(-nu * torch.log1p(since / t0_seconds).to(g.dtype))
