"""Hardware-aware training: gradients at weights as imperfect cells would hold them."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Cost, EnergyCircuit, Params
from circuits.crossbar import Crossbar
from circuits.mapping import Mapping, default_mapping
from devices import Device
from mep_sim.optimizers.strategies.exact import BackpropGradient
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy, remembered


@dataclass(frozen=True)
class PerturbedWeights(GradientStrategy):
    """The gradient of `inner` at weights perturbed anew by every read, taken for that at the weights themselves
    (straight-through: Joshi et al., Nat. Commun. 11:2473, 2020).

    What is perturbed are the circuit's `weights`, which a `Chip` would put on arrays; biases and all else stay as they
    are. inner: any strategy, backprop unless given; EP's phases share one perturbation unless they read independently.
    w_range: the largest |weight| that is read, over the root mean square of its matrix, > 0, as of the `Chip` to come;
    what lies beyond is clipped when read and still learns. None: no limit. `seed` and the caller's memory determine
    the draws.
    """

    loss_type: str | Cost = dataclasses.field(default="cross_entropy", init=False)  # that of inner
    inner: GradientStrategy = dataclasses.field(default_factory=BackpropGradient)
    w_range: float | None = dataclasses.field(default=5.0, kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, GradientStrategy):
            raise ValueError(f"inner = {self.inner!r}; give a GradientStrategy, such as BackpropGradient()")
        object.__setattr__(self, "loss_type", self.inner.loss_type)
        if self.w_range is not None and not 0 < self.w_range < math.inf:
            raise ValueError(f"w_range = {self.w_range}; choose a finite w_range > 0, such as 5, or None")

    @abstractmethod
    def perturbed(self, weight: Tensor, w_max: Tensor, rng: torch.Generator) -> Tensor:
        """What is read in place of a weight matrix (rows, cols), none of it beyond `w_max`, a 0-d tensor."""

    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        memory = {} if memory is None else memory
        with remembered(memory, "perturbation", self.seed, x.device) as rng:

            @torch.no_grad()
            def read_perturbed() -> Params:
                params = dict(read())
                for name in circuit.weights:
                    weight = params[name].detach()
                    w_max = self._largest(weight)
                    matrix = weight.flatten(1).clamp(-w_max, w_max)
                    params[name] = self.perturbed(matrix, w_max, rng).view(weight.shape)
                return params

            return self.inner.estimate(circuit, read_perturbed, x, target, memory)

    def _largest(self, weight: Tensor) -> Tensor:
        """A 0-d tensor: asking for the number would stall a GPU's queue."""
        if self.w_range is None:
            return weight.abs().max()
        return self.w_range * weight.square().mean().sqrt()


@dataclass(frozen=True)
class NoisyWeights(PerturbedWeights):
    """Gaussian noise on every weight, of standard deviation `sigma` (0 to 1) times the largest weight of its matrix:
    w_range times the root mean square, or the largest |weight| where w_range is None.
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma <= 1:
            raise ValueError(
                f"sigma = {self.sigma}; it is over the largest weight: choose 0 to 1, such as 0.05"
            )

    def perturbed(self, weight: Tensor, w_max: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(weight.shape, generator=rng, dtype=weight.dtype, device=weight.device)
        return noise.mul_(self.sigma * w_max).add_(weight)


@dataclass(frozen=True)
class DeviceWeights(PerturbedWeights):
    """Weights as new crossbars of `device` hold them: made, programmed, and read `t_seconds` (0 or more) later.

    mapping: of weights on cells, as of `Crossbar`. compensation: of drift, "global" or by "column" (see
    `Crossbar.compensate`); None for none.
    """

    device: Device = dataclasses.field(kw_only=True)
    t_seconds: float = dataclasses.field(default=0.0, kw_only=True)
    mapping: Mapping | None = dataclasses.field(default=None, kw_only=True)
    compensation: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.device, Device):
            raise ValueError(f"device = {self.device!r}; give a Device, such as devices.preset('pcm')")
        if not 0 <= self.t_seconds < math.inf:
            raise ValueError(f"t_seconds = {self.t_seconds}; choose a finite time >= 0 s")
        if self.compensation not in (None, "global", "column"):
            raise ValueError(f"unknown compensation {self.compensation!r}; choose global, column or None")
        (self.mapping or default_mapping(self.device)).check(self.device)

    def perturbed(self, weight: Tensor, w_max: Tensor, rng: torch.Generator) -> Tensor:
        shape, dtype = tuple(weight.shape), weight.dtype
        crossbar = Crossbar(shape, self.device, w_max.item(), rng, mapping=self.mapping, dtype=dtype)
        crossbar.program(weight)
        if self.compensation is not None:
            crossbar.calibrate()
            crossbar.compensate(self.t_seconds, self.compensation)
        return crossbar.read(self.t_seconds)
