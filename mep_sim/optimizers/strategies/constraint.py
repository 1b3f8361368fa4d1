"""What the weights may be: applied to all weights that a step proposes, before they are written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from circuits import EnergyCircuit
from circuits.norms import conv_norm


@dataclass(frozen=True)
class ConstraintStrategy(ABC):
    def check(self, circuit: EnergyCircuit | None) -> None:
        """ValueError where the constraint means nothing on this circuit; None: parameters without a circuit."""
        if circuit is not None and circuit.window is not None:
            low, high = circuit.window
            raise ValueError(
                f"{type(self).__name__} lets weights leave [{low:g}, {high:g}], where those of a "
                f"{type(circuit).__name__} have to stay: choose WindowConstraint({low:g}, {high:g}), the default"
            )

    def check_weight(self, name: str, weight: Tensor) -> None:
        """ValueError where the constraint cannot bound a weight of this shape."""

    @abstractmethod
    def project(
        self, proposed: dict[str, Tensor], circuit: EnergyCircuit | None, state: Mapping[str, dict]
    ) -> dict[str, Tensor]:
        """Allowed weights near the proposed ones, all of a step at once.

        `proposed` holds the linear maps among them; it and `state` (running tensors) go by the circuit's names of
        parameters, or without a circuit by any name.
        """


@dataclass(frozen=True)
class NoConstraint(ConstraintStrategy):
    def project(
        self, proposed: dict[str, Tensor], circuit: EnergyCircuit | None, state: Mapping[str, dict]
    ) -> dict[str, Tensor]:
        return proposed


@dataclass(frozen=True)
class WindowConstraint(ConstraintStrategy):
    """low <= w <= high, weight by weight: conductances, in siemens, of a resistive network, whose equilibrium is unique
    whatever they are. Finite low < high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"window [{self.low}, {self.high}]; choose finite low < high, such as 1e-7 and 1e-4 S"
            )

    def check(self, circuit: EnergyCircuit | None) -> None:
        if circuit is None or circuit.window is None:
            return
        low, high = circuit.window
        if self.low < low or self.high > high:
            raise ValueError(
                f"{self} is wider than the window of the circuit, {circuit.window}: stay within it"
            )

    def project(
        self, proposed: dict[str, Tensor], circuit: EnergyCircuit | None, state: Mapping[str, dict]
    ) -> dict[str, Tensor]:
        return {name: w.clamp(self.low, self.high) for name, w in proposed.items()}


def default_constraint(circuit: EnergyCircuit | None) -> ConstraintStrategy:
    """What weights must not leave, where a circuit says so, and nothing else."""
    return NoConstraint() if circuit is None or circuit.window is None else WindowConstraint(*circuit.window)


@dataclass(frozen=True)
class SpectralConstraint(ConstraintStrategy):
    """sigma(W) <= gamma, layer by layer. gamma > 0.

    A matrix becomes the nearest one within the bound: singular values above gamma are set to it. A convolution is
    bounded in its operator norm, not in that of the reshaped kernel, and scaled down to it: clipped exactly it
    would be no convolution with a kernel of that size. Without a circuit its stride is unknown and taken as 1, which
    bounds it for any.

    `contractive` and `regulariser` are the two uses, with the range that each needs.
    """

    gamma: float = 0.95

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma}; choose gamma > 0 (below 1 to contract)")

    @classmethod
    def contractive(cls, gamma: float = 0.95) -> SpectralConstraint:
        """0 < gamma < 1: every layer shrinks differences. It suffices for a unique equilibrium of one or two free
        Hopfield layers, not of more: see `CertifiedConstraint`."""
        if not gamma < 1:
            raise ValueError(
                f"gamma = {gamma} does not contract; choose 0 < gamma < 1, or use regulariser(gamma)"
            )
        return cls(gamma)

    @classmethod
    def regulariser(cls, gamma: float = 2.0) -> SpectralConstraint:
        """gamma >= 1: keeps weights from growing and promises nothing about equilibria."""
        if not gamma >= 1:
            raise ValueError(f"gamma = {gamma} contracts; choose gamma >= 1, or use contractive(gamma)")
        return cls(gamma)

    def project(
        self, proposed: dict[str, Tensor], circuit: EnergyCircuit | None, state: Mapping[str, dict]
    ) -> dict[str, Tensor]:
        return {name: self._bounded(w, name, module_of(name, circuit)) for name, w in proposed.items()}

    def check_weight(self, name: str, weight: Tensor) -> None:
        if weight.ndim not in (2, 3, 4):
            raise ValueError(
                f"{name} of shape {tuple(weight.shape)} is neither a matrix nor a kernel of Conv1d or Conv2d; put it "
                "into a parameter group with role = 'vector', or use NoConstraint"
            )

    def _bounded(self, weight: Tensor, name: str, module: nn.Module | None) -> Tensor:
        self.check_weight(name, weight)
        if weight.ndim == 2:
            return clip_singular_values(weight, self.gamma)
        if weight.ndim == 3:  # one row of pixels
            return self._bounded(weight.unsqueeze(2), name, module).squeeze(2)
        known = isinstance(module, nn.Conv2d)
        norm = (
            conv_norm(weight, module.stride, module.groups, module.dilation) if known else conv_norm(weight)
        )
        return weight if norm <= self.gamma else weight * (self.gamma / norm)


def module_of(name: str, circuit: EnergyCircuit | None) -> nn.Module | None:
    """The module that a circuit's parameter belongs to."""
    return None if circuit is None else circuit.get_submodule(name.rpartition(".")[0])


def clip_singular_values(weight: Tensor, ceiling: float) -> Tensor:
    """The matrix nearest to `weight` without a singular value above `ceiling`.

    Exact, from the eigenvectors of the smaller Gram matrix. A warm power iteration would be cheaper, but Muon raises
    all singular values alike and outruns it: the bound was missed by up to a quarter.
    """
    if weight.dtype.itemsize < 4:  # LAPACK has no decompositions in half precision
        return clip_singular_values(weight.float(), ceiling).to(weight.dtype)
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    sigma = squares.clamp(min=0).sqrt()
    # rounding in the Gram matrix and the product: without a margin float32 ends a hair above the ceiling
    ceiling = ceiling * (1 - 16 * torch.finfo(weight.dtype).eps)
    shrink = torch.where(sigma > ceiling, ceiling / sigma - 1, 0.0)
    # as a correction, so that a weight within the bound stays as it is to the bit
    clipped = torch.addmm(wide, (vectors * shrink) @ vectors.T, wide)
    return clipped if wide is weight else clipped.T
