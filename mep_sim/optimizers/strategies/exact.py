"""Exact gradients, to train against and to measure estimates by: backprop and the implicit gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, FeedforwardCircuit, Params, cost
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy
from mep_sim.settling import SettlingError, Solver, Sweep, settle


@dataclass(frozen=True)
class BackpropGradient(GradientStrategy):
    """Reverse-mode differentiation of the forward pass: the digital baseline.

    The forward pass is the model's own: in training mode BatchNorm and Dropout do what they do in torch.
    """

    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        if not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"{type(circuit).__name__} has no forward pass to differentiate; use ImplicitGradient"
            )
        with torch.enable_grad():
            params = {name: p.detach().requires_grad_() for name, p in read().items()}
            x = circuit.check_input(x, params)
            output = torch.func.functional_call(circuit, params, (x,))
            c = cost(self.loss_type)
            loss = c.value(output, c.target(target, output)).mean()
            gradients = torch.autograd.grad(loss, list(params.values()))
        return Estimate(dict(zip(params, gradients, strict=True)), loss.detach(), output.detach())


@dataclass(frozen=True)
class ImplicitGradient(GradientStrategy):
    """The exact gradient at a free equilibrium, by the implicit function theorem: EP's limit at beta -> 0.

    With flow(s*) = 0, dC/dtheta = lambda' dflow/dtheta where J' lambda = -dC/ds and J = dflow/ds (Bai et
    al. 2019, theorem 1). The adjoint is relaxed like the state, to `adjoint_tolerance` of its size, in at most
    `max_iterations`; SettlingError where it does not get there.
    """

    solver: Solver = dataclasses.field(default_factory=lambda: Sweep(1e-5))
    adjoint_tolerance: float = 1e-4
    max_iterations: int = 10_000

    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        params = {name: p.detach().requires_grad_() for name, p in read().items()}
        with torch.no_grad():
            free_system = circuit.bind({name: p.detach() for name, p in params.items()}, x)
            free = settle(free_system, solver=self.solver)
        c = cost(self.loss_type)
        with torch.enable_grad():
            system = free_system.rebind(params)
            s = free.state.detach().requires_grad_()
            output = system.readout(s)
            losses = c.value(output, c.target(target, output.detach()))
            (pull,) = torch.autograd.grad(losses.sum(), s)
            flow = system.relaxation(s)
        adjoint, step = torch.zeros_like(pull), 1.8 / system.relaxation_rate()
        for iteration in range(self.max_iterations):
            (back,) = torch.autograd.grad(flow, s, adjoint, retain_graph=True)
            miss = back + pull
            adjoint = adjoint + step * miss
            if iteration % 8 == 0 and miss.norm() <= self.adjoint_tolerance * adjoint.norm():
                break
        else:
            raise SettlingError(
                f"the adjoint did not settle to {self.adjoint_tolerance} of its size in {self.max_iterations} "
                "iterations; raise max_iterations, lower gamma, or see that the free phase settles"
            )
        gradients = torch.autograd.grad(flow, list(params.values()), adjoint / len(x))
        free_system.observe(free)
        return Estimate(
            dict(zip(params, gradients, strict=True)), losses.mean().detach(), output.detach(), free
        )
