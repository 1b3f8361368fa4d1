"""`EPMonitor`: whether the phases behind an epoch of EP steps were at equilibrium, and what to do where not."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mep_sim import advice
from mep_sim.metrics import (
    Cosine,
    EpochMetrics,
    StepMetrics,
    cosine_of,
    margin_of,
    metrics_of,
    norms_of,
    phases_of,
)
from mep_sim.optimizers import CompositeOptimizer, NaturalGradient
from mep_sim.settling import EPWarning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class _Epoch:
    """What was seen of one optimizer since the epoch began."""

    steps: list[StepMetrics] = field(default_factory=list)
    phases: list[Tensor] = field(default_factory=list)
    cosines: list[Cosine] = field(default_factory=list)
    batch: tuple[Tensor, Tensor] | None = None
    last: weakref.ref | None = None  # the estimate seen last: the optimizer's to keep


class EPMonitor:
    """Measures an epoch's EP steps, and warns (`EPWarning`, each trouble once) with advice.

        monitor.start_epoch(); ...; metrics = monitor.end_epoch(model, optimizer)

    In between it sees every `optimizer.step(x=, target=)` by itself, through torch's hook on optimizer steps; after a
    `compute_gradient()` and `step()` of your own call `observe(optimizer, x, target)`. On a GPU it waits once a step.

    settled_threshold: share of samples to be settled in all phases, in (0, 1]; snr_threshold: least ratio of each
    layer's nudge to its noise, >= 1; cosine_threshold: least cosine to the exact gradient, in (0, 1);
    exact_every: measure that cosine at every so many steps, an epoch's first included (None: only on request, by
    `cosine`). `epochs` holds the `EpochMetrics` so far.
    """

    def __init__(
        self,
        settled_threshold: float = 0.95,
        *,
        snr_threshold: float = 10.0,
        cosine_threshold: float = 0.9,
        exact_every: int | None = None,
    ):
        if not 0 < settled_threshold <= 1:
            raise ValueError(f"settled_threshold = {settled_threshold}; choose a share in (0, 1]")
        if not snr_threshold >= 1:
            raise ValueError(f"snr_threshold = {snr_threshold}; choose a ratio of at least 1, such as 10")
        if not 0 < cosine_threshold < 1:
            raise ValueError(f"cosine_threshold = {cosine_threshold}; choose a cosine in (0, 1), such as 0.9")
        if exact_every is not None and exact_every < 1:
            raise ValueError(
                f"exact_every = {exact_every} steps; choose at least 1, or None for no such step"
            )
        self.settled_threshold, self.snr_threshold = settled_threshold, snr_threshold
        self.cosine_threshold, self.exact_every = cosine_threshold, exact_every
        self.epochs: list[EpochMetrics] = []
        self._advised: set[Callable] = set()
        self._seen: weakref.WeakKeyDictionary[CompositeOptimizer, _Epoch] = weakref.WeakKeyDictionary()
        self._stop_watching: Callable[[], object] = lambda: None

    # -- an epoch -----------------------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Forget the steps seen so far, and watch from here on."""
        self._stop_watching()
        self._seen.clear()
        monitor = weakref.ref(self)  # a monitor that is dropped within an epoch stops watching

        def watch(optimizer: torch.optim.Optimizer, _args: tuple, batch: dict) -> None:
            if isinstance(optimizer, CompositeOptimizer) and batch.get("x") is not None:
                monitor().observe(optimizer, batch["x"], batch["target"])

        self._stop_watching = weakref.finalize(self, register_optimizer_step_post_hook(watch).remove)

    def observe(
        self, optimizer: CompositeOptimizer, x: Tensor | None = None, target: Tensor | None = None
    ) -> StepMetrics:
        """The metrics of the optimizer's last estimate, counted once; (x, target): the batch it saw, which the margin
        and `exact_every` need."""
        epoch = self._seen.setdefault(optimizer, _Epoch())
        metrics = metrics_of(optimizer)
        if epoch.last is not None and epoch.last() is optimizer.estimate:
            return metrics
        if self.exact_every is not None and len(epoch.steps) % self.exact_every == 0:
            if x is None:
                raise ValueError(
                    f"exact_every = {self.exact_every} needs the batches: call start_epoch() before the steps, "
                    "or observe(optimizer, x, target) after each"
                )
            self.cosine(optimizer, x, target)
        epoch.last = weakref.ref(optimizer.estimate)
        epoch.batch = epoch.batch if x is None else (x, target)
        epoch.steps.append(metrics)
        epoch.phases.append(phases_of(optimizer.estimate, optimizer.circuit.layout))
        return metrics

    def cosine(self, optimizer: CompositeOptimizer, x: Tensor, target: Tensor) -> Cosine:
        """The cosine of the optimizer's gradient to the exact one at (x, target), overall and by layer; counted in the
        epoch's mean. See `cosine_of`; a natural gradient is another direction on purpose, and never warned of."""
        cosine = cosine_of(optimizer, x, target)
        self._seen.setdefault(optimizer, _Epoch()).cosines.append(cosine)
        return cosine

    def end_epoch(self, model: nn.Module, optimizer: CompositeOptimizer) -> EpochMetrics:
        """Close the epoch of this optimizer, which trains `model`: the means of its steps, or its last one where none
        was seen; norms and margin of its weights as they are now."""
        self._stop_watching()
        if not isinstance(optimizer, CompositeOptimizer):
            raise ValueError(
                f"end_epoch got a {type(optimizer).__name__}; it watches mep_sim's optimizers only"
            )
        if not self._seen.get(optimizer, _Epoch()).steps:
            self.observe(optimizer)
        if set(model.parameters()) != set(optimizer.circuit.parameters()):
            raise ValueError(
                f"end_epoch got a {type(model).__name__} with other parameters than the optimizer's model; "
                "pass the model that the optimizer was made with"
            )
        epoch, estimate = self._seen.pop(optimizer), optimizer.estimate
        free, nudged, noise, *signal = torch.stack(epoch.phases).mean(0).tolist()
        x = None if epoch.batch is None else epoch.batch[0]
        beta = abs(estimate.beta) if estimate.nudged else 0.0
        metrics = EpochMetrics(
            **vars(StepMetrics.mean(epoch.steps)),
            beta=beta,
            free_settled=free,
            nudged_settled=nudged,
            snr=tuple(s / noise if noise else math.nan for s in signal) if estimate.nudged else (),
            sigma=norms_of(optimizer.circuit),
            margin=math.nan if x is None or estimate.free is None else margin_of(optimizer, x, beta),
            cosine=Cosine.mean(epoch.cosines) if epoch.cosines else None,
        )
        self.epochs.append(metrics)
        is_gradient = metrics.cosine is not None and not isinstance(optimizer.gradient, NaturalGradient)
        low = is_gradient and metrics.cosine.overall < self.cosine_threshold
        self._warn(metrics.settled < self.settled_threshold, advice.unsettled, metrics, optimizer)
        self._warn(metrics.weakest_snr < self.snr_threshold, advice.lost_in_noise, metrics, optimizer)
        self._warn(metrics.margin <= 0, advice.uncertified, metrics, optimizer, x)
        self._warn(low, advice.misaligned, metrics, optimizer)
        return metrics

    def _warn(self, applies: bool, words: Callable[..., str], *about: object) -> None:
        if applies and words not in self._advised:
            self._advised.add(words)
            warnings.warn(words(*about), EPWarning, stacklevel=3)

    # -- all epochs ---------------------------------------------------------------------------------

    def check_convergence(self) -> bool:
        """Whether enough samples of the last epoch settled in all phases.

        False, with an `EPWarning`, where no nudged phase was settled (backprop, one_sweep, the implicit gradient):
        nothing was measured at a nudged equilibrium then.
        """
        settled = self._last_epoch().settled
        self._warn(math.isnan(settled), advice.not_nudged)
        return settled >= self.settled_threshold

    def summary(self) -> str:
        """A line per epoch; "-" for what it did not have or measure."""
        rows = [["epoch", *_COLUMNS]]
        for number, metrics in enumerate(self.epochs, start=1):
            values = [(read(metrics), spec) for spec, read in _COLUMNS.values()]
            rows.append([str(number), *("-" if math.isnan(v) else format(v, spec) for v, spec in values)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A panel each for loss, residuals, shares settled, signal-to-noise, operator norms, margin and cosine, by
        epoch, without those that were never measured; saved to `path` where given."""
        from mep_sim.monitor_figure import (
            draw,
        )  # matplotlib is slow to import: only where a plot is asked for

        self._last_epoch()
        figure = draw(self.epochs, self.settled_threshold, self.snr_threshold)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure

    def _last_epoch(self) -> EpochMetrics:
        if not self.epochs:
            raise ValueError("no epoch to look at yet: call end_epoch(model, optimizer) first")
        return self.epochs[-1]


_COLUMNS: dict[str, tuple[str, Callable[[EpochMetrics], float]]] = {
    "loss": (".4f", lambda m: m.loss),
    "energy gap": (".4g", lambda m: m.energy_gap),
    "free residual": (".2e", lambda m: m.free_residual),
    "nudged residual": (".2e", lambda m: m.nudged_residual),
    "settled": (".1%", lambda m: m.settled),
    "free": (".1%", lambda m: m.free_settled),
    "nudged": (".1%", lambda m: m.nudged_settled),
    "evaluations": (".1f", lambda m: m.evaluations),
    "least SNR": (".3g", lambda m: m.weakest_snr),
    "largest sigma": (".3g", lambda m: m.largest_sigma),
    "margin": (".3g", lambda m: m.margin),
    "cosine": (".4f", lambda m: math.nan if m.cosine is None else m.cosine.overall),
}
