"""Fits of pulse models to measured steps, by maximum likelihood, and the choice between them.

The data are single pulses: from a reading G_k a pulse leads to G_{k+1}. A family of `devices` predicts that step from
where the cell was (one-step-ahead), so that errors do not pile up along a curve:

    G_{k+1} = clip(G_k +- move (1 + sigma_c2c xi), g_lo, g_hi) + noise

where `move = step profile(x)`, and the noise of a pulse is relative to the move or to the step (`c2c_of`); both are
tried. Profile and spread are the device's own code: what is fitted is what is simulated. The likelihood is exact for
this formula: a normal density, and a mass at each bound where it cuts off pulses, both blurred by `noise`. That is the
noise of two readings, known from repeated reads; without them it is fitted along where the noise of a pulse is relative
to the move, and cannot be told from sigma_c2c where that is relative to the step (both are the same for all pulses).

What read noise leaves behind: it also blurs the place x a step is attributed to (errors in variables), which bends
the fit near the ends of the range, and correlates neighbouring steps by up to -1/2. Both are small while read noise is
well below a step; `Fit.correlation` tells. Averaged repeated reads are the remedy.

Window: families whose step vanishes at the ends (soft bounds, power) have their ends fitted, up to EXTENSION of the
measured range beyond it; the others take the extremes of the data, less what known read noise adds to them. All devices
share window and shape, each has its own steps up and down; spreads between devices are those of these steps, less the
variance of their estimates.

Choice: BIC = k ln(n) - 2 ln(L), or AICc = 2 k - 2 ln(L) + 2 k (k + 1) / (n - k - 1), with n steps and k all that the
data decided: both ends of the window (fitted or not), the steps of each device, shape and noise. A table of B knots
per direction thus counts 2 (B - 1) shape parameters. Constant steps and soft bounds are special cases of the
others: there BIC takes the smaller family ever more surely as the data grow, while AICc takes a needless parameter in
one case of six.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.optimize import least_squares, minimize
from torch import Tensor
from torch.special import log_ndtr, ndtr

from devices import (
    ConstantStepPulses,
    ExponentialPulses,
    LinearPulses,
    MemoryCell,
    PowerPulses,
    SoftBoundsPulses,
    StepPulses,
    TablePulses,
    WhiteReadNoise,
)
from experiments.pulse_data import PulseData, Steps

EXTENSION = 0.5  # how far an end of the window may lie beyond the data, over their range
LEAST_STEPS = 10  # of each device in each direction
_RESOLUTION = 1e-3  # of a typical step: noise is never taken to be less, for a likelihood needs some
_LARGEST = 20.0  # sigma_c2c


@dataclass(frozen=True)
class Family:
    """A pulse model as a family of curves over free parameters.

    kind      the device's model
    settings  its settings from the shape parameters (p,)
    bounds    (low, high) of each shape parameter
    starts    shape parameters to begin from
    window    the ends of the window are fitted, because the step vanishes there
    noises    what sigma_c2c may be relative to
    """

    name: str
    kind: type[StepPulses]
    settings: Callable[[Sequence[float] | Tensor], dict[str, object]] = lambda _: {}
    bounds: tuple[tuple[float, float], ...] = ()
    starts: tuple[tuple[float, ...], ...] = ((),)
    window: bool = False
    noises: tuple[Literal["move", "step"], ...] = ("move", "step")


@dataclass(frozen=True, eq=False)
class Fit:
    """A family at its most likely parameters.

    pulses      the model in the device's own settings, spreads included
    g_min, g_max  the window, S
    log_likelihood, parameters, steps   ln(L) of n = `steps` readings in siemens, k = `parameters`
    mean, sd    (n,) S, of each step (after - before) as predicted
    residual    (n,) S, step minus mean
    noise       standard deviation of a read, S: from repeated reads, or fitted; 0: none told apart
    at_limit    parameters that ended at their bounds
    """

    family: str
    pulses: StepPulses
    g_min: float
    g_max: float
    log_likelihood: float
    parameters: int
    steps: int
    mean: np.ndarray
    sd: np.ndarray
    residual: np.ndarray
    noise: float
    at_limit: tuple[str, ...]

    @property
    def bic(self) -> float:
        """Bayesian information criterion; the lowest of several fits to the same data is best."""
        return self.parameters * math.log(self.steps) - 2 * self.log_likelihood

    @property
    def aicc(self) -> float:
        """Akaike's criterion corrected for few data; infinite where parameters use up the data."""
        k, left = self.parameters, self.steps - self.parameters - 1
        return 2 * k - 2 * self.log_likelihood + (2 * k * (k + 1) / left if left > 0 else math.inf)

    @property
    def rms(self) -> float:
        """Root mean square of the residuals of single steps, S."""
        return float(np.sqrt(np.mean(self.residual**2)))

    @property
    def correlation(self) -> float:
        """Correlation of neighbouring residuals over their spread: 0 for noise of pulses, towards -1/2 for that of
        readings, above 0 where the curve is systematically off."""
        z = self.residual / self.sd
        return float(np.corrcoef(z[:-1], z[1:])[0, 1])

    def free_running(self, start: float, direction: np.ndarray) -> np.ndarray:
        """The curve (n + 1,) S that the model draws without noise from `start` S along `direction` (n,) of +-1."""
        quiet = replace(self.pulses, sigma_c2c=0, sigma_dtod=0, sigma_asymmetry=0)
        window = MemoryCell(self.g_min, self.g_max).window
        rng = torch.Generator()
        g = torch.tensor([start], dtype=torch.float64)
        params = quiet.fabricate(g, window, rng)
        curve = [g := g.clamp(params["g_lo"], params["g_hi"])]
        for d in direction.tolist():
            curve.append(g := quiet.apply(g, torch.tensor([d]), params, window, rng))
        return torch.cat(curve).numpy()


