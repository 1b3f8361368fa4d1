"""The ways to learn tasks one after another that `experiments.continual` compares, and the settings tried for each.

Every method has as many candidates in its grid as every other. Strengths count against the learning rate alone: with
momentum 0.9, a strength of 300 holds as a penalty of 30 does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from experiments.common import generator
from mep_sim import baselines
from mep_sim.baselines import Baseline, ByOptimizer
from mep_sim.optimizers import (
    AdamUpdate,
    AutoEWC,
    BackpropGradient,
    CompositeOptimizer,
    ConsolidationStrategy,
    ConstraintStrategy,
    EPGradient,
    ErrorFeedback,
    GradientStrategy,
    KroneckerConsolidation,
    MuonUpdate,
    NoConsolidation,
    NoConstraint,
    PlainUpdate,
    PrecisionConsolidation,
    SpectralConstraint,
    SurpriseGated,
    UpdateStrategy,
)
from mep_sim.optimizers.strategies.surprise import GatedConsolidation
from mep_sim.settling import Sweep

EP = EPGradient(beta=0.03, solver=Sweep(1e-5))
ONE_SWEEP = EPGradient(phases="one_sweep")
BACKPROP = BackpropGradient()

PER_TASK = 100  # samples that methods with a memory keep of each task


BOUNDARIES = {baselines.EWC, baselines.OnlineEWC, baselines.SI}


@dataclass(frozen=True)
class Method:
    """How to learn, with a constant learning rate.

    baseline: one of `mep_sim.baselines` with its settings, around the steps. momentum: of the carry; without meaning
    for Adam. cell: the memory cell that weights are on, None for ideal ones. joint: learn all tasks at once. reference:
    the method it is compared with.
    """

    lr: float
    update: UpdateStrategy = field(default_factory=PlainUpdate)
    gradient: GradientStrategy = BACKPROP
    consolidation: ConsolidationStrategy = field(default_factory=NoConsolidation)
    baseline: partial[Baseline] | None = None
    constraint: ConstraintStrategy = field(default_factory=NoConstraint)
    momentum: float = 0.9
    cell: str | None = None
    joint: bool = False
    reference: str | None = "EWC"

    @property
    def needs(self) -> str:
        """What it has to be given besides the batch of the moment."""
        if self.joint:
            return "all tasks at once"
        if self.baseline is None:
            return "-"
        return "task ends" if self.baseline.func in BOUNDARIES else "task ends, samples"

    def optimizer(self, circuit: FeedforwardCircuit, seed: int, device: str) -> CompositeOptimizer:
        chip = None
        if self.cell is not None:
            chip = Chip(circuit, devices.resolve(self.cell), generator(seed + 1, device))
        return CompositeOptimizer(
            circuit.parameters(),
            self.gradient,
            self.update,
            self.constraint,
            ErrorFeedback(self.momentum),
            self.lr,
            circuit,
            chip,
            consolidation=self.consolidation,
        )

    def around(self, optimizer: CompositeOptimizer, seed: int) -> Baseline | None:
        """The baseline, on the gradients of this optimizer."""
        if self.baseline is None:
            return None
        draws = {} if self.baseline.func is baselines.SI else {"rng": generator(seed + 3)}
        return self.baseline(ByOptimizer(optimizer), **draws)


def _grid(method: Method, **values: Iterable) -> list[Method]:
    """The method at every combination of these values of its fields."""
    return [replace(method, **dict(zip(values, chosen, strict=True))) for chosen in product(*values.values())]


PLAIN, ADAM = Method(0.02), Method(1e-3, AdamUpdate())
RATES = [
    *_grid(PLAIN, lr=(0.1, 0.05, 0.02, 0.01, 0.005, 0.002)),
    *_grid(ADAM, lr=(2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5)),
]
# as MEP's validation document has it, for the record: not tuned
MEP = Method(
    0.01,
    MuonUpdate(),
    EPGradient(beta=0.5, settle_steps=30, settle_lr=0.15, loss_type="mse"),
    constraint=SpectralConstraint(0.95),
    momentum=0.95,
)


def _anchored(
    kind: type[Baseline], strengths: tuple[float, ...], penalties: tuple[float, ...]
) -> list[Method]:
    """A quadratic pull, implicit around plain steps and as a penalty in Adam's gradient."""
    implicit = [partial(kind, strength=s, pull="implicit") for s in strengths]
    penalty = [partial(kind, strength=s, pull="penalty") for s in penalties]
    return [
        *_grid(PLAIN, lr=(0.03, 0.01), baseline=implicit),
        *_grid(ADAM, lr=(1e-3, 3e-4), baseline=penalty),
    ]


