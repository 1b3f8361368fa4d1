"""The two carries, never mixed: of the gradient (what an update did not use) and of the write (what
whole pulses could not write)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from circuits.chip import Chip


@dataclass(frozen=True)
class FeedbackStrategy(ABC):
    """Carries part of the gradient from step to step."""

    @abstractmethod
    def signal(self, gradient: Tensor, state: dict) -> Tensor:
        """What the update sees: the gradient and the carry."""

    @abstractmethod
    def keep(self, signal: Tensor, kept: Tensor, state: dict) -> None:
        """Store the new carry, given the signal and what the update kept of it."""


@dataclass(frozen=True)
class NoFeedback(FeedbackStrategy):
    def signal(self, gradient: Tensor, state: dict) -> Tensor:
        return gradient

    def keep(self, signal: Tensor, kept: Tensor, state: dict) -> None:
        pass


@dataclass(frozen=True)
class ErrorFeedback(FeedbackStrategy):
    """Gradient carry: b = gradient + carry, then carry <- b - (1 - beta) kept.

    With an update that keeps all of b this is momentum `beta`, with a low-rank one Dion's error feedback.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"error feedback beta = {self.beta}; choose 0 <= beta < 1")

    def signal(self, gradient: Tensor, state: dict) -> Tensor:
        return gradient + state["carry"] if "carry" in state else gradient

    def keep(self, signal: Tensor, kept: Tensor, state: dict) -> None:
        state["carry"] = torch.sub(signal, kept, alpha=1 - self.beta)


@dataclass(frozen=True)
class WriteFeedback(ABC):
    """Decides what to ask of the devices, given what earlier writes could not do."""

    def check(self, chip: Chip) -> None:
        """ValueError where it cannot work with this chip."""

    @abstractmethod
    def wanted(self, delta: Tensor, state: dict) -> Tensor | None:
        """The weight change to ask for; None: none now."""

    @abstractmethod
    def written(self, wanted: Tensor, written: Tensor, state: dict) -> None:
        """Learn what was nominally written."""


@dataclass(frozen=True)
class NoWriteFeedback(WriteFeedback):
    """Plain rounding: what a whole pulse cannot express is lost."""

    def wanted(self, delta: Tensor, state: dict) -> Tensor:
        return delta

    def written(self, wanted: Tensor, written: Tensor, state: dict) -> None:
        pass


@dataclass(frozen=True)
class WriteResidual(WriteFeedback):
    """The pulse residual: wanted - written is asked for again at the next step, without decay."""

    def wanted(self, delta: Tensor, state: dict) -> Tensor:
        return delta + state.get("write_residual", torch.zeros_like(delta))

    def written(self, wanted: Tensor, written: Tensor, state: dict) -> None:
        state["write_residual"] = wanted - written


@dataclass(frozen=True)
class MixedPrecision(WriteFeedback):
    """A digital accumulator of all wanted changes, of which whole pulses go to the array (Nandakumar et al., Front.
    Neurosci. 14:406, 2020): chi <- chi + delta; every `every` steps trunc(chi / step) pulses, which chi is lessened by.

    On a chip that rounds towards zero. With every = 1 it is `WriteResidual` on such a chip.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every = {self.every}; choose a transfer after 1 step or more")

    def check(self, chip: Chip) -> None:
        rounding = {array.rounding for array in chip.learning.values()}
        if rounding - {"truncate"}:
            raise ValueError(
                f"MixedPrecision transfers whole pulses only, and this chip's rounding is {rounding.pop()!r}: make it "
                "with rounding='truncate', or use WriteResidual()"
            )

    def wanted(self, delta: Tensor, state: dict) -> Tensor | None:
        state["chi"] = state["chi"] + delta if "chi" in state else delta
        state["chi_steps"] = state.get("chi_steps", 0) + 1
        return None if state["chi_steps"] % self.every else state["chi"]

    def written(self, wanted: Tensor, written: Tensor, state: dict) -> None:
        state["chi"] = wanted - written
