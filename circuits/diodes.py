"""What hangs at a node besides its crossbars: diodes to ground, ideal, piecewise linear or exponential.

A diode with its bias source passes the current f(v - offset) from its node to ground, f rising; one turned round passes
-f(-v - offset). So a node with sign +1 cannot go far above +offset, one with sign -1 not far below -offset.
Settings are a `Diode`; a layer of them is made of it by `layer`, and moved to the coordinates around voltages v0 by
`around`, where currents count from those at v0 and small differences keep all their digits. Volts, amperes, siemens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circuits.omega import exponential_root

BOLTZMANN = 1.380649e-23  # J/K
CHARGE = 1.602176634e-19  # C
ARRANGEMENTS = ("alternating", "pair")


class NodeElement(ABC):
    """What hangs at the nodes of one layer, in coordinates z (B, n) around voltages v0 (0 at first)."""

    @abstractmethod
    def current(self, z: Tensor) -> Tensor | float:
        """Current from the nodes to ground (B, n), less that at z = 0 once there is a v0; A."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor | float:
        """d current / dz, S."""

    @abstractmethod
    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        """The z (B, n) where conductance z + current(z) equals `current`: where nodes come to rest."""

    @abstractmethod
    def around(self, v0: Tensor) -> NodeElement:
        """The same in coordinates around z = v0."""

    def cocontent(self, v: Tensor) -> Tensor:
        """The integral of the current from a fixed voltage to v (B, n), once there is a v0 from there, W."""
        return torch.zeros_like(v)

    def dissipation(self, v: Tensor) -> Tensor:
        """The heat that the diodes make at v (B, n), without what flows into their bias sources, W; before `around`
        only."""
        return torch.zeros_like(v)

    def steepest(self, current: Tensor) -> Tensor | float:
        """The largest slope while no diode passes more than `current` (n,), S."""
        return 0.0


class Bare(NodeElement):
    """Nothing: linear nodes, those of the output."""

    def current(self, z: Tensor) -> float:
        return 0.0

    def slope(self, z: Tensor) -> float:
        return 0.0

    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        return current / conductance

    def around(self, v0: Tensor) -> Bare:
        return self


class Walls(Bare):
    """Ideal diodes: nodes stay within [low, high], and what presses them there is no current of theirs."""

    def __init__(self, low: Tensor, high: Tensor):
        self.low, self.high = low, high

    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        return torch.clamp(current / conductance, self.low, self.high)

    def around(self, v0: Tensor) -> Walls:
        return Walls(self.low - v0, self.high - v0)


class Branch(ABC):
    """The diodes of one sense in a layer, y the voltage across each, counted from where it was moved to."""

    @abstractmethod
    def current(self, y: Tensor) -> Tensor:
        """f, A."""

    @abstractmethod
    def slope(self, y: Tensor) -> Tensor:
        """f', S."""

    @abstractmethod
    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        """The y with conductance y + f(y) = current."""

    @abstractmethod
    def around(self, y0: Tensor) -> Branch:
        """The same counted from y0."""

    @abstractmethod
    def cocontent(self, y: Tensor) -> Tensor:
        """The integral of f from 0 to y, W."""

    @abstractmethod
    def steepest(self, current: Tensor) -> Tensor | float:
        """The largest slope up to a current, S."""


class Junctions(NodeElement):
    """One or two branches at every node: (sign (n,), branch) each. `offset`: of their bias sources, V."""

    newton_steps = 3  # of a pair, from where one of its branches alone comes to rest

    def __init__(self, branches: Sequence[tuple[Tensor, Branch]], offset: float):
        self.branches, self.offset = branches, offset

    def current(self, z: Tensor) -> Tensor:
        return sum(sign * branch.current(sign * z - self.offset) for sign, branch in self.branches)

    def slope(self, z: Tensor) -> Tensor:
        return sum(branch.slope(sign * z - self.offset) for sign, branch in self.branches)

    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        if len(self.branches) == 1:
            return self._alone(0, current, conductance)
        # counted from z = 0 both pull back there: it comes to rest no farther from there than with one of them
        alone = [
            self._alone(k, current + sign * branch.current(current.new_tensor(-self.offset)), conductance)
            for k, (sign, branch) in enumerate(self.branches)
        ]
        z = torch.where(alone[0].abs() < alone[1].abs(), *alone)
        for _ in range(self.newton_steps):
            slopes = [branch.slope(sign * z - self.offset) for sign, branch in self.branches]
            lines = [
                sign * branch.current(sign * z - self.offset) - slope * z
                for slope, (sign, branch) in zip(slopes, self.branches, strict=True)
            ]
            # the steeper one as it is and the other one by its tangent: no step leaves what an exponential bears
            z = torch.where(
                slopes[0] > slopes[1],
                self._alone(0, current - lines[1], conductance + slopes[1]),
                self._alone(1, current - lines[0], conductance + slopes[0]),
            )
        return z

    def _alone(self, k: int, current: Tensor, conductance: Tensor) -> Tensor:
        """Where nodes with this branch only come to rest."""
        sign, branch = self.branches[k]
        if not self.offset:
            return sign * branch.rest(sign * current, conductance)
        return sign * (branch.rest(sign * current - conductance * self.offset, conductance) + self.offset)

    def around(self, v0: Tensor) -> Junctions:
        moved = [(sign, branch.around(sign * v0 - self.offset)) for sign, branch in self.branches]
        return Junctions(moved, 0.0)

    def cocontent(self, v: Tensor) -> Tensor:
        return sum(branch.cocontent(sign * v - self.offset) for sign, branch in self.branches)

    def dissipation(self, v: Tensor) -> Tensor:
        across = [(branch, sign * v - self.offset) for sign, branch in self.branches]
        return sum(y * branch.current(y) for branch, y in across)

    def steepest(self, current: Tensor) -> Tensor | float:
        return sum(branch.steepest(current) for _, branch in self.branches)


