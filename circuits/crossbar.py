"""One weight matrix on memory cells: a pair of conductances per weight, read as their difference."""

from __future__ import annotations

import torch
from torch import Tensor

from devices import Cells, Device

ROUNDINGS = ("nearest", "stochastic")


class Crossbar:
    """A weight matrix (rows, cols) as differential pairs of cells, W = w_max (G+ - G-) / (g_max - g_min).

    w_max > 0: the largest |weight|, where one cell is at the top of its window and the other at the bottom.
    Pulses are push-pull: a weight goes up by pulsing G+ up and G- down, so that the pair answers evenly and
    its weight moves by 2 step w_max / (g_max - g_min) a pulse, near W = 0. rounding: of a wanted change to
    whole pulses, "nearest" or "stochastic" (unbiased). All random draws come from `rng`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: Device,
        w_max: float,
        rng: torch.Generator,
        *,
        rounding: str = "nearest",
        dtype: torch.dtype = torch.float32,
    ):
        if not w_max > 0:
            raise ValueError(f"w_max = {w_max}; the largest weight of a crossbar must be > 0")
        if rounding not in ROUNDINGS:
            raise ValueError(f"unknown rounding {rounding!r}; choose one of {', '.join(ROUNDINGS)}")
        self.device, self.w_max, self.rounding, self.rng = device, w_max, rounding, rng
        self.plus = device.fabricate(shape, rng, dtype=dtype, device=rng.device)
        self.minus = device.fabricate(shape, rng, dtype=dtype, device=rng.device)
        self.span = device.g_max_siemens - device.g_min_siemens
        self.middle = 0.5 * (device.g_max_siemens + device.g_min_siemens)

    @property
    def step(self) -> float | None:
        """Nominal weight change of one push-pull pulse; None where the device is written by programming."""
        step = self.device.step_siemens
        return None if step is None else 2 * step * self.w_max / self.span

    def read(self, t_seconds: float = 0.0) -> Tensor:
        """The weight as read now, (rows, cols): drift and a fresh draw of read noise included."""
        plus = self.device.read(self.plus, self.rng, t_seconds)
        return (plus - self.device.read(self.minus, self.rng, t_seconds)) * (self.w_max / self.span)

    def program(self, weight: Tensor, t_seconds: float = 0.0) -> None:
        """Write a whole matrix. A weight beyond w_max goes to w_max, where its cells end; see `beyond`."""
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(
                "the weights to program contain NaN or infinity; check the network before the chip"
            )
        half = (weight / self.w_max).clamp(-1, 1) * (0.5 * self.span)
        self.device.program(self.plus, self.middle + half, self.rng, t_seconds)
        self.device.program(self.minus, self.middle - half, self.rng, t_seconds)

    def beyond(self, weight: Tensor) -> float:
        """The share of weights that do not fit in [-w_max, w_max]."""
        return (weight.abs() > self.w_max).double().mean().item()

    def write(self, delta: Tensor, read: Tensor, t_seconds: float = 0.0) -> Tensor:
        """Change the weights by `delta`; returns what was nominally written.

        With pulses: whole ones, times the nominal step, and at most those across the whole range; what the
        cells made of them shows at the next read. Without: by programming the last `read` weight plus delta.
        What saturates counts as written, or a residual would wind up.
        """
        if not bool(torch.isfinite(delta).all()):
            raise ValueError(
                "the weight changes to write contain NaN or infinity; lower lr, or check gradient and data"
            )
        if self.step is None:
            self.program(read + delta, t_seconds)
            return delta
        counts = delta.clamp(-2 * self.w_max, 2 * self.w_max) / self.step
        if self.rounding == "stochastic":
            counts = torch.floor(counts + torch.rand(counts.shape, generator=self.rng, device=counts.device))
        else:
            counts = torch.round(counts)
        counts = counts.to(torch.int64)
        self.device.pulse(self.plus, counts, self.rng, t_seconds)
        self.device.pulse(self.minus, -counts, self.rng, t_seconds)
        return counts.to(delta.dtype) * self.step

    @property
    def pulses_per_cell(self) -> float:
        """Mean number of pulses a cell has received."""
        return 0.5 * (self.plus.pulses.double().mean() + self.minus.pulses.double().mean()).item()

    def state_dict(self) -> dict:
        return {"plus": self.plus.state_dict(), "minus": self.minus.state_dict(), "w_max": self.w_max}

    def load_state_dict(self, state: dict) -> None:
        where = self.rng.device
        self.w_max = state["w_max"]
        self.plus = Cells.from_state_dict(state["plus"]).to(where)
        self.minus = Cells.from_state_dict(state["minus"]).to(where)
