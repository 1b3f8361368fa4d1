"""What can be measured of EP steps: their phases, their gradients against the exact ones, their weights.

`metrics_of` and `phases_of` look at what an estimate left behind and cost next to nothing; `cosine_of`, `norms_of` and
`margin_of` settle or decompose anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from circuits import EnergyCircuit, Equilibrium, FeedforwardCircuit, Layout, Params, cost
from circuits.norms import conv_norm, spectral_norm
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, Estimate, ImplicitGradient
from mep_sim.settling import Sweep, settle


@dataclass(frozen=True)
class StepMetrics:
    """One training step, or the mean of several.

    energy_gap: mean of (E_nudged - E_free) / beta, the cost as the energy sees it; relative residuals: mean
    over samples of residual / |state| (free) and residual / |nudge| (nudged); settled: share of samples
    within tolerance in all phases; evaluations: per settle; time: simulated time per settle, in time
    constants. nan where a step has no such phase.
    """

    loss: float
    energy_gap: float = math.nan
    free_residual: float = math.nan
    nudged_residual: float = math.nan
    settled: float = math.nan
    evaluations: float = math.nan
    time: float = math.nan

    @classmethod
    def mean(cls, steps: Sequence[StepMetrics]) -> StepMetrics:
        return cls(**{name: fmean(getattr(s, name) for s in steps) for name in cls.__dataclass_fields__})


class Cosine(NamedTuple):
    """Between an estimated gradient and the exact one: over all parameters, and by module of the circuit."""

    overall: float
    layers: dict[str, float]

    @classmethod
    def mean(cls, several: Sequence[Cosine]) -> Cosine:
        layers = {name: fmean(c.layers[name] for c in several) for name in several[0].layers}
        return cls(fmean(c.overall for c in several), layers)


@dataclass(frozen=True)
class EpochMetrics(StepMetrics):
    """The mean of an epoch's steps, and what is measured once at its end.

    beta: |beta| of the last step, 0 where no nudged phase was settled; free_settled, nudged_settled: shares of
    samples within tolerance in the free phase, in all nudged ones; snr: the nudge over what is left unsettled, per
    layer, the output last (`phases_of`); sigma: operator norm by weight name, an upper bound for convolutions;
    margin: above 0 the equilibrium at `beta` is certified (`System.margin`), nan where no batch is known to measure
    it on; cosine: to the exact gradient, where it was measured.
    """

    beta: float = 0.0
    free_settled: float = math.nan
    nudged_settled: float = math.nan
    snr: tuple[float, ...] = ()
    sigma: Mapping[str, float] = field(default_factory=dict)
    margin: float = math.nan
    cosine: Cosine | None = None

    @property
    def weakest_snr(self) -> float:
        """The least signal-to-noise ratio of all layers, nan without a nudge."""
        return min(self.snr, default=math.nan)

    @property
    def largest_sigma(self) -> float:
        return max(self.sigma.values(), default=math.nan)


@torch.no_grad()
def metrics_of(optimizer: CompositeOptimizer) -> StepMetrics:
    """The metrics of an optimizer's last step(x=, target=); on a GPU one look at it."""
    estimate = optimizer.estimate
    if estimate is None:
        raise ValueError("the optimizer has no estimate yet: call optimizer.step(x=x, target=y) first")
    phases = [p for p in (estimate.free, *estimate.nudged) if p is not None]
    found = {"loss": estimate.loss}
    if estimate.energy_gap is not None:
        found["energy_gap"] = estimate.energy_gap
    if estimate.free is not None:
        found["free_residual"] = estimate.free.relative_residual.mean()
        found["time"] = _mean([p.time for p in phases])
    if estimate.nudged:
        found["nudged_residual"] = _mean([p.relative_residual for p in estimate.nudged])
        found["settled"] = _settled(phases)
    values = torch.stack(tuple(found.values())).tolist()
    evaluations = fmean(p.evaluations for p in phases) if phases else math.nan
    return StepMetrics(**dict(zip(found, values, strict=True)), evaluations=evaluations)


