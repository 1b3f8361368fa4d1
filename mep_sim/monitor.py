"""`EPMonitor`: whether the phases behind an epoch of EP steps were at equilibrium."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from mep_sim.optimizers import CompositeOptimizer


@dataclass(frozen=True)
class StepMetrics:
    """One training step, or the mean of several.

    energy_gap: mean of (E_nudged - E_free) / |beta|, the cost as the energy sees it; relative residuals: mean
    over samples of residual / |state| (free) and residual / |nudge| (nudged); settled: share of samples
    within tolerance in all phases; evaluations: per settle; time: simulated time per settle, in time
    constants. nan where a step has no such phase.
    """

    loss: float
    energy_gap: float
    free_residual: float
    nudged_residual: float
    settled: float
    evaluations: float
    time: float

    @classmethod
    def mean(cls, steps: list[StepMetrics]) -> StepMetrics:
        return cls(**{name: fmean(getattr(s, name) for s in steps) for name in cls.__dataclass_fields__})


class EPMonitor:
    """Collects `StepMetrics` from an optimizer: `observe` it after each step.

    monitor.start_epoch(); ...; metrics = monitor.end_epoch(model, optimizer)
    """

    def __init__(self, settled_threshold: float = 0.95):
        if not 0 < settled_threshold <= 1:
            raise ValueError(f"settled_threshold = {settled_threshold}; choose a share in (0, 1]")
        self.settled_threshold = settled_threshold
        self.epochs: list[StepMetrics] = []
        self.steps: list[StepMetrics] = []

    def start_epoch(self) -> None:
        self.steps = []

    def observe(self, optimizer: CompositeOptimizer) -> StepMetrics:
        """Take the metrics of the optimizer's last estimate."""
        self.steps.append(metrics_of(optimizer))
        return self.steps[-1]

    def end_epoch(self, model: nn.Module, optimizer: CompositeOptimizer) -> StepMetrics:
        """Close the epoch; without any observed step its last one stands for it."""
        if not self.steps:
            self.observe(optimizer)
        self.epochs.append(StepMetrics.mean(self.steps))
        return self.epochs[-1]

    def check_convergence(self) -> bool:
        """Whether enough samples of the last epoch were at equilibrium."""
        if not self.epochs:
            raise ValueError("no epoch to check yet: call end_epoch(model, optimizer) first")
        return not self.epochs[-1].settled < self.settled_threshold

    def summary(self) -> str:
        """A line per epoch."""
        lines = ["epoch    loss  energy gap  free residual  nudged residual  settled  evaluations"]
        lines += [
            f"{i:5d}  {m.loss:6.4f}  {m.energy_gap:10.4g}  {m.free_residual:13.2e}  {m.nudged_residual:15.2e}"
            f"  {m.settled:7.1%}  {m.evaluations:11.1f}"
            for i, m in enumerate(self.epochs, start=1)
        ]
        return "\n".join(lines)


@torch.no_grad()
def metrics_of(optimizer: CompositeOptimizer) -> StepMetrics:
    """The metrics of an optimizer's last step(x=, target=)."""
    estimate = optimizer.estimate
    if estimate is None:
        raise ValueError("the optimizer has no estimate yet: call optimizer.step(x=x, target=y) first")
    phases = [p for p in (estimate.free, *estimate.nudged) if p is not None]
    settled = torch.stack([p.converged for p in phases]).all(0).double().mean().item() if phases else math.nan

    def mean(values: list[float]) -> float:
        return fmean(values) if values else math.nan

    nudged = estimate.nudged
    return StepMetrics(
        loss=estimate.loss.item(),
        energy_gap=math.nan if estimate.energy_gap is None else estimate.energy_gap.item(),
        free_residual=estimate.free.relative_residual.mean().item() if estimate.free else math.nan,
        nudged_residual=mean([p.relative_residual.mean().item() for p in nudged]),
        settled=settled if nudged else math.nan,
        evaluations=mean([p.evaluations for p in phases]),
        time=mean([p.time.mean().item() for p in phases]),
    )
