"""Where a baseline's gradients come from: autograd on any model, or whatever an optimizer's strategy estimates."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from circuits import FeedforwardCircuit, Params
from circuits import cost as cost_of
from circuits.costs import Cost
from mep_sim.baselines.samples import summed_squares
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, Estimate, GradientStrategy
from mep_sim.optimizers.strategies.update import check_count
from mep_sim.settling import Sweep, settle


class Gradients(ABC):
    """Gradients of the mean `cost` at the present weights; set `cost` to change the task's. `.grad` is left alone.

    is_digital: whether a Parameter keeps what it is set to; not where a chip holds the weights.
    """

    cost: Cost
    is_digital: bool = True

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that learn, by name."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of the mean cost over a batch x (B, ...), y (B,)."""

    @abstractmethod
    def squares(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The mean over samples of weight (B,), 1 unless given, times the square of the sample's own gradient."""

    @abstractmethod
    def outputs(self, x: Tensor) -> Tensor:
        """(B, C), without a graph."""

    @contextmanager
    def under(self, other: Cost) -> Iterator[None]:
        """Another cost for a while."""
        own, self.cost = self.cost, other
        try:
            yield
        finally:
            self.cost = own


class Autograd(Gradients):
    """Reverse-mode differentiation of any module with outputs (B, C).

    cost: "cross_entropy", "mse" or a Cost. chunk_size: samples whose gradients `squares` holds at once, >= 1.
    """

    def __init__(self, model: nn.Module, cost: str | Cost = "cross_entropy", *, chunk_size: int = 256):
        check_count(chunk_size=chunk_size)
        self.model, self.cost, self.chunk_size = model, cost_of(cost), chunk_size
        if not self.parameters:
            raise ValueError(f"no parameter of the {type(model).__name__} learns; set requires_grad of some")

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def gradient(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        params = self.parameters
        with torch.enable_grad():
            output = self.model(x)
            pull = self._pull(output.detach(), y) / len(x)
            found = torch.autograd.grad(output, list(params.values()), pull, materialize_grads=True)
        return dict(zip(params, found, strict=True))

    @torch.no_grad()
    def squares(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        self._check_samples_are_apart()
        params = self.parameters
        totals = {name: torch.zeros_like(p) for name, p in params.items()}
        for start in range(0, len(x), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            pull = self._pull(self.outputs(x[part]), y[part])
            share = pull.new_ones(len(pull)) if weight is None else weight[part].to(pull)
            found = summed_squares(self.model, params, x[part], pull, share)
            for name, total in totals.items():
                total += found[name]
        return {name: total / len(x) for name, total in totals.items()}

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x)

    def _pull(self, output: Tensor, y: Tensor) -> Tensor:
        return self.cost.gradient(output, self.cost.target(y, output))

    def _check_samples_are_apart(self) -> None:
        for name, m in self.model.named_modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                mixes = m.training or m.running_mean is None
            else:
                mixes = isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0
            if mixes:
                raise ValueError(
                    f"{name}, a {type(m).__name__} in training mode, leaves a sample no gradient of its own: "
                    "model.eval() first (BatchNorm with track_running_stats = True)"
                )


class ByOptimizer(Gradients):
    """What the optimizer's gradient strategy estimates, at the weights as its chip reads them where it has one.

    Estimates move what the strategy remembers (`optimizer.memory`), as a step's do.
    """

    def __init__(self, optimizer: CompositeOptimizer):
        if optimizer.circuit is None:
            raise ValueError("the optimizer knows no network: pass model= when making it")
        if optimizer.chip is not None and optimizer.chip.trains is not None:
            raise ValueError(
                "a chip that learns by pulse trains never looks at .grad, which baselines change: make it without "
                "trains"
            )
        self.optimizer = optimizer
        self.is_digital = optimizer.chip is None

    @property
    def cost(self) -> Cost:
        return cost_of(self.optimizer.gradient.loss_type)

    @cost.setter
    def cost(self, value: Cost) -> None:
        self.optimizer.gradient = _under(self.optimizer.gradient, value)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        learning = {p for group in self.optimizer.param_groups for p in group["params"]}
        named = self.optimizer.circuit.named_parameters()
        return {name: p for name, p in named if p in learning and p.requires_grad}

    def gradient(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = self._estimate(x, y).gradient
        return {name: found[name] for name in self.parameters}

    def squares(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        if isinstance(self.optimizer.gradient, BackpropGradient):
            circuit, read, x = self._bound(x)
            x = circuit.check_input(x, read())  # a chip's Parameters mirror this read
            found = Autograd(circuit, self.cost).squares(x, y, weight)
        else:
            found = self._estimate(x, y).squares(weight)
            if found is None:
                raise ValueError(
                    f"{type(self.optimizer.gradient).__name__} gives no gradients sample by sample; use EPGradient "
                    "(its one_sweep is backprop), or Autograd in place of ByOptimizer"
                )
        if others := [name for name in self.parameters if name not in found]:
            raise ValueError(
                f"estimates know single samples at weights and biases of layers, and {', '.join(others)} learn too: "
                "freeze them, or use Autograd in place of ByOptimizer"
            )
        return {name: found[name] for name in self.parameters}

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        circuit, read, x = self._bound(x)
        params = read()
        if isinstance(circuit, FeedforwardCircuit):
            return functional_call(circuit, dict(params), (circuit.check_input(x, params),))
        system = circuit.bind(params, x)
        return system.readout(settle(system, solver=Sweep(1e-5)).state)

    def _estimate(self, x: Tensor, y: Tensor) -> Estimate:
        circuit, read, x = self._bound(x)
        return self.optimizer.gradient.estimate(circuit, read, x, y, memory=self.optimizer.memory)

    def _bound(self, x: Tensor) -> tuple[nn.Module, Callable[[], Params], Tensor]:
        circuit, chip = self.optimizer.circuit, self.optimizer.chip
        return (circuit, circuit.params, x) if chip is None else (circuit, chip.read, chip.drive(x))


def _under(strategy: GradientStrategy, value: Cost) -> GradientStrategy:
    """The same settings with another cost; a strategy around another has that of its `inner`."""
    if hasattr(strategy, "inner"):
        return dataclasses.replace(strategy, inner=_under(strategy.inner, value))
    return dataclasses.replace(strategy, loss_type=value)