@torch.no_grad()
def phases_of(estimate: Estimate, layout: Layout) -> Tensor:
    """Shares settled, free and nudged, what is left unsettled, and each layer's nudge: (3 + L,), not waited for.

    The signal of a layer is how far the nudge moves it, max over units. The noise is the nudged phase's residual,
    a force of unit rate and so about an error of the state: being the largest of all layers it makes their ratio
    a lower bound. Rounding adds eps times the largest number that holds the nudge. That is the deviation itself;
    where it is the difference of two states settled apart (weights read anew), it is the state, the free phase's
    residual counts too, and the signal includes the difference of the reads. Both are means over samples and phases,
    as the gradient is: samples that hardly nudge hardly count.
    """
    row = torch.full((3 + len(layout.sizes),), math.nan, dtype=torch.float64, device=estimate.loss.device)
    if estimate.free is not None:
        row[0] = _settled([estimate.free])
    if estimate.nudged:
        moved, unsettled = zip(*(_nudge(at, estimate.free) for at in estimate.nudged), strict=True)
        layers = [torch.stack([layer.amax(1) for layer in layout.split(d)]) for d in moved]
        row[1], row[2] = _settled(estimate.nudged), _mean(unsettled)
        row[3:] = torch.stack(layers).mean((0, 2))
    return row


def _nudge(at: Equilibrium, free: Equilibrium) -> tuple[Tensor, Tensor]:
    """How far every unit was moved (B, n), and how much of that is noise (B,)."""
    eps = torch.finfo(at.state.dtype).eps
    if at.deviation is not None:
        moved = at.deviation.abs()
        return moved, at.residual + eps * moved.amax(1)
    return (at.state - free.state).abs(), at.residual + free.residual + eps * at.state.abs().amax(1)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).mean()


def _settled(phases: Sequence[Equilibrium]) -> Tensor:
    """The share of samples that settled in all of these phases."""
    return torch.stack([p.converged for p in phases]).all(0).double().mean()


def cosine_of(optimizer: CompositeOptimizer, x: Tensor, target: Tensor) -> Cosine:
    """The cosine of the optimizer's gradient at (x, target), estimated anew, to the exact one: backprop's on
    feedforward circuits, the implicit gradient elsewhere.

    At the weights as last read, in evaluation mode (no dropout, frozen statistics) and on a copy of the strategy's
    memory: training goes on as if nobody had looked. nan for a layer whose gradient is zero.
    """
    circuit, strategy = optimizer.circuit, optimizer.gradient
    exact = BackpropGradient if isinstance(circuit, FeedforwardCircuit) else ImplicitGradient
    memory = copy.deepcopy(optimizer.memory)
    with _looking_at(circuit):
        estimated = strategy.estimate(circuit, circuit.params, x, target, memory).gradient
        true = exact(strategy.loss_type).estimate(circuit, circuit.params, x, target).gradient
    layers: dict[str, Tensor] = {}
    for name, g in true.items():
        e, layer = estimated[name], name.rpartition(".")[0]
        products = torch.stack([(e * g).sum(), e.square().sum(), g.square().sum()]).double()
        layers[layer] = layers[layer] + products if layer in layers else products
    table = torch.stack([sum(layers.values()), *layers.values()])
    overall, *each = (table[:, 0] / (table[:, 1] * table[:, 2]).sqrt()).tolist()
    return Cosine(overall, dict(zip(layers, each, strict=True)))


def norms_of(circuit: EnergyCircuit) -> dict[str, float]:
    """The operator norm of every weight by name; of convolutions an upper bound."""
    norms = {}
    for name in circuit.weights:
        weight, module = circuit.get_parameter(name), circuit.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d):
            norms[name] = conv_norm(weight, module.stride, module.groups, module.dilation)
        else:
            norms[name] = spectral_norm(weight)
    return norms


def margin_of(optimizer: CompositeOptimizer, x: Tensor, beta: float, params: Params | None = None) -> float:
    """`System.margin` at the free equilibrium of x with these parameters, the circuit's own unless given, nudged by
    `beta`, 0 for the free phase alone."""
    circuit, c = optimizer.circuit, cost(optimizer.gradient.loss_type)
    with _looking_at(circuit):
        system = circuit.bind({**circuit.params(), **(params or {})}, x)
        return system.around(settle(system, solver=Sweep(1e-4))).margin(c, beta)


@contextmanager
def _looking_at(circuit: EnergyCircuit) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again after."""
    modes = {module: module.training for module in circuit.modules()}
    circuit.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
