"""The continuous Hopfield energy on a layered network: E = 1/2 |s|^2 - 1/2 s'Ws - b's on a box.

Layers couple to their neighbours with symmetric weights, s_0 = x is clamped, hidden units live in a box
([0, 1]: the hard sigmoid of Scellier & Bengio 2017, section 5), the output is linear so that a nudge always
moves it. Given its neighbours a unit rests at clamp(W s + b): layer-wise minimisation is in closed form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from circuits.base import EnergyCircuit, Equilibrium, Layout, Pairs, Params, System
from circuits.costs import Cost
from circuits.norms import block_norm, chain_bound, spectral_norm


class HopfieldCircuit(EnergyCircuit):
    """A layered Hopfield network of these sizes, input first.

    `box`: the interval (lo, hi) hidden states live in; infinite ends make the network linear.
    Weights start as N(0, gain^2 / fan_in), biases at 0.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        box: tuple[float, float] = (0.0, 1.0),
        gain: float = 1.0,
        *,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes {tuple(sizes)}; give at least an input and an output size, each >= 1")
        if not box[0] < box[1]:
            raise ValueError(f"box {box} is empty; give (lo, hi) with lo < hi, such as (0, 1)")
        self.features = sizes[0]
        self.box = box
        self.layout = Layout(tuple(sizes[1:]))
        self.layers = nn.ModuleList()
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.normal_(linear.weight, std=gain / math.sqrt(fan_in), generator=rng)
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
        self.weights = tuple(f"layers.{i}.weight" for i in range(len(self.layers)))
        self.biases = tuple(f"layers.{i}.bias" for i in range(len(self.layers)))

    def bind(self, params: Params, x: Tensor) -> HopfieldSystem:
        return HopfieldSystem(self, params, self.check_input(x, params))

    def check_input(self, x: Tensor, params: Params) -> Tensor:
        return self.check_dense(x, self.features, params)

    def in_order(self, params: Params) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of `params` in layer order."""
        return [params[w] for w in self.weights], [params[b] for b in self.biases]

    def inputs_of(self, layer: int) -> tuple[int, ...]:
        return (layer - 1,)

    def layer_parameters(self, layer: int) -> tuple[str, ...]:
        return self.weights[layer], self.biases[layer]

    def local_contrast(
        self,
        layer: int,
        params: Params,
        inputs: Sequence[tuple[Tensor, Tensor]],
        own: tuple[Tensor, Tensor],
        beta: float,
    ) -> Params:
        """-(s_l s_{l-1}' nudged - free) / beta, with the difference of products written in deviations:
        d_l s_{l-1}' + s_l d_{l-1}' (first factor free, second nudged), so that nothing cancels."""
        (below, moved_below), (free, moved) = inputs[0], own
        scale = -1.0 / (beta * len(free))
        weight = (moved * scale).T @ below
        if layer > 0:
            weight = weight + ((free + moved) * scale).T @ moved_below
        return dict(zip(self.layer_parameters(layer), (weight, moved.sum(0) * scale), strict=True))


class HopfieldSystem(System):
    """The Hopfield energy bound to parameters and an input; see `circuits.base.System`."""

    def __init__(self, circuit: HopfieldCircuit, params: Params, x: Tensor):
        self.circuit, self.params = circuit, params
        self.weights, biases = circuit.in_order(params)
        drive = nn.functional.linear(x, self.weights[0], biases[0])
        layout, hidden = circuit.layout, len(circuit.layout.sizes) - 1
        super().__init__(layout, drive, [circuit.box] * hidden + [(-math.inf, math.inf)])
        self.x = x
        # What every layer feels besides its neighbours' coordinates: drive and biases; around a free
        # state only what holds its saturated units against the wall.
        self.offsets: list[Tensor] = [drive, *(b.expand(len(x), -1) for b in biases[1:])]
        self.fields = self.offsets
        self.walls: list[tuple] = [circuit.box] * hidden  # of the hidden layers
        self.is_open = not all(map(math.isfinite, circuit.box))
        self._rate: list[float] = []

    def _recentre(self, free: Tensor) -> None:
        self.offsets = self.fields  # where this one already counts from another origin
        pull = torch.cat(self._pulls(self.layout.split(free)), dim=1)
        self.origin = torch.clamp(pull, self.lower, self.upper)
        self.offsets = list(self.layout.split(pull - self.origin))
        lower, upper = (
            self.layout.split(self.lower - self.origin),
            self.layout.split(self.upper - self.origin),
        )
        self.walls = list(zip(lower, upper, strict=True))[:-1]

    # -- energy and force -------------------------------------------------------------------------

    def _pull(self, i: int, layers: Sequence[Tensor]) -> Tensor:
        """W s + b of layer i, in the solver's coordinates."""
        pull = self.offsets[i]
        if i > 0:
            pull = torch.addmm(pull, layers[i - 1], self.weights[i].T)
        if i + 1 < len(layers):
            pull = torch.addmm(pull, layers[i + 1], self.weights[i + 1])
        return pull

    def _pulls(self, layers: Sequence[Tensor]) -> list[Tensor]:
        return [self._pull(i, layers) for i in range(len(layers))]

    def energy(self, z: Tensor) -> Tensor:
        s = self.state(z)
        layers = self.layout.split(s)
        energy = 0.5 * s.square().sum(1)
        for i, (layer, offset) in enumerate(zip(layers, self.fields, strict=True)):
            below = offset if i == 0 else torch.addmm(offset, layers[i - 1], self.weights[i].T)
            energy = energy - (layer * below).sum(1)
        if self.nudge is not None:
            energy = energy + self.nudge.beta * self.nudge.cost.value(layers[-1], self.nudge.target)
        return energy

    def force(self, z: Tensor) -> Tensor:
        force = torch.cat(self._pulls(self.layout.split(z)), dim=1) - z
        if self.nudge is not None:
            self.layout.output(force).add_(self.nudge.force(self.readout(z)))
        return force

    # -- sweeps -----------------------------------------------------------------------------------

    def sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Odd layers, then even ones, each to its minimum given the others, with over-relaxation.

        A chain of layers is two-cyclic and consistently ordered, so the best relaxation factor follows
        from the convergence rate seen so far (Hageman & Young 1981, section 9.5). Each step descends the
        energy for any factor in (0, 2), as units of a layer do not couple. Yields one buffer, updated in
        place, and looks at its change every second sweep: a look costs half of a small network's products.
        """
        z, before = z.clone(), torch.empty_like(z)
        layers = self.layout.split(z)
        order = [*range(0, len(layers), 2), *range(1, len(layers), 2)]
        look_every = 4 if z.is_cuda else 2  # on a GPU a look stalls the queue
        relaxation = _OverRelaxation(look_every)
        for count in itertools.count(1):
            look = count % look_every == 0
            if look:
                before.copy_(z)
            for i in order:
                self._relax(i, layers, relaxation.factor)
            change = before.sub_(z).abs_().amax(1) if look else None
            if look:
                relaxation.observe(change)
            yield z, change

    def _relax(self, i: int, layers: Sequence[Tensor], factor: float) -> None:
        """Move layer i by `factor` times its way to rest, in place, and hold it in its box.

        The products are accumulated straight into the layer: nothing in it depends on itself.
        """
        layer = layers[i]
        if i == len(layers) - 1:
            layer.lerp_(self._rest_of_output(layers), factor)
            return
        layer.lerp_(self.offsets[i], factor)
        if i > 0:
            layer.addmm_(layers[i - 1], self.weights[i].T, alpha=factor)
        layer.addmm_(layers[i + 1], self.weights[i + 1], alpha=factor)
        layer.clamp_(*self.walls[i])

    def _rest_of_output(self, layers: Sequence[Tensor]) -> Tensor:
        """Where the output comes to rest given the layer below, (B, C)."""
        pull = self.offsets[-1]
        if len(layers) > 1:
            # W s' and not s W': for a few columns MKL takes half the time
            pull = pull + (self.weights[-1] @ layers[-2].T).T
        if self.nudge is None:
            return pull
        origin = 0.0 if self.origin is None else self.layout.output(self.origin)
        return self.nudge.cost.relax(pull, origin, self.nudge.target, self.nudge.beta, layers[-1])

    # -- gradient ---------------------------------------------------------------------------------

    def contrast(self, free: Equilibrium, nudged: Equilibrium) -> Params:
        """(s_l s_{l-1}' at the free state - at the nudged one) / beta, layer by layer."""
        d = nudged.state - free.state if nudged.deviation is None else nudged.deviation
        pairs = [(self.x, self.x), *zip(*map(self.layout.split, (nudged.state - d, d)), strict=True)]
        gradient: dict[str, Tensor] = {}
        for i in range(len(self.weights)):
            gradient |= self.circuit.local_contrast(i, {}, pairs[i : i + 1], pairs[i + 1], self.nudge.beta)
        return gradient

    def factors(self, free: Equilibrium, nudged: Equilibrium) -> dict[str, Pairs]:
        """s_l / beta beside s_{l-1} of the free phase, -s_l / beta beside s_{l-1} of the nudged one: a crossbar sees
        one phase after the other, and what they have in common is written and erased again."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.circuit.weights}
        start = free.state if nudged.deviation is None else nudged.state - nudged.deviation
        for state, scale in ((start, 1.0 / self.nudge.beta), (nudged.state, -1.0 / self.nudge.beta)):
            states = [self.x, *self.layout.split(state)]
            for name, pre, post in zip(self.circuit.weights, states, states[1:], strict=False):
                found[name].append((post * scale, pre))
        return found

    # -- bounds -----------------------------------------------------------------------------------

    def fastest_rate(self) -> float:
        """1 + the norm of the block coupling, bounded by that of the matrix of its blocks' norms."""
        if not self._rate:
            norms = np.diag([spectral_norm(w) for w in self.weights[1:]], -1)
            self._rate.append(1 + block_norm(norms + norms.T) if norms.size else 1.0)
        return self._rate[0] + (self.nudge.curvature if self.nudge else 0.0)

    def largest_beta(self, cost: Cost, enough: float = math.inf) -> float:
        """1 / C'': hidden units are in a box, so only the linear output can run away.

        In a box with an open end they follow it, and the least eigenvalue of I - W with all hidden units
        eliminated takes the place of 1: exact on a linear network, a lower bound on a half-open box.
        """
        if not self.is_open:
            return 1 / cost.curvature
        rest = torch.eye(len(self.weights[0])).to(self.drive)
        for weight in self.weights[1:]:
            if torch.linalg.eigvalsh(rest)[0] <= 0:
                return 0.0
            rest = torch.eye(len(weight)).to(rest) - weight @ torch.linalg.solve(rest, weight.T)
        return max(torch.linalg.eigvalsh(rest)[0].item(), 0.0) / cost.curvature

    def rebind(self, params: Params) -> HopfieldSystem:
        return HopfieldSystem(self.circuit, params, self.x)

    def margin(self, cost: Cost, beta: float) -> float:
        """1 - a bound of lambda_max(W + |beta| C'' on the output), W the symmetric coupling of all free layers:
        above 0 the energy is strictly convex and its equilibrium unique, whatever the input."""
        norms = [spectral_norm(w) for w in self.weights[1:]]
        return 1 - chain_bound(np.array(norms), abs(beta) * cost.curvature)


class _OverRelaxation:
    """Estimates the optimal over-relaxation factor from how fast the changes shrink.

    Each look, the rate lambda of the changes gives the Jacobi radius mu by
    (lambda + w - 1)^2 = lambda w^2 mu^2, and mu the best factor 2 / (1 + sqrt(1 - mu^2)) (Young 1954). A rate
    at or below w - 1 says that w is past the optimum. While units still reach and leave their walls the rate
    is near 1 and says little: the factor stays below 1.76, else it has to find its way back from 2.
    """

    largest_mu2 = 0.98
    retreat = 0.7

    def __init__(self, look_every: int) -> None:
        self.factor = 1.0
        self.look_every = look_every
        self.last: float | None = None

    def observe(self, change: Tensor) -> None:
        """`change` (B,) of the last sweep, `look_every` sweeps after that of the call before."""
        now = change.amax().item() / self.factor
        if self.last:
            rate = (now / self.last) ** (1 / self.look_every)
            if rate <= self.factor - 1:
                self.factor = 1 + self.retreat * (self.factor - 1)
            elif rate < 1:
                mu2 = (rate + self.factor - 1) ** 2 / (rate * self.factor**2)
                self.factor = 2 / (1 + math.sqrt(1 - min(mu2, self.largest_mu2)))
        self.last = now
