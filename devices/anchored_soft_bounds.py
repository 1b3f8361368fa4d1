"""Soft bounds that vary from cell to cell about a conductance where the step does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like, spread_factor
from devices.step_pulses import StepPulses, schedule
from devices.window import Window


@dataclass(frozen=True)
class AnchoredSoftBoundsPulses(StepPulses):
    """Soft bounds about a fixed place of zero weight, z = g_min + zero span (other settings: see StepPulses):

        up    g += step_up   (g_hi - g) / (g_hi - z)
        down  g -= step_down (g - g_lo) / (z - g_lo)

    so that every cell has its steps, and without asymmetry its symmetry point, at z, whatever its bounds:
        g_hi = z + (g_max - z) |1 + sigma_upper xi|    g_lo = max(0, z - (z - g_min) |1 + sigma_lower xi'|)

    zero            share of the window below z, 0.01 to 0.99; steps = span / step at z
    sigma_upper, sigma_lower  device-to-device spread of the bounds over their distances from z, 0 to 1
    fraction_stuck  probability of a cell without a range, 0 to 1: both its bounds are z + half a span 0.01 U(-1, 1)
    Source: soft bounds of Rasch et al., AICAS 2021, as published with aihwkit (SoftBoundsDevice).
    """

    zero: float = 0.5
    sigma_upper: float = 0.0
    sigma_lower: float = 0.0
    fraction_stuck: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_number(f"{owner}.zero", self.zero, 0.01, 0.99, "It is a share of the window.")
        for name in ("sigma_upper", "sigma_lower"):
            way_out = "It is relative to the distance of the bound from zero: 0.3 is 30 %."
            check_number(f"{owner}.{name}", getattr(self, name), 0, 1, way_out)
        way_out = "It is a probability: 0.05 is 5 % of the cells."
        check_number(f"{owner}.fraction_stuck", self.fraction_stuck, 0, 1, way_out)
        way_out = "Bounds vary by sigma_upper and sigma_lower here."
        check_number(f"{owner}.sigma_bounds", self.sigma_bounds, 0, 0, way_out)

    def profile(self, x: Tensor, up: Tensor) -> Tensor:
        """Of a cell with the window's bounds: 1 at zero, 0 on arrival."""
        return torch.where(up, (1 - x) / (1 - self.zero), x / self.zero)

    def fabricate(self, blank: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """As StepPulses, with the bounds above; a stuck cell has no step."""
        params = super().fabricate(blank, window, rng)
        zero = window.g_min_siemens + self.zero * window.span
        high = zero + (1 - self.zero) * window.span * spread_factor(blank, self.sigma_upper, rng)
        low = zero - self.zero * window.span * spread_factor(blank, self.sigma_lower, rng)
        params |= {"g_lo": low.clamp_(min=0), "g_hi": high}
        if self.fraction_stuck:
            u, at = torch.rand((2, *blank.shape), generator=rng, dtype=blank.dtype, device=blank.device)
            at = zero + 0.005 * window.span * (2 * at - 1)
            stuck = u < self.fraction_stuck
            params |= {name: torch.where(stuck, at, params[name]) for name in ("g_lo", "g_hi")}
            params |= {name: params[name].masked_fill(stuck, 0) for name in ("step_up", "step_down")}
        return params

    def apply(
        self, g: Tensor, counts: Tensor, params: dict[str, Tensor], window: Window, rng: torch.Generator
    ) -> Tensor:
        """One pulse after another, each with its own noise; the cost is the total number of pulses."""
        if counts.numel() == 0:
            return g
        order, pending = schedule(counts.abs())
        up = counts[order] > 0

        def share(siemens: Tensor) -> Tensor:
            return (siemens[order] - window.g_min_siemens) / window.span

        x, low, high = share(g), share(params["g_lo"]), share(params["g_hi"])
        step = torch.where(up, params["step_up"][order], -params["step_down"][order]) / window.span
        ahead = torch.where(up, high, low)
        reach = (ahead - self.zero).masked_fill_(ahead == self.zero, torch.inf)  # no range, no move
        for n in pending:
            move = step[:n] * (ahead[:n] - x[:n]) / reach[:n]
            if self.is_noisy:
                noise = normal_like(move, rng)
                move += noise.mul_(self.spread(move, step[:n], x[:n]))
            x[:n] = torch.clamp(x[:n] + move, low[:n], high[:n])
        moved = torch.empty_like(g).index_copy_(0, order, window.g_min_siemens + x * window.span)
        return moved.clamp(params["g_lo"], params["g_hi"])  # not beyond it by a rounding
