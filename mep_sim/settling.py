"""Settle a system to equilibrium: by integrating its dynamics, or by layer-wise minimisation.

Both paths stop on the same criterion, per sample: the projected force is at most `tolerance` times the
sample's scale (`System.scale`): max |s| for a free phase, and for a nudged one what its contrast has to resolve.
What does not get there within the budget is reported as not converged.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from circuits import Equilibrium, System, Transient


class SettlingError(RuntimeError):
    """The dynamics diverged: there is no equilibrium to report."""


class EPWarning(UserWarning):
    """Gradients may not be what Equilibrium Propagation promises; the message says why and what to do."""


# Explicit Runge-Kutta methods of torchdiffeq and where their stability region ends on the negative
# real axis (a gradient flow has a real spectrum). adaptive_heun and fehlberg2 start a step from the force
# at their last predictor, not at the state itself, and are stable on half of what their formulas are.
_FIXED = {"euler": 2.0, "midpoint": 2.0, "heun2": 2.0, "heun3": 2.51, "rk4": 2.78}
_ADAPTIVE = {"adaptive_heun": 1.0, "fehlberg2": 1.0, "bosh3": 2.51, "dopri5": 3.3, "dopri8": 3.3}
ODE_METHODS = (*_FIXED, *_ADAPTIVE)


@dataclass(frozen=True)
class Solver:
    """How to settle. `tolerance`: projected force over the sample's scale, > 0."""

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(
                f"tolerance = {self.tolerance}; choose 0 < tolerance < 1, such as 1e-6 in float32"
            )


@dataclass(frozen=True)
class Sweep(Solver):
    """Layer-wise minimisation, at most `max_sweeps` of them."""

    max_sweeps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sweeps < 1:
            raise ValueError(f"max_sweeps = {self.max_sweeps}; allow at least 1 sweep")


@dataclass(frozen=True)
class ODE(Solver):
    """Integration of the system's flow with a torchdiffeq method.

    method: a fixed-step one (euler, midpoint, heun2, heun3, rk4) or an adaptive one (dopri5, bosh3,
    adaptive_heun, fehlberg2, dopri8). step: in time constants; None takes 0.9 of the method's stability
    limit (fixed-step), and the same as a ceiling (adaptive: without one their error control rides the edge
    of stability near equilibrium and the force never vanishes). rtol: local error of adaptive methods, over
    the size of the state; max_evaluations: the budget.
    """

    method: str = "dopri5"
    step: float | None = None
    rtol: float = 1e-3
    max_evaluations: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ODE_METHODS:
            raise ValueError(
                f"unknown ODE method {self.method!r}; choose one of {', '.join(ODE_METHODS)} "
                "(torchdiffeq's Adams and scipy solvers are not stable or not batched here)"
            )
        if self.step is not None and not (self.step > 0 and math.isfinite(self.step)):
            raise ValueError(
                f"step = {self.step} time constants; choose a step > 0, or None for a stable one"
            )
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol = {self.rtol}; choose 0 < rtol < 1, such as 1e-3")
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations = {self.max_evaluations}; allow at least 1")


@torch.no_grad()
def settle(
    system: System,
    s0: Tensor | Equilibrium | None = None,
    solver: Solver | None = None,
    save_at: Tensor | None = None,
) -> Equilibrium:
    """Settle `system`, from its initial state, from states s0 (B, n), or from a free equilibrium.

    From an `Equilibrium` the deviation from it is what is settled, so that float32 resolves any nudge.
    `save_at` (T,): increasing times in time constants, from 0, at which an ODE solver records a `Transient`;
    it settles on after the last. Raises SettlingError where the state stops being finite.
    """
    solver = Sweep() if solver is None else solver
    if isinstance(s0, Equilibrium):
        system, s0 = system.around(s0), None
    z = system.initial_state() if s0 is None else s0
    if isinstance(solver, ODE):
        return _integrate(system, z, solver, save_at)
    if save_at is not None:
        raise ValueError("sweeps have no time to save at; settle with an ODE solver to record a transient")
    return _sweep(system, z, solver)


