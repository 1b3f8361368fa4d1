"""Pulses that move a cell step by step, with spread from cell to cell and from pulse to pulse."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from devices.checks import check_choice, check_number
from devices.draws import lognormal_factor, normal_like, spread_factor
from devices.indices import nonzero
from devices.pulses import PulseModel
from devices.window import Window


@dataclass(frozen=True)
class StepPulses(PulseModel):
    """Every pulse moves a cell by `step x profile(x)` and noise, then its own bounds clip it.

    A subclass gives `profile`: how the step depends on the place x in the cell's own range (soft bounds, constant,
    exponential, ...). The step family is that of Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), in siemens.

    steps            pulses across the window where profile = 1, so step = (g_max - g_min) / steps;
                     1 to 1e7, need not be whole. 63 makes a 6-bit cell
    sigma_dtod       device-to-device spread of the step, relative; 0 to 2
    sigma_c2c        cycle-to-cycle spread, drawn per pulse, relative to `c2c_of`; 0 to 100
    asymmetry        up steps are (1 + asymmetry) and down steps (1 - asymmetry) times the step; -0.99 to 0.99
    sigma_asymmetry  device-to-device spread of the asymmetry; 0 to 1
    sigma_bounds     device-to-device spread of each bound, relative to half the window; 0 to 1
    c2c_of           "move": noise is relative to the move of that pulse; "step": to the cell's step, wherever it is;
                     "nominal": to span / steps (times the cell's range over the window's), the same up and down
    dtod             "normal" or "log-normal" spread of the step
    one_sided        pulses only potentiate; going down takes a reset (phase-change memory)

    Fabrication draws per cell, with f(sigma) = |1 + sigma xi| (the absolute value keeps it positive), or
    exp(sigma xi) where the spread of the step is log-normal:
        step_up   = step f(sigma_dtod) |1 + a|    a = asymmetry + sigma_asymmetry xi
        step_down = step f(sigma_dtod) |1 - a|    the same f and a: a large cell is large in both directions
        g_hi = middle + span/2 f(sigma_bounds)    g_lo = max(0, middle - span/2 f'(sigma_bounds))
    """

    steps: float
    sigma_dtod: float = 0.0
    sigma_c2c: float = 0.0
    asymmetry: float = 0.0
    sigma_asymmetry: float = 0.0
    sigma_bounds: float = 0.0
    c2c_of: Literal["move", "step", "nominal"] = "move"
    dtod: Literal["normal", "log-normal"] = "normal"
    one_sided: bool = False

    def __post_init__(self) -> None:
        owner = type(self).__name__
        limits = {
            "steps": (1, 1e7, "It counts the pulses across the window: 2**bits - 1, 63 for a 6-bit cell."),
            "sigma_dtod": (0, 2, "It is relative to the step: 0.3 is 30 %."),
            "sigma_c2c": (0, 100, "It is relative to the step: 0.3 is 30 %."),
            "asymmetry": (-0.99, 0.99, "0 is symmetric; 0.1: up 10 % larger, down smaller."),
            "sigma_asymmetry": (0, 1, "It is the spread of the asymmetry: 0.01 is 1 %."),
            "sigma_bounds": (0, 1, "It is relative to half the window: 0.3 is 30 %."),
        }
        for name, (low, high, way_out) in limits.items():
            check_number(f"{owner}.{name}", getattr(self, name), low, high, way_out)
        check_choice(f"{owner}.c2c_of", self.c2c_of, ("move", "step", "nominal"))
        check_choice(f"{owner}.dtod", self.dtod, ("normal", "log-normal"))

    @property
    def is_noisy(self) -> bool:
        """Whether one pulse differs from the next."""
        return self.sigma_c2c > 0

    @abstractmethod
    def profile(self, x: Tensor, up: Tensor) -> Tensor | float:
        """Move of a pulse over the cell's step, >= 0. x (n,): 0 at the lower, 1 at the upper bound of the cell
        itself; up (n,) bool: the pulse potentiates."""

    def spread(self, move: Tensor, step: Tensor, x: Tensor) -> Tensor:
        """Standard deviation (n,) of a pulse whose mean is `move` (n,), on cells of these steps (n,) at x (n,)."""
        if self.c2c_of == "nominal":
            return torch.full_like(x, self.sigma_c2c / self.steps)
        return self.sigma_c2c * (move if self.c2c_of == "move" else step)

    @property
    def middle_profile(self) -> float:
        """Mean of an up and a down move at mid-window, over the step; of an up move where there is no other."""
        middle = torch.full((2,), 0.5, dtype=torch.float64)
        profile = torch.as_tensor(self.profile(middle, torch.tensor([True, False]))).double().expand(2)
        up, down = profile.tolist()
        if self.one_sided:
            return (1 + self.asymmetry) * up
        return 0.5 * ((1 + self.asymmetry) * up + (1 - self.asymmetry) * down)

    def step_siemens(self, window: Window) -> float:
        """Mean of an up and a down step at mid-window, S."""
        return window.span / self.steps * self.middle_profile

    def with_steps(self, steps: int) -> StepPulses:
        """The same model with `steps` pulses of the nominal step (at mid-window) across the window."""
        return replace(self, steps=steps * self.middle_profile)

    def fabricate(self, blank: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw `step_up`, `step_down`, `g_lo` and `g_hi`, all S; see the class."""
        factor = lognormal_factor if self.dtod == "log-normal" else spread_factor
        step = window.span / self.steps * factor(blank, self.sigma_dtod, rng)
        asymmetry = torch.full_like(blank, self.asymmetry)
        if self.sigma_asymmetry:
            asymmetry += self.sigma_asymmetry * normal_like(blank, rng)
        params = {"step_up": step * (1 + asymmetry).abs(), "step_down": step * (1 - asymmetry).abs()}
        if not self.sigma_bounds:  # exactly the window, without rounding around its middle
            low = torch.full_like(blank, window.g_min_siemens)
            return params | {"g_lo": low, "g_hi": torch.full_like(blank, window.g_max_siemens)}
        high = window.middle + 0.5 * window.span * spread_factor(blank, self.sigma_bounds, rng)
        low = window.middle - 0.5 * window.span * spread_factor(blank, self.sigma_bounds, rng)
        return params | {"g_lo": low.clamp_(min=0), "g_hi": high}

    def apply(
        self, g: Tensor, counts: Tensor, params: dict[str, Tensor], window: Window, rng: torch.Generator
    ) -> Tensor:
        """One pulse after another, each with its own noise; but several at a time where together they move a cell by up
        to 1 % of its range, at the step half way between them: an error below 1e-4 of their move.

        Cells with most to do come first, so that those still to be pulsed are always a leading slice.
        """
        if counts.numel() == 0:
            return g
        up, sign, low = counts > 0, counts.sign().to(g), params["g_lo"]
        width = params["g_hi"] - low
        step = sign.clamp(min=0).mul_(params["step_up"])
        step.addcmul_(sign.clamp_(max=0), params["step_down"]).div_(width)  # below 0 on the way down
        x = (g - low).div_(width)
        todo = counts.abs()
        most, together = int(todo.max()), self._together
        if together == 1 or most == 1:
            rounds, each = todo, None
        else:
            rounds = (todo + (together - 1)).div_(together, rounding_mode="floor")
            each = (todo / rounds).to(g)
        self._pulse(x, step, up, each, rng)
        if most > together:
            more = nonzero(rounds - 1)
            order, pending = schedule(rounds[more] - 1)
            more = more[order]
            far, step, up = x[more], step[more], up[more]
            each = None if each is None else each[more]
            for n in pending:
                self._pulse(far[:n], step[:n], up[:n], None if each is None else each[:n], rng)
            x[more] = far
        # not beyond the upper bound by a rounding
        return torch.minimum(x.mul_(width).add_(low), params["g_hi"])

    @cached_property
    def _together(self) -> int:
        """How many pulses move a cell by at most 1 % of the window."""
        places, ways = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[True], [False]])
        profile = torch.as_tensor(self.profile(places, ways))
        return max(int(0.01 * self.steps / (profile.max().item() * (1 + abs(self.asymmetry)))), 1)

    def _pulse(self, x: Tensor, step: Tensor, up: Tensor, each: Tensor | None, rng: torch.Generator) -> None:
        """Pulses on the cells at x (n,), in place: one on each, or as many as `each` (n,) says."""
        move = step * self.profile(x, up)
        if each is not None:  # the step is that half way, noise adds up in squares
            halfway = (x + 0.5 * (each - 1) * move).clamp_(0, 1)
            move = step * self.profile(halfway, up)
        spread = self.spread(move, step, x) if self.is_noisy else None
        if each is not None:
            move.mul_(each)
            spread = None if spread is None else spread * each.sqrt()
        if spread is not None:
            move.addcmul_(normal_like(move, rng), spread)
        x.add_(move).clamp_(0, 1)


def schedule(counts: Tensor) -> tuple[Tensor, list[int]]:
    """The order (n,) of cells by falling number of pulses, and how many of them get a first, a second, ... one."""
    todo, order = counts.sort(descending=True, stable=True)
    finished = todo.bincount().cumsum(0)[:-1]  # [k]: cells with at most k pulses
    return order, (len(counts) - finished).tolist()
