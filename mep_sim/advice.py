"""What to do about phases that are not at equilibrium, in a line: each function words one trouble of an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mep_sim.metrics import EpochMetrics, margin_of
from mep_sim.optimizers import CompositeOptimizer, EPGradient, SpectralConstraint
from mep_sim.settling import ODE

RESOLVED = 8  # eps: what is left of a force when its parts, of size 1, cancel as well as they can


def unsettled(metrics: EpochMetrics, optimizer: CompositeOptimizer) -> str:
    """Too few samples settled."""
    shares = f"free {metrics.free_settled:.1%}, nudged {metrics.nudged_settled:.1%}"
    seen = f"only {metrics.settled:.1%} of the samples settled ({shares})"
    gradient, dtype = optimizer.gradient, optimizer.estimate.free.state.dtype
    if not isinstance(gradient, EPGradient):
        return f"{seen}: give its solver a larger budget, or nudge less"
    ways, least = [], RESOLVED * torch.finfo(dtype).eps
    for name, tolerance, share in (
        ("tolerance", gradient.solver.tolerance, metrics.free_settled),
        ("nudged_tolerance", gradient.nudged_tolerance, metrics.nudged_settled),
    ):
        if share < 1 and tolerance < least:
            ways.append(f"loosen {name} = {tolerance:g} to {least:.1g}, as {dtype} resolves no less")
    if metrics.nudged_settled < 1 and _is_difference(optimizer):
        ways.append(_more_signal(metrics, gradient))
    else:
        ways.append(_more_budget(gradient))
        ways += [f"lower beta = {metrics.beta:.3g}"] if metrics.nudged_settled < 1 else []
    return f"{seen}: {', or '.join(ways)}"


def lost_in_noise(metrics: EpochMetrics, optimizer: CompositeOptimizer) -> str:
    """The nudge of some layer is hardly larger than what is left unsettled."""
    layer, gradient = metrics.snr.index(metrics.weakest_snr) + 1, optimizer.gradient
    seen = f"the nudge of layer {layer} of {len(metrics.snr)} is {metrics.weakest_snr:.3g} times its noise"
    if not isinstance(gradient, EPGradient):
        return f"{seen}: settle more closely, or nudge more"
    if _is_difference(optimizer):
        return f"{seen}: {_more_signal(metrics, gradient)}"
    if gradient.settle_steps is not None:  # the nudge comes down a layer a step
        return f"{seen}: {_more_budget(gradient)}"
    return (
        f"{seen}: settle the nudged phase more closely than nudged_tolerance = {gradient.nudged_tolerance:g}"
    )


def _is_difference(optimizer: CompositeOptimizer) -> bool:
    """Whether the nudge is the difference of two states settled apart, so that it has to stand out from both."""
    return any(at.deviation is None for at in optimizer.estimate.nudged)


def _more_signal(metrics: EpochMetrics, gradient: EPGradient) -> str:
    return f"raise beta = {metrics.beta:.3g}, or lower the free tolerance = {gradient.solver.tolerance:g}"


def _more_budget(gradient: EPGradient) -> str:
    if gradient.settle_steps is not None:
        return f"raise settle_steps = {gradient.settle_steps}"
    name = "max_evaluations" if isinstance(gradient.solver, ODE) else "max_sweeps"
    return f"raise {name} = {getattr(gradient.solver, name)}"


def uncertified(metrics: EpochMetrics, optimizer: CompositeOptimizer, x: Tensor) -> str:
    """The margin at the batch x is not above 0."""
    circuit, beta = optimizer.circuit, metrics.beta
    weights = {name: circuit.get_parameter(name).detach() for name in circuit.weights}

    def tightened(gamma: float) -> float:
        return margin_of(optimizer, x, beta, SpectralConstraint(gamma).project(weights, circuit, {}))

    ways = []
    if (enough := _largest(lambda b: margin_of(optimizer, x, b) > 0, beta)) is not None:
        ways.append(f"lower beta = {beta:.3g} to {enough:.3g}")
    if (enough := _largest(lambda g: tightened(g) > 0, metrics.largest_sigma)) is not None:
        ways.append(f"tighten gamma to {enough:.3g}, where sigma(W) is {metrics.largest_sigma:.3g} now")
    return (
        f"the certified margin is {metrics.margin:.3g}, not above 0: the equilibrium need not be unique, nor the "
        f"nudged phase converge: {', or '.join(ways) or 'lower beta and tighten gamma'}"
    )


def misaligned(metrics: EpochMetrics, optimizer: CompositeOptimizer) -> str:
    """The gradient points elsewhere than the exact one."""
    overall, layers = metrics.cosine
    worst = min(layers, key=layers.get)
    return (
        f"the cosine to the exact gradient is {overall:.3g}, least in {worst} ({layers[worst]:.3g}): lower "
        f"beta = {metrics.beta:.3g}, nudge both ways (phases = 'centred'), or settle more closely (nudged_tolerance)"
    )


def not_nudged() -> str:
    """No nudged phase was settled at all."""
    return (
        "no nudged phase was settled, so nothing here was measured at a nudged equilibrium; choose EPGradient with "
        "phases = 'one_sided' or 'centred' for gradients that are"
    )


def _largest(good: Callable[[float], bool], bad: float) -> float | None:
    """Nearly the largest value in (0, bad) that is good, by bisection; None where not even bad / 1000 is."""
    low, high = bad / 1000, bad
    if not good(low):
        return None
    while high - low > 0.01 * high:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if good(middle) else (low, middle)
    return 0.99 * low  # still good when shown to three digits
