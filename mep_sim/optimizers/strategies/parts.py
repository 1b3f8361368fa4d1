"""A batch whose samples come to the array in turn: parts of it, each under reads of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Cost, EnergyCircuit, Equilibrium, Params
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy


@dataclass(frozen=True)
class InParts(GradientStrategy):
    """The estimate of `inner` on each of `parts` nearly equal parts of a batch, averaged over all samples.

    A simulator settles a batch at once, and all its samples see one read. On an array they come one after another,
    and read noise faster than a batch is drawn anew within it: the estimate's noise then averages out, as
    1 / sqrt(parts) for parts of many samples, with as many settled phases as before. What `inner` keeps in
    its memory moves once per part. parts >= 1; a smaller batch has as many parts as samples. loss_type: that of
    `inner`, and not given.
    """

    loss_type: str | Cost = dataclasses.field(init=False)
    inner: GradientStrategy
    parts: int

    def __post_init__(self) -> None:
        if not (isinstance(self.parts, int) and self.parts >= 1):
            raise ValueError(f"parts = {self.parts}; cut a batch into a whole number of 1 or more")
        object.__setattr__(self, "loss_type", self.inner.loss_type)

    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        memory = {} if memory is None else memory
        count = min(self.parts, len(x))
        pairs = list(zip(x.tensor_split(count), target.tensor_split(count), strict=True))
        found = [self.inner.estimate(circuit, read, *pair, memory) for pair in pairs]
        shares = [len(part) / len(x) for part, _ in pairs]

        def mean(values: Sequence[Tensor]) -> Tensor:
            return sum(share * value for share, value in zip(shares, values, strict=True))

        gaps = [e.energy_gap for e in found]
        return Estimate(
            {name: mean([e.gradient[name] for e in found]) for name in found[0].gradient},
            mean([e.loss for e in found]),
            torch.cat([e.output for e in found]),
            None if found[0].free is None else joined([e.free for e in found]),
            tuple(map(joined, zip(*(e.nudged for e in found), strict=True))),
            None if gaps[0] is None else mean(gaps),
            found[-1].beta if all(e.beta == found[-1].beta for e in found) else math.nan,
        )


def joined(parts: Sequence[Equilibrium]) -> Equilibrium:
    """One equilibrium of the samples of all; `evaluations` are those of the slowest part."""

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    names = ("state", "residual", "relative_residual", "converged", "time", "deviation")
    fields = {name: cat(name) for name in names}
    return Equilibrium(**fields, evaluations=max(part.evaluations for part in parts))
