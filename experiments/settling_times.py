"""Settling times of resistive networks against their depth, the strength of a nudge, and the spread of their cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from circuits import Equilibrium, System, cost
from circuits.resistive_system import ResistiveSystem
from experiments.common import generator
from experiments.settling_networks import bound, inputs, network
from mep_sim.settling import Implicit, Sweep, settle

END = Sweep(1e-12, max_sweeps=20_000)
POINTS = 40  # looked at on the way; errors between them fall exponentially
ENDS = (0.1, 0.5, 0.9)  # quantiles shown


@torch.no_grad()
def settling_seconds(system: System, tolerance: float, start: Equilibrium | None = None) -> Tensor:
    """When the outputs of every sample have settled, (B,) s, from 0 V or from a free equilibrium.

    From then on no output is farther from where it ends than `tolerance` times the longest way of an output. Good to
    one percent.
    """
    end = settle(system, start, END)
    if not bool(end.converged.all()):
        raise ValueError(f"sweeps do not find the equilibrium to {END.tolerance}; choose a weaker nudge")
    solver = Implicit(1e-3 * tolerance, rtol=1e-2 * tolerance)
    stop = settle(system, start, Implicit(1e-6 * tolerance)).time.max().item()
    seconds = torch.linspace(0, 1.5 * stop, POINTS, dtype=torch.float64)
    path = settle(system, start, solver, save_at=seconds).transient.state
    left = system.layout.output(path - end.state).abs().amax(2)  # (T, B)
    return last_crossing(seconds, left / left[0], tolerance)


def last_crossing(seconds: Tensor, left: Tensor, tolerance: float) -> Tensor:
    """From when on left (T, B) is below `tolerance`, exponential between the times (T,): (B,) s, inf if never."""
    order = torch.arange(1, len(seconds) + 1)[:, None]
    above = ((left > tolerance) * order).amax(0)  # how many times there are up to the last one above
    last = (above - 1).clamp(0, len(seconds) - 2)
    sample = torch.arange(left.shape[1])
    before, after = left[last, sample], left[last + 1, sample].clamp(min=1e-30)
    share = torch.log(before / tolerance) / torch.log(before / after)
    found = torch.lerp(seconds[last], seconds[last + 1], share.clamp(0, 1))
    return found.masked_fill(above == 0, 0.0).masked_fill(above == len(seconds), math.inf)


@dataclass(frozen=True)
class Point:
    """Settling times of one setting: the median and the middle 80 % over samples and seeds, in ns."""

    series: str
    at: float
    nanoseconds: tuple[float, float, float]

    def row(self) -> dict[str, object]:
        low, median, high = self.nanoseconds
        return {"series": self.series, "at": self.at, "median (ns)": median, "10 %": low, "90 %": high}


@dataclass(frozen=True)
class Sampling:
    """Over what settling times are taken: `samples` inputs of each of the networks of these `seeds`."""

    seeds: Sequence[int]
    samples: int
    tolerance: float
    volts: float
    sizes: tuple[int, int, int] = (64, 32, 10)
    """Inputs, nodes of every hidden layer, outputs."""

    def point(self, series: str, at: float, seconds: Callable[[torch.Generator], Tensor]) -> Point:
        """Of one setting; `seconds` gives the settling times (samples,) of the network that a generator draws."""
        found = 1e9 * torch.cat([seconds(generator(seed)) for seed in self.seeds])
        ends = found.quantile(torch.tensor(ENDS, dtype=found.dtype))
        return Point(series, at, tuple(ends.tolist()))

    def system(self, rng: torch.Generator, depth: int = 1, **settings: float) -> ResistiveSystem:
        """A network with `depth` hidden layers of these settings of `network`, and its inputs."""
        features, width, outputs = self.sizes
        circuit = network((features, *[width] * depth, outputs), rng=rng, volts=self.volts, **settings)
        return bound(circuit, inputs(circuit, self.samples, rng))

    def free(self, rng: torch.Generator, **settings: float) -> Tensor:
        """Of a free phase from 0 V."""
        return settling_seconds(self.system(rng, **settings), self.tolerance)

    def nudged(self, rng: torch.Generator, share: float) -> Tensor:
        """Of a nudged phase, from the free equilibrium towards random targets with beta = share of the largest."""
        system, squares = self.system(rng), cost("mse")
        free = settle(system, solver=END)
        target = self.volts * (torch.rand(self.samples, self.sizes[-1], generator=rng) - 0.5)
        beta = share * system.largest_beta(squares)
        return settling_seconds(system.nudged(squares, target.double(), beta), self.tolerance, free)


def against_depth(sampling: Sampling, depths: Iterable[int], gains: Iterable[float]) -> list[Point]:
    """By hidden layers of equal width, without amplifiers (a gain of 1) and with."""
    names = {gain: "no amplifiers" if gain == 1 else f"amplifiers, gain {gain:g}" for gain in gains}
    return [
        sampling.point(name, depth, partial(sampling.free, depth=depth, amplification=gain))
        for gain, name in names.items()
        for depth in depths
    ]


def against_beta(sampling: Sampling, shares: Iterable[float]) -> list[Point]:
    """By beta over the largest one, that at which -beta leaves no minimum; below 0 too."""
    return [
        sampling.point("nudged", share, partial(sampling.nudged, share=share)) for share in sorted(shares)
    ]


def against_spread(sampling: Sampling, spreads: Iterable[float]) -> list[Point]:
    """By the standard deviation of the logarithm of cells' own factors."""
    return [
        sampling.point("free", spread, partial(sampling.free, spread=spread)) for spread in sorted(spreads)
    ]
