"""Ready-made optimizers: one call each, nothing but compositions of strategies."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from circuits.chip import Chip
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    GradientStrategy,
    MuonUpdate,
    SpectralConstraint,
    UpdateStrategy,
)
from mep_sim.settling import Solver, Sweep


def smep(
    params: Iterable[nn.Parameter],
    model: nn.Module | None = None,
    lr: float = 0.02,
    mode: str = "ep",
    *,
    beta: float = 0.1,
    phases: str = "one_sided",
    solver: Solver | None = None,
    settle_steps: int | None = None,
    settle_lr: float | None = None,
    loss_type: str = "cross_entropy",
    gamma: float = 2.0,
    ns_steps: int = 5,
    momentum: float = 0.9,
    use_error_feedback: bool = False,
    error_beta: float = 0.95,
    chip: Chip | None = None,
) -> CompositeOptimizer:
    """S + M: spectral constraint and Muon on gradients by EP (mode "ep") or backprop (mode "backprop").

    The carry of the gradient is Muon's momentum; use_error_feedback sets it to `error_beta`.
    """
    gradient = _gradient(mode, beta, phases, solver, settle_steps, settle_lr, loss_type)
    update = MuonUpdate(ns_steps=ns_steps)
    carry = error_beta if use_error_feedback else momentum
    return _compose(params, gradient, update, gamma, carry, lr, model, chip)


def sdmep(
    params: Iterable[nn.Parameter],
    model: nn.Module | None = None,
    lr: float = 0.02,
    mode: str = "ep",
    *,
    beta: float = 0.1,
    phases: str = "one_sided",
    solver: Solver | None = None,
    settle_steps: int | None = None,
    settle_lr: float | None = None,
    loss_type: str = "cross_entropy",
    gamma: float = 2.0,
    ns_steps: int = 5,
    rank: int = 16,
    dion_thresh: int = 100_000,
    error_beta: float = 0.95,
    chip: Chip | None = None,
) -> CompositeOptimizer:
    """S + D + M: as `smep`, with Dion's low-rank update and its error feedback on matrices of `dion_thresh`
    entries or more."""
    gradient = _gradient(mode, beta, phases, solver, settle_steps, settle_lr, loss_type)
    update = DionUpdate(rank=rank, dion_thresh=dion_thresh, small=MuonUpdate(ns_steps=ns_steps))
    return _compose(params, gradient, update, gamma, error_beta, lr, model, chip)


def muon_backprop(
    params: Iterable[nn.Parameter],
    model: nn.Module | None = None,
    lr: float = 0.02,
    *,
    loss_type: str = "cross_entropy",
    gamma: float = 2.0,
    ns_steps: int = 5,
    momentum: float = 0.9,
    chip: Chip | None = None,
) -> CompositeOptimizer:
    """Muon on backprop's gradients: loss.backward(); optimizer.step()."""
    update = MuonUpdate(ns_steps=ns_steps)
    return _compose(params, BackpropGradient(loss_type), update, gamma, momentum, lr, model, chip)


def _gradient(
    mode: str,
    beta: float,
    phases: str,
    solver: Solver | None,
    settle_steps: int | None,
    settle_lr: float | None,
    loss_type: str,
) -> GradientStrategy:
    if mode == "backprop":
        return BackpropGradient(loss_type)
    if mode != "ep":
        raise ValueError(f"unknown mode {mode!r}; choose 'ep' or 'backprop'")
    return EPGradient(
        loss_type=loss_type,
        beta=beta,
        phases=phases,
        solver=solver or Sweep(1e-5),
        settle_steps=settle_steps,
        settle_lr=settle_lr,
    )


def _compose(
    params: Iterable[nn.Parameter],
    gradient: GradientStrategy,
    update: UpdateStrategy,
    gamma: float,
    carry: float,
    lr: float,
    model: nn.Module | None,
    chip: Chip | None,
) -> CompositeOptimizer:
    return CompositeOptimizer(
        params,
        gradient=gradient,
        update=update,
        constraint=SpectralConstraint(gamma),
        feedback=ErrorFeedback(carry),
        lr=lr,
        model=model,
        chip=chip,
    )
