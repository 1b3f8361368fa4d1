"""One weight matrix on arrays of memory cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from circuits.base import Pairs
from circuits.mapping import Mapping, default_mapping
from circuits.pulse_trains import PulseTrains
from devices import Cells, Device, ProgramVerify
from devices.indices import nonzero

ROUNDINGS = ("nearest", "stochastic", "truncate")


class Crossbar:
    """A weight matrix (rows, cols) on memory cells, W = w_max w, with w in [-1, 1] as the mapping makes it.

    mapping: differential pairs unless given (one-sided ones where pulses only go up); an array may be common to several
    weights. rounding: of a wanted change to whole pulses, "truncate" (towards 0), "nearest" or "stochastic" (unbiased).
    With a residual carried on, truncation pulses least: after a pulse, noise has to add up to a whole one before the
    cell is pulsed back, where "nearest" does so at half of one.
    programming: how `program` reaches its targets; the device's own open-loop writing unless given. All random draws
    come from `rng`.

    cells: the arrays by name. failed: share of the cells that the last program-and-verify gave up.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: Device,
        w_max: float,
        rng: torch.Generator,
        *,
        mapping: Mapping | None = None,
        rounding: str = "truncate",
        programming: ProgramVerify | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        if not w_max > 0:
            raise ValueError(f"w_max = {w_max}; the largest weight of a crossbar must be > 0")
        if rounding not in ROUNDINGS:
            raise ValueError(f"unknown rounding {rounding!r}; choose one of {', '.join(ROUNDINGS)}")
        self.mapping = default_mapping(device) if mapping is None else mapping
        if not isinstance(self.mapping, Mapping):
            raise ValueError(f"mapping = {mapping!r}; choose a Mapping, such as OffsetColumn(), or None")
        self.mapping.check(device)
        self.device, self.w_max, self.rounding, self.rng = device, w_max, rounding, rng
        self._unit = self.mapping.step(device)
        self.programming = programming
        self.shape = shape
        self.cells = self.mapping.fabricate(shape, device, rng, dtype)
        self.failed = 0.0
        self.writes = self.reads = 0
        self.gain: Tensor | None = None
        self._baseline: Tensor | None = None

    @property
    def threshold(self) -> float:
        """Smallest weight change that is written by programming: the standard deviation of what a write of two cells
        errs by, mid-window. 0 where writes are exact."""
        return 2**0.5 * self.device.write_error_siemens * self.mapping.scale(self.device) * self.w_max

    @property
    def step(self) -> float | None:
        """Nominal weight change of a pulse; None where the device is written by programming."""
        return None if self._unit is None else self.w_max * self._unit

    # -- reading ------------------------------------------------------------------------------------

    def read(self, t_seconds: float = 0.0) -> Tensor:
        """The weight as read now, (rows, cols): drift, its compensation, and a draw of read noise included."""
        weight = self._read(t_seconds)
        return weight if self.gain is None else weight * self.gain

    def _read(self, t_seconds: float) -> Tensor:
        return self.mapping.weight(self._conductances(t_seconds), self.device).mul_(self.w_max)

    def _conductances(self, t_seconds: float) -> dict[str, Tensor]:
        self.reads += 1
        return {name: self.device.read(cells, self.rng, t_seconds) for name, cells in self.cells.items()}

    def calibrate(self, t_seconds: float = 0.0, reads: int = 8) -> None:
        """Remember the array's response (the mean |weight| of each output line), for `compensate` to come back to."""
        self.gain = None
        self._baseline = self._response(t_seconds, reads)

    def compensate(self, t_seconds: float, per: str = "column", reads: int = 8) -> None:
        """Scale what is read from now on, so that the response is as it was at `calibrate`: by one factor ("global")
        or one for each output line ("column"; Joshi et al., Nat. Commun. 11:2473, 2020)."""
        if per not in ("global", "column"):
            raise ValueError(f"unknown drift compensation {per!r}; choose global or column")
        if self._baseline is None:
            raise ValueError("nothing to compensate towards: calibrate() first, right after programming")
        now, then = self._response(t_seconds, reads), self._baseline
        if per == "global":
            now, then = now.mean(0, keepdim=True), then.mean(0, keepdim=True)
        self.gain = torch.where(now > 0, then / now, torch.ones_like(now))

    def _response(self, t_seconds: float, reads: int) -> Tensor:
        return (sum(self._read(t_seconds) for _ in range(reads)) / reads).abs().mean(1, keepdim=True)

    # -- writing ------------------------------------------------------------------------------------

    def program(self, weight: Tensor, t_seconds: float = 0.0) -> None:
        """Write a whole matrix. A weight beyond w_max goes to w_max, where its cells end; see `beyond`."""
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(
                "the weights to program contain NaN or infinity; check the network before the chip"
            )
        self._program(self._targets(weight, t_seconds), t_seconds)

    def _targets(self, weight: Tensor, t_seconds: float) -> dict[str, Tensor]:
        def read(name: str) -> Tensor:
            return self.device.read(self.cells[name], self.rng, t_seconds)

        return self.mapping.targets((weight / self.w_max).clamp(-1, 1), self.device, read)

    def _program(self, targets: dict[str, Tensor], t_seconds: float) -> None:
        self.gain = self._baseline = None
        how = (
            self.device.program
            if self.programming is None
            else partial(self.programming.program, self.device)
        )
        failed = [how(self.cells[name], g, self.rng, t_seconds) for name, g in targets.items()]
        if self.programming is not None:
            self.failed = torch.cat([x.flatten() for x in failed]).double().mean().item()

    def beyond(self, weight: Tensor) -> float:
        """The share of weights that do not fit in [-w_max, w_max]."""
        return (weight.abs() > self.w_max).double().mean().item()

    def write(self, delta: Tensor, read: Tensor, t_seconds: float = 0.0) -> Tensor:
        """Change the weights by `delta`; returns what was nominally written.

        With pulses: whole ones, times the nominal step, and at most those across the whole range; what the
        cells made of them shows at the next read. Without: by programming the last `read` weight plus delta, where
        that is more than `threshold`, for a write that errs by more than it moves does harm.
        What saturates counts as written, or a residual would wind up.
        """
        total = delta.sum()  # one pass: NaN and infinity survive it, and only they make it so
        if not bool(torch.isfinite(total)) and not bool(torch.isfinite(delta).all()):
            raise ValueError(
                "the weight changes to write contain NaN or infinity; lower lr, or check gradient and data"
            )
        if (step := self.step) is None:
            return self._rewrite(delta, read, t_seconds)
        most = 2 * self.w_max / step
        counts = (delta * (1 / step)).clamp_(-most, most)
        if self.rounding == "stochastic":
            counts.add_(torch.rand(counts.shape, generator=self.rng, device=counts.device)).floor_()
        elif self.rounding == "nearest":
            counts.round_()
        else:  # a whole pulse that came out a rounding error short is a whole one
            counts.mul_(1 + 1e-6)
        whole = counts.to(torch.int32)  # towards 0
        self.pulse([whole], t_seconds)
        return counts.copy_(whole).mul_(step)

    def _rewrite(self, delta: Tensor, read: Tensor, t_seconds: float) -> Tensor:
        changed = delta.abs() > self.threshold
        targets = self._targets(read + delta, t_seconds)
        # what weights have in common stays as it is
        own = {name: g for name, g in targets.items() if g.shape == delta.shape}
        self._program({name: torch.where(changed, g, torch.nan) for name, g in own.items()}, t_seconds)
        return torch.where(changed, delta, 0.0)

    def coincide(self, pairs: Pairs, scale: float, trains: PulseTrains, t_seconds: float = 0.0) -> float:
        """Move the weights by -scale post' pre, summed over pairs, in the mean, by trains of pulses that coincide;
        returns the share of lines that saturated. All pulses up come before all pulses down, or after them, by the
        toss of a coin."""
        if self.step is None:
            raise ValueError(
                "a device without pulses takes no pulse trains: write() it, or give it a pulse model"
            )
        found = trains.coincide(pairs, scale, self.step, self.rng)
        both = [found.up, -found.down]
        if torch.rand((), generator=self.rng, device=self.rng.device) < 0.5:
            both.reverse()
        self.pulse(both, t_seconds)
        return found.saturated

    def pulse(self, trains: Sequence[Tensor], t_seconds: float = 0.0) -> None:
        """Move the weights by one train of whole pulses (rows, cols) after another; refresh the array where its mapping
        asks for it."""
        for train in trains:
            train = train.reshape(-1)
            index = nonzero(train)
            if not len(index):
                continue
            counts = self.mapping.counts(train.index_select(0, index))
            arrays = [(self.cells[name], n) for name, n in counts.items()]
            self.device.pulse_at(index, arrays, self.rng, t_seconds)
        self.gain = self._baseline = None
        self.writes += 1
        if self.mapping.refresh_every is not None and self.writes % self.mapping.refresh_every == 0:
            self._program(self.mapping.refreshed(self._conductances(t_seconds), self.device), t_seconds)

    # -- costs --------------------------------------------------------------------------------------

    @property
    def pulses(self) -> int:
        """Pulses that all cells have received."""
        return sum(int(cells.pulses.sum()) for cells in self.cells.values())

    @property
    def cell_count(self) -> int:
        return sum(cells.pulses.numel() for cells in self.cells.values())

    @property
    def pulses_per_cell(self) -> float:
        """Mean number of pulses a cell has received."""
        return self.pulses / self.cell_count

    @property
    def joules(self) -> tuple[float, float] | None:
        """Energy of all write pulses and of all reads so far, J, as if the cells had always been as they are now; None
        where the device does not say its voltages. Not in it: writes of cells with pulses by
        programming in open loop, and the reads of program-and-verify."""
        operation = self.device.operation
        if operation is None:
            return None
        siemens = [cells.conductance.double() for cells in self.cells.values()]
        pulsed = sum((cells.pulses * g).sum() for cells, g in zip(self.cells.values(), siemens, strict=True))
        write = operation.joules_per_write_siemens * float(pulsed)
        return write, operation.joules_per_read_siemens * self.reads * float(sum(g.sum() for g in siemens))

    # -- saving -------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        return {
            "cells": {name: cells.state_dict() for name, cells in self.cells.items()},
            "w_max": self.w_max,
            "writes": self.writes,
            "reads": self.reads,
            "failed": self.failed,
            "gain": self.gain,
            "baseline": self._baseline,
        }

    def load_state_dict(self, state: dict) -> None:
        """Back to where `state_dict()` was taken; ValueError if the state is of other arrays than these."""
        shapes = {name: tuple(cells["conductance"].shape) for name, cells in state["cells"].items()}
        own = {name: cells.shape for name, cells in self.cells.items()}
        if shapes != own:
            raise ValueError(
                f"the state is of arrays {shapes}, this crossbar has {own}; choose the same mapping and shape"
            )
        where = self.rng.device
        self.w_max, self.failed = state["w_max"], state["failed"]
        self.writes, self.reads = state["writes"], state["reads"]
        self.gain, self._baseline = (
            None if state[name] is None else state[name].to(where) for name in ("gain", "baseline")
        )
        self.cells = {name: Cells.from_state_dict(cells).to(where) for name, cells in state["cells"].items()}
