"""The place for pulse models: how one programming pulse moves a conductance."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from devices.window import Window


class PulseModel(ABC):
    """How pulses move a cell. A new model is a frozen dataclass with these five methods in its own file.

    one_sided: True where pulses only potentiate. Where pulses step along a curve, `StepPulses` needs only the curve.
    """

    one_sided: bool = False

    def check(self, window: Window) -> None:
        """Raise ValueError if this model makes no sense in `window`."""

    @abstractmethod
    def step_siemens(self, window: Window) -> float:
        """Nominal change per pulse at mid-window, S."""

    @abstractmethod
    def with_steps(self, steps: int) -> PulseModel:
        """The same model with `steps` pulses across the window."""

    @abstractmethod
    def fabricate(self, blank: Tensor, window: Window, rng: torch.Generator) -> dict[str, Tensor]:
        """Per-cell parameters, each shaped like `blank` (rows, cols), which gives dtype and device only.

        They must hold the cell's own bounds `g_lo` and `g_hi` in siemens: no write leaves them.
        """

    @abstractmethod
    def apply(
        self, g: Tensor, counts: Tensor, params: dict[str, Tensor], window: Window, rng: torch.Generator
    ) -> Tensor:
        """Conductances (n,) S after `counts` (n,) pulses, int32 or int64, none of them 0, on cells at `g` (n,) S.

        params: the parameters of these cells, each (n,). Several pulses equal one after another.
        """
