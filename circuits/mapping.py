"""How a weight becomes conductances: which arrays of cells hold it, what they are set to, which pulses move it.

Weights w are over w_max here, -1 to 1. A mapping names its arrays; every method speaks of all of them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from devices import Cells, Device

Arrays = dict[str, Tensor]


class Mapping(ABC):
    """`w = scale (G - G')` of two arrays: "plus" (rows, cols), and another that it is compared with.

    A new mapping is a frozen dataclass with these methods.

    other: name of the second array. gain: w for a difference of the whole window. moved: cells that a pulse moves.
    refresh_every: writes between two calls of `refreshed`; None: it is never called.
    """

    other: ClassVar[str] = "minus"
    gain: ClassVar[int] = 1
    moved: ClassVar[int] = 1
    refresh_every: int | None = None

    def check(self, device: Device) -> None:
        """Raise ValueError where the mapping cannot be made of this device."""
        if device.one_sided:
            raise ValueError(
                f"{type(self).__name__} pulses cells down, and those of this device only go up: choose OneSidedPair"
            )

    def fabricate(
        self, shape: tuple[int, int], device: Device, rng: torch.Generator, dtype: torch.dtype
    ) -> dict[str, Cells]:
        """The arrays of a weight (rows, cols), on the generator's device."""
        return {name: _fabricate(shape, device, rng, dtype) for name in ("plus", self.other)}

    def full_scale(self, weight: Tensor, w_range: float, device: Device) -> float:
        """The w_max of a crossbar that begins with this weight: `w_range` times its root mean square."""
        return w_range * weight.square().mean().sqrt().item()

    def scale(self, device: Device) -> float:
        """Change of w over that of a conductance, 1/S."""
        return self.gain / device.window.span

    def weight(self, g: Arrays, device: Device) -> Tensor:
        """The weight (rows, cols), over w_max, that conductances make: a new tensor."""
        return (g["plus"] - g[self.other]).mul_(self.scale(device))

    @abstractmethod
    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        """The conductances that make weights w (rows, cols) in [-1, 1], of the arrays to be programmed. `read(name)`
        measures an array, for mappings that must know it."""

    def step(self, device: Device) -> float | None:
        """Change of w by one pulse, near w = 0; None where the device has none."""
        step = device.step_siemens
        return None if step is None else self.moved * self.gain * step / device.window.span

    @abstractmethod
    def counts(self, counts: Tensor) -> Arrays:
        """The pulses, by array, that move weights by `counts` steps, one for one."""

    def refreshed(self, g: Arrays, device: Device) -> Arrays:
        """Conductances to program after a write that left the arrays read as `g`, NaN where a cell is left alone;
        asked for after every `refresh_every` writes."""
        return {}


def _fabricate(shape: tuple[int, int], device: Device, rng: torch.Generator, dtype: torch.dtype) -> Cells:
    return device.fabricate(shape, rng, dtype=dtype, device=rng.device)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value}; choose a whole number of at least 1")


@dataclass(frozen=True)
class DifferentialPair(Mapping):
    """w = (G+ - G-) / span, by a pair of cells per weight, both of which can be pulsed up and down.

    Pulses are push-pull: a weight goes up by pulsing G+ up and G- down, so that the pair answers evenly and its weight
    moves by 2 steps. At w = 0 both are mid-window.
    """

    moved = 2

    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        middle, half = device.window.middle, 0.5 * device.window.span * w
        return {"plus": middle + half, "minus": middle - half}

    def counts(self, counts: Tensor) -> Arrays:
        return {"plus": counts, "minus": -counts}


@dataclass(frozen=True)
class OneSidedPair(Mapping):
    """w = (G+ - G-) / span, by a pair of cells that are only pulsed up: G+ for a higher weight, G- for a lower.

    After every `refresh_every` writes the pairs are read; where a cell lies above `refresh_at` of the window, both are
    reset and their difference is programmed with the lower one at g_min, so that the pair can go on (Nandakumar et al.,
    Front. Neurosci. 14:406, 2020). refresh_at: 0.1 to 1; refresh_every: 1 or more.
    """

    refresh_at: float = 0.75
    refresh_every: int = 20

    def __post_init__(self) -> None:
        _check_count("refresh_every", self.refresh_every)
        if not 0.1 <= self.refresh_at <= 1:
            raise ValueError(f"refresh_at = {self.refresh_at}; choose a share of the window in [0.1, 1]")

    def check(self, device: Device) -> None:
        """Fits every device."""

    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        low, span = device.g_min_siemens, device.window.span
        return {"plus": low + w.clamp(min=0) * span, "minus": low - w.clamp(max=0) * span}

    def counts(self, counts: Tensor) -> Arrays:
        return {"plus": counts.clamp(min=0), "minus": (-counts).clamp(min=0)}

    def refreshed(self, g: Arrays, device: Device) -> Arrays:
        full = (
            torch.maximum(g["plus"], g["minus"]) > device.g_min_siemens + self.refresh_at * device.window.span
        )
        targets = self.targets(self.weight(g, device).clamp(-1, 1), device, g.__getitem__)
        return {name: torch.where(full, target, torch.nan) for name, target in targets.items()}


