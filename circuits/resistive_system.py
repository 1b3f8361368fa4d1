"""A resistive network bound to its conductances and input voltages; see `circuits.resistive` for its equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.base import Equilibrium, Pairs, Params, System
from circuits.costs import Cost
from circuits.couplings import LadderCoupling
from circuits.diodes import Bare, NodeElement, Walls

if TYPE_CHECKING:
    from circuits.resistive import ResistiveCircuit


class ResistiveSystem(System):
    """States are node voltages (B, n) in V, the energy is in W, the force in A; see `circuits.base.System`.

    A node of layer l counts A^(-2 l) in the energy, so that its force is that share of the current into it.
    Residuals are in volts: how far a node is from where its neighbours would let it rest.
    """

    def __init__(self, circuit: ResistiveCircuit, params: Params, x: Tensor):
        self.circuit, self.params, self.x = circuit, params, x
        self._check_params()
        self.couplings = [circuit.coupling(i, params) for i in range(len(circuit.weights))]
        self.source = circuit.below(0, x)
        drive = self.couplings[0].upwards(self.source) + self.couplings[0].bias_above
        super().__init__(circuit.layout, drive, [(-math.inf, math.inf)] * len(circuit.layout.sizes))
        hidden = circuit.layout.sizes[:-1]
        self.fresh: tuple[NodeElement, ...] = (*(circuit.diode.layer(n, drive) for n in hidden), Bare())
        self.elements = list(self.fresh)  # in these coordinates
        self.is_held = any(isinstance(element, Walls) for element in self.elements)
        # what sources drive into every layer; around a free state, what presses nodes against their walls
        self.currents: list[Tensor] = [drive]
        for i, coupling in enumerate(self.couplings[1:]):
            self.currents[i] = self.currents[i] + coupling.bias_below / circuit.amplification
            into = drive.new_zeros(len(coupling.at_above)) + coupling.bias_above
            self.currents.append(into.expand(len(x), -1))
        # of all that a node hangs at, (n_l,)
        self.conductances = [coupling.at_above for coupling in self.couplings]
        for i, coupling in enumerate(self.couplings[1:]):
            self.conductances[i] = self.conductances[i] + coupling.at_below
        self._check_nodes()

    def _check_params(self) -> None:
        weights = {name: self.params[name].detach() for name in self.circuit.weights}
        if any(tensor.is_complex() for tensor in (self.x, *weights.values())):
            raise ValueError(
                "a resistive network knows real voltages only; use the feedforward energy for contours"
            )
        if self.x.is_cuda:  # a look would stall its queue
            return
        for name, weight in weights.items():
            if (least := weight.min().item()) < 0:
                low, high = self.circuit.window
                raise ValueError(
                    f"{name} holds a negative conductance, {least:.3g} S; keep it within {low:g} to {high:g} S: learn "
                    "with WindowConstraint, which CompositeOptimizer takes where it gets no other"
                )

    def _check_nodes(self) -> None:
        if self.drive.is_cuda:
            return
        for layer, conductance in enumerate(self.conductances):
            if len(floating := torch.nonzero(conductance == 0)):
                raise ValueError(
                    f"node {floating[0].item()} of layer {layer + 1} floats: all its conductances are 0 S; choose a "
                    "window with g_min > 0, or connect it"
                )

    # -- coordinates --------------------------------------------------------------------------------

    @property
    def lower(self) -> Tensor:
        return self._wall("low", -math.inf)

    @property
    def upper(self) -> Tensor:
        return self._wall("high", math.inf)

    def _wall(self, name: str, open_end: float) -> Tensor:
        """Where ideal diodes hold the states (n,)."""
        ends = [
            getattr(element, name, self.drive.new_full((n,), open_end))
            for element, n in zip(self.fresh, self.layout.sizes, strict=True)
        ]
        return torch.cat(ends)

    def _recentre(self, free: Tensor) -> None:
        layers, pulls = self.layout.split(free), self._pulls(self.layout.split(self._coordinates(free)))
        origin, currents = [], []
        for i, (v, pull) in enumerate(zip(layers, pulls, strict=True)):
            if isinstance(self.elements[i], Walls):
                open_rest = pull / self.conductances[i]
                rest = self.elements[i].rest(pull, self.conductances[i])
                # a difference of voltages, which is 0 to the bit where nothing presses
                currents.append(self.conductances[i] * (open_rest - rest))
                v = rest if self.origin is None else rest + self.layout.split(self.origin)[i]
            else:
                currents.append(torch.zeros_like(v))
            origin.append(v)
        before = torch.zeros_like(free) if self.origin is None else self.origin
        moved = self.layout.split(torch.cat(origin, 1) - before)
        self.elements = [element.around(v0) for element, v0 in zip(self.elements, moved, strict=True)]
        self.currents = currents
        self.origin = torch.cat(origin, 1)

    def _coordinates(self, state: Tensor) -> Tensor:
        return state if self.origin is None else state - self.origin

    def readout(self, z: Tensor) -> Tensor:
        return self._read(self.layout.output(self.state(z)))

    def _read(self, nodes: Tensor) -> Tensor:
        """The outputs (B, C) of output nodes."""
        if self.circuit.paired_output:
            plus, minus = nodes.chunk(2, dim=1)
            nodes = plus - minus
        return self.circuit.readout_gain * nodes

    def _spread(self, values: Tensor) -> Tensor:
        """What the output nodes feel of something at the outputs (B, C): `_read` transposed."""
        values = self.circuit.readout_gain * values
        return torch.cat([values, -values], 1) if self.circuit.paired_output else values

    @property
    def _reading(self) -> float:
        """|d outputs / d nodes|^2: what a curvature at the outputs makes at the nodes."""
        return self.circuit.readout_gain**2 * (1 + self.circuit.paired_output)

    # -- energy and currents ------------------------------------------------------------------------

    def _pull(self, i: int, layers: Sequence[Tensor]) -> Tensor:
        """The current (B, n_l) into nodes of layer i while they are at z = 0, from neighbours and sources."""
        return self.currents[i] + self._from_neighbours(i, layers)

    def _from_neighbours(self, i: int, layers: Sequence[Tensor]) -> Tensor | float:
        """The part of it that is not of sources."""
        gain, pull = self.circuit.amplification, 0.0
        if i > 0:
            pull = self.couplings[i].upwards(gain * layers[i - 1] if gain != 1 else layers[i - 1])
        if (among := self.couplings[i].among_above) is not None:
            pull = pull + layers[i] @ among
        if i + 1 < len(layers):
            back = self.couplings[i + 1].downwards(layers[i + 1])
            pull = pull + (back / gain if gain != 1 else back)
            if (among := self.couplings[i + 1].among_below) is not None:
                pull = pull + layers[i] @ among
        return pull

    def _pulls(self, layers: Sequence[Tensor]) -> list[Tensor]:
        return [self._pull(i, layers) for i in range(len(layers))]

    def node_currents(self, z: Tensor) -> Tensor:
        """The current that charges every node, (B, n) A; the nudge's included."""
        layers = self.layout.split(z)
        terms = zip(self._pulls(layers), layers, self.conductances, self.elements, strict=True)
        currents = [pull - conductance * v - element.current(v) for pull, v, conductance, element in terms]
        if self.nudge is not None:
            currents[-1] = currents[-1] + self._spread(self.nudge.force(self.readout(z))) / self.shares[-1]
        return torch.cat(currents, 1)

    @property
    def shares(self) -> list[float]:
        """What the current into a node of each layer counts in the force."""
        return [self.circuit.share(i) for i in range(len(self.layout.sizes))]

    def force(self, z: Tensor) -> Tensor:
        currents = self.node_currents(z)
        if self.circuit.amplification == 1:
            return currents
        return currents * self.layout.fill(self.shares, currents)

    def energy(self, z: Tensor) -> Tensor:
        layers = self.layout.split(self.state(z))
        parts = [
            coupling + element.cocontent(v).sum(1)
            for coupling, element, v in zip(self._cocontents(layers), self.fresh, layers, strict=True)
        ]
        energy = sum(share * part for share, part in zip(self.shares, parts, strict=True))
        if self.nudge is not None:
            outputs = self._read(layers[-1])
            energy = energy + self.nudge.beta * self.nudge.cost.value(outputs, self.nudge.target)
        return energy

    def rise(self, z: Tensor, energy: Tensor) -> Tensor:
        """Around a free state straight from the deviations: of the energies themselves float32 keeps too few digits."""
        if self.origin is None:
            return super().rise(z, energy)
        layers = self.layout.split(z)
        rise = self.nudge.beta * self.nudge.cost.value(self.readout(z), self.nudge.target)
        for i, (share, element, d) in enumerate(zip(self.shares, self.elements, layers, strict=True)):
            pull = 0.5 * self._from_neighbours(i, layers) + self.currents[i]
            stored = d * (0.5 * self.conductances[i] * d - pull) + element.cocontent(d)
            rise = rise + share * stored.sum(1)
        return rise

    def heat(self, z: Tensor) -> Tensor:
        """The power that each layer's crossbar and diodes dissipate, (B, L) W. Amplifiers and sources are ideal."""
        layers = self.layout.split(self.state(z))
        heat = [
            2 * coupling + element.dissipation(v).sum(1)
            for coupling, element, v in zip(self._cocontents(layers), self.fresh, layers, strict=True)
        ]
        return torch.stack(heat, 1)

    def _cocontents(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Of each crossbar (B,), in W, at states."""
        into = [self.drive, *(None for _ in layers[1:])]  # what sources drive is known
        terms = zip(self.couplings, self._below(layers), layers, into, strict=True)
        return [coupling.cocontent(below, above, known) for coupling, below, above, known in terms]

    def _below(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Voltages below every crossbar, of states."""
        return [self.source, *(self.circuit.below(1, v) for v in layers[:-1])]

    # -- dynamics -----------------------------------------------------------------------------------

    def flow(self, z: Tensor) -> Tensor:
        """dv/dt, V/s.

        An ideal diode stops a node at once, which no solver can follow: its node nears the wall as a relaxation,
        which leaves the equilibrium as it is.
        """
        currents = self.node_currents(z)
        if self.is_held:
            sides = currents.split(self.layout.sizes, 1), self.layout.split(z)
            parts = zip(*sides, self.conductances, self.elements, strict=True)
            held = [
                torch.clamp(i, g * (element.low - v), g * (element.high - v))
                if isinstance(element, Walls)
                else i
                for i, v, g, element in parts
            ]
            currents = torch.cat(held, 1)
        return currents / self.circuit.capacitance_farads

    def paced(self, flow: Tensor, z: Tensor) -> Tensor:
        """How far nodes are from rest given their neighbours, to first order, (B, n) V."""
        parts = zip(self.conductances, self.elements, self.layout.split(z), strict=True)
        slopes = torch.cat([(g + element.slope(v)).expand_as(v) for g, element, v in parts], 1)
        return flow * self.circuit.capacitance_farads / slopes

    def relaxation_rate(self) -> float:
        """By Gershgorin's circles: a node hangs at its neighbours with no more than all its conductance."""
        return 2.0

    def proximal(self, tau: float, centre: Tensor) -> ResistiveSystem:
        """Implicit Euler of step tau s from `centre`: every node hangs at C / tau of conductance to it as well."""
        companion = copy.copy(self)
        extra = self.circuit.capacitance_farads / tau
        companion.conductances = [g + extra for g in self.conductances]
        parts = zip(self.currents, self.layout.split(centre), strict=True)
        companion.currents = [i + extra * c for i, c in parts]
        return companion

    # -- sweeps -------------------------------------------------------------------------------------

    def sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Odd layers, then even ones, each node to its rest given the other layers, in closed form (Scellier,
        arXiv:2402.11674, section 4). Yields one buffer, updated in place."""
        z = z.clone()
        layers = self.layout.split(z)
        order = [*range(0, len(layers), 2), *range(1, len(layers), 2)]
        before = torch.empty_like(z)
        while True:
            before.copy_(z)
            for i in order:
                layers[i].copy_(self._rest(i, layers))
            yield z, before.sub_(z).abs_().amax(1)

    def _rest(self, i: int, layers: Sequence[Tensor]) -> Tensor:
        pull, conductance = self._pull(i, layers), self.conductances[i]
        if i < len(layers) - 1 or self.nudge is None:
            return self.elements[i].rest(pull, conductance)
        beta = self.nudge.beta / self.shares[-1]
        alone = pull / conductance
        yielding = (1 / conductance).expand(alone.shape[1])
        # how far an output moves for the current that it asks for itself; one of a pair moves by both its nodes
        slack = sum(yielding.chunk(2)) if self.circuit.paired_output else yielding
        slack = self.circuit.readout_gain**2 * slack
        origin = 0.0 if self.origin is None else self._read(self.layout.output(self.origin))
        guess = self._read(layers[i])
        moved = self.nudge.cost.relax(self._read(alone), origin, self.nudge.target, beta * slack, guess)
        asked = self.nudge.cost.gradient(origin + moved, self.nudge.target)
        return alone - beta * yielding * self._spread(asked)

    # -- gradient -----------------------------------------------------------------------------------

    def contrast(self, free: Equilibrium, nudged: Equilibrium) -> Params:
        """((dv)^2 at the nudged state - at the free one) / (2 beta) of the voltage dv over each cell, V^2/S."""
        moved = nudged.state - free.state if nudged.deviation is None else nudged.deviation
        pairs = [(self.x, self.x), *zip(*map(self.layout.split, (nudged.state - moved, moved)), strict=True)]
        gradient: dict[str, Tensor] = {}
        for i in range(len(self.couplings)):
            gradient |= self.circuit.contrast_of(
                i, self.couplings[i], pairs[i], pairs[i + 1], self.nudge.beta
            )
        return gradient

    def factors(self, free: Equilibrium, nudged: Equilibrium) -> dict[str, Pairs]:
        """(dv_n)^2 - (dv_f)^2 = (dp - dq)(P - Q), of lines p and nodes q, as four products of one of each."""
        if self.circuit.wires is not None:
            raise ValueError(
                "the voltage over a cell behind resistive wires is no difference of one of its line and one of its "
                "node, so that the contrast has no factors; use an update that needs none, or wires = None"
            )
        moved = nudged.state - free.state if nudged.deviation is None else nudged.deviation
        total = 2 * nudged.state - moved
        found = {}
        sides = [self.layout.split(part) for part in (total, moved)]
        belows = [self._below(part) for part in sides]
        for i, name in enumerate(self.circuit.weights):
            lines = self.circuit.lines[i]
            p_sum = lines.volts(2 * belows[0][i] if i == 0 else belows[0][i], bias=2)
            q_sum, q_moved = sides[0][i], sides[1][i]
            half = 0.5 * self.circuit.share(i) / self.nudge.beta
            found[name] = [(half * q_moved * q_sum, torch.ones_like(p_sum)), (-half * q_moved, p_sum)]
            if i > 0:  # sources do not move
                p_moved = lines.volts(belows[1][i], bias=0)
                found[name] += [
                    (-half * q_sum, p_moved),
                    (torch.full_like(q_sum, half), p_moved * p_sum),
                ]
        return found

    # -- bounds -------------------------------------------------------------------------------------

    def fastest_rate(self) -> float:
        """By Gershgorin's circles, with the steepest diodes that sources and targets can drive; per second."""
        highest = self.source.abs().amax().clamp(min=self.circuit.bias_volts or 0.0)
        if self.nudge is not None:
            highest = torch.maximum(
                highest, self.nudge.target.to(highest).abs().amax() / self.circuit.readout_gain
            )
        gain = self.circuit.amplification
        # in units of A^i a source behind i amplifiers is at A^-i times its volts
        reach = max(1.0, gain ** (1 - len(self.elements)))
        rates = [
            (2 * g + diode.steepest(2 * g * highest * reach * gain**i)).max()
            for i, (g, diode) in enumerate(zip(self.conductances, self.elements, strict=True))
        ]
        rates[-1] = rates[-1] + self._stiffening
        return torch.stack(rates).max().item() / self.circuit.capacitance_farads

    def slowest_rate(self) -> float:
        """An upper bound of the slowest decay, per second: no node alone is slower than the network. It holds of the
        output nodes, which have no diodes."""
        return (self.conductances[-1].min().item() + self._stiffening) / self.circuit.capacitance_farads

    @property
    def _stiffening(self) -> float:
        """What a nudge adds to the conductance of output nodes at most, S."""
        return 0.0 if self.nudge is None else self.nudge.curvature * self._reading / self.shares[-1]

    def largest_beta(self, cost: Cost, enough: float = math.inf) -> float:
        """What the outputs' conductance to the sources bears, with all else eliminated (Kron 1939) and all diodes off.

        First a bound: that matrix has no eigenvalue below its least row sum, the current that holds one output at 1 V
        beside the others. It is exact for circuits without diodes when the bound is not `enough`.
        """
        share = self.shares[-1] / cost.curvature
        if (bound := share / self._reading * self._least_row_sum()) >= enough:
            return bound
        rest = self._block(0)
        for i, coupling in enumerate(self.couplings[1:], 1):
            rest = self._block(i) - coupling.across @ torch.linalg.solve(rest, coupling.across.T)
        # what the voltages of outputs do by currents that come back through their readout: of a pair, its difference
        outputs = self._spread(torch.eye(self.circuit.outputs, dtype=rest.dtype, device=rest.device))
        yielding, info = torch.linalg.solve_ex(rest, outputs.T)
        softest = torch.linalg.eigvalsh(outputs @ yielding)[-1].item()
        return share / softest if info.item() == 0 and softest > 0 else 0.0

    def _block(self, i: int) -> Tensor:
        """Conductances of the nodes of a layer among themselves, diodes off, (n_l, n_l) S."""
        block = torch.diag(self.conductances[i])
        if (among := self.couplings[i].among_above) is not None:
            block = block - among
        if i + 1 < len(self.couplings) and (among := self.couplings[i + 1].among_below) is not None:
            block = block - among
        return block

    def wire_errors(self) -> dict[str, float]:
        """By crossbar whose wires are accounted for approximately, the relative error of its currents; exact ones are
        not in it. One elimination each."""
        pairs = zip(self.circuit.weights, self.couplings, strict=True)
        return {name: c.error() for name, c in pairs if isinstance(c, LadderCoupling)}

    def _least_row_sum(self, sweeps: int = 3) -> float:
        """A lower bound of it: with all outputs at 1 V and all sources at 0 V no node is above 1 V, and sweeps from
        there come down to where nodes rest."""
        gain = self.circuit.amplification
        volts = [g.new_full((1, len(g)), gain**i) for i, g in enumerate(self.conductances)]
        for _ in range(sweeps):
            for i in reversed(range(len(volts) - 1)):
                volts[i] = self._from_neighbours(i, volts) / self.conductances[i]
        last = len(volts) - 1
        held = self.conductances[-1] * volts[-1] - self._from_neighbours(last, volts)
        return max(held.min().item() / gain**last, 0.0)

    def margin(self, cost: Cost, beta: float) -> float:
        """1 less the share that the nudge takes of what the outputs bear, |beta| over a bound of `largest_beta`."""
        return 1 - abs(beta) / self.largest_beta(cost, enough=abs(beta))

    def rebind(self, params: Params) -> ResistiveSystem:
        return ResistiveSystem(self.circuit, params, self.x)
