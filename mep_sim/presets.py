"""Ready-made optimizers: one call each, nothing but compositions of strategies.

All take `params` as torch's optimizers do, `model` (an nn.Sequential or a circuit, which EP settles), `lr`, and
by keyword what is theirs and what they share: `Settings`, and where they learn by EP `EPSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from torch import nn

from circuits import Cost
from circuits.chip import Chip
from mep_sim.optimizers import (
    AutoBeta,
    BackpropGradient,
    CompositeOptimizer,
    ConsolidationStrategy,
    ConstraintStrategy,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    GradientStrategy,
    LocalEPGradient,
    MuonUpdate,
    NaturalGradient,
    NoConstraint,
    PlainUpdate,
    SpectralConstraint,
    UpdateStrategy,
)
from mep_sim.settling import Solver

if TYPE_CHECKING:
    from typing_extensions import Unpack

GRADIENTS = {"ep": EPGradient, "backprop": BackpropGradient}


class Settings(TypedDict, total=False):
    """Keywords of every preset: loss_type "cross_entropy" (the default), "mse" or a cost; the others as in
    `CompositeOptimizer`."""

    loss_type: str | Cost
    clip_norm: float | None
    consolidation: ConsolidationStrategy | None
    chip: Chip | None


class EPSettings(Settings, total=False):
    """And of those that learn by EP: how phases are nudged and settled, as in `EPGradient`."""

    beta: float | str | AutoBeta
    phases: str
    solver: Solver
    nudged_tolerance: float
    independent_reads: bool
    settle_steps: int | None
    settle_lr: float | None
    seed: int | None


def smep(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.02,
    mode: str = "ep",
    *,
    gamma: float = 2.0,
    ns_steps: int = 5,
    polynomial: str = "quintic",
    weight_decay: float = 0.0,
    momentum: float | None = None,
    use_error_feedback: bool = False,
    error_beta: float | None = None,
    **settings: Unpack[EPSettings],
) -> CompositeOptimizer:
    """S + M: spectral bound gamma and Muon, on gradients by EP (mode "ep") or backprop (mode "backprop").

    Muon uses all of its signal, so that the carry of the gradient is its momentum. Its decay is `momentum`, 0.9
    unless given; with use_error_feedback it is `error_beta`, 0.95 unless given.
    """
    if use_error_feedback and momentum is not None:
        raise ValueError(
            f"momentum = {momentum} beside use_error_feedback = True; its decay is error_beta, give that"
        )
    if error_beta is not None and not use_error_feedback:
        raise ValueError(
            f"error_beta = {error_beta} without use_error_feedback = True; give both, or momentum"
        )
    given, usual = (error_beta, 0.95) if use_error_feedback else (momentum, 0.9)
    update = MuonUpdate(ns_steps=ns_steps, polynomial=polynomial, weight_decay=weight_decay)
    carry = usual if given is None else given
    return _compose(params, model, lr, _gradient(mode), update, SpectralConstraint(gamma), carry, settings)


def sdmep(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.02,
    mode: str = "ep",
    *,
    gamma: float = 2.0,
    rank: int = 16,
    dion_thresh: int = 100_000,
    ns_steps: int = 5,
    polynomial: str = "quintic",
    weight_decay: float = 0.0,
    error_beta: float = 0.95,
    **settings: Unpack[EPSettings],
) -> CompositeOptimizer:
    """S + D + M: as `smep`, with Dion's update of low rank for weights of `dion_thresh` entries or more.

    What the rank leaves out comes again at the next step, with decay `error_beta`: Dion's error feedback, which
    is momentum to the smaller weights.
    """
    muon = MuonUpdate(ns_steps=ns_steps, polynomial=polynomial, weight_decay=weight_decay)
    update = DionUpdate(rank=rank, dion_thresh=dion_thresh, small=muon, weight_decay=weight_decay)
    return _compose(
        params, model, lr, _gradient(mode), update, SpectralConstraint(gamma), error_beta, settings
    )


def muon_backprop(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.02,
    *,
    gamma: float = 2.0,
    ns_steps: int = 5,
    polynomial: str = "quintic",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    **settings: Unpack[Settings],
) -> CompositeOptimizer:
    """Muon on backprop's gradients: loss.backward(); optimizer.step(). With `model`, also step(x=x, target=y)."""
    update = MuonUpdate(ns_steps=ns_steps, polynomial=polynomial, weight_decay=weight_decay)
    return _compose(
        params, model, lr, BackpropGradient, update, SpectralConstraint(gamma), momentum, settings
    )


def eqprop(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.05,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **settings: Unpack[EPSettings],
) -> CompositeOptimizer:
    """Plain EP: gradient descent with momentum."""
    update = PlainUpdate(weight_decay=weight_decay)
    return _compose(params, model, lr, EPGradient, update, NoConstraint(), momentum, settings)


def local_ep(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.2,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    **settings: Unpack[EPSettings],
) -> CompositeOptimizer:
    """What a crossbar can do by itself: each layer's gradient from its own two ends, descended as it is.

    momentum is a second number per synapse to store, so that there is none unless asked for.
    """
    update = PlainUpdate(weight_decay=weight_decay)
    return _compose(params, model, lr, LocalEPGradient, update, NoConstraint(), momentum, settings)


def natural_ep(
    params: Iterable,
    model: nn.Module | None = None,
    lr: float = 0.01,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay: float = 0.95,
    damping: float = 1e-2,
    refresh: int = 10,
    radius: float = 1.0,
    **settings: Unpack[EPSettings],
) -> CompositeOptimizer:
    """Natural gradient descent with momentum; decay, damping, refresh and radius are `NaturalGradient`'s."""
    gradient = partial(NaturalGradient, decay=decay, damping=damping, refresh=refresh, radius=radius)
    update = PlainUpdate(weight_decay=weight_decay)
    return _compose(params, model, lr, gradient, update, NoConstraint(), momentum, settings)


def _gradient(mode: str) -> type[GradientStrategy]:
    if mode not in GRADIENTS:
        raise ValueError(f"unknown mode {mode!r}; choose 'ep' or 'backprop'")
    return GRADIENTS[mode]


def _compose(
    params: Iterable,
    model: nn.Module | None,
    lr: float,
    gradient: Callable[..., GradientStrategy],
    update: UpdateStrategy,
    constraint: ConstraintStrategy,
    carry: float,
    settings: EPSettings,
) -> CompositeOptimizer:
    if unknown := settings.keys() - EPSettings.__annotations__.keys():
        raise TypeError(f"this preset has no setting {', '.join(sorted(unknown))}; see its help()")
    options = {
        name: settings.pop(name) for name in ("chip", "clip_norm", "consolidation") if name in settings
    }
    phases = settings.keys() - Settings.__annotations__.keys()
    if gradient is BackpropGradient and phases:
        raise ValueError(
            f"backprop has no phases to set {', '.join(sorted(phases))} of; leave that out, or use EP"
        )
    if gradient is not BackpropGradient and model is None and options.get("chip") is None:
        raise ValueError("EP has to settle the network: pass model=, an nn.Sequential or a circuit")
    return CompositeOptimizer(
        params,
        gradient(**settings),
        update,
        constraint,
        ErrorFeedback(carry),
        lr,
        model,
        **options,
    )
