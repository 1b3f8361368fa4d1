"""Equilibrium Propagation: contrasts of nudged equilibria with the free one."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from circuits import EnergyCircuit, Equilibrium, FeedforwardCircuit, Params, System, cost
from circuits.base import Pairs
from circuits.costs import Cost
from mep_sim.optimizers.strategies.auto_beta import AutoBeta
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy, remembered
from mep_sim.settling import ODE, EPWarning, Solver, Sweep, settle

SETTLE_LR = 0.15  # length of an Euler step, in time constants
LEAST_BETA = 1e-30  # below it float32 has no errors left to tell apart


@dataclass(frozen=True)
class Phase:
    """A nudged phase: the parameters it saw (and dropout masks), the system and where it settled."""

    beta: float | complex
    params: Params
    system: System
    at: Equilibrium

    def rise(self, energy: Tensor) -> Tensor:
        """How far its energy lies above these of the free state (B,), over beta: (B,)."""
        z = self.at.state if self.system.origin is None else self.at.deviation
        return self.system.rise(z, energy) / self.beta


@dataclass(frozen=True)
class EPGradient(GradientStrategy):
    """Equilibrium Propagation: settle free, settle nudged, contrast (Scellier & Bengio 2017, eq. 17).

    beta: nudging strength, > 0; "auto" or an `AutoBeta` chooses it. phases: "one_sided" (0 and beta: error
    O(beta)), "centred" (-beta and beta: O(beta^2), Laborieux et al. 2021), "random_sign" (beta or
    -beta by the toss of a coin each step: O(beta^2) in the mean, for the price of one_sided; `seed` and the
    caller's memory determine the tosses), or "one_sweep", a single top-down sweep from the free state that
    equals backprop on the feedforward energy and is no equilibrium. solver: how to settle; its tolerance is
    the free phase's, over the state. nudged_tolerance: residual over the nudge, as `System.scale` counts it.
    settle_steps: that many Euler steps at most, in place of `solver`; settle_lr: their length in time
    constants, 0.15 unless given.

    Read noise (`mep_sim.phase_noise` has what it does to the contrast):

    independent_reads: read the weights again for every phase, so that their read noise differs; else one read
    serves all. auto_zero: with it, each nudged phase first stores how far the held free state is out of balance
    under its own read, and settles in deviations from there: the difference of the reads is then no nudge. reads: how
    many are averaged wherever the weights are read, >= 1: noise over sqrt(reads), for as many times the cost. errors,
    of the feedforward energy: "held" by circuits that settle with the states; "read" from the nudged states and a
    fresh read of the weights; "double_sampled", the same less what that fresh read makes of the free state.

    Where fewer than 95 % of a batch settle, an `EPWarning` says so once (not on a GPU, where a look at every step
    would stall its queue: there an `EPMonitor` does).
    """

    known_phases: ClassVar[tuple[str, ...]] = ("one_sided", "centred", "random_sign", "one_sweep")
    known_errors: ClassVar[tuple[str, ...]] = ("held", "read", "double_sampled")

    beta: float | str | AutoBeta = 0.1
    phases: str = "one_sided"
    solver: Solver = dataclasses.field(default_factory=lambda: Sweep(1e-5))
    nudged_tolerance: float = 1e-3
    independent_reads: bool = False
    settle_steps: int | None = None
    settle_lr: float | None = None
    seed: int | None = None
    auto_zero: bool = False
    reads: int = 1
    errors: str = "held"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == "auto":
            object.__setattr__(self, "beta", AutoBeta())
        if not (isinstance(self.beta, AutoBeta) or _is_strength(self.beta)):
            raise ValueError(
                f"beta = {self.beta}; choose a finite beta > 0 (at least {LEAST_BETA:g}), such as 0.1, or 'auto'"
            )
        if self.phases not in self.known_phases:
            raise ValueError(
                f"unknown phases {self.phases!r} of {type(self).__name__}; "
                f"choose one of {', '.join(self.known_phases)}"
            )
        if self.seed is not None and self.phases != "random_sign":
            raise ValueError(
                f"seed = {self.seed} without a coin to toss; choose phases = random_sign with it"
            )
        self._check_reads()
        if self.settle_steps is None and self.settle_lr is not None:
            raise ValueError(
                f"settle_lr = {self.settle_lr} without a number of steps; give settle_steps too, such as 15"
            )
        if self.settle_steps is not None:
            if not (isinstance(self.settle_steps, int) and self.settle_steps >= 1):
                raise ValueError(f"settle_steps = {self.settle_steps}; choose a whole number of 1 or more")
            step = SETTLE_LR if self.settle_lr is None else self.settle_lr
            # one evaluation more than steps: the look at where they got to
            euler = ODE(1e-5, "euler", step, max_evaluations=self.settle_steps + 1)
            if self.solver not in (Sweep(1e-5), euler):
                raise ValueError(
                    f"settle_steps = {self.settle_steps} replaces solver = {self.solver}; give one of them"
                )
            object.__setattr__(self, "solver", euler)
        dataclasses.replace(self.solver, tolerance=self.nudged_tolerance)  # raises where it is out of range

    def _check_reads(self) -> None:
        if not (isinstance(self.reads, int) and self.reads >= 1):
            raise ValueError(f"reads = {self.reads}; average a whole number of 1 or more")
        if self.errors not in self.known_errors:
            raise ValueError(f"unknown errors {self.errors!r}; choose one of {', '.join(self.known_errors)}")
        if self.errors != "held" and self.phases == "one_sweep":
            raise ValueError(
                f"errors = {self.errors} need nudged states to be read from, and one_sweep settles none; choose "
                "errors = held"
            )
        if self.auto_zero and not self.independent_reads:
            raise ValueError(
                "auto_zero = True has nothing to null where one read serves all phases; choose independent_reads = "
                "True with it"
            )

    @torch.no_grad()
    def estimate(
        self,
        circuit: EnergyCircuit,
        read: Callable[[], Params],
        x: Tensor,
        target: Tensor,
        memory: dict | None = None,
    ) -> Estimate:
        self.check_circuit(circuit)
        if torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                "EP settles in the parameters' own precision; leave torch.autocast off around it"
            )
        memory = {} if memory is None else memory
        params = self._read(read)
        system = circuit.bind(params, x)
        free = settle(system, solver=self.solver)
        output, c = system.readout(free.state), cost(self.loss_type)
        loss = c.value(output, c.target(target, output)).mean()
        around = system.around(free)
        beta = self._choose_beta(around, c, memory)
        if self.phases == "one_sweep":
            nudged = around.nudged(c, target, beta)
            estimate = Estimate(
                nudged.one_sweep(), loss, output, free, beta=beta, factors=nudged.one_sweep_factors
            )
        else:
            phases = []
            for nudge in self.nudges(beta, memory):
                seen = self._read(read) if self.independent_reads else params
                base = around if seen is params else system.rebind(seen)
                if isinstance(nudge, complex):
                    base = _continued(circuit, system, seen)
                elif self.auto_zero:
                    base = base.around(free)
                nudged = base.nudged(c, target, nudge)
                at = self._settle_nudged(nudged, free)
                if self.errors != "held":
                    nudged = system.rebind(self._read(read)).nudged(c, target, nudge)
                phases.append(Phase(nudge, nudged.params, nudged, at))
            gradient = self.combine(circuit, free, phases, memory)
            energy = system.energy(free.state)
            gap = self.average([phase.rise(energy).mean() for phase in phases])
            at = tuple(phase.at for phase in phases)
            self._warn_unsettled(free, *at)
            own = type(self)
            is_mean = own.combine is EPGradient.combine and own.average is EPGradient.average
            factors = partial(self._factors, free, phases) if is_mean else None
            estimate = Estimate(gradient, loss, output, free, at, gap, phases[0].beta, factors)
        system.observe(free)
        return estimate

    # -- what other estimates by phases change ------------------------------------------------------

    def check_circuit(self, circuit: EnergyCircuit) -> None:
        """Raises ValueError where the estimate is not defined on this circuit."""
        if self.phases == "one_sweep" and not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                "one_sweep is defined on the feedforward energy only; choose one_sided or centred"
            )
        if self.errors != "held" and not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"errors = {self.errors}, but the contrast of a {type(circuit).__name__} is made of states alone; "
                "choose errors = held"
            )

    def nudges(self, beta: float, memory: dict) -> tuple[float | complex, ...]:
        """The nudges of this step's phases."""
        if self.phases == "centred":
            return beta, -beta
        if self.phases == "random_sign" and _toss(self.seed or 0, memory):
            return (-beta,)
        return (beta,)

    def combine(self, circuit: EnergyCircuit, free: Equilibrium, phases: list[Phase], memory: dict) -> Params:
        """The estimate from all phases."""
        contrasts = [self.contrast(circuit, free, phase) for phase in phases]
        return {name: self.average([c[name] for c in contrasts]) for name in contrasts[0]}

    def contrast(self, circuit: EnergyCircuit, free: Equilibrium, phase: Phase) -> Params:
        """The estimate from one phase."""
        found = phase.system.contrast(free, phase.at)
        if self.errors != "double_sampled":
            return found
        at_rest = phase.system.contrast(free, free)
        return {name: found[name] - at_rest[name] for name in found}

    def _factors(self, free: Equilibrium, phases: list[Phase]) -> dict[str, Pairs]:
        """Of `combine`: what is subtracted from a contrast is pulsed with its sign turned round."""
        terms = [(phase.system.factors(free, phase.at), 1) for phase in phases]
        if self.errors == "double_sampled":
            terms += [(phase.system.factors(free, free), -1) for phase in phases]
        return {
            name: [
                (post * (sign / len(phases)), pre) for factors, sign in terms for post, pre in factors[name]
            ]
            for name in terms[0][0]
        }

    def average(self, values: list[Tensor]) -> Tensor:
        """The mean of something over the phases."""
        return values[0] if len(values) == 1 else sum(values) / len(values)

    # -- steps ----------------------------------------------------------------------------------------

    def _read(self, read: Callable[[], Params]) -> Params:
        """The weights by the mean of `reads` reads; what is the same object in all of them, digital, as it is."""
        several = [read() for _ in range(self.reads)]
        first = several[0]
        return {
            name: p if several[-1][name] is p else sum(one[name] for one in several) / self.reads
            for name, p in first.items()
        }

    def _choose_beta(self, around: System, c: Cost, memory: dict) -> float:
        if isinstance(self.beta, AutoBeta):
            return self.beta.choose(around, c, memory)
        if self.phases not in ("one_sided", "one_sweep"):
            limit = around.largest_beta(c, enough=self.beta)
            if self.beta >= limit:
                raise ValueError(
                    f"beta = {self.beta} is too large: at -beta the nudged energy has a minimum only for "
                    f"beta < {limit:.3g} with these weights; lower beta or choose beta = 'auto', tighten gamma, "
                    "or use phases = one_sided"
                )
        return self.beta

    def _warn_unsettled(self, *phases: Equilibrium) -> None:
        if phases[0].state.is_cuda:
            return
        settled = torch.stack([phase.converged for phase in phases]).all(0)
        if settled.double().mean() < 0.95:
            # the same words every time: Python shows a warning once
            warnings.warn(
                f"fewer than 95 % of a batch settled (beta = {self.beta}, {self.solver}), so its gradient is not one "
                "at equilibrium: choose beta = 'auto' or a lower one, allow more steps, or ask an EPMonitor",
                EPWarning,
                stacklevel=2,
            )

    def _settle_nudged(self, nudged: System, free: Equilibrium) -> Equilibrium:
        if nudged.origin is not None:
            return settle(nudged, solver=dataclasses.replace(self.solver, tolerance=self.nudged_tolerance))
        # Other weights than the free phase's: the free state is a start, not an origin to deviate
        # from, and the nudge is known only once both are there.
        start = free.state.to(nudged.drive.dtype)
        at = settle(nudged, start, self.solver)
        relative = at.residual / (at.state - start).abs().amax(1)
        return dataclasses.replace(
            at, relative_residual=relative, converged=relative <= self.nudged_tolerance
        )


def _is_strength(beta: object) -> bool:
    return isinstance(beta, Real) and beta >= LEAST_BETA and math.isfinite(beta)


def _continued(circuit: EnergyCircuit, system: System, params: Params) -> System:
    """The same input and dropout masks with these parameters, in complex numbers."""
    params = {**system.params, **params}
    as_complex = {name: p.to(p.dtype.to_complex()) for name, p in params.items()}
    return circuit.bind(as_complex, system.x.to(system.drive.dtype.to_complex()))


def _toss(seed: int, memory: dict) -> bool:
    """A fair coin."""
    with remembered(memory, "rng", seed) as rng:
        return bool(torch.rand((), generator=rng) < 0.5)
