"""How the gradient of the mean cost is estimated."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import EnergyCircuit, Equilibrium, FeedforwardCircuit, Params, System, cost
from mep_sim.settling import ODE, Solver, Sweep, settle

PHASES = ("one_sided", "centred", "one_sweep")
SETTLE_LR = 0.15  # length of an Euler step, in time constants


@dataclass(frozen=True)
class Estimate:
    """A gradient of the mean cost by parameter name, and where it came from.

    loss: mean cost of the free output, a 0-d tensor; output (B, C): the free output; free and nudged: the
    equilibria (none for backprop); energy_gap: mean over samples and phases of (E_nudged - E_free) / beta,
    the cost as the energies see it, a 0-d tensor.
    """

    gradient: Params
    loss: Tensor
    output: Tensor
    free: Equilibrium | None = None
    nudged: tuple[Equilibrium, ...] = ()
    energy_gap: Tensor | None = None


@dataclass(frozen=True)
class GradientStrategy(ABC):
    """`loss_type`: "cross_entropy" or "mse" (1/2 |o - y|^2)."""

    loss_type: str = "cross_entropy"

    def __post_init__(self) -> None:
        cost(self.loss_type)

    @abstractmethod
    def estimate(
        self, circuit: EnergyCircuit, read: Callable[[], Params], x: Tensor, target: Tensor
    ) -> Estimate:
        """The gradient at input x (B, d) and target. `read()` returns the weights as read now: call it
        once for weights shared by all phases, again for a fresh read."""


@dataclass(frozen=True)
class EPGradient(GradientStrategy):
    """Equilibrium Propagation: settle free, settle nudged, contrast (Scellier & Bengio 2017, eq. 17).

    beta: nudging strength, > 0. phases: "one_sided" (0 and beta: error O(beta)), "centred" (-beta and
    beta: O(beta^2), Laborieux et al. 2021), or "one_sweep", a single top-down sweep from the free state
    that equals backprop on the feedforward energy and is no equilibrium. solver: how to settle; its
    tolerance is the free phase's, over the state. nudged_tolerance: residual over the nudge.
    independent_reads: read the weights again for every phase, so that their read noise differs; else one
    read serves all. settle_steps: that many Euler steps at most, in place of `solver`; settle_lr: their
    length in time constants, 0.15 unless given.
    """

    beta: float = 0.1
    phases: str = "one_sided"
    solver: Solver = dataclasses.field(default_factory=lambda: Sweep(1e-5))
    nudged_tolerance: float = 1e-3
    independent_reads: bool = False
    settle_steps: int | None = None
    settle_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta = {self.beta}; choose a finite beta > 0, such as 0.1")
        if self.phases not in PHASES:
            raise ValueError(f"unknown phases {self.phases!r}; choose one of {', '.join(PHASES)}")
        if self.settle_steps is None and self.settle_lr is not None:
            raise ValueError(
                f"settle_lr = {self.settle_lr} without a number of steps; give settle_steps too, such as 15"
            )
        if self.settle_steps is not None:
            step = SETTLE_LR if self.settle_lr is None else self.settle_lr
            euler = ODE(method="euler", step=step, max_evaluations=self.settle_steps)
            if self.solver not in (Sweep(1e-5), euler):
                raise ValueError(
                    f"settle_steps = {self.settle_steps} replaces solver = {self.solver}; give one of them"
                )
            object.__setattr__(self, "solver", euler)
        dataclasses.replace(self.solver, tolerance=self.nudged_tolerance)  # raises where it is out of range

    def estimate(
        self, circuit: EnergyCircuit, read: Callable[[], Params], x: Tensor, target: Tensor
    ) -> Estimate:
        if self.phases == "one_sweep" and not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                "one_sweep is defined on the feedforward energy only; choose one_sided or centred"
            )
        with torch.no_grad():
            system = circuit.bind(read(), x)
            free = settle(system, solver=self.solver)
            output = system.readout(free.state)
            c = cost(self.loss_type)
            loss = c.value(output, c.target(target, output)).mean()
            around = system.around(free)
            if self.phases == "one_sweep":
                return Estimate(around.nudged(c, target, self.beta).one_sweep(), loss, output, free)
            signs = (1,) if self.phases == "one_sided" else (1, -1)
            if self.phases == "centred":
                _check_beta(around, c, self.beta)
            contrasts, nudged, gaps = [], [], []
            energy = system.energy(free.state)
            for sign in signs:
                base = circuit.bind(read(), x) if self.independent_reads else around
                phase = base.nudged(c, target, sign * self.beta)
                at = self._settle_nudged(phase, free)
                contrasts.append(phase.contrast(free, at))
                z = at.state if phase.origin is None else at.deviation
                gaps.append((phase.energy(z) - energy).mean() / (sign * self.beta))
                nudged.append(at)
        gradient = {name: sum(c[name] for c in contrasts) / len(contrasts) for name in contrasts[0]}
        return Estimate(gradient, loss, output, free, tuple(nudged), sum(gaps) / len(gaps))

    def _settle_nudged(self, phase: System, free: Equilibrium) -> Equilibrium:
        if phase.origin is not None:
            return settle(phase, solver=dataclasses.replace(self.solver, tolerance=self.nudged_tolerance))
        # Other weights than the free phase's: the free state is a start, not an origin to deviate
        # from, and the nudge is known only once both are there.
        nudged = settle(phase, free.state, self.solver)
        relative = nudged.residual / (nudged.state - free.state).abs().amax(1)
        return dataclasses.replace(
            nudged, relative_residual=relative, converged=relative <= self.nudged_tolerance
        )


def _check_beta(system: System, c: object, beta: float) -> None:
    limit = system.largest_beta(c, enough=beta)
    if beta >= limit:
        raise ValueError(
            f"beta = {beta} is too large: at -beta the nudged energy has a minimum only for beta < {limit:.3g} "
            "with these weights; lower beta, tighten gamma, or use phases = one_sided"
        )


@dataclass(frozen=True)
class BackpropGradient(GradientStrategy):
    """Reverse-mode differentiation of the forward pass: the digital baseline."""

    def estimate(
        self, circuit: EnergyCircuit, read: Callable[[], Params], x: Tensor, target: Tensor
    ) -> Estimate:
        if not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"{type(circuit).__name__} has no forward pass to differentiate; use ImplicitGradient"
            )
        x = circuit.check_input(x, circuit.features)
        with torch.enable_grad():
            params = {name: p.detach().requires_grad_() for name, p in read().items()}
            output = torch.func.functional_call(circuit, params, (x,))
            c = cost(self.loss_type)
            loss = c.value(output, c.target(target, output)).mean()
            gradients = torch.autograd.grad(loss, list(params.values()))
        return Estimate(dict(zip(params, gradients, strict=True)), loss.detach(), output.detach())


@dataclass(frozen=True)
class ImplicitGradient(GradientStrategy):
    """The exact gradient at a free equilibrium, by the implicit function theorem: EP's limit at beta -> 0.

    With flow(s*) = 0, dC/dtheta = lambda' dflow/dtheta where J' lambda = -dC/ds and J = dflow/ds (Bai et
    al. 2019, theorem 1). The adjoint is relaxed like the state, to `adjoint_tolerance` of its size.
    """

    solver: Solver = dataclasses.field(default_factory=lambda: Sweep(1e-5))
    adjoint_tolerance: float = 1e-4
    max_iterations: int = 10_000

    def estimate(
        self, circuit: EnergyCircuit, read: Callable[[], Params], x: Tensor, target: Tensor
    ) -> Estimate:
        params = {name: p.detach().requires_grad_() for name, p in read().items()}
        with torch.no_grad():
            free_system = circuit.bind({name: p.detach() for name, p in params.items()}, x)
            free = settle(free_system, solver=self.solver)
        c = cost(self.loss_type)
        with torch.enable_grad():
            system = circuit.bind(params, x)
            s = free.state.detach().requires_grad_()
            output = system.readout(s)
            losses = c.value(output, c.target(target, output.detach()))
            (pull,) = torch.autograd.grad(losses.sum(), s)
            flow = system.flow(s)
        adjoint, step = torch.zeros_like(pull), 1.8 / system.fastest_rate()
        for iteration in range(self.max_iterations):
            (back,) = torch.autograd.grad(flow, s, adjoint, retain_graph=True)
            miss = back + pull
            adjoint = adjoint + step * miss
            if iteration % 8 == 0 and miss.norm() <= self.adjoint_tolerance * adjoint.norm():
                break
        gradients = torch.autograd.grad(flow, list(params.values()), adjoint / len(x))
        return Estimate(
            dict(zip(params, gradients, strict=True)), losses.mean().detach(), output.detach(), free
        )
