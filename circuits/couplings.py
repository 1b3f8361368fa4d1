"""A crossbar of conductances between two layers of nodes: the currents that voltages on either side drive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuits.wired_array import WiredArray
from circuits.wires import Wires, ladder_conductance


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

    def volts(self, below: Tensor, bias: float = 1.0) -> Tensor:
        """All of them (B, count), from voltages below (B, nodes) and so many times the bias."""
        parts = [below, -below] if self.doubled else [below]
        if self.bias_volts is not None:
            held = torch.full_like(below[:, :1], bias * self.bias_volts)
            parts += [held, -held]
        return torch.cat(parts, 1)

    def signal(self, per_line: Tensor) -> Tensor:
        """What a volt below does, (.., nodes), of what a volt on each line does, (.., count)."""
        n = self.nodes
        return per_line[..., :n] - per_line[..., n : 2 * n] if self.doubled else per_line[..., :n]

    def bias(self, per_line: Tensor) -> Tensor | float:
        """What the bias lines do together, (..), of what a volt on each line does."""
        if self.bias_volts is None:
            return 0.0
        return self.bias_volts * (per_line[..., -2] - per_line[..., -1])


class Coupling(ABC):
    """Of what is below, `below` (B, nodes) V on its `lines`, with its output nodes, `above` (B, out) V.

    across (out, nodes)              current into an output node at 0 V by a volt below, S
    at_above (out,), at_below (nodes,)  conductance of each node to the array while all others are held, S
    bias_above, bias_below           currents of the bias lines into nodes at 0 V, A
    among_above, among_below         conductances between nodes of one side, square, 0 on the diagonal; None where
                                     wires have no resistance, so that nodes of a layer do not feel each other
    """

    lines: Lines
    array: WiredArray | None = None  # itself, where its wires have resistance
    across: Tensor
    at_above: Tensor
    at_below: Tensor
    bias_above: Tensor | float
    bias_below: Tensor | float = 0.0
    among_above: Tensor | None = None
    among_below: Tensor | None = None

    def upwards(self, below: Tensor) -> Tensor:
        """Currents into the output nodes (B, out) while those are at 0 V; the bias lines' not included."""
        return below @ self.across.T

    def downwards(self, above: Tensor) -> Tensor:
        """Currents into the nodes below (B, nodes) while those are at 0 V."""
        return above @ self.across

    @abstractmethod
    def cocontent(self, below: Tensor, above: Tensor, into: Tensor | None = None) -> Tensor:
        """1/2 sum g (dv)^2 over cells and wires per sample (B,), W: half of the heat. into (B, out): currents into the
        output nodes at 0 V, bias included, where they are known."""

    @abstractmethod
    def contrast(
        self, below: tuple[Tensor, Tensor | None], above: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        """scale times the sum over samples of ((dv)^2 nudged - (dv)^2 free) / 2 of every cell, (out, count) V^2.

        Of the voltages on either side (sum of both phases, nudged less free), with None where that is 0.
        """


def couple(weight: Tensor, lines: Lines, wires: Wires | None, exact_lines: int) -> Coupling:
    """The crossbar `weight` (out, count) S: with all its wires exactly where its longer side has at most `exact_lines`,
    else with conductances that account for them approximately."""
    if wires is None:
        return IdealCoupling(weight, lines)
    return (
        WiredCoupling(weight, lines, wires)
        if max(weight.shape) <= exact_lines
        else LadderCoupling(weight, lines, wires)
    )


class IdealCoupling(Coupling):
    """Wires without resistance: W (out, lines) siemens between nodes that know only voltages at their ends."""

    def __init__(self, weight: Tensor, lines: Lines):
        self.weight, self.lines = weight, lines
        self.across, self.bias_above = lines.signal(weight), lines.bias(weight)
        self.at_above = weight.sum(1)

    @cached_property
    def at_below(self) -> Tensor:
        return self.weight[:, : self.lines.nodes].sum(0)

    def cocontent(self, below: Tensor, above: Tensor, into: Tensor | None = None) -> Tensor:
        into = self.upwards(below) + self.bias_above if into is None else into
        ends = self.lines.volts(below).square() @ self._loads + above.square() @ self.at_above
        return 0.5 * ends - (above * into).sum(1)

    @cached_property
    def _loads(self) -> Tensor:
        """Conductance of every line to the array while all nodes are held, (count,)."""
        return self.weight.sum(0)

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
            bias = moved.sum(0)[:, None] * (-scale * self.lines.bias_volts)
            parts += [bias, -bias]
        found = torch.cat(parts, 1).add_(rows[:, None])
        if moved_below is not None:
            found[:, : self.lines.nodes] += (moved_below * total).sum(0) * half
        return found


class WiredCoupling(Coupling):
    """All wires, exactly: Kron's reduction to the terminals, which makes nodes of a layer feel each other."""

    def __init__(self, weight: Tensor, lines: Lines, wires: Wires):
        self.lines, n = lines, lines.count
        self.array = WiredArray(weight.detach(), wires)
        y = _Admittance.apply(weight, self) if weight.requires_grad else self.array.admittance().to(weight)
        self.admittance = y
        self.across, self.bias_above = -lines.signal(y[n:, :n]), -lines.bias(y[n:, :n])
        self.at_above, self.among_above = _parted(y[n:, n:])
        below = y[: lines.nodes, : lines.nodes]
        self.at_below, self.among_below = _parted(below)
        self.bias_below = -lines.bias(y[: lines.nodes, :n])

    @cached_property
    def transfer(self) -> Tensor:
        """The voltage over each cell by the voltages at the terminals, (out count, count + out)."""
        return self.array.transfer().to(self.admittance.dtype)

    def cocontent(self, below: Tensor, above: Tensor, into: Tensor | None = None) -> Tensor:
        volts = torch.cat([self.lines.volts(below), above], 1)
        return 0.5 * (volts * (volts @ self.admittance)).sum(1)

    def contrast(
        self, below: tuple[Tensor, Tensor | None], above: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        # wires rest where the heat is least, so that a cell's share in it is that of its own voltage alone
        (total, moved_below), (total_above, moved) = below, above
        moved_below = torch.zeros_like(total) if moved_below is None else moved_below
        sums = torch.cat([self.lines.volts(total, bias=2), total_above], 1)
        differences = torch.cat([self.lines.volts(moved_below, bias=0), moved], 1)
        cells = (differences @ self.transfer.T).mul_(sums @ self.transfer.T).sum(0)
        return (0.5 * scale * cells).view(len(self.at_above), self.lines.count)


class LadderCoupling(IdealCoupling):
    """Many wires, approximately: each cell as its two lines alone would have it; see `ladder_conductance`.

    `error` is what that gets wrong of the currents, relative; it takes one exact elimination.
    """

    def __init__(self, weight: Tensor, lines: Lines, wires: Wires):
        self.array = WiredArray(weight, wires)
        super().__init__(self.array.approximation(), lines)

    def error(self) -> float:
        """|W v - i| / |i| of currents into held outputs, over all inputs."""
        return self.array.approximation_error()

    def contrast(
        self, below: tuple[Tensor, Tensor | None], above: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        effective = super().contrast(below, above, scale)
        with torch.enable_grad():
            cells = self.array.conductance.detach().requires_grad_()
            return torch.autograd.grad(ladder_conductance(cells, self.array.wires), cells, effective)[0]


class _Admittance(torch.autograd.Function):
    """The terminals' admittance as a function of the cells: dY/dg = t t' with t the voltage over a cell by terminal."""

    @staticmethod
    def forward(ctx, weight: Tensor, coupling: WiredCoupling) -> Tensor:
        ctx.coupling, ctx.shape = coupling, weight.shape
        return coupling.array.admittance().to(weight)

    @staticmethod
    def backward(ctx, adjoint: Tensor) -> tuple[Tensor, None]:
        transfer = ctx.coupling.transfer
        return ((transfer @ adjoint) * transfer).sum(1).view(ctx.shape), None


def _parted(y: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of an admittance, and the conductances beside it."""
    diagonal = y.diagonal()
    return diagonal, torch.diag(diagonal) - y