def _rehearsing(*choices: partial[Baseline]) -> list[Method]:
    return [
        *_grid(PLAIN, lr=(0.05, 0.02, 0.01), baseline=choices),
        *_grid(ADAM, lr=(1e-3, 3e-4, 1e-4), baseline=choices),
    ]


def _local(choices: Iterable[ConsolidationStrategy]) -> list[Method]:
    return _grid(
        replace(PLAIN, gradient=EP, reference="online EWC"),
        lr=(0.05, 0.03, 0.015),
        consolidation=list(choices),
    )


def _precisions() -> list[Method]:
    """Steps of B g / Lambda, for batches of 64."""
    settings = [
        *product((0.05, 0.07, 0.1), (3.0, 10.0, 30.0), (0.0,)),
        *product((0.07,), (3.0, 10.0, 30.0), (1e-4,)),
    ]
    return [
        Method(
            64 * sigma**2,
            gradient=EP,
            consolidation=PrecisionConsolidation(sigma, gain, leak),
            momentum=0.0,
            reference="online EWC",
        )
        for sigma, gain, leak in settings
    ]


GRIDS: dict[str, list[Method]] = {
    "no protection": RATES,
    "EWC": _anchored(baselines.EWC, (50.0, 150.0, 500.0), (3.0, 10.0, 30.0)),
    "online EWC": _anchored(baselines.OnlineEWC, (100.0, 300.0, 1000.0), (10.0, 30.0, 100.0)),
    "SI": _anchored(baselines.SI, (100.0, 300.0, 1000.0), (10.0, 30.0, 100.0)),
    "GEM": _rehearsing(*(partial(baselines.GEM, samples_per_task=PER_TASK, margin=m) for m in (0.0, 0.5))),
    "A-GEM": _rehearsing(
        *(partial(baselines.AGEM, samples_per_task=PER_TASK, batch_size=b) for b in (64, 256))
    ),
    "replay": _rehearsing(
        *(partial(baselines.Replay, capacity=10 * PER_TASK, batch_size=64, share=s) for s in (0.5, 0.7))
    ),
    "joint": [replace(method, joint=True) for method in RATES],
    "EP, precision": _precisions(),
    "EP, auto-EWC": _local(AutoEWC(strength=s) for s in (50.0, 100.0, 300.0, 1000.0)),
    "EP, surprise-gated": _local(SurpriseGated(strength=s) for s in (50.0, 100.0, 300.0, 1000.0)),
    "EP, Kronecker": _local(
        KroneckerConsolidation(strength=s, damping=d) for s, d in product((10.0, 30.0), (3.0, 10.0))
    ),
}

# places in GRIDS, chosen by `--tune 5000` on ten permuted tasks, three passes each, seed 1000
CHOSEN: dict[str, int] = {
    "no protection": 10,
    "EWC": 7,
    "online EWC": 1,
    "SI": 0,
    "GEM": 6,
    "A-GEM": 7,
    "replay": 6,
    "joint": 2,
    "EP, precision": 7,
    "EP, auto-EWC": 5,
    "EP, surprise-gated": 6,
    "EP, Kronecker": 6,
}
CELL = "soft-bounds-6bit"


def cheaply(method: Method) -> Method:
    """With the gradient that a converged EP one comes near: what EP methods are tuned with."""
    return replace(method, gradient=ONE_SWEEP) if method.gradient is EP else method


def waiting(method: Method, longest: int) -> Method:
    """With a consolidation that waits no more than so many steps for a surprise, where it waits for one."""
    gated = method.consolidation
    if not isinstance(gated, GatedConsolidation):
        return method
    surprise = replace(gated.surprise, longest=longest, refractory=min(longest, gated.surprise.refractory))
    return replace(method, consolidation=replace(gated, surprise=surprise))


def methods(chosen: Mapping[str, int]) -> dict[str, Method]:
    """All methods at these places of their grids, and what is compared with the best local one."""
    found = {name: grid[chosen[name]] for name, grid in GRIDS.items()}
    found["EWC"] = replace(found["EWC"], reference=None)  # what the others are compared with
    found["MEP + error feedback"] = MEP
    for name in ("EP, auto-EWC", "EP, Kronecker"):
        found[f"{name}, on cells"] = replace(found[name], cell=CELL, reference=name)
    found["EP, Kronecker, one_sweep (is backprop)"] = replace(
        cheaply(found["EP, Kronecker"]), reference="EP, Kronecker"
    )
    return found
