"""The nouns every energy circuit shares: Params, Layout, System, Equilibrium, EnergyCircuit.

A circuit *bound* to parameters and an input is a `System`: an energy E(s) over node states s, whose
dynamics ds/dt descend it. Everything is dimensionless here; a physical circuit states its units.
"""

from __future__ import annotations

import cmath
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Named
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from circuits.costs import Cost
from circuits.mapping import Mapping, default_mapping
from devices import Device

Params = Named[str, Tensor]
"""Weights, biases and dropout masks by name, as read: W_l is (n_l, n_{l-1}), b_l is (n_l,)."""
Pairs = Sequence[tuple[Tensor, Tensor]]
"""(post (R, out), pre (R, in)): a matrix as the sum of their products post' pre, a row per sample (and position)."""


@dataclass(frozen=True)
class Layout:
    """Names the slices of a flat state (B, n): one tensor for the solver, views for people.

    sizes: units of each layer; shapes: of one sample's layer, (size,) unless given.
    """

    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.shapes:
            object.__setattr__(self, "shapes", tuple((size,) for size in self.sizes))

    @classmethod
    def of(cls, shapes: tuple[tuple[int, ...], ...]) -> Layout:
        return cls(tuple(map(math.prod, shapes)), shapes)

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def split(self, s: Tensor) -> tuple[Tensor, ...]:
        """Views of the layers, first hidden layer first, the output last: (B, n_l) each."""
        return s.split(self.sizes, dim=-1)

    def output(self, s: Tensor) -> Tensor:
        return s[..., -self.sizes[-1] :]

    def fill(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """A row (n,) that holds one value per layer."""
        parts = [like.new_full((size,), value) for size, value in zip(self.sizes, values, strict=True)]
        return torch.cat(parts)


@dataclass(frozen=True)
class Transient:
    """A settling trajectory: `time (T,)` in the circuit's time unit, `state (T, B, n)`,
    `energy (T, B)` and `residual (T, B)`."""

    time: Tensor
    state: Tensor
    energy: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Equilibrium:
    """Where settling ended, and whether that is an equilibrium.

    state (B, n); deviation (B, n): state minus the free state, carried through a nudged phase as
    a number of its own because float32 would lose it in the subtraction (None for a free phase);
    residual (B,): the projected force that is left, max over units;
    relative_residual (B,): residual over `System.scale`: max |state| (free), or the nudge it has
    to resolve (nudged); converged (B,) bool: relative_residual <= the tolerance asked for;
    evaluations: sweeps, or evaluations of the flow; time (B,): simulated time until each sample settled,
    in the circuit's unit of time (0 on the sweep path, which has no time).
    """

    state: Tensor
    residual: Tensor
    relative_residual: Tensor
    converged: Tensor
    evaluations: int
    time: Tensor
    deviation: Tensor | None = None
    transient: Transient | None = field(default=None, repr=False)

    @property
    def settled_fraction(self) -> float:
        return self.converged.float().mean().item()


@dataclass(frozen=True)
class Nudge:
    """beta C(output, target) added to the energy; `target` is a (B, C) tensor; beta is complex on a contour."""

    cost: Cost
    target: Tensor
    beta: float | complex

    def force(self, output: Tensor) -> Tensor:
        return -self.beta * self.cost.gradient(output, self.target)

    @property
    def curvature(self) -> float:
        return abs(self.beta) * self.cost.curvature


class System(ABC):
    """A circuit bound to parameters and an input x (B, d).

    `params` is what it is bound to, dropout masks included. The solver's coordinates z (B, n) are the states
    themselves, or, after `around(free)`, deviations from a free equilibrium. In deviations the free phase's own
    small residual is dropped: the free state counts as the exact equilibrium of a circuit perturbed by that
    residual, which is an error of its size in the gradient; a difference of two states would make it that size
    over beta.
    """

    params: Params

    def __init__(self, layout: Layout, drive: Tensor, ranges: Sequence[tuple[float, float]]):
        self.layout = layout
        self.drive = drive  # (B, n_1): the input's constant contribution W_1 x + b_1
        self.ranges = ranges  # of the states of every layer
        self.is_held = any(math.isfinite(end) for ends in ranges for end in ends)
        self.nudge: Nudge | None = None
        self.origin: Tensor | None = None

    # -- what a circuit supplies ------------------------------------------------------------------

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """E per sample (B,), the nudge included."""

    @abstractmethod
    def force(self, z: Tensor) -> Tensor:
        """-dE/ds, shape (B, n), written out by hand."""

    @abstractmethod
    def sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Endless layer-wise minimisation from z: yields (next z, largest change per sample (B,)), with None
        for a change that was not looked at."""

    @abstractmethod
    def contrast(self, free: Equilibrium, nudged: Equilibrium) -> Params:
        """(dE/dtheta at the nudged state - at the free state) / beta, mean over the batch: the gradient
        estimate, local to each synapse. Call it on the nudged system."""

    def factors(self, free: Equilibrium, nudged: Equilibrium) -> dict[str, Pairs]:
        """By weight name, pairs that add up to B times its contrast: what its rows and columns have to tell its
        synapses. Call it on the nudged system."""
        raise ValueError(f"{type(self).__name__} gives no factors of its contrast, sample by sample")

    @abstractmethod
    def fastest_rate(self) -> float:
        """An upper bound of the flow's largest |eigenvalue|, in inverse time constants: what an
        explicit solver's step has to respect. It holds for every sample, from the weights alone."""

    def slowest_rate(self) -> float | None:
        """An upper bound of the flow's slowest decay rate, per unit of time: settling to a tolerance takes at least
        ln(1 / tolerance) over it. None where it is not known."""
        return None

    def proximal(self, tau: float, centre: Tensor) -> System:
        """The system that rests at argmin_v E(v) + sum_i m_i (v_i - c_i)^2 / (2 tau), where m_i is the inertia in
        flow = -(dE/dv_i) / m_i (a capacitance in farads; 1 for unit time constants).

        It rests where v = c + tau flow(v): an implicit Euler step of tau > 0 from the centre c (B, n). Its
        coordinates are this system's, and its `sweeps` find the point. ValueError where a circuit has none.
        """
        raise ValueError(
            f"{type(self).__name__} has no implicit step: its flow is not stiff; choose an ODE solver, such as "
            "ODE(method='dopri5')"
        )

    @abstractmethod
    def largest_beta(self, cost: Cost, enough: float = math.inf) -> float:
        """The |beta| up to which the nudged energy has a minimum for beta of either sign. A cheap lower
        bound will do where it is above `enough`."""

    @abstractmethod
    def margin(self, cost: Cost, beta: float) -> float:
        """How far from losing its unique equilibrium the circuit is for sure, nudged by either sign of beta: 1 is
        a circuit without feedback, and above 0 the equilibrium is unique."""

    @abstractmethod
    def rebind(self, params: Params) -> System:
        """The same input (and dropout masks) with other parameters, free and in plain states."""

    @abstractmethod
    def _recentre(self, free: Tensor) -> None:
        """Turn this copy's coordinates into deviations from the free state (B, n); sets `origin`."""

    # -- what follows -----------------------------------------------------------------------------

    def observe(self, free: Equilibrium) -> None:
        """Let running statistics see a settled free phase; for a circuit that keeps some, in training mode."""

    def nudged(self, cost: Cost, target: Tensor, beta: float | complex) -> System:
        """The same system with beta C(output, target) added to its energy."""
        if not cmath.isfinite(beta) or beta == 0:
            raise ValueError(f"beta = {beta} is no nudge; choose a finite beta other than 0, such as 0.1")
        nudged = copy.copy(self)
        nudged.nudge = Nudge(cost, cost.target(target, self.readout(self.initial_state())), beta)
        return nudged

    def around(self, free: Equilibrium) -> System:
        """The same system in deviations from a free equilibrium."""
        moved = copy.copy(self)
        moved._recentre(free.state)
        return moved

    def initial_state(self) -> Tensor:
        """Coordinates to start from, (B, n): all zero, projected on the box."""
        zero = self.drive.new_zeros(len(self.drive), self.layout.n)
        is_free = self.origin is not None or not self.is_held
        return zero if is_free else zero.clamp(self.lower, self.upper)

    def state(self, z: Tensor) -> Tensor:
        return z if self.origin is None else self.origin + z

    @cached_property
    def lower(self) -> Tensor:
        """Lower ends of the ranges (n,)."""
        return self.layout.fill(tuple(low for low, _ in self.ranges), self.drive.real)

    @cached_property
    def upper(self) -> Tensor:
        """Upper ends of the ranges (n,)."""
        return self.layout.fill(tuple(high for _, high in self.ranges), self.drive.real)

    def readout(self, z: Tensor) -> Tensor:
        """The output units, (B, C)."""
        output = self.layout.output(z)
        return output if self.origin is None else self.layout.output(self.origin) + output

    def flow(self, z: Tensor) -> Tensor:
        """ds/dt = clamp(s + F) - s, unit time constants: relaxation towards the box-constrained minimum.

        A masked gradient would overshoot the box and freeze outside it; this form has the
        constrained equilibria as its only fixed points and is continuous.
        """
        if not self.is_held:
            return self.force(z)
        s = self.state(z)
        return torch.clamp(self.force(z), self.lower - s, self.upper - s)

    def rise(self, z: Tensor, energy: Tensor) -> Tensor:
        """How far the energy at z, nudge included, lies above that of the free state, `energy` (B,): (B,)."""
        return self.energy(z) - energy

    def paced(self, flow: Tensor, z: Tensor) -> Tensor:
        """A flow (B, n) at z times each unit's own time constant: how far it is from rest given the others, to first
        order. By unit time constants the flow itself."""
        return flow

    def relaxation(self, z: Tensor) -> Tensor:
        """The paced flow at z (B, n), in units of the state."""
        return self.paced(self.flow(z), z)

    def relaxation_rate(self) -> float:
        """An upper bound of the largest |eigenvalue| of `relaxation`."""
        return self.fastest_rate()

    def residual(self, z: Tensor) -> Tensor:
        """Projected force, max over units, (B,)."""
        return self.relaxation(z).abs().amax(1)

    def scale(self, z: Tensor) -> Tensor:
        """What a residual is small or large against, (B,): max |state|, or max |deviation| around a free state."""
        return z.abs().amax(1)


class EnergyCircuit(nn.Module, ABC):
    """A network with an energy. Adding a circuit is writing its `System`.

    `weights` names its weight matrices and kernels in layer order; what else it learns is digital on a chip.
    """

    layout: Layout
    weights: tuple[str, ...]
    window: tuple[float, float] | None = None  # that every weight stays in; None: any is allowed

    def mapping(self, device: Device) -> Mapping:
        """How its weights are put on cells of this device, unless a chip is told otherwise."""
        return default_mapping(device)

    def check_mapping(self, mapping: Mapping, device: Device) -> None:
        """ValueError where the circuit cannot live on cells in this way."""

    @abstractmethod
    def bind(self, params: Params, x: Tensor) -> System:
        """The system for this input x (B, ...), so that what x alone decides is computed once."""

    @abstractmethod
    def check_input(self, x: Tensor, params: Params) -> Tensor:
        """x as `bind` wants it with these parameters, or a ValueError that says what the circuit takes."""

    @abstractmethod
    def inputs_of(self, layer: int) -> tuple[int, ...]:
        """The states that the synapses of a layer read, -1 for x."""

    @abstractmethod
    def layer_parameters(self, layer: int) -> tuple[str, ...]:
        """Names of what a layer's synapses are."""

    @abstractmethod
    def local_contrast(
        self,
        layer: int,
        params: Params,
        inputs: Sequence[tuple[Tensor, Tensor]],
        own: tuple[Tensor, Tensor],
        beta: float,
    ) -> Params:
        """The EP contrast of one layer, mean over the batch, from nothing but what is at its synapses.

        params: its `layer_parameters`; inputs: for each of its `inputs_of` the pair (free state (B, n), deviation
        (B, n)), of x the deviation is not looked at; own: the pair of its own state.
        """

    def params(self) -> dict[str, Tensor]:
        """The circuit's own parameters: what an ideal chip would read."""
        return dict(self.named_parameters())

    def check_dense(self, x: Tensor, features: int, params: Params) -> Tensor:
        """x as (B, features) in the weights' precision, or a ValueError."""
        dtype = self.dtype(params)
        if x.ndim < 2 or x.real.dtype != dtype or x.shape[1:].numel() != features or not len(x):
            raise ValueError(
                f"input of shape {tuple(x.shape)} and type {x.dtype}; this circuit takes floats (B, {features}) of "
                f"type {dtype}, B >= 1"
            )
        return x.flatten(1)

    def dtype(self, params: Params) -> torch.dtype:
        """Of the weights among these parameters; of complex ones, that of their parts."""
        return params[self.weights[0]].real.dtype
