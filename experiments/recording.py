"""What a training run leaves in its trace: series per step, conductances and a settling transient per epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circuits import cost
from circuits.crossbar import Crossbar
from experiments.common import Options, progress_bars
from experiments.learner import Learner
from mep_sim import checkpoint
from mep_sim.checkpoint import RunFolder
from mep_sim.data import Dataset
from mep_sim.monitor import StepMetrics
from mep_sim.optimizers import EPGradient
from mep_sim.settling import ODE, settle
from mep_sim.trace import Axis, Trace, Variable

STEP_SERIES = {
    "loss": Variable("nats", "mean cost of the free output"),
    "energy_gap": Variable("1", "(E_nudged - E_free) / beta"),
    "free_residual": Variable("1", "free projected force over the state"),
    "nudged_residual": Variable("1", "nudged projected force over the nudge"),
    "settled": Variable("1", "share of samples settled in all phases"),
    "evaluations": Variable("1", "evaluations per settle"),
    "time": Variable("1", "simulated time per settle, in time constants"),
}
EPOCH_SERIES = {
    "validation": Variable("1", "validation accuracy"),
    "seconds": Variable("s", "time to train"),
    "pulses_per_device": Variable("1", "pulses per memory cell so far"),
}
TRANSIENT_SAMPLES, TRANSIENT_POINTS = 4, 81
UNSETTLED_TIME = 100.0  # time constants shown where no sample settles


def slug(name: str) -> str:
    """A name as a group of the trace carries it."""
    return "".join(c if c.isalnum() else "_" for c in name)


def conductances(weight: str) -> str:
    """The group with a weight's conductances."""
    return f"conductances_{slug(weight)}"


def programmed(weight: str) -> str:
    """The group with a weight's targets and what the chip read after programming."""
    return f"programmed_{slug(weight)}"


def begin(
    config: Options,
    folder: RunFolder,
    learners: list[Learner],
    announce: Callable[[Trace, list[Learner]], None] | None = None,
) -> Trace:
    """A new trace, or the one of the last checkpoint with all learners set back to it. announce: declares what grows,
    `declare` unless given."""
    announce = declare if announce is None else announce
    if folder.resumable:
        state = checkpoint.load(folder.checkpoint, config.device)
        for learner in learners:
            learner.load_state_dict(state["learners"][learner.name])
        trace = Trace.resume(folder.trace, state["trace"])
        announce(trace, learners)
        return trace
    trace = Trace.create(folder.trace, config=config.identity(), seed=config.seed, overwrite=True)
    announce(trace, learners)
    start(trace, learners[0])
    return trace


