"""The cross-entropy of some outputs alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuits.costs import CrossEntropy


@dataclass(frozen=True)
class MaskedCrossEntropy(CrossEntropy):
    """The cross-entropy over the outputs `classes` alone, as where it is known which task a sample belongs to. The
    others get no probability and no gradient, and a nudge leaves them to the circuit. At least two, each >= 0."""

    classes: tuple[int, ...]
    _indices: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or min(self.classes) < 0:
            raise ValueError(
                f"classes {self.classes}; choose at least two different outputs >= 0, such as (0, 1)"
            )

    def target(self, target: Tensor, output: Tensor) -> Tensor:
        """A distribution over `classes` (B, C), zero elsewhere; booleans where the class is known."""
        if (last := max(self.classes)) >= output.shape[1]:
            raise ValueError(
                f"class {last} of {self.classes} is none of 0 to {output.shape[1] - 1}; choose among the outputs"
            )
        checked = super().target(target, output)
        if not target.is_cuda:
            others = checked.bool().index_fill(1, self._index(checked), False)
            if len(wrong := others.nonzero()):
                raise ValueError(
                    f"class {wrong[0, 1].item()} of a target is none of {self.classes}; check the labels, or give a "
                    "distribution over these classes alone"
                )
        return checked

    def _probabilities(self, output: Tensor) -> Tensor:
        return self._spread(super()._probabilities(self._chosen(output)), output)

    def _log_probabilities(self, output: Tensor) -> Tensor:
        """Zero of the outputs left out, so that they add nothing to the value: 0 log 0 would be nan."""
        return self._spread(super()._log_probabilities(self._chosen(output)), output)

    def _chosen(self, values: Tensor) -> Tensor:
        return values[:, self._index(values)]

    def _spread(self, values: Tensor, output: Tensor) -> Tensor:
        return torch.zeros_like(output).index_copy(1, self._index(output), values)

    def _index(self, output: Tensor) -> Tensor:
        """`classes` on the output's device; made anew, it would stall a GPU's queue."""
        if output.device not in self._indices:
            with torch.inference_mode(False):  # for training to use it too
                self._indices[output.device] = torch.tensor(self.classes, device=output.device)
        return self._indices[output.device]