def families(data: PulseData) -> tuple[Family, ...]:
    """The families to try, with the knots of a table as many as the data carry: 8 steps each, 3 to 11, odd."""
    steps = data.steps
    fewest = min(steps.up.sum(), (~steps.up).sum())
    knots = int(np.clip(fewest // 8, 3, 11)) // 2 * 2 + 1
    gammas = ((-1.0, 1.0),) * 2
    # 1 + q (exp(gamma u') - 1), u' towards the bound ahead, is 1 at mid-range; a = q / (q - 1) < 1 keeps it positive
    exponential = ((-20.0, 0.98), (-8.0, 8.0)) * 2
    starts = ((0.5, -1.0), (0.9, -3.0), (-0.3, 2.0))
    return (
        Family("constant", ConstantStepPulses, noises=("step",)),
        Family(
            "linear",
            LinearPulses,
            _gammas,
            gammas,
            ((0.5, 0.5),),
        ),
        Family("soft bounds", SoftBoundsPulses, window=True),
        Family("exponential", ExponentialPulses, _exponential, exponential, tuple(s + s for s in starts)),
        Family(
            "power",
            PowerPulses,
            _gammas,
            ((0.0, 20.0),) * 2,
            ((1.0, 1.0), (2.5, 2.5), (0.3, 0.3)),
            window=True,
        ),
        Family(
            f"table of {knots}",
            TablePulses,
            lambda p: {"up": _table(p[: knots - 1]), "down": _table(p[knots - 1 :])},
            ((0.0, 100.0),) * (2 * knots - 2),
            (_binned(steps, knots),),
        ),
    )


def _gammas(p: Sequence[float] | Tensor) -> dict[str, object]:
    return {"gamma_up": p[0], "gamma_down": p[1]}


def _exponential(p: Sequence[float] | Tensor) -> dict[str, object]:
    up, gamma_up, down, gamma_down = p
    return {
        "a_up": up / (up - 1),
        "a_down": down / (down - 1),
        "gamma_up": gamma_up,
        "gamma_down": gamma_down,
    }


def _table(free: Sequence[float] | Tensor) -> tuple[float, ...] | Tensor:
    """A table from all its knots but the middle one, which is 1."""
    half = len(free) // 2
    if isinstance(free, Tensor):
        return torch.cat((free[:half], free.new_ones(1), free[half:]))
    return (*free[:half], 1.0, *free[half:])


def _binned(steps: Steps, knots: int) -> tuple[float, ...]:
    """Medians of the steps around each knot over that around the middle, without the middle; up, then down."""
    low, high = _extremes(steps)
    place = np.rint((steps.before - low) / (high - low) * (knots - 1))
    found = []
    for up in (True, False):
        size = np.abs(steps.after - steps.before)
        medians = np.array(
            [np.median(size[(steps.up == up) & (place == k)] if ((steps.up == up) & (place == k)).any() else np.nan)
             for k in range(knots)]
        )  # fmt: skip
        known = np.flatnonzero(~np.isnan(medians))
        medians = np.interp(np.arange(knots), known, medians[known])
        middle = medians[knots // 2] or medians.mean()
        found += np.clip(np.delete(medians / middle, knots // 2), 0.02, 50).tolist()
    return tuple(found)


def _extremes(steps: Steps) -> tuple[float, float]:
    both = np.r_[steps.before, steps.after]
    return float(both.min()), float(both.max())


def check(data: PulseData) -> None:
    """ValueError unless there are enough pulses of every device in both directions, and they move it."""
    steps = data.steps
    for k, name in enumerate(data.devices):
        ups = int((steps.up & (steps.device == k)).sum())
        downs = int((~steps.up & (steps.device == k)).sum())
        which = f"device {name!r} of {data.name}" if len(data.devices) > 1 else data.name
        if not downs:
            raise ValueError(
                f"{which} has {ups} pulses up and no depression data (direction -1). Both directions are needed; a "
                "cell that cannot go down by pulses is a one-sided preset, not a fit."
            )
        if min(ups, downs) < LEAST_STEPS:
            raise ValueError(
                f"{which} has {ups} steps up and {downs} down, between consecutive readings; too few, at least "
                f"{LEAST_STEPS} of each are needed."
            )
    low, high = _extremes(steps)
    if low == high:
        raise ValueError(f"{data.name}: all conductances are {low:g} S; no pulse moves the cell.")
    for up, word in ((True, "up"), (False, "down")):
        mean = float((steps.after - steps.before)[steps.up == up].mean()) * (1 if up else -1)
        if mean <= 0:
            raise ValueError(
                f"{data.name}: pulses {word} move the conductance by {mean if up else -mean:.3g} S on average; are the "
                "directions swapped, or is the column a resistance?"
            )


def read_noise(data: PulseData) -> WhiteReadNoise | None:
    """White noise from repeated reads, relative to what explains them better; None where all states are read once."""
    again = data.reads > 1
    if not again.any():
        return None
    dof, square = data.reads[again] - 1, data.deviation[again] ** 2
    span = np.ptp(data.conductance)
    found = []
    for relative_to, scale in (
        ("window", np.full(len(dof), span)),
        ("conductance", data.conductance[again]),
    ):
        scale = np.maximum(scale, 1e-9 * span)
        sigma = math.sqrt((square / scale**2).sum() / dof.sum())
        if sigma == 0:
            return None
        found.append((float((dof * np.log(sigma * scale)).sum()), sigma, relative_to))
    _, sigma, relative_to = min(found)
    return WhiteReadNoise(sigma, relative_to)


class _Problem:
    """The likelihood of one family with one kind of noise, in units of the measured range."""

    def __init__(self, family: Family, c2c_of: str, data: PulseData, noise: WhiteReadNoise | None) -> None:
        self.family, self.c2c_of = family, c2c_of
        self.plain = vars(family.kind(steps=1, c2c_of=c2c_of, **family.settings(family.starts[0])))
        steps = self.data = data.steps
        self.low, high = _extremes(steps)
        self.span = high - self.low
        self.before = torch.from_numpy((steps.before - self.low) / self.span)
        self.step = torch.from_numpy((steps.after - steps.before) / self.span)
        self.up = torch.from_numpy(steps.up)
        self.side = torch.from_numpy(np.where(steps.up, 0, 1))
        self.sign = 1.0 - 2.0 * self.side.double()
        self.device = torch.from_numpy(steps.device)
        size = self.step.abs()
        typical = float(size[size > 0].median())
        self.floor = _RESOLUTION * typical
        self.reads = torch.from_numpy(steps.reads)
        self.read = None  # variance of each step by reading
        margin = 0.0  # by which read noise carries the extremes of the data beyond the bounds
        if noise is not None:
            of = 1.0 if noise.relative_to == "window" else torch.from_numpy(steps.before) / self.span
            self.read = (noise.sigma_relative * of) ** 2 * self.reads
            margin = min(5 * float(self.read.mean().sqrt()), 0.1)
        self.factors = torch.ones(len(data.devices), 2, dtype=torch.float64)
        mean = [float((self.sign * self.step)[self.side == s].mean()) for s in (0, 1)]
        beyond = EXTENSION if family.window else 1e-9  # a solver wants some room
        room = max(min(beyond, self.low / self.span), 1e-9)
        # all free parameters: shape, ends of the window, then logarithms of the steps, of sigma and of the noise
        self.names = [f"shape {k + 1}" for k in range(len(family.bounds))] + ["g_min", "g_max"]
        self.bounds = [*family.bounds, (-margin, room), (-margin, beyond)]
        ends = (min(0.03, room / 2), 0.03) if family.window else (-margin / 4, -margin / 4)
        self.shape = len(self.bounds)
        self.names += ["step up", "step down", "sigma_c2c"]
        self.bounds += [(math.log(m) - 5, math.log(m) + 5) for m in mean]
        self.bounds.append((math.log(1e-4), math.log(_LARGEST)))
        self.first = [[*start, *ends, *np.log(mean), math.log(0.3)] for start in family.starts]
        if self.fits_noise:
            self.names.append("noise")
            self.bounds.append((math.log(1e-2 * self.floor), 0.0))  # of no effect at its lowest
            self.first = [[*start, math.log(0.03 * typical)] for start in self.first]

    @property
    def fits_noise(self) -> bool:
        return self.read is None and self.c2c_of == "move"

    @property
    def parameters(self) -> int:
        """All that the data decided: both ends of the window even where these are its extremes; steps by device."""
        return len(self.bounds) + 2 * (len(self.factors) - 1)

    def pulses(self, theta: np.ndarray) -> StepPulses:
        """The model with its shape and its noise, of any steps."""
        settings = self.family.settings(theta[: len(self.family.bounds)].tolist())
        sigma = math.exp(theta[self.shape + 2])
        return self.family.kind(steps=1, sigma_c2c=sigma, c2c_of=self.c2c_of, **settings)

    def traced(self, theta: Tensor) -> StepPulses:
        """As `pulses`, with tensors for settings, so that gradients reach them."""
        pulses = object.__new__(self.family.kind)  # unchecked: the bounds of the search hold
        vars(pulses).update(self.plain)
        vars(pulses).update(self.family.settings(theta[: len(self.family.bounds)]))
        vars(pulses)["sigma_c2c"] = theta[self.shape + 2].exp()
        return pulses

    def moves(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n,) of the moves before the bounds cut them off, their standard deviation, and the state (n,) they
        begin at."""
        below, above = theta[self.shape - 2], theta[self.shape - 1]
        pulses = self.traced(theta)
        width = 1 + below + above
        # not quite at the ends, where powers have infinite slopes
        x = ((self.before + below) / width).clamp(1e-6, 1 - 1e-6)
        size = self.steps(theta, pulses)[self.side] * self.factors[self.device, self.side]
        move = size * pulses.profile(x, self.up)
        return move, pulses.spread(move, size, x), x * width - below

    def steps(self, theta: Tensor, pulses: StepPulses) -> Tensor:
        """Steps (2,) up and down in the sense of the model: the move at mid-range over the profile there."""
        middle = torch.full((2,), 0.5, dtype=torch.float64)
        profile = pulses.profile(middle, torch.tensor([True, False]))
        return theta[self.shape : self.shape + 2].exp() / profile

    def extra(self, theta: Tensor) -> Tensor | float:
        """Variance of the steps by reading, and a floor."""
        if self.read is not None:
            return self.read + self.floor**2
        return (torch.exp(2 * theta[-1]) * self.reads if self.fits_noise else 0.0) + self.floor**2

    def loss(self, theta: Tensor) -> Tensor:
        """- ln(L) of steps in units of the measured range: a normal move cut off at the bounds, plus normal noise.

        The density is that of three cases: cut off below, above, or neither.
        """
        move, spread, start = self.moves(theta)
        low, high = -theta[self.shape - 2] - start, 1 + theta[self.shape - 1] - start
        mean, variance = self.sign * move, spread**2 + (0.01 * self.floor) ** 2
        noise = self.extra(theta)
        s, total = variance.sqrt(), variance + noise
        offset = start - self.before
        observed = self.step - offset  # from where the cell was, not from its reading
        posterior = mean + variance / total * (observed - mean)
        deviation = s * (noise / total) ** 0.5
        inside = ndtr((high - posterior) / deviation) - ndtr((low - posterior) / deviation)
        cases = (
            log_ndtr((low - mean) / s) + _log_normal(observed - low, noise),
            log_ndtr((mean - high) / s) + _log_normal(observed - high, noise),
            inside.clamp(min=1e-200).log() + _log_normal(observed - mean, total),
        )
        return -torch.logsumexp(torch.stack(cases), 0).sum()

    def moments(self, theta: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and variance (n,) of the measured steps."""
        theta = torch.from_numpy(theta)
        move, spread, start = self.moves(theta)
        low, high = -theta[self.shape - 2] - start, 1 + theta[self.shape - 1] - start
        mean, s = self.sign * move, spread + 0.01 * self.floor
        a, b = (low - mean) / s, (high - mean) / s
        pa, pb = _log_normal(a, 1.0).exp(), _log_normal(b, 1.0).exp()
        below, above = ndtr(a), ndtr(-b)
        shift = (low - mean) * below + (high - mean) * above + s * (pa - pb)
        square = (low - mean) ** 2 * below + (high - mean) ** 2 * above
        square = square + s**2 * (1 - below - above + a * pa - b * pb)
        variance = (square - shift**2).clamp(min=0) + self.extra(theta)
        return mean + shift + start - self.before, variance

    def value(self, theta: np.ndarray) -> float:
        with torch.no_grad():
            return float(self.loss(torch.from_numpy(theta)))

    def gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """- ln(L) and its gradient."""
        leaf = torch.from_numpy(theta.copy()).requires_grad_()
        loss = self.loss(leaf)
        loss.backward()
        return float(loss.detach()), leaf.grad.numpy()

    def solve(self) -> tuple[np.ndarray, float]:
        """The most likely parameters: robust least squares from every start, then the likelihood from the best two."""
        low, high = np.array(self.bounds).T
        scale = 0.5 * float(self.step.abs().median())
        fitted = self.shape + 2  # noise does not move the mean

        def residuals(free: np.ndarray, rest: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                move, _, _ = self.moves(torch.from_numpy(np.r_[free, rest]))
                return ((self.sign * self.step - move) / scale).numpy()

        found = []
        for start in map(np.array, self.first):
            start = np.clip(start, low + 1e-6 * (high - low), high - 1e-6 * (high - low))
            rest = start[fitted:]
            first = least_squares(
                residuals,
                start[:fitted],
                bounds=(low[:fitted], high[:fitted]),
                loss="soft_l1",
                args=(rest,),
                max_nfev=20,
            )
            theta = np.r_[first.x, rest]
            error = residuals(first.x, rest) * scale
            error = math.sqrt(np.mean(error**2) / float((self.step**2).mean())) + 1e-6
            theta[self.shape + 2] = np.clip(math.log(error), low[self.shape + 2], high[self.shape + 2])
            found.append((self.value(theta), theta))
        found.sort(key=lambda pair: pair[0])
        starts = [found[0][1]]
        starts += [x for _, x in found[1:2] if (np.abs(x - starts[0]) > 0.01 * (high - low)).any()]
        return min((self._descend(theta) for theta in starts), key=lambda pair: pair[1])

    def go_on(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """The most likely parameters, from those of the same family with another kind of noise."""
        shared = self.shape + 3
        return self._descend(np.r_[theta[:shared], self.first[0][shared:]])

    def _descend(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """From `theta` to the nearest maximum of the likelihood, in turn over shared parameters and devices' steps."""
        self.factors = torch.ones_like(self.factors)
        loss, options = math.inf, {"maxiter": 120, "ftol": 1e-9}
        for _ in range(8):
            result = minimize(
                self.gradient, theta, method="L-BFGS-B", jac=True, bounds=self.bounds, options=options
            )
            theta, before, loss = result.x, loss, float(result.fun)
            if len(self.factors) == 1 or before - loss < 0.1:
                break
            self._fit_factors(theta)
        return theta, loss

    def _fit_factors(self, theta: np.ndarray) -> None:
        """Steps of each device over the mean device, weighted least squares with the shared shape and noise."""
        estimate, _ = self.factors_of(theta)
        self.factors = estimate / estimate.mean(0)

    def factors_of(self, theta: np.ndarray) -> tuple[Tensor, Tensor]:
        """Factors (devices, 2) of the steps up and down, and the variances of these estimates."""
        with torch.no_grad():
            _, variance = self.moments(theta)
            move = self.moves(torch.from_numpy(theta))[0] / self.factors[self.device, self.side]
        top, bottom = torch.zeros_like(self.factors), torch.zeros_like(self.factors)
        where = (self.device, self.side)
        top.index_put_(where, move * self.sign * self.step / variance, accumulate=True)
        bottom.index_put_(where, move**2 / variance, accumulate=True)
        return (top / bottom).clamp(min=0.01), 1 / bottom


def _log_normal(x: Tensor, variance: Tensor | float) -> Tensor:
    """Logarithm of the normal density of mean 0 at x (n,)."""
    log = variance.log() if isinstance(variance, Tensor) else math.log(variance)
    return -0.5 * (x**2 / variance + log + math.log(2 * math.pi))


def fit(family: Family, data: PulseData, noise: WhiteReadNoise | None) -> Fit:
    """The most likely member of `family`, with the kind of pulse noise that BIC prefers; all sides as in the module.

    noise  read noise as measured by repeated reads (`read_noise`); None: not known

    ValueError: the best parameters are outside what the model allows, e.g. fewer than one step across the window.
    """
    found = []
    for c2c_of in family.noises:
        problem = _Problem(family, c2c_of, data, noise)
        theta, loss = problem.solve() if not found else problem.go_on(found[0][2])
        found.append((problem.parameters * math.log(len(problem.step)) + 2 * loss, problem, theta, loss))
    _, problem, theta, loss = min(found, key=lambda entry: entry[0])
    return _settled(problem, theta, loss, noise)


def fit_all(data: PulseData, noise: WhiteReadNoise | None) -> tuple[list[Fit], dict[str, str]]:
    """Fits of all families to `data`, in their order, and why others have none. Errors: `check`."""
    check(data)
    fits, failed = [], {}
    for family in families(data):
        try:
            fits.append(fit(family, data, noise))
        except ValueError as error:
            failed[family.name] = str(error)
    return fits, failed


def best(fits: Sequence[Fit], criterion: Literal["bic", "aicc"] = "bic") -> Fit:
    """The fit of lowest criterion."""
    return min(fits, key=lambda one: getattr(one, criterion))


def memory_cell(chosen: Fit, data: PulseData, noise: WhiteReadNoise | None, source: str) -> MemoryCell:
    """The cell that was measured: window, pulses with their spreads, and read noise where reads were repeated."""
    if noise is not None and noise.relative_to == "window":  # of the data's range so far
        share = noise.sigma_relative * float(np.ptp(data.conductance)) / (chosen.g_max - chosen.g_min)
        noise = replace(noise, sigma_relative=share)
    return MemoryCell(chosen.g_min, chosen.g_max, pulses=chosen.pulses, read_noise=noise, source=source)


def _settled(problem: _Problem, theta: np.ndarray, loss: float, noise: WhiteReadNoise | None) -> Fit:
    """The result in siemens and in the device's settings."""
    span, free = problem.span, torch.from_numpy(theta)
    below, above = theta[problem.shape - 2 : problem.shape].tolist()
    with torch.no_grad():
        mean, variance = problem.moments(theta)
        up, down = problem.steps(free, problem.traced(free)).tolist()
    pulses = replace(
        problem.pulses(theta),
        steps=(1 + below + above) / (0.5 * (up + down)),
        asymmetry=(up - down) / (up + down),
        **_device_spread(problem, theta),
    )
    limits = [
        name
        for name, x, (low, high) in zip(problem.names, theta, problem.bounds, strict=True)
        if name not in ("g_min", "g_max", "noise") and not 1e-3 < (x - low) / (high - low) < 1 - 1e-3
    ]
    limits += [
        name
        for name, x in (("g_min", below), ("g_max", above))
        if problem.family.window and x > 0.999 * EXTENSION
    ]
    read = 0.0
    if noise is not None:
        read = math.sqrt(float((problem.read / problem.reads).mean())) * span
    elif problem.fits_noise and theta[-1] > math.log(2 * problem.floor):
        read = math.exp(theta[-1]) * span
    return Fit(
        family=problem.family.name,
        pulses=pulses,
        g_min=max(problem.low - below * span, 0.0),
        g_max=problem.low + (1 + above) * span,
        log_likelihood=-loss - len(mean) * math.log(span),
        parameters=problem.parameters,
        steps=len(mean),
        mean=mean.numpy() * span,
        sd=variance.sqrt().numpy() * span,
        residual=(problem.step - mean).numpy() * span,
        noise=read,
        at_limit=tuple(limits),
    )


def _device_spread(problem: _Problem, theta: np.ndarray) -> dict[str, float]:
    """sigma_dtod and sigma_asymmetry: spread of the devices' steps less what their estimates vary by themselves."""
    if len(problem.factors) == 1:
        return {}
    factors, variance = (x.numpy() for x in problem.factors_of(theta))
    free = torch.from_numpy(theta)
    with torch.no_grad():
        steps = problem.steps(free, problem.traced(free)).numpy()
    (up, down), (dup, ddown) = (factors * steps).T, (variance * steps**2).T
    both = up + down
    step, asymmetry = both / both.mean(), (up - down) / both
    step_error = (dup + ddown) / both.mean() ** 2
    asymmetry_error = 4 * (down**2 * dup + up**2 * ddown) / both**4

    def spread(x: np.ndarray, error: np.ndarray) -> float:
        return math.sqrt(max(float(x.var(ddof=1) - error.mean()), 0.0))

    return {"sigma_dtod": spread(step, step_error), "sigma_asymmetry": spread(asymmetry, asymmetry_error)}