def train(
    trace: Trace,
    folder: RunFolder,
    learners: list[Learner],
    data: Dataset,
    after_epoch: Callable[[Learner, int], None],
) -> None:
    """Train every learner to the end, or go on doing so, checkpointed after each epoch and what `after_epoch` adds."""
    validation = (data.validation_x, data.validation_y) if len(data.validation_x) else None
    with progress_bars() as progress:
        for learner in learners:
            total = learner.epochs * -(-len(data.train_x) // learner.batch_size)
            task = progress.add_task(learner.name, total=total, completed=learner.steps)
            for number in range(len(learner.history) + 1, learner.epochs + 1):
                for count, metrics in learner.fit(data.train_x, data.train_y, validation):
                    step(trace, learner, count, metrics)
                    progress.advance(task)
                epoch(trace, learner, number)
                after_epoch(learner, number)
                states = {x.name: x.state_dict() for x in learners}
                checkpoint.save(folder.checkpoint, {"learners": states, "trace": trace.lengths()})


def declare(trace: Trace, learners: list[Learner]) -> None:
    """Announce all growing groups; on a resumed trace they are there already."""
    for learner in learners:
        trace.declare(f"training_{slug(learner.name)}", along="step", variables=STEP_SERIES)
        trace.declare(f"epochs_{slug(learner.name)}", along="epoch", variables=EPOCH_SERIES)
        for name, crossbar in _crossbars(learner).items():
            dims, arrays = {}, {}
            for array, cells in crossbar.cells.items():
                # an array common to many weights has rows of its own
                row = "row" if cells.shape == crossbar.shape else f"{array}_row"
                dims |= {row: cells.shape[0], "column": cells.shape[1]}
                arrays[array] = Variable("S", f"conductance of the {array} cells", (row, "column"), "float32")
            trace.declare(conductances(name), along="epoch", dims=dims, variables=arrays)


def start(trace: Trace, learner: Learner) -> None:
    """Record the chip as programmed, before any training."""
    for name, crossbar in _crossbars(learner).items():
        rows, columns = crossbar.shape
        kind = {"dims": ("row", "column"), "dtype": "float32"}
        trace.write(
            programmed(name),
            variables={
                "target": Variable("1", "weight asked for", **kind),
                "read": Variable("1", "weight read", **kind),
            },
            values={"target": learner.chip.targets[name], "read": learner.circuit.params()[name].detach()},
            dims={"row": rows, "column": columns},
        )
    _record_conductances(trace, learner, 0)
    trace.flush()


def step(trace: Trace, learner: Learner, number: int, metrics: StepMetrics) -> None:
    trace.append(f"training_{slug(learner.name)}", number, vars(metrics))


def epoch(trace: Trace, learner: Learner, number: int) -> None:
    """Record the end of an epoch."""
    pulses = 0.0 if learner.chip is None else learner.chip.pulses_per_device
    record = {k: v for k, v in learner.history[-1].items() if k in EPOCH_SERIES}
    trace.append(f"epochs_{slug(learner.name)}", number, {**record, "pulses_per_device": pulses})
    _record_conductances(trace, learner, number)


def _crossbars(learner: Learner) -> dict[str, Crossbar]:
    return {} if learner.chip is None else learner.chip.crossbars


def _record_conductances(trace: Trace, learner: Learner, number: int) -> None:
    for name, crossbar in _crossbars(learner).items():
        trace.append(
            conductances(name), number, {array: cells.conductance for array, cells in crossbar.cells.items()}
        )


def transient(trace: Trace, learner: Learner, number: int, x: Tensor, target: Tensor) -> None:
    """Record how a few samples settle, free from s = 0 and then nudged, by dopri5."""
    gradient = learner.optimizer.gradient
    if not isinstance(gradient, EPGradient):
        return
    beta = learner.optimizer.estimate.beta
    x, target = x[:TRANSIENT_SAMPLES], target[:TRANSIENT_SAMPLES]
    accurate = ODE(1e-4, method="dopri5", rtol=1e-4)
    system = learner.circuit.bind({k: p.detach() for k, p in learner.circuit.params().items()}, x)
    free = settle(system, solver=accurate)
    settled = free.time[free.time.isfinite()]  # what does not settle is shown for as long as what does
    end = 1.1 * settled.max().item() + 1 if len(settled) else UNSETTLED_TIME
    times = torch.linspace(0, end, TRANSIENT_POINTS, dtype=torch.float64)
    free = settle(system, solver=accurate, save_at=times)
    nudged = settle(system.nudged(cost(gradient.loss_type), target, beta), free, accurate, save_at=times)
    phases = [free.transient, nudged.transient]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in phases])

    trace.write(
        f"transient_epoch_{number}",
        variables={
            "state": Variable("1", "node state", ("time", "sample", "unit"), "float32"),
            "energy": Variable("1", "energy, nudge included", ("time", "sample"), "float32"),
            "residual": Variable("1", "projected force", ("time", "sample"), "float32"),
            "beta": Variable("1", "nudging strength", ("time",)),
            "target": Variable("1", "class", ("sample",), "int64"),
        },
        values={
            "state": joined("state"),
            "energy": joined("energy"),
            "residual": joined("residual"),
            "beta": torch.cat([torch.zeros_like(times), torch.full_like(times, beta)]),
            "target": target,
        },
        dims={
            # the nudged phase begins where the free one ends; a coordinate has to grow
            "time": Axis(
                torch.cat([times, times[-1] + 1e-6 + times]), "1", "simulated time, in time constants"
            ),
            "sample": len(x),
            "unit": system.layout.n,
        },
    )
