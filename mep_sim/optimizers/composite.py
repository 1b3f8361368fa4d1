"""`CompositeOptimizer`: gradient, feedback, update, constraint and write, composed into one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from circuits import EnergyCircuit, FeedforwardCircuit
from circuits.chip import Chip
from mep_sim.optimizers.strategies.constraint import ConstraintStrategy, NoConstraint
from mep_sim.optimizers.strategies.feedback import (
    ErrorFeedback,
    FeedbackStrategy,
    WriteFeedback,
    WriteResidual,
)
from mep_sim.optimizers.strategies.gradient import BackpropGradient, Estimate, GradientStrategy
from mep_sim.optimizers.strategies.update import PlainUpdate, UpdateStrategy


class CompositeOptimizer(torch.optim.Optimizer):
    """One training step, composed of strategies.

    The gradient, however estimated, is handed over in `.grad`: so `optimizer.step(x=x, target=y)` learns by
    EP, and `loss.backward(); optimizer.step()` uses the same update on a gradient of one's own. With a
    `chip`, what reaches a weight on the array is what its pulses write; `write_feedback` sees to the rest.

    model: the circuit, or an nn.Sequential to make a FeedforwardCircuit of; needed for step(x=, target=).
    lr > 0; the last `Estimate` is kept in `.estimate`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        gradient: GradientStrategy | None = None,
        update: UpdateStrategy | None = None,
        constraint: ConstraintStrategy | None = None,
        feedback: FeedbackStrategy | None = None,
        lr: float = 0.01,
        model: nn.Module | None = None,
        chip: Chip | None = None,
        write_feedback: WriteFeedback | None = None,
    ):
        if not lr > 0:
            raise ValueError(f"lr = {lr}; choose a learning rate > 0, such as 0.01")
        super().__init__(params, {"lr": lr})
        self.gradient = gradient or BackpropGradient()
        self.update = update or PlainUpdate()
        self.constraint = constraint or NoConstraint()
        self.feedback = feedback or ErrorFeedback()
        self.write_feedback = write_feedback or WriteResidual()
        self.chip = chip
        self.circuit = _as_circuit(chip.circuit if chip is not None else model)
        self._names = self._name_parameters()
        self.estimate: Estimate | None = None

    def _name_parameters(self) -> dict[nn.Parameter, str]:
        if self.circuit is None:
            return {}
        names = {p: name for name, p in self.circuit.named_parameters()}
        foreign = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p not in names]
        if foreign:
            raise ValueError(f"parameters of shapes {foreign} are not the model's; pass model.parameters()")
        return names

    def compute_gradient(self, x: Tensor, target: Tensor) -> Estimate:
        """Estimate the gradient at (x, target) and put it into `.grad`, so that it can be looked at or clipped
        before `step()`."""
        if self.circuit is None:
            raise ValueError("step(x=, target=) needs the network: pass model= when making the optimizer")
        read = self.circuit.params if self.chip is None else self.chip.read
        self.estimate = self.gradient.estimate(self.circuit, read, x, target)
        for p, name in self._names.items():
            p.grad = self.estimate.gradient.get(name)
        return self.estimate

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Tensor] | None = None,
        *,
        x: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor | None:
        """Learn from a batch (x, target), or from the gradients already in `.grad`; returns the loss if known."""
        if (x is None) != (target is None):
            raise ValueError(
                "step() got only one of x and target; give both, or neither after loss.backward()"
            )
        if x is not None and closure is not None:
            raise ValueError("step() got a closure and a batch; give one of them")
        loss = None
        if x is not None:
            loss = self.compute_gradient(x, target).loss
        elif closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group["lr"])
        if x is None and self.chip is not None:
            self.chip.read()  # a forward pass of one's own sees the weights by their last read
        return loss

    def _move(self, p: nn.Parameter, lr: float) -> None:
        state, rule = self.state[p], self.update.rule(p)
        if rule.has_own_memory:
            direction, _ = rule.direction(p.grad, state)
        else:
            signal = self.feedback.signal(p.grad, state)
            direction, kept = rule.direction(signal, state)
            self.feedback.keep(p.grad, kept, state)
        proposed = self.constraint.project(p - lr * direction, state)
        name = self._names.get(p)
        if self.chip is None or not self.chip.holds(name):
            p.copy_(proposed)
            return
        wanted = self.write_feedback.wanted(proposed - p, state)
        written = self.chip.write({name: wanted})[name]
        self.write_feedback.written(wanted, written, state)


def _as_circuit(model: nn.Module | None) -> EnergyCircuit | None:
    if model is None or isinstance(model, EnergyCircuit):
        return model
    if isinstance(model, nn.Sequential):
        return FeedforwardCircuit.from_sequential(model)
    raise ValueError(f"cannot make a circuit of {type(model).__name__}; pass an nn.Sequential or a circuit")
