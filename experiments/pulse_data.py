"""Conductance read after every pulse: the measurement that a pulse model is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from devices import MemoryCell
from experiments.common import generator


class Steps(NamedTuple):
    """All pulses with a reading before and after; arrays (n,)."""

    before: np.ndarray  # S
    after: np.ndarray  # S
    up: np.ndarray  # bool, the pulse potentiates
    device: np.ndarray  # number of the device
    cycle: np.ndarray  # number of the cycle of that device
    reads: np.ndarray  # 1 / reads before + 1 / reads after: variance of the difference over that of one read


@dataclass(frozen=True, eq=False)
class PulseData:
    """Readings in the order they were taken, device after device; arrays (n,).

    name        where they come from, e.g. the file
    pulse       running number of the pulse that a reading follows
    conductance mean of the reads after that pulse, S
    direction   of that pulse: 1 up, -1 down, 0 no pulse (a first reading)
    device      number of the device, an index into `devices`
    cycle       number of the cycle of that device, from 0; one cycle is potentiation and depression
    follows     bool: the reading above is the state before this pulse
    reads       how often the state was read; repeated reads tell read noise from the noise of a pulse
    deviation   root of the sum of squared deviations of these reads from their mean, S
    devices     their names
    notes       what a user should know about the file
    """

    name: str
    pulse: np.ndarray
    conductance: np.ndarray
    direction: np.ndarray
    device: np.ndarray
    cycle: np.ndarray
    follows: np.ndarray
    reads: np.ndarray
    deviation: np.ndarray
    devices: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> Steps:
        """The pulses whose effect was measured."""
        after = np.flatnonzero(self.follows & (self.direction != 0))
        before = after - 1
        return Steps(
            before=self.conductance[before],
            after=self.conductance[after],
            up=self.direction[after] > 0,
            device=self.device[after],
            cycle=self.cycle[after],
            reads=1 / self.reads[before] + 1 / self.reads[after],
        )

    @property
    def repeated_reads(self) -> int:
        """Degrees of freedom that repeated reads leave for read noise: 0 if every state was read once."""
        return int((self.reads - 1).sum())


def cycles_of(direction: np.ndarray) -> np.ndarray:
    """Numbers (n,) of the cycles in a sequence of directions (n,): one begins where up follows down."""
    moving = direction[direction != 0]
    begins = np.zeros(len(direction), dtype=np.int64)
    begins[direction != 0] = np.r_[False, (moving[1:] > 0) & (moving[:-1] < 0)]
    return begins.cumsum()


def measure(
    cell: MemoryCell,
    pulses: int,
    cycles: int = 1,
    devices: int = 1,
    reads: int = 1,
    seed: int = 0,
    name: str = "simulated",
) -> PulseData:
    """A simulated measurement: every device gets `cycles` times `pulses` up and `pulses` down from its lowest state.

    The first reading is taken before any pulse; each reading is repeated `reads` times, without delay.
    """
    rng = generator(seed)
    cells = cell.fabricate((1, devices), rng, dtype=torch.float64)
    direction = np.r_[0, np.tile(np.repeat([1, -1], pulses), cycles)]
    readings = np.empty((len(direction), reads, devices))
    for k, d in enumerate(direction):
        if d:
            cell.pulse(cells, torch.full((1, devices), int(d)), rng)
        readings[k] = [cell.read(cells, rng)[0].numpy() for _ in range(reads)]
    n, mean = len(direction), readings.mean(1)
    return PulseData(
        name=name,
        pulse=np.tile(np.arange(n), devices),
        conductance=mean.T.ravel(),
        direction=np.tile(direction, devices),
        device=np.repeat(np.arange(devices), n),
        cycle=np.tile(cycles_of(direction), devices),
        follows=np.tile(np.arange(n) > 0, devices),
        reads=np.full(n * devices, reads),
        deviation=np.sqrt(((readings - mean[:, None]) ** 2).sum(1)).T.ravel(),
        devices=tuple(f"{k + 1}" for k in range(devices)),
    )
