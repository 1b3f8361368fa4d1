"""Write noise: what is read differs from the state that pulses add up in, and anew after every write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like


@dataclass(frozen=True)
class HiddenStateNoise:
    """A conductance fluctuates with every write around a hidden state, on which alone pulses act.

        hidden <- pulses(hidden),   conductance = hidden + sigma_steps step xi

    so that the noise of many writes does not add up: it is drawn anew by each, and stays until the next.
    sigma_steps  standard deviation over the nominal step, 0 to 1e5
    Source: Gong et al., Nat. Commun. 9:2102 (2018), as published with aihwkit (write_noise_std).
    """

    sigma_steps: float

    def __post_init__(self) -> None:
        way_out = "It is relative to the step of a pulse."
        check_number("HiddenStateNoise.sigma_steps", self.sigma_steps, 0, 1e5, way_out)

    def apply(self, hidden: Tensor, step_siemens: float, rng: torch.Generator) -> Tensor:
        """Conductances (n,) S after a write that left `hidden` (n,) S; a cell is passive: 0 S or more."""
        return (hidden + self.sigma_steps * step_siemens * normal_like(hidden, rng)).clamp_(min=0)