def _sweep(system: System, z: Tensor, solver: Sweep) -> Equilibrium:
    # on a GPU a look at the result stalls the queue: look less often there
    look_every = 4 if z.is_cuda else 1
    sweeps = system.sweeps(z)
    for count in itertools.count(1):
        z, change = next(sweeps)
        is_last = count >= solver.max_sweeps
        looks = change is not None and count % look_every == 0
        # the change is an estimate: the force that is left decides
        if is_last or (looks and bool((change <= solver.tolerance * system.scale(z)).all())):
            at = _report(system, z, solver, count, torch.zeros(len(z), device=z.device))
            if is_last or bool(at.converged.all()):
                return at


def _integrate(system: System, z: Tensor, solver: ODE, save_at: Tensor | None) -> Equilibrium:
    watched = _WatchedFlow(system, solver)
    limit = (_FIXED | _ADAPTIVE)[solver.method]
    rate = system.fastest_rate()
    if not math.isfinite(rate):
        raise SettlingError(_diverged(system, solver))
    ceiling = 0.9 * limit / rate
    if solver.step is not None:
        ceiling = min(solver.step, ceiling) if solver.method in _ADAPTIVE else solver.step
    transient = None
    if save_at is not None:
        watched.stop_when_settled = False
        save_at = _save_times(save_at).to(z.device)
        states = watched.solve(z, save_at, ceiling)
        transient = _record(system, save_at, states)
        watched.stop_when_settled, z, watched.time = True, states[-1], float(save_at[-1])
    z = watched.solve_until_settled(z, ceiling)
    return _report(system, z, solver, watched.evaluations, watched.settled_at, transient)


class _WatchedFlow:
    """The flow as torchdiffeq calls it, watched before every step so that it ends once all rows settled.

    torchdiffeq's own events look at one scalar and bisect; ending the solve from its step callback, with
    the force that the step needs anyway, costs nothing.
    """

    fixed_piece = 256  # steps per call of a fixed-step method, which unrolls its whole time grid

    def __init__(self, system: System, solver: ODE):
        self.system, self.solver = system, solver
        self.fixed = solver.method in _FIXED
        self.evaluations = 0
        self.stop_when_settled = True
        self.time = 0.0  # where the current solve starts
        self.settled_at: Tensor | None = None
        self._at: Tensor | None = None
        self._flow: Tensor | None = None
        self._steps = 0
        # each family of methods under the one callback it knows: torchdiffeq warns about others
        if self.fixed:
            self.callback_step = self._before_step
        else:  # not before a step: a rejected one is repeated
            self.callback_accept_step = self._after_step

    def __call__(self, _t: Tensor, z: Tensor) -> Tensor:
        if z is not self._at:
            self._at, self._flow = z, self.system.flow(z)
            self.evaluations += 1
        return self._flow

    def _before_step(self, t: Tensor, z: Tensor, _dt: Tensor) -> None:
        self._look(float(t), z, self(t, z))

    def _after_step(self, t: Tensor, _z: Tensor, dt: Tensor) -> None:
        self._look(float(t + dt), self._at, self._flow)  # the last stage sits at the new state

    def _look(self, t: float, z: Tensor, flow: Tensor) -> None:
        self._steps += 1
        if z.is_cuda and self._steps % 8:
            return  # a look stalls a GPU's queue
        residual = flow.abs().amax(1)
        if not torch.isfinite(residual.sum()):
            raise SettlingError(_diverged(self.system, self.solver))
        settled = residual <= self.solver.tolerance * self.system.scale(z)
        now = torch.where(settled, t + self.time, math.inf)
        self.settled_at = (
            now if self.settled_at is None else torch.where(settled, self.settled_at.minimum(now), now)
        )
        if self.stop_when_settled and (
            bool(settled.all()) or self.evaluations >= self.solver.max_evaluations
        ):
            raise _Stop(z, t)

    def solve(self, z: Tensor, times: Tensor, ceiling: float) -> Tensor:
        """States (T, B, n) at these times, which start at 0."""
        method, tolerances = self.solver.method, {}
        if self.fixed:
            # times off the grid by Hermite's cubic: the slopes it takes are evaluated for the steps anyway
            options = {"step_size": ceiling, "interp": "cubic"}
        else:
            # A step is judged unit by unit against the sample's own scale: the most it will move,
            # which is what its first force says, or how far from zero it is.
            scale = torch.maximum(
                self(times[0], z).abs().amax(1, keepdim=True), z.abs().amax(1, keepdim=True)
            )
            tolerances = {"rtol": 0.0, "atol": self.solver.rtol * scale.clamp(min=1e-30).expand_as(z)}
            options = {"max_step": ceiling, "norm": _max_norm}
        try:
            return odeint(self, z, times, method=method, options=options, **tolerances)
        except AssertionError as failure:
            raise SettlingError(f"{_diverged(self.system, self.solver)} ({str(failure)[:80]})") from failure

    def solve_until_settled(self, z: Tensor, ceiling: float) -> Tensor:
        span = ceiling * (self.fixed_piece if self.fixed else 1e7)
        try:
            while True:
                times = torch.tensor([0.0, span], dtype=torch.float64, device=z.device)
                if self.fixed:
                    times = times.to(z.dtype)
                z = self.solve(z, times, ceiling)[-1]
                self.time += span
        except _Stop as stop:
            self.settled_at = self.settled_at.clamp(max=self.time + stop.time)
            return stop.state


