"""Costs that nudge the output: value, gradient and the nudged output unit's own equilibrium.

All take the output `o (B, C)` and a target: class indices `(B,)` int64, or `(B, C)` floats (values for the
squared error, a distribution over classes for the cross-entropy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cost(ABC):
    """A cost C(o, y) per sample. `curvature` is the largest eigenvalue its Hessian in o can have."""

    curvature = 1.0

    def target(self, target: Tensor, output: Tensor) -> Tensor:
        """The target as a tensor like `output` (B, C); ValueError where it cannot be one."""
        batch, classes = output.shape
        if target.ndim == 1 and not target.is_floating_point():
            if len(target) != batch:
                raise ValueError(f"{len(target)} targets for {batch} inputs; give one class index per input")
            # a look at the values would stall a GPU's queue
            if not target.is_cuda and len(wrong := target[(target < 0) | (target >= classes)]):
                raise ValueError(
                    f"class {wrong[0].item()} is none of 0 to {classes - 1}; check the labels, or give the circuit an "
                    "output per class"
                )
            indices = target.to(output.device)[:, None]
            return self._of_classes(indices == torch.arange(classes, device=output.device), output)
        if target.shape != output.shape or target.is_complex():
            raise ValueError(
                f"target of shape {tuple(target.shape)} and type {target.dtype} for an output of shape "
                f"{tuple(output.shape)}; give int64 class indices (B,) or floats of the output's shape"
            )
        return target.to(output)

    def _of_classes(self, is_class: Tensor, output: Tensor) -> Tensor:
        """The target of a known class, from booleans (B, C)."""
        return is_class.to(output)

    @abstractmethod
    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """C per sample, shape (B,)."""

    @abstractmethod
    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """dC/do, shape (B, C)."""

    @abstractmethod
    def relax(
        self,
        pull: Tensor,
        origin: Tensor | float,
        target: Tensor,
        beta: float | complex | Tensor,
        guess: Tensor,
    ) -> Tensor:
        """The d that solves d = pull - beta C'(origin + d), where a nudged output unit comes to rest, or a step
        towards it from `guess`: repeated, it gets there. beta: of all outputs, or of each (C,).

        With origin 0 it is the proximal map of beta C; with an origin it stays exact for small d.
        """


@dataclass(frozen=True)
class SquaredError(Cost):
    """C = 1/2 |o - y|^2."""

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output - target).square().sum(1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return output - target

    def relax(
        self,
        pull: Tensor,
        origin: Tensor | float,
        target: Tensor,
        beta: float | complex | Tensor,
        guess: Tensor,
    ) -> Tensor:
        return (pull - beta * (origin - target)) / (1 + beta)


@dataclass(frozen=True)
class CrossEntropy(Cost):
    """C = -sum y log softmax(o); the output is the logits. Its Hessian diag(p) - p p' is at most 1/2."""

    curvature = 0.5
    gentle = 0.3  # |beta| up to which a step of the fixed-point iteration shrinks the error enough

    def target(self, target: Tensor, output: Tensor) -> Tensor:
        """A distribution over classes (B, C); booleans where the class is known."""
        checked = super().target(target, output)
        if target.shape == output.shape and not target.is_cuda:
            wrong = target[((target.sum(1) - 1).abs() > 1e-3) | (target < 0).any(1)]
            if len(wrong):
                row = ", ".join(f"{share:.3g}" for share in wrong[0][:4].tolist())
                raise ValueError(
                    f"the target [{row}{', ..' * (wrong.shape[1] > 4)}] is no distribution over classes; for values "
                    "to fit use loss_type = 'mse'"
                )
        return checked

    def _of_classes(self, is_class: Tensor, output: Tensor) -> Tensor:
        return is_class

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * self._log_probabilities(output)).sum(1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return self._gradient(self._probabilities(output), target)

    def _probabilities(self, output: Tensor) -> Tensor:
        return _softmax(output)

    def _log_probabilities(self, output: Tensor) -> Tensor:
        return _log_softmax(output)

    @staticmethod
    def _gradient(p: Tensor, target: Tensor) -> Tensor:
        if target.dtype != torch.bool:
            return p - target
        # of the class itself as minus the sum of the others: near certainty p - 1 would round to nothing
        others = p.masked_fill(target, 0)
        return torch.where(target, -others.sum(1, keepdim=True), others)

    def relax(
        self,
        pull: Tensor,
        origin: Tensor | float,
        target: Tensor,
        beta: float | complex | Tensor,
        guess: Tensor,
    ) -> Tensor:
        differs = isinstance(beta, Tensor)
        if not differs and abs(beta) <= self.gentle:
            return pull - beta * self.gradient(origin + guess, target)
        d = guess
        for _ in range(4 if differs else 7 if abs(beta) <= 1 else 15):  # of many betas: some steps of the way
            p = self._probabilities(origin + d)
            miss = d - pull + beta * self._gradient(p, target)
            # Newton: (I + beta (diag p - p p')) step = miss, by Sherman-Morrison
            diagonal = 1 + beta * p
            # zero where beta = -1 meets certainty; a slightly other slope still converges
            diagonal = torch.where(diagonal.abs() < 1e-3, 1e-3, diagonal)
            q, r = beta * p / diagonal, miss / diagonal
            step = r + q * ((p * r).sum(1, keepdim=True) / (1 - (p * q).sum(1, keepdim=True)))
            # within e^2 of a probability its slope still says something
            d = d - step * (2 / step.abs().amax(1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        return d


def _softmax(output: Tensor) -> Tensor:
    """Also of complex logits, which torch's own does not take."""
    return _log_softmax(output).exp() if output.is_complex() else torch.softmax(output, 1)


def _log_softmax(output: Tensor) -> Tensor:
    if not output.is_complex():
        return F.log_softmax(output, 1)
    shifted = output - output.real.amax(1, keepdim=True)
    return shifted - shifted.exp().sum(1, keepdim=True).log()


_COSTS = {"mse": SquaredError(), "cross_entropy": CrossEntropy()}


def cost(name: str | Cost) -> Cost:
    """The cost called "mse" or "cross_entropy"; a cost is returned as it is."""
    if isinstance(name, Cost):
        return name
    if name not in _COSTS:
        raise ValueError(f"unknown cost {name!r}; choose one of {', '.join(sorted(_COSTS))}")
    return _COSTS[name]
