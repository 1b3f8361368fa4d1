"""A crossbar of conductances between two layers of nodes: the currents that voltages on either side drive through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lines:
    """What drives the input lines of a crossbar, in this order: `nodes` voltages of the layer below; where `doubled`,
    the same with the other sign; and +bias and -bias V, where there is one."""

    nodes: int
    doubled: bool
    bias_volts: float | None

    @property
    def count(self) -> int:
        return self.nodes * (1 + self.doubled) + 2 * (self.bias_volts is not None)

    def volts(self, below: Tensor) -> Tensor:
        """All of them (B, count), from voltages below (B, nodes)."""
        parts = [below, -below] if self.doubled else [below]
        if self.bias_volts is not None:
            bias = torch.full_like(below[:, :1], self.bias_volts)
            parts += [bias, -bias]
        return torch.cat(parts, 1) if len(parts) > 1 else below


class Coupling(ABC):
    """Between what is below, `below` (B, nodes) V of its `lines`, and its output nodes, `above` (B, out) V.

    at_below (nodes,), at_above (out,): the conductance of each node to the array when all other nodes are held, S.
    """

    at_below: Tensor
    at_above: Tensor

    @abstractmethod
    def upwards(self, below: Tensor) -> Tensor:
        """Currents into the output nodes (B, out) while those are at 0 V; the bias lines' not included. A."""

    @abstractmethod
    def downwards(self, above: Tensor) -> Tensor:
        """Currents into the nodes below (B, nodes) while those are at 0 V; A."""

    @abstractmethod
    def bias_current(self) -> Tensor | float:
        """Currents of the bias lines into the output nodes at 0 V, (out,) A."""

    @abstractmethod
    def cocontent(self, below: Tensor, above: Tensor) -> Tensor:
        """1/2 sum g (dv)^2 per sample (B,), W: half of the heat."""

    @abstractmethod
    def contrast(
        self, below: tuple[Tensor, Tensor | None], above: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        """scale times the sum over samples of ((dv)^2 nudged - (dv)^2 free) / 2 of every cell, (out, count) V^2.

        Of the voltages on either side (sum of both phases, nudged less free), with None where it is 0.
        """

    # -- nodes of a layer that feel each other, through resistive wires ----------------------------------

    def among_above(self, above: Tensor) -> Tensor | None:
        """Currents (B, out) that the other output nodes drive into each; None where they drive none."""
        return None

    def among_below(self, below: Tensor) -> Tensor | None:
        """The same of the nodes below (B, nodes)."""
        return None


class IdealCoupling(Coupling):
    """Wires without resistance: W (out, lines) siemens between nodes that know only voltages at their ends."""

    def __init__(self, weight: Tensor, lines: Lines):
        self.weight, self.lines = weight, lines
        n = lines.nodes
        self.signal = weight[:, :n] - weight[:, n : 2 * n] if lines.doubled else weight[:, :n]
        self.at_above = weight.sum(1)
        self.at_below = weight[:, :n].sum(0)

    def upwards(self, below: Tensor) -> Tensor:
        return below @ self.signal.T

    def downwards(self, above: Tensor) -> Tensor:
        return above @ self.signal

    def bias_current(self) -> Tensor | float:
        if self.lines.bias_volts is None:
            return 0.0
        return self.lines.bias_volts * (self.weight[:, -2] - self.weight[:, -1])

    def cocontent(self, below: Tensor, above: Tensor) -> Tensor:
        volts = self.lines.volts(below)
        ends = volts.square() @ self.weight.sum(0) + above.square() @ self.at_above
        return 0.5 * ends - (above * (volts @ self.weight.T)).sum(1)

    def contrast(
        self, below: tuple[Tensor, Tensor | None], above: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        # (dp - dq)(P - Q) / 2 of p below and q above, d the difference of the phases and capitals their sum
        (total, moved_below), (total_above, moved) = below, above
        half = 0.5 * scale
        rows = (moved * total_above).sum(0) * half
        signal = (moved * -half).T @ total
        if moved_below is not None:
            signal -= total_above.T @ (moved_below * half)
        parts = [signal, -signal] if self.lines.doubled else [signal]
        if self.lines.bias_volts is not None:
            bias = moved.sum(0)[:, None] * (-2 * half * self.lines.bias_volts)
            parts += [bias, -bias]
        found = torch.cat(parts, 1).add_(rows[:, None])
        if moved_below is not None:
            found[:, : self.lines.nodes] += (moved_below * total).sum(0) * half
        return found
