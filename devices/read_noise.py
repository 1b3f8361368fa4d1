"""Read noise: what differs from one measurement to the next while the cell stays as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from devices.checks import check_number
from devices.draws import normal_like
from devices.window import Window


class ReadNoise(ABC):
    """Gaussian noise of a measurement; a subclass gives its standard deviation."""

    @abstractmethod
    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor | float:
        """Standard deviation in siemens; all tensors (rows, cols).

        g          conductance now, after drift, S
        g_written  conductance right after the last write, S
        since      seconds since the last write, 0 or more
        """

    def apply(
        self, g: Tensor, g_written: Tensor, since: Tensor, window: Window, rng: torch.Generator
    ) -> Tensor:
        """One measurement `g + sigma xi`, (rows, cols) S, drawn afresh at each call."""
        return normal_like(g, rng).mul_(self.sigma(g, g_written, since, window)).add_(g)


@dataclass(frozen=True)
class WhiteReadNoise(ReadNoise):
    """White noise of constant relative strength.

    sigma_relative  0 to 1; 0.02 is 2 %
    relative_to     "window": of the span g_max - g_min, the same for all cells (read-out electronics);
                    "conductance": of the cell's present conductance (current fluctuations)
    """

    sigma_relative: float
    relative_to: Literal["window", "conductance"] = "window"

    def __post_init__(self) -> None:
        check_number(
            "WhiteReadNoise.sigma_relative", self.sigma_relative, 0, 1, "It is relative: 0.02 is 2 %."
        )
        if self.relative_to not in ("window", "conductance"):
            raise ValueError(
                f"WhiteReadNoise.relative_to = {self.relative_to!r} is not allowed: choose 'window' (of "
                "g_max - g_min) or 'conductance' (of each cell's own)."
            )

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor | float:
        """sigma_relative times the span or the conductance, S."""
        return self.sigma_relative * (window.span if self.relative_to == "window" else g)


@dataclass(frozen=True)
class PCMReadNoise(ReadNoise):
    """1/f noise of phase-change memory, accumulated up to the time of reading.

        sigma = g Q sqrt(ln((t + t_read) / (2 t_read))),   Q = min(0.0088 / (g_written / g_max)^0.65, 0.2)

    with t = seconds since the last write + t0. Source: Nandakumar et al., ICECS 2019.

    t0_seconds      first measurement of the fit, 20 s in the source; at least t_read_seconds
    t_read_seconds  duration of a read, 250 ns in the source; 1e-12 to 1 s
    """

    t0_seconds: float = 20.0
    t_read_seconds: float = 250e-9

    def __post_init__(self) -> None:
        check_number(
            "PCMReadNoise.t_read_seconds", self.t_read_seconds, 1e-12, 1.0, "The source has 250e-9 s."
        )
        check_number(
            "PCMReadNoise.t0_seconds", self.t0_seconds, self.t_read_seconds, 1e9, "The source has 20 s."
        )

    def sigma(self, g: Tensor, g_written: Tensor, since: Tensor, window: Window) -> Tensor:
        """The formula above, (rows, cols) S; 0 for a cell at 0 S."""
        q = (0.0088 * (g_written / window.g_max_siemens).pow_(-0.65)).clamp_(max=0.2)
        t = since.to(g.dtype) + self.t0_seconds
        spectrum = ((t + self.t_read_seconds) / (2 * self.t_read_seconds)).log_().clamp_(min=0).sqrt_()
        return g * q * spectrum
