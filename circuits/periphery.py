"""Converters between the digital world and the array: finite resolution, range and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Converter:
    """A DAC or an ADC: `q round(clip(x + noise limit xi, -limit, limit) / q)`, with 2^bits - 1 levels around 0.

    bits   2 to 24; None does not round
    limit  largest magnitude that is converted, > 0; None: of each sample (row) its own largest, as a converter with a
           programmable gain does
    noise  standard deviation over limit, 0 to 1 (an amplifier's output noise)

    Beyond the limit a converter saturates: that is its physics, see `saturated`.
    """

    bits: int | None = 8
    limit: float | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 24):
            raise ValueError(f"bits = {self.bits} of a converter; choose 2 to 24, or None for no rounding")
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise ValueError(f"limit = {self.limit} of a converter; choose a finite limit > 0, or None")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise = {self.noise} of a converter; it is over the limit: choose 0 to 1")

    def convert(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """The conversion of x (B, ...). rng: ValueError without one where there is noise."""
        if self.noise and rng is None:
            raise ValueError(
                f"a converter with noise = {self.noise} draws random numbers: pass a generator rng"
            )
        flat = x.flatten(1)
        limit = flat.abs().amax(1, keepdim=True) if self.limit is None else self.limit
        if self.noise:
            flat = flat + self.noise * limit * torch.randn(
                flat.shape, generator=rng, dtype=x.dtype, device=x.device
            )
        flat = flat.clamp(-limit, limit)
        if self.bits is not None:
            q = limit / (2 ** (self.bits - 1) - 1)
            flat = torch.where(flat == 0, flat, torch.round(flat / q) * q)  # a row of zeros has q = 0
        return flat.view(x.shape)

    def saturated(self, x: Tensor) -> float:
        """Share of the entries of x beyond the limit."""
        return 0.0 if self.limit is None else (x.abs() > self.limit).double().mean().item()