class _Stop(Exception):
    """Ends a solve from inside; carries where it got to."""

    def __init__(self, state: Tensor, time: float):
        self.state, self.time = state, time


def _max_norm(error: Tensor) -> Tensor:
    """Of each row and each unit on its own: a root mean square would couple the rows of a batch."""
    return error.abs().amax()


def _report(
    system: System,
    z: Tensor,
    solver: Solver,
    evaluations: int,
    time: Tensor,
    transient: Transient | None = None,
) -> Equilibrium:
    """Measure the force that is left at z itself: what is reported is never an estimate on the way."""
    residual, scale = system.residual(z), system.scale(z)
    if not torch.isfinite((residual + scale).sum()):
        raise SettlingError(_diverged(system, solver))
    return Equilibrium(
        state=system.state(z),
        residual=residual,
        relative_residual=torch.where(residual > 0, residual / scale, 0.0),
        converged=residual <= solver.tolerance * scale,
        evaluations=evaluations,
        time=time,
        deviation=None if system.origin is None else z,
        transient=transient,
    )


def _diverged(system: System, solver: Solver) -> str:
    rate = system.fastest_rate()
    if isinstance(solver, ODE) and solver.step is not None:
        way_out = f"lower step = {solver.step} below {2 / rate:.3g} time constants, or leave it out"
    else:
        way_out = "check weights and data for huge or NaN values, or lower |beta| and gamma"
    return f"settling with {solver} diverged (fastest rate {rate:.3g} per time constant): {way_out}"


def _save_times(save_at: Tensor) -> Tensor:
    if save_at.ndim != 1 or len(save_at) < 2 or save_at[0] != 0 or bool((save_at.diff() <= 0).any()):
        raise ValueError("save_at must be increasing times (T,), T >= 2, that start at 0")
    return save_at


def _record(system: System, times: Tensor, states: Tensor) -> Transient:
    return Transient(
        time=times,
        state=torch.stack([system.state(z) for z in states]),
        energy=torch.stack([system.energy(z) for z in states]),
        residual=torch.stack([system.residual(z) for z in states]),
    )
