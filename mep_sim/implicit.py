"""Settling by an implicit integration of the system's flow, for stiff circuits.

Every implicit stage rests where v = c + tau flow(v): it is the equilibrium of the system's `proximal`, and the
system's own sweeps find it. Flows at new points are (v - c) / tau and never evaluated there: a stiff flow would
turn what the sweeps leave into large numbers (Hosea & Shampine 1996, section 5).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Equilibrium, System
from mep_sim.outcome import SettlingError, Solver, checked_save_times, record, report

# where TR-BDF2 ends its trapezoid: both its stages have the same tau (Bank et al. 1985)
GAMMA = 2 - math.sqrt(2)


@dataclass(frozen=True)
class Point:
    """A time on a trajectory, the coordinates z (B, n) there, and their flow (B, n)."""

    time: float
    z: Tensor
    flow: Tensor


Stage = Callable[[float, float, Tensor, Sequence[Point]], Point]
"""(time of the point, tau, centre, points before it, to start the search from) -> the point."""
Step = Callable[[Stage, Sequence[Point], float], tuple[list[Point], Tensor]]
"""(stage, points so far, step) -> (its new points, its local error (B, n))."""


def _implicit_euler(stage: Stage, past: Sequence[Point], h: float) -> tuple[list[Point], Tensor]:
    now = past[-1]
    new = stage(now.time + h, h, now.z, past)
    return [new], 0.5 * h**2 * _slope([now, new])


def _trapezoid(stage: Stage, past: Sequence[Point], h: float) -> tuple[list[Point], Tensor]:
    now = past[-1]
    new = stage(now.time + h, h / 2, now.z + (h / 2) * now.flow, past)
    if len(past) == 1:  # no second difference of flows yet
        return [new], 0.5 * h**2 * _slope([now, new])
    return [new], (h**3 / 6) * _bend([past[-2], now, new])


def _tr_bdf2(stage: Stage, past: Sequence[Point], h: float) -> tuple[list[Point], Tensor]:
    now, tau = past[-1], GAMMA * h / 2
    middle = stage(now.time + GAMMA * h, tau, now.z + tau * now.flow, past)
    centre = torch.lerp(now.z, middle.z, 1 / (GAMMA * (2 - GAMMA)))
    new = stage(now.time + h, tau, centre, [now, middle])
    share = (-3 * GAMMA**2 + 4 * GAMMA - 2) / (6 * (2 - GAMMA))
    return [middle, new], (share * h**3) * _bend([now, middle, new])


def _slope(points: Sequence[Point]) -> Tensor:
    """The first divided difference of the flows."""
    a, b = points
    return (b.flow - a.flow) / (b.time - a.time)


def _bend(points: Sequence[Point]) -> Tensor:
    """The second divided difference of the flows."""
    a, _, c = points
    return (_slope(points[1:]) - _slope(points[:2])) / (c.time - a.time)


_METHODS: dict[str, tuple[Step, int]] = {  # and the power of the step that the error estimate goes with
    "tr_bdf2": (_tr_bdf2, 3),
    "trapezoid": (_trapezoid, 3),
    "implicit_euler": (_implicit_euler, 2),
}


@dataclass(frozen=True)
class Implicit(Solver):
    """Implicit integration of the system's flow, of steps as long as accuracy and not stability allows.

    method: tr_bdf2 (second order, L-stable: Bank et al. 1985), trapezoid (second order; stiff parts ring) or
    implicit_euler (first order, L-stable; the energy never rises). rtol: local error of a step over the size of the
    sample's state, unit by unit; the sweeps of a stage stop at a twentieth of it. Once that is more than a twentieth of
    what a sample still moves in a step it is held to the latter, so that settling times are good to about a tenth.
    step: in the circuit's unit of time; None adapts it to rtol, and states to save are read off cubics between its
    points; else every step is this long, or shorter to end at a time to save, and rtol is for the stages alone.
    max_evaluations: the budget, in sweeps.
    """

    method: str = "tr_bdf2"
    step: float | None = None
    rtol: float = 1e-3
    max_evaluations: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in _METHODS:
            raise ValueError(
                f"unknown implicit method {self.method!r}; choose one of {', '.join(_METHODS)} "
                "(explicit ones are methods of ODE)"
            )
        if self.step is not None and not (self.step > 0 and math.isfinite(self.step)):
            raise ValueError(f"step = {self.step}; choose a finite step > 0, or None to adapt it to rtol")
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol = {self.rtol}; choose 0 < rtol < 1, such as 1e-3")
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations = {self.max_evaluations}; allow at least 1 sweep")


def integrate(system: System, z: Tensor, solver: Implicit, save_at: Tensor | None) -> Equilibrium:
    """Settle from z by this solver; see `mep_sim.settling.settle`."""
    if solver.method == "trapezoid" and system.is_held:
        raise SettlingError(
            "the trapezoid throws nodes to and fro between the walls of ideal diodes, for ever; choose "
            "Implicit(method='tr_bdf2') or 'implicit_euler'"
        )
    run, transient = _Run(system, z, solver), None
    if save_at is not None:
        times = checked_save_times(save_at)
        transient = record(system, times.to(z.device), run.states_at(times.tolist()))
    while True:
        within_budget = run.settle()
        time = run.settled_at.clamp(max=run.now.time)
        at = report(system, run.now.z, solver, run.sweeps.count, time, transient)
        # flows on the way are as good as the sweeps behind them: the force that is left decides
        if not within_budget or bool(at.converged.all()):
            return at
        run.strictness, run.most_left = run.strictness / 8, math.inf


class _OutOfBudget(Exception):
    """The sweeps allowed are spent."""


class _NotFound(Exception):
    """A stage that its sweeps do not find."""


class _Sweeps:
    """Finds implicit stages, and counts the sweeps that takes."""

    most = 500  # of one stage
    least_rate = 0.02  # at which changes count as shrinking: first ones shrink faster than those to come

    def __init__(self, system: System, solver: Implicit):
        self.system, self.solver = system, solver
        self.count = 0
        self.rate: Tensor | float = 0.5  # at which the last stage's changes shrank, sweep by sweep
        self.usual = 1  # sweeps of the last stage

    def find(self, tau: float, centre: Tensor, guess: Tensor, allowed: Tensor, rounding: Tensor) -> Tensor:
        """The point at rest with `centre`, to `allowed` (B,), or where changes are below `rounding` (B,)."""
        before, since = None, 0
        for count, (z, change) in enumerate(self.system.proximal(tau, centre).sweeps(guess), 1):
            if self.count >= self.solver.max_evaluations:
                raise _OutOfBudget
            self.count += 1
            since += 1
            if change is not None:
                if before is not None:
                    shrunk = (change / before).nan_to_num(0.0, posinf=1.0)
                    self.rate = shrunk.pow(1 / since).clamp(self.least_rate, 0.98)
                before, since = change, 0
                # a look stalls a GPU's queue: not before the sweeps that it took last time
                if not z.is_cuda or count >= self.usual:
                    left = change * self.rate / (1 - self.rate)
                    found = ((left <= allowed) | (change <= rounding)).all()
                    found, finite = torch.stack([found, torch.isfinite(change.sum())]).tolist()
                    if not finite:
                        raise self.solver.diverged(self.system)
                    if found:
                        self.usual = max(count - 1, 1)
                        return z
            if count >= self.most:
                raise _NotFound
        raise AssertionError("sweeps are endless")


class _Run:
    """A trajectory, as far as it has got."""

    growth, safety = (0.2, 5.0), 0.9  # of the step
    most_rejections = 40  # in a row
    share_of_stage = 0.05  # its accuracy, over the error allowed in a step
    share_of_motion = 0.05  # error allowed a row that is not settled, over what it moved in the last step

    def __init__(self, system: System, z: Tensor, solver: Implicit):
        self.system, self.solver = system, solver
        self.method, self.order = _METHODS[solver.method]
        self.sweeps = _Sweeps(system, solver)
        self.strictness = 1.0
        flow = system.flow(z)
        distance = system.paced(flow, z).abs().amax(1)
        # of a sample: the most that its state has been, or will move, by its first force
        self.size = torch.maximum(distance, system.scale(z)).clamp(min=1e-30)
        self.past = [Point(0.0, z, flow)]  # where the last step began, and where it ended; points between
        self.left = self._left(self.now)
        self.settled_at = torch.where(self.left <= solver.tolerance, 0.0, math.inf)
        self.allowed = solver.rtol * self.size
        speed = (flow.abs().amax(1) / self.size).amax()
        speed, self.most_left = torch.stack([speed, self.left.amax()]).tolist()
        if not math.isfinite(speed):
            raise solver.diverged(system)
        # the error of a step goes about as (step x speed) to the order's power
        self.h = solver.step or solver.rtol ** (1 / self.order) / max(speed, 1e-30)

    @property
    def now(self) -> Point:
        return self.past[-1]

    def states_at(self, times: Sequence[float]) -> list[Tensor]:
        """States (B, n) at increasing times; SettlingError where the budget does not last."""
        states = []
        for time in times:
            while self.now.time < time:
                try:
                    self._advance(time)
                except _OutOfBudget:
                    raise SettlingError(
                        f"max_evaluations = {self.solver.max_evaluations} sweeps were spent at time "
                        f"{self.now.time:.3g} of {times[-1]:.3g} to save; allow more, or raise rtol = "
                        f"{self.solver.rtol} or step"
                    ) from None
            states.append(_between(self.past, time))
        return states

    def settle(self) -> bool:
        """Go on until all rows look settled; False where the budget ends before."""
        try:
            while self.most_left > self.solver.tolerance:
                self._advance(math.inf)
        except _OutOfBudget:
            return False
        return True

    def _advance(self, end: float) -> None:
        """One step; one of fixed length does not go beyond the time `end`."""
        fixed = self.solver.step
        for _ in range(self.most_rejections):
            h = self.h
            if fixed is not None:
                h = end - self.now.time if self.now.time + h * (1 + 1e-9) > end else h
            try:
                points, error = self.method(self._stage, self.past, h)
            except _NotFound:
                self.h = h / 4
                if fixed is not None:
                    break
                continue
            new = points[-1]
            size = torch.maximum(self.size, self.system.scale(new.z))
            left = self._left(new)
            off = (error.abs().amax(1) / self.allowed).amax()
            off, most_left = torch.stack([off, left.amax()]).tolist()  # the one look at a step
            if not math.isfinite(off):
                raise self.solver.diverged(self.system)
            if fixed is None:
                least, most = self.growth
                self.h = h * min(most, max(least, self.safety * max(off, 1e-12) ** (-1 / self.order)))
            if fixed is not None or off <= 1:
                self._accept(points, size, left)
                self.most_left = most_left
                return
            # an error that stays as steps shrink is what sweeps left before, which only rtol has to bound
            self.allowed = torch.minimum(2 * self.allowed, self.solver.rtol * size)
        raise SettlingError(
            f"{self.solver} finds no step at time {self.now.time:.3g}: stages of {self.sweeps.most} sweeps do not "
            f"settle at steps of {self.h:.3g}; choose a lower step or a higher rtol, or lower |beta|"
        )

    def _accept(self, points: list[Point], size: Tensor, left: Tensor) -> None:
        start, new, tolerance = self.now, points[-1], self.solver.tolerance
        # forces fall exponentially: when they crossed the tolerance, between the ends of the step
        fall = torch.log(self.left / left.clamp(min=1e-3 * tolerance))
        share = (torch.log(self.left / tolerance) / fall).nan_to_num(1.0).clamp(0, 1)
        is_settled = left <= tolerance
        time = torch.where(is_settled, start.time + share * (new.time - start.time), math.inf)
        self.settled_at = torch.where(is_settled, self.settled_at.minimum(time), math.inf)
        motion = self.share_of_motion * (new.z - start.z).abs().amax(1)
        # what sweeps left of the steps before is part of the next step's error: no sudden change for the stricter
        motion = motion.maximum(self.allowed / 4).maximum(self._rounding(size))
        most = self.solver.rtol * size
        self.allowed = torch.where(is_settled, most, most.minimum(motion))
        self.size, self.left, self.past = size, left, [start, *points]

    def _stage(self, time: float, tau: float, centre: Tensor, before: Sequence[Point]) -> Point:
        z = self.sweeps.find(
            tau,
            centre,
            _beyond(before, time),
            self.strictness * self.share_of_stage * self.allowed,
            self._rounding(self.size) / 4,
        )
        return Point(time, z, (z - centre) / tau)

    def _rounding(self, size: Tensor) -> Tensor:
        return 8 * torch.finfo(size.dtype).eps * size

    def _left(self, at: Point) -> Tensor:
        """Residual over scale, (B,): of a start at zero, all."""
        left = self.system.paced(at.flow, at.z).abs().amax(1) / self.system.scale(at.z)
        return left.nan_to_num(0.0, posinf=1.0)


def _beyond(points: Sequence[Point], time: float) -> Tensor:
    """Where the quadratic through the last two points' flows leads to."""
    last = points[-1]
    ahead = time - last.time
    z = last.z + ahead * last.flow
    return z if len(points) == 1 else z + (0.5 * ahead**2) * _slope(points[-2:])


def _between(points: Sequence[Point], time: float) -> Tensor:
    """Hermite's cubic between the two points around this time."""
    if len(points) == 1:
        return points[0].z
    a, b = next(pair for pair in itertools.pairwise(points) if time <= pair[1].time)
    h = b.time - a.time
    x = (time - a.time) / h
    y = 1 - x
    slopes = (h * x * y * y) * a.flow - (h * x * x * y) * b.flow
    return (y * y * (1 + 2 * x)) * a.z + (x * x * (1 + 2 * y)) * b.z + slopes
