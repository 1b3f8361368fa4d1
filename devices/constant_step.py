"""Constant steps with hard bounds: the resistive processing unit of the literature."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from devices.step_pulses import StepPulses


@dataclass(frozen=True)
class ConstantStepPulses(StepPulses):
    """The same step everywhere, cut off at the cell's own bounds (settings: see StepPulses).

    up `g += step_up (1 + sigma_c2c xi)`, down `g -= step_down (1 + sigma_c2c xi)`.
    Source: Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), in siemens.
    """

    def profile(self, x: Tensor, up: Tensor) -> float:
        """1: the step does not depend on the state."""
        return 1.0