class _SingleCell(Mapping):
    """w = 2 (G - G_ref) / span."""

    other = "reference"
    gain = 2

    def counts(self, counts: Tensor) -> Arrays:
        return {"plus": counts}


@dataclass(frozen=True)
class OneCell(Mapping):
    """w = G / g_max, by one cell per weight, which is its conductance itself: w_max is g_max, and W is in siemens.

    The crossbar of a resistive network, whose lines carry both signs. Conductances end where the device's window does.
    """

    def check(self, device: Device) -> None:
        if device.one_sided:
            raise ValueError(
                "OneCell pulses cells down, and those of this device only go up: choose a device of both, or one that "
                "is written by programming"
            )

    def fabricate(
        self, shape: tuple[int, int], device: Device, rng: torch.Generator, dtype: torch.dtype
    ) -> dict[str, Cells]:
        return {"plus": _fabricate(shape, device, rng, dtype)}

    def full_scale(self, weight: Tensor, w_range: float, device: Device) -> float:
        return device.g_max_siemens

    def scale(self, device: Device) -> float:
        return 1 / device.g_max_siemens

    def weight(self, g: Arrays, device: Device) -> Tensor:
        return g["plus"] / device.g_max_siemens

    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        return {"plus": (w * device.g_max_siemens).clamp(device.g_min_siemens, device.g_max_siemens)}

    def step(self, device: Device) -> float | None:
        step = device.step_siemens
        return None if step is None else step / device.g_max_siemens

    def counts(self, counts: Tensor) -> Arrays:
        return {"plus": counts}


@dataclass(frozen=True)
class OffsetColumn(_SingleCell):
    """w = 2 (G - G_ref) / span, by one cell per weight and one reference cell per input line, mid-window.

    Half the cells of a pair; the error of a reference cell is common to all weights of its line. "reference" (1, cols).
    """

    def fabricate(
        self, shape: tuple[int, int], device: Device, rng: torch.Generator, dtype: torch.dtype
    ) -> dict[str, Cells]:
        cells = _fabricate(shape, device, rng, dtype)
        return {"plus": cells, "reference": _fabricate((1, shape[1]), device, rng, dtype)}

    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        middle = device.window.middle
        return {"plus": middle + 0.5 * device.window.span * w, "reference": torch.full_like(w[:1], middle)}


@dataclass(frozen=True)
class SymmetryReference(_SingleCell):
    """w = 2 (G - G_sym) / span, by a cell per weight, compared with a second one that holds its symmetry point.

    The symmetry point, where an up pulse and a down pulse move a cell equally far, is found once by `alternations`
    pairs of them and programmed into the reference cell ("zero-shifting", Kim et al., arXiv:1907.10228, and Gokmen &
    Haensch, Front. Neurosci. 14:103, 2020). A cell that random pulses pull there then decays to w = 0.

    alternations  soft bounds of n steps come as near as exp(-4 alternations / n) of where they began, mid-window;
                  a cell without a symmetry point (constant steps) ends wherever they take it. Its pulses count.
    reads         the point is the mean of reads after each of the two pulses of the last so many pairs: a cell is
                  half a step above and below it in turn. As many reads of the reference precede programming.

    A weight that the window, seen from the symmetry point, has no room for ends where its cell does.
    """

    alternations: int = 400
    reads: int = 16

    def __post_init__(self) -> None:
        for name in ("alternations", "reads"):
            _check_count(name, getattr(self, name))
        if self.reads > self.alternations:
            raise ValueError(
                f"reads = {self.reads} of {self.alternations} alternations; choose at most as many"
            )

    def check(self, device: Device) -> None:
        super().check(device)
        if device.step_siemens is None:
            raise ValueError("a device without pulses has no symmetry point: choose DifferentialPair")

    def fabricate(
        self, shape: tuple[int, int], device: Device, rng: torch.Generator, dtype: torch.dtype
    ) -> dict[str, Cells]:
        cells, reference = (_fabricate(shape, device, rng, dtype) for _ in range(2))
        middle = device.window.middle
        device.program(cells, torch.full_like(cells.conductance, middle), rng)
        up = torch.ones(shape, dtype=torch.int64, device=cells.conductance.device)
        found = torch.zeros_like(cells.conductance)
        for left in range(self.alternations, 0, -1):
            for counts in (up, -up):
                device.pulse(cells, counts, rng)
                if left <= self.reads:
                    found += device.read(cells, rng) / (2 * self.reads)
        device.program(reference, found.clamp(device.g_min_siemens, device.g_max_siemens), rng)
        return {"plus": cells, "reference": reference}

    def targets(self, w: Tensor, device: Device, read: Callable[[str], Tensor]) -> Arrays:
        reference = sum(read("reference") for _ in range(self.reads)) / self.reads
        wanted = reference + 0.5 * device.window.span * w
        return {"plus": wanted.clamp(device.g_min_siemens, device.g_max_siemens)}


def default_mapping(device: Device) -> Mapping:
    """A pair of cells: one-sided where pulses only go up, and where cells are programmed and err, which they do least
    near g_min."""
    programmed = device.step_siemens is None and device.write_error_siemens > 0
    return OneSidedPair() if device.one_sided or programmed else DifferentialPair()