# -- settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Diode(ABC):
    """Diodes to ground at every hidden node.

    arrangement: "alternating": one at every node, which keeps even nodes from going below -offset and odd ones from
    going above +offset (Scellier, arXiv:2402.11674); "pair": both at every node (Kendall et al., arXiv:2006.01981).
    offset_volts: of the bias source in series with each, >= 0; a pair of ideal ones needs > 0.
    """

    arrangement: str = "alternating"
    offset_volts: float = 0.0

    def __post_init__(self) -> None:
        if self.arrangement not in ARRANGEMENTS:
            raise ValueError(
                f"unknown arrangement {self.arrangement!r}; choose one of {', '.join(ARRANGEMENTS)}"
            )
        if not 0 <= self.offset_volts < math.inf:
            raise ValueError(f"offset_volts = {self.offset_volts}; choose a finite voltage >= 0 V")

    def signs(self, n: int) -> tuple[tuple[int, ...], ...]:
        """Of the diodes at n nodes: a row for every branch."""
        if self.arrangement == "pair":
            return (1,) * n, (-1,) * n
        return (tuple(-1 if k % 2 == 0 else 1 for k in range(n)),)

    @abstractmethod
    def layer(self, n: int, like: Tensor) -> NodeElement:
        """The diodes of a layer of n nodes, in the precision and on the device of `like`."""

    def _sign_rows(self, n: int, like: Tensor) -> list[Tensor]:
        return [torch.tensor(row, dtype=like.dtype, device=like.device) for row in self.signs(n)]


@dataclass(frozen=True, kw_only=True)
class IdealDiode(Diode):
    """Passes any current above its offset, none below: nodes are clamped."""

    nowhere: ClassVar[float] = 1e30  # of a wall that is none, V: infinity times a slope of 0 is no number

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arrangement == "pair" and not self.offset_volts:
            raise ValueError(
                "a pair of ideal diodes with offset_volts = 0 holds its node at 0 V; choose offset_volts > 0"
            )

    def layer(self, n: int, like: Tensor) -> Walls:
        rows = self._sign_rows(n, like)
        ends = []
        for end in (-1, 1):
            has_wall = torch.stack([row == end for row in rows]).any(0)
            wall, none = (like.new_tensor(end * volts) for volts in (self.offset_volts, self.nowhere))
            ends.append(torch.where(has_wall, wall, none))
        return Walls(*ends)


class _JunctionDiode(Diode):
    """One whose current is a function of its voltage."""

    def layer(self, n: int, like: Tensor) -> Junctions:
        return Junctions([(row, self._branch()) for row in self._sign_rows(n, like)], self.offset_volts)

    @abstractmethod
    def _branch(self) -> Branch:
        """Of its own sense."""


@dataclass(frozen=True, kw_only=True)
class PiecewiseLinearDiode(_JunctionDiode):
    """f(y) = on_siemens y above 0 V, off_siemens y below. 0 <= off < on."""

    on_siemens: float = 1e-2
    off_siemens: float = 1e-9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.off_siemens < self.on_siemens < math.inf:
            raise ValueError(
                f"off_siemens = {self.off_siemens}, on_siemens = {self.on_siemens}; choose 0 <= off < on, finite"
            )

    def _branch(self) -> _LinearBranch:
        return _LinearBranch(self, 0.0)


@dataclass(frozen=True, kw_only=True)
class ShockleyDiode(_JunctionDiode):
    """f(y) = I_s (exp((y - f R_s) / (n kT/q)) - 1) (Shockley 1949), with R_s in series.

    saturation_amperes  I_s, 1e-30 to 1e-3 A: 1e-14 of silicon, 1e-8 of a Schottky diode
    ideality            n, 0.5 to 10
    series_ohm          R_s >= 0
    kelvin              temperature, > 0; kT/q = 25.9 mV at 300.15 K

    SPICE's model is this one above -3 n kT/q; below, its reverse current goes to I_s by a cubic.
    """

    saturation_amperes: float = 1e-9
    ideality: float = 1.0
    series_ohm: float = 0.0
    kelvin: float = 300.15

    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "saturation_amperes": (1e-30, 1e-3),
        "ideality": (0.5, 10.0),
        "series_ohm": (0.0, 1e12),
        "kelvin": (1.0, 1000.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in self.ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} = {getattr(self, name)}; choose {low:g} to {high:g}")

    @property
    def thermal_volts(self) -> float:
        """n kT/q, V."""
        return self.ideality * BOLTZMANN * self.kelvin / CHARGE

    def _branch(self) -> _ExponentialBranch:
        return _ExponentialBranch(self, self.saturation_amperes)


