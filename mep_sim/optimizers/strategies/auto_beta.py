"""A nudging strength chosen from what the network bears."""

from __future__ import annotations

import math
from dataclasses import dataclass

from circuits import System
from circuits.costs import Cost


@dataclass(frozen=True)
class AutoBeta:
    """A nudging strength from what the network bears: `safety` times the |beta| up to which the nudged energy
    has a minimum for beta of either sign, and `largest` at most.

    On the feedforward energy that limit is 1 / (C'' lambda_max(I + sum_l J_{l->L} J_{l->L}^T)), and a sweep
    of the nudged phase contracts below it, with slopes as they are in the free state: `safety` is also for a
    nudge that changes them. It is measured on a batch every `remeasure` steps, and at first, while weights
    move fast, after 1, 2, 4, 8, .. steps. 0 < safety < 1; largest > 0; remeasure >= 1.
    """

    safety: float = 0.5
    largest: float = 0.5
    remeasure: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.safety < 1:
            raise ValueError(f"safety = {self.safety}; choose a share of the limit in (0, 1), such as 0.5")
        if not (self.largest > 0 and math.isfinite(self.largest)):
            raise ValueError(f"largest = {self.largest}; choose a finite largest beta > 0, such as 0.5")
        if self.remeasure < 1:
            raise ValueError(f"remeasure = {self.remeasure} steps; choose at least 1, such as 50")

    def choose(self, around: System, c: Cost, memory: dict) -> float:
        """The beta of this step, around a free equilibrium; `memory` holds it and the number of steps."""
        step = memory.get("beta_steps", 0)
        memory["beta_steps"] = step + 1
        if step % self.remeasure == 0 or (step < self.remeasure and step.bit_count() == 1):
            limit = around.largest_beta(c, enough=self.largest / self.safety)
            if not limit > 0:
                raise ValueError(
                    "no beta can be chosen: nudged by any -beta the energy has no minimum with these weights; "
                    "tighten gamma, or give a beta with phases = one_sided"
                )
            memory["beta"] = min(self.largest, self.safety * limit)
        return memory["beta"]
