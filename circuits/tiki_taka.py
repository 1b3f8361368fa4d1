"""Tiki-Taka: a fast array takes the gradients, a slow one learns from what the fast one shows column by column."""

from __future__ import annotations

import collections.abc

import torch
from torch import Tensor

from circuits.base import EnergyCircuit, Pairs
from circuits.chip import Chip
from circuits.crossbar import Crossbar
from circuits.mapping import SymmetryReference
from devices import Device


class TikiTakaChip(Chip):
    """A chip whose changes go to a second, fast array A per weight; the weight C is read from the slow one alone.

    The cells of A are compared with their symmetry points, where they rest and to where pulses that average to nothing
    bring them back: asymmetric cells that would pull a weight off with every pair of pulses make of A a leaky average
    of the gradient instead. After every `transfer_every` writes the next `columns` columns of A, in turn, are read
    and C moves by `transfer_lr` times what they show (Gokmen & Haensch, Front. Neurosci. 14:103, 2020). With
    `buffered` a digital array H adds that up, and a pulse goes to C only where H has gathered a whole one (version 2,
    Gokmen, Front. Artif. Intell. 4:699148, 2021); else C's pulses are drawn, unbiased.

    fast: the device of A; C's unless given. fast_lr: what a change is multiplied by before it is written to A. A read
    of columns is charged as a read of the array. device, options: of C, as `Chip`; the rounding is A's, "stochastic"
    unless given.
    """

    def __init__(
        self,
        circuit: EnergyCircuit,
        device: Device,
        rng: torch.Generator,
        *,
        fast: Device | None = None,
        fast_lr: float = 1.0,
        transfer_lr: float = 1.0,
        transfer_every: int = 1,
        columns: int = 1,
        buffered: bool = True,
        symmetry: SymmetryReference | None = None,
        rounding: str = "stochastic",
        **options,
    ):
        for name, value in {"fast_lr": fast_lr, "transfer_lr": transfer_lr}.items():
            if not value > 0:
                raise ValueError(f"{name} = {value}; choose {name} > 0, such as 1")
        for name, value in {"transfer_every": transfer_every, "columns": columns}.items():
            if value < 1:
                raise ValueError(f"{name} = {value}; choose at least 1")
        super().__init__(circuit, device, rng, rounding="truncate" if buffered else "stochastic", **options)
        if device.step_siemens is None:
            raise ValueError("the slow array is written by pulses, and this device has none: choose another")
        self.fast_lr, self.transfer_lr, self.buffered = fast_lr, transfer_lr, buffered
        self.transfer_every, self.columns = transfer_every, columns
        self.fast = {
            name: Crossbar(
                slow.shape,
                device if fast is None else fast,
                slow.w_max,
                rng,
                mapping=symmetry or SymmetryReference(),
                rounding=rounding,
                dtype=self._last[name].dtype,
            )
            for name, slow in self.crossbars.items()
        }
        for array in self.fast.values():
            array.program(torch.zeros_like(array.read()))
        self.buffers = {name: torch.zeros_like(self._last[name].flatten(1)) for name in self.fast}
        self.writes = dict.fromkeys(self.fast, 0)

    @property
    def learning(self) -> dict[str, Crossbar]:
        return self.fast

    @property
    def arrays(self) -> list[Crossbar]:
        return [*self.crossbars.values(), *self.fast.values()]

    @torch.no_grad()
    def write(self, deltas: collections.abc.Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change A by `fast_lr` times `deltas`; returns these as they were nominally written."""
        written = {}
        for name, delta in deltas.items():
            wanted = self.fast_lr * delta.flatten(1)
            done = self.fast[name].write(wanted, torch.zeros_like(wanted), self.t_seconds)
            written[name] = (done / self.fast_lr).view(delta.shape)
            self._transfer(name)
        return written

    @torch.no_grad()
    def coincide(self, factors: collections.abc.Mapping[str, Pairs], scale: float) -> None:
        """Change A by -`fast_lr` scale post' pre in the mean, with `trains` of pulses."""
        super().coincide(factors, self.fast_lr * scale)
        for name in factors:
            self._transfer(name)

    def _transfer(self, name: str) -> None:
        """Count a write of A; where it is time, let C learn from A's next columns."""
        self.writes[name] += 1
        if self.writes[name] % self.transfer_every:
            return
        slow, buffer = self.crossbars[name], self.buffers[name]
        first = (self.writes[name] // self.transfer_every - 1) * self.columns
        count = buffer.shape[1]
        turn = torch.arange(first, first + min(self.columns, count), device=buffer.device) % count
        wanted = torch.zeros_like(buffer)
        shown = self.transfer_lr * self.fast[name].read(self.t_seconds)[:, turn]
        wanted[:, turn] = buffer[:, turn] + shown if self.buffered else shown
        written = slow.write(wanted, self._last[name].flatten(1), self.t_seconds)
        if self.buffered:
            buffer[:, turn] = (wanted - written)[:, turn]

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "fast": {name: array.state_dict() for name, array in self.fast.items()},
            "buffers": {name: buffer.clone() for name, buffer in self.buffers.items()},
            "writes": dict(self.writes),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, array in self.fast.items():
            array.load_state_dict(state["fast"][name])
            self.buffers[name] = state["buffers"][name].to(self.buffers[name], copy=True)
        self.writes = dict(state["writes"])