# -- their branches -----------------------------------------------------------------------------------


class _LinearBranch(Branch):
    def __init__(self, diode: PiecewiseLinearDiode, y0: Tensor | float):
        self.diode, self.kink = diode, torch.as_tensor(-y0)
        self.bend = diode.on_siemens - diode.off_siemens

    def current(self, y: Tensor) -> Tensor:
        conducts = self.kink < 0  # where it is counted from
        beyond = torch.where(conducts, y.maximum(self.kink), (y - self.kink).clamp(min=0))
        return self.diode.off_siemens * y + self.bend * beyond

    def slope(self, y: Tensor) -> Tensor:
        on, off = (y.new_tensor(siemens) for siemens in (self.diode.on_siemens, self.diode.off_siemens))
        return torch.where(y > self.kink, on, off)

    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        off, on = conductance + self.diode.off_siemens, conductance + self.diode.on_siemens
        shift = self.bend * self.kink
        here, there = current / off, (current + shift) / on
        closed = torch.where(here > self.kink, there, here)
        here, there = current / on, (current - shift) / off
        return torch.where(self.kink < 0, torch.where(here < self.kink, there, here), closed)

    def around(self, y0: Tensor) -> _LinearBranch:
        return _LinearBranch(self.diode, y0 - self.kink)

    def cocontent(self, y: Tensor) -> Tensor:
        beyond = y - self.kink
        conducting = torch.where(beyond > 0, y.square(), self.kink * (2 * y - self.kink))
        bent = torch.where(self.kink < 0, conducting, beyond.clamp(min=0).square())
        return 0.5 * (self.diode.off_siemens * y.square() + self.bend * bent)

    def steepest(self, current: Tensor) -> float:
        return self.diode.on_siemens


class _ExponentialBranch(Branch):
    """Moved to another voltage an exponential is one again, of saturation current I_s exp(junction / (n kT/q))."""

    steepest_junction = 60.0  # over n kT/q; above it goes on straight: a trial step must not overflow

    def __init__(
        self, diode: ShockleyDiode, saturation: Tensor | float, steep: Tensor | float = steepest_junction
    ):
        self.diode, self.saturation, self.steep = diode, saturation, steep
        self.straight = saturation * (steep.exp() if isinstance(steep, Tensor) else math.exp(steep))

    def _junction(self, y: Tensor) -> Tensor:
        """Voltage across the junction over n kT/q."""
        if not self.diode.series_ohm:
            return y / self.diode.thermal_volts
        scale = torch.as_tensor(self.diode.series_ohm * self.saturation, dtype=y.dtype, device=y.device)
        return exponential_root(self.diode.thermal_volts / scale, y / scale)

    def _current(self, t: Tensor) -> Tensor:
        over = (t - self.steep).clamp(min=0)
        return self.saturation * torch.expm1(t.clamp(max=self.steep)) + over * self.straight

    def current(self, y: Tensor) -> Tensor:
        return self._current(self._junction(y))

    def slope(self, y: Tensor) -> Tensor:
        conductance = self.saturation * self._junction(y).clamp(max=self.steep).exp()
        return conductance / (self.diode.thermal_volts + self.diode.series_ohm * conductance)

    def rest(self, current: Tensor, conductance: Tensor) -> Tensor:
        volts, series = self.diode.thermal_volts, self.diode.series_ohm
        scale = (1 + conductance * series) * self.saturation
        t = exponential_root(conductance * volts / scale, current * (1 / scale))
        return (volts * t + series * current) / (1 + conductance * series) if series else volts * t

    def around(self, y0: Tensor) -> _ExponentialBranch:
        t, numbers = self._junction(y0).clamp(max=self.steep), torch.finfo(y0.dtype)
        # where float32 has no number that small the diode is off, with a volt or more to go until it is not
        moved = (self.saturation * t.exp()).clamp(min=numbers.tiny**0.8)
        return _ExponentialBranch(self.diode, moved, (self.steep - t).clamp(max=0.9 * math.log(numbers.max)))

    def cocontent(self, y: Tensor) -> Tensor:
        t = self._junction(y)
        held, over = t.clamp(max=self.steep), (t - self.steep).clamp(min=0)
        curved = self.saturation * (torch.expm1(held) - held)
        straight = over * (self.saturation * torch.expm1(held)) + 0.5 * over.square() * self.straight
        junction = self.diode.thermal_volts * (curved + straight)
        if not (series := self.diode.series_ohm):
            return junction
        return junction + 0.5 * series * self._current(t).square()

    def steepest(self, current: Tensor) -> Tensor:
        junction = self.diode.thermal_volts / (current + self.diode.saturation_amperes)
        return 1 / (self.diode.series_ohm + junction)
