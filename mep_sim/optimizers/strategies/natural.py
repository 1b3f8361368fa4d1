"""Natural gradient descent on EP's estimates: a Kronecker-factored Fisher matrix from local contrasts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circuits import EnergyCircuit, Equilibrium, FeedforwardCircuit, Params
from mep_sim.optimizers.strategies.ep import EPGradient, Phase
from mep_sim.optimizers.strategies.layers import joined, joined_pairs, parted


@dataclass(frozen=True)
class NaturalGradient(EPGradient):
    """K-FAC: per layer G^-1 g A^-1 in place of its gradient g = [dW, db] (Martens & Grosse 2015).

    A = E[s s'] of the activity s below a layer, with a 1 appended for the bias, and G = E[delta delta'] of its
    contrast delta per sample: their product stands for the layer's block of the Fisher matrix, and both are
    averages of what a crossbar sees on its columns and rows. delta comes from the targets, not from samples of
    the model's own predictions: this is the *empirical* Fisher matrix, which shrinks with the error (Kunstner
    et al. 2019), so that `damping` and `radius` matter more than for the true one. Positions of a convolution
    add up (Grosse & Martens 2016). What is neither weight nor bias of a Linear or Conv2d layer keeps its plain
    gradient. Feedforward circuits only.

    decay: of the running averages, in [0, 1). damping: lambda > 0, split between the factors in the ratio of
    their mean eigenvalues (Martens & Grosse 2015, section 6.3). refresh: steps between inversions, >= 1; the
    first so many steps invert each time. radius: of the trust region, > 0: the natural gradient v is scaled
    down to v'Fv <= radius^2, so that a step -lr v moves the predictions by (lr radius)^2 / 2 nats at most,
    as far as F can tell.
    """

    known_phases: ClassVar[tuple[str, ...]] = ("one_sided", "centred", "random_sign")

    decay: float = 0.95
    damping: float = 1e-2
    refresh: int = 10
    radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay = {self.decay}; choose one in [0, 1), such as 0.95")
        for name, usual in (("damping", 1e-2), ("radius", 1)):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} = {value}; choose a finite {name} > 0, such as {usual}")
        if self.refresh < 1:
            raise ValueError(f"refresh = {self.refresh} steps; choose at least 1, such as 10")

    def check_circuit(self, circuit: EnergyCircuit) -> None:
        if not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"{type(circuit).__name__} gives no signals per layer to make a Fisher matrix of; "
                "use a FeedforwardCircuit, or EPGradient"
            )

    def combine(self, circuit: EnergyCircuit, free: Equilibrium, phases: list[Phase], memory: dict) -> Params:
        plain = super().combine(circuit, free, phases, memory)
        step = memory.get("step", 0)
        memory["step"] = step + 1
        self._average_factors(phases, plain, step, memory)
        if step < self.refresh or step % self.refresh == 0:
            self._invert(circuit, memory)
        natural, length = {}, 0.0
        for weight in circuit.weights:
            g = joined(plain, weight)
            v = memory[f"{weight} inverse G"] @ g @ memory[f"{weight} inverse A"]
            length = length + (v * g).sum()  # v'Fv, as v = F^-1 g
            natural |= parted(v, plain, weight)
        shrink = (self.radius / length.sqrt()).clamp(max=1)
        return plain | {name: shrink * v for name, v in natural.items()}

    def _average_factors(self, phases: list[Phase], plain: Params, step: int, memory: dict) -> None:
        keep = min(self.decay, step / (step + 1))  # at first the plain mean over all steps
        signals = [phase.system.signals(phase.at) for phase in phases]
        for weight in signals[0]:
            pairs = joined_pairs({weight: [s[weight] for s in signals]}, plain, weight)
            batch = len(phases[0].at.state)
            now = {
                f"{weight} A": self.average([pre.T @ pre / batch for _, pre in pairs]),
                f"{weight} G": self.average([post.T @ post / len(post) for post, _ in pairs]),
            }
            for name, factor in now.items():
                memory[name] = factor.lerp(memory[name], keep) if step else factor

    def _invert(self, circuit: EnergyCircuit, memory: dict) -> None:
        for weight in circuit.weights:
            a, g = memory[f"{weight} A"], memory[f"{weight} G"]
            ratio = a.diagonal().mean() / g.diagonal().mean()
            split = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).sqrt()
            memory[f"{weight} inverse A"] = _inverse(a, math.sqrt(self.damping) * split)
            memory[f"{weight} inverse G"] = _inverse(g, math.sqrt(self.damping) / split)


def _inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """(factor + damping I)^-1."""
    damped = factor + damping * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    cholesky, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        raise ValueError(
            f"a factor of the Fisher matrix, of size {len(factor)}, is not positive definite in {factor.dtype}; "
            "raise damping"
        )
    return torch.cholesky_inverse(cholesky)
