"""The wires of a crossbar array, its access transistors, and what both do to small currents without a solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AccessTransistor:
    """A transistor in series with every cell (1T1R), a resistor in both its states.

    on_ohm: resistance of a selected one, > 0; off_siemens: conductance of the others, >= 0 and below 1 / on_ohm.
    """

    on_ohm: float = 10e3
    off_siemens: float = 1e-12

    def __post_init__(self) -> None:
        if not (math.isfinite(self.on_ohm) and self.on_ohm > 0):
            raise ValueError(f"on_ohm = {self.on_ohm}; choose a finite resistance > 0 Ohm, such as 1e4")
        if not 0 <= self.off_siemens < 1 / self.on_ohm:
            raise ValueError(
                f"off_siemens = {self.off_siemens}; choose 0 <= off_siemens < 1 / on_ohm = {1 / self.on_ohm} S"
            )

    def siemens(self, selected: Tensor) -> Tensor:
        """Conductance in float64 of the transistors of which `selected` (out, in) bool are on."""
        off = torch.full(selected.shape, self.off_siemens, dtype=torch.float64, device=selected.device)
        return off.masked_fill(selected, 1 / self.on_ohm)


@dataclass(frozen=True)
class Wires:
    """Resistances of a crossbar's lines, the same for all of a kind.

    word_ohm, bit_ohm: one segment of a word line (input) or bit line (output), > 0: from cell to cell, and from a
    line's terminal to its first cell; without wires there is nothing to solve.
    source_ohm, load_ohm: in series with every input and every output terminal, >= 0.
    access: transistors in series with the cells, or None, a passive array.
    Beyond a ratio of 1e8 between any of these resistances and a segment float64 would not leave six digits.
    """

    word_ohm: float = 1.0
    bit_ohm: float = 1.0
    source_ohm: float = 0.0
    load_ohm: float = 0.0
    access: AccessTransistor | None = None

    def __post_init__(self) -> None:
        for name in ("word_ohm", "bit_ohm"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(
                    f"{name} = {value}; choose a finite resistance > 0 Ohm: 1e-6 is as good as none, and an array "
                    "of ideal wires is a product with its conductances, without Wires"
                )
        for name in ("source_ohm", "load_ohm"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} = {value}; choose a finite resistance >= 0 Ohm")
        segment = min(self.word_ohm, self.bit_ohm)
        if (most := max(self.word_ohm, self.bit_ohm, self.source_ohm, self.load_ohm)) > 1e8 * segment:
            raise ValueError(
                f"wires of {most} Ohm and of {segment} Ohm a segment; choose resistances within a ratio of 1e8: a "
                "larger segment, or less in series"
            )
        if not (self.access is None or isinstance(self.access, AccessTransistor)):
            raise ValueError(f"access = {self.access!r}; choose an AccessTransistor, or None")

    def share(self, conductance: Tensor, selected: Tensor | None = None) -> Tensor:
        """Of the voltage across a cell and its transistor, what is across the cell, (out, in) float64, 0 to 1.

        Times the conductance it is that of both in series. selected: (out, in) bool, transistors that are on; all
        unless given.
        """
        g = conductance.double()
        if self.access is None:
            if selected is not None:
                raise ValueError("selected is given, but these wires have no access transistors: set access")
            return torch.ones_like(g)
        if selected is None:
            selected = torch.ones(g.shape, dtype=torch.bool, device=g.device)
        if selected.shape != g.shape or selected.dtype != torch.bool:
            raise ValueError(
                f"selected is {tuple(selected.shape)} of {selected.dtype}; it takes {tuple(g.shape)} of torch.bool"
            )
        transistor = self.access.siemens(selected.to(g.device))
        # a cell of 0 S behind a transistor of 0 S: no current, whatever the voltages
        return transistor / (g + transistor).clamp_min(torch.finfo(g.dtype).tiny)


def check_conductance(conductance: Tensor) -> None:
    """ValueError unless (out, in) conductances are finite and >= 0, and every line has at least one above 0."""
    if conductance.ndim != 2 or not conductance.numel() or not conductance.is_floating_point():
        raise ValueError(
            f"conductance is {tuple(conductance.shape)} of {conductance.dtype}; an array takes floats (out, in), "
            "at least one of each"
        )
    bad = ~(torch.isfinite(conductance) & (conductance >= 0))
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise ValueError(
            f"conductance[{i}, {j}] = {conductance[i, j].item()}; the cells of an array take finite siemens >= 0: map "
            "signed weights to two cells each"
        )
    for dim, line in ((1, "bit line (output)"), (0, "word line (input)")):
        empty = (conductance == 0).all(dim).nonzero()
        if len(empty):
            raise ValueError(
                f"{line} {empty[0].item()} has no conductance at all, a line that floats. Leave it out of the array, "
                "or give its cells the smallest conductance of the device"
            )


def ladder_conductance(conductance: Tensor, wires: Wires, selected: Tensor | None = None) -> Tensor:
    """An (out, in) matrix W with output currents of about W v, without a solve: O(out in), differentiable.

    The cell (i, j) lies between two Thevenin equivalents: what word line j brings to it, and, by reciprocity, the share
    of its current that bit line i takes to the output. Both lines are ladders, loaded by their other cells and by the
    resistance of the lines that these lead to. Exact where cells close no loop; what goes round loops is left out. That
    is less than a tenth while the mean conductance times the resistance of a segment times the square of a line's
    length is below about 1; `WiredArray.approximation_error` says how much it is. Saves time from about 128 lines on.
    """
    check_conductance(conductance)
    g = conductance.double()
    g = g * wires.share(g, selected)
    word_loads = bit_loads = g
    for _ in range(2):  # at first as if what cells lead to was ground; a third time changes next to nothing
        brought, word_ohm = _thevenin(word_loads, wires.word_ohm, wires.source_ohm)
        taken, bit_ohm = _thevenin(bit_loads.T.flip(0), wires.bit_ohm, wires.load_ohm)
        taken, bit_ohm = taken.flip(0).T, bit_ohm.flip(0).T
        word_loads, bit_loads = g / (1 + g * bit_ohm), g / (1 + g * word_ohm)
    return (g * brought * taken / (1 + g * (word_ohm + bit_ohm))).to(conductance.dtype)


def _thevenin(loads: Tensor, ohm: float, terminal_ohm: float) -> tuple[Tensor, Tensor]:
    """Open-circuit voltage for 1 V at the terminal, and resistance, (n, lines), at each node of ladders whose terminal
    is before node 0, with `loads` (n, lines) at all other nodes than the one it is seen from."""
    first = torch.ones_like(loads[0])
    volts, ohms = [first], [first * (ohm + terminal_ohm)]
    for load in loads[:-1]:
        divider = 1 / (1 + load * ohms[-1])
        volts.append(volts[-1] * divider)
        ohms.append(ohms[-1] * divider + ohm)
    beyond = [torch.zeros_like(first)]  # conductance of what follows, segment included
    for load in loads[1:].flip(0):
        following = beyond[-1] + load
        beyond.append(following / (1 + ohm * following))
    ohms = torch.stack(ohms)
    divider = 1 / (1 + torch.stack(beyond[::-1]) * ohms)
    return torch.stack(volts) * divider, ohms * divider
