"""Settling by an explicit integration of the system's flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from circuits import Equilibrium, System
from mep_sim.outcome import SettlingError, Solver, checked_save_times, record, report

# Explicit Runge-Kutta methods of torchdiffeq and where their stability region ends on the negative
# real axis (a gradient flow has a real spectrum). adaptive_heun and fehlberg2 start a step from the force
# at their last predictor, not at the state itself, and are stable on half of what their formulas are.
_FIXED = {"euler": 2.0, "midpoint": 2.0, "heun2": 2.0, "heun3": 2.51, "rk4": 2.78}
_ADAPTIVE = {"adaptive_heun": 1.0, "fehlberg2": 1.0, "bosh3": 2.51, "dopri5": 3.3, "dopri8": 3.3}
_STAGES = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4,
    "adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 6, "dopri8": 13,
}  # fmt: skip  # evaluations a step
ODE_METHODS = (*_FIXED, *_ADAPTIVE)


@dataclass(frozen=True)
class ODE(Solver):
    """Integration of the system's flow with a torchdiffeq method.

    method: a fixed-step one (euler, midpoint, heun2, heun3, rk4) or an adaptive one (dopri5, bosh3,
    adaptive_heun, fehlberg2, dopri8). step: in the circuit's unit of time; None takes 0.9 of the method's stability
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

    def _way_out(self, fastest: float) -> str:
        if self.step is None:
            return super()._way_out(fastest)
        return f"lower step = {self.step} below {2 / fastest:.3g}, or leave it out"


def integrate(system: System, z: Tensor, solver: ODE, save_at: Tensor | None) -> Equilibrium:
    """Settle from z by this solver; see `mep_sim.settling.settle`."""
    watched = _WatchedFlow(system, solver)
    rate = system.fastest_rate()
    if not math.isfinite(rate):
        raise solver.diverged(system)
    ceiling = 0.9 * (_FIXED | _ADAPTIVE)[solver.method] / rate
    if solver.step is not None:
        ceiling = min(solver.step, ceiling) if solver.method in _ADAPTIVE else solver.step
    watched.refuse_the_stiff(z, ceiling)
    transient = None
    if save_at is not None:
        watched.stop_when_settled = False
        save_at = checked_save_times(save_at).to(z.device)
        states = watched.solve(z, save_at, ceiling)
        transient = record(system, save_at, states)
        watched.stop_when_settled, z, watched.time = True, states[-1], float(save_at[-1])
    z = watched.solve_until_settled(z, ceiling)
    return report(system, z, solver, watched.evaluations, watched.settled_at, transient)


_STIFF = 1e3  # ratio of rates from which a budget that is too small is the method's fault


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
        residual = self._residual(flow, z)
        if not torch.isfinite(residual.sum()):
            raise self.solver.diverged(self.system)
        settled = residual <= self.solver.tolerance * self.system.scale(z)
        now = torch.where(settled, t + self.time, math.inf)
        self.settled_at = (
            now if self.settled_at is None else torch.where(settled, self.settled_at.minimum(now), now)
        )
        if self.stop_when_settled and (
            bool(settled.all()) or self.evaluations >= self.solver.max_evaluations
        ):
            raise _Stop(z, t)

    def _residual(self, flow: Tensor, z: Tensor) -> Tensor:
        return self.system.paced(flow, z).abs().amax(1)

    def refuse_the_stiff(self, z: Tensor, ceiling: float) -> None:
        """SettlingError where stable steps cannot reach the time that settling takes within the budget."""
        slowest, solver = self.system.slowest_rate(), self.solver
        if slowest is None:
            return
        left = self._residual(self(None, z), z) / self.system.scale(z)
        left = min(
            float(left.nan_to_num(solver.tolerance, posinf=1.0).amax()), 1.0
        )  # of a start at zero, all
        time = math.log(max(left / solver.tolerance, 1.0)) / slowest
        needed = _STAGES[solver.method] * time / ceiling
        fastest = self.system.fastest_rate()
        if needed > solver.max_evaluations and fastest > _STIFF * slowest:
            raise SettlingError(
                f"{solver} cannot settle this circuit: its rates span a ratio of {fastest / slowest:.2g} "
                f"({slowest:.3g} to {fastest:.3g}), so that stable steps take about {needed:.2g} evaluations, beyond "
                f"max_evaluations = {solver.max_evaluations}; choose Implicit(method='tr_bdf2'), or raise "
                "max_evaluations"
            )

    def solve(self, z: Tensor, times: Tensor, ceiling: float) -> Tensor:
        """States (T, B, n) at these times, which start at 0."""
        method, tolerances = self.solver.method, {}
        if self.fixed:
            # times off the grid by Hermite's cubic: the slopes it takes are evaluated for the steps anyway
            options = {"step_size": ceiling, "interp": "cubic"}
        else:
            # A step is judged unit by unit against the sample's own scale: the most it will move,
            # which is what its first force says, or how far from zero it is.
            scale = torch.maximum(self._residual(self(times[0], z), z), z.abs().amax(1))
            tolerances = {
                "rtol": 0.0,
                "atol": self.solver.rtol * scale.clamp(min=1e-30)[:, None].expand_as(z),
            }
            options = {"max_step": ceiling, "norm": _max_norm}
        try:
            return odeint(self, z, times, method=method, options=options, **tolerances)
        except AssertionError as failure:
            raise SettlingError(f"{self.solver.diverged(self.system)} ({str(failure)[:80]})") from failure

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
