"""How long a training step on a chip takes, over the same network's step by autograd.

Timed in turn on the same batches, a ReLU network with cells of 30 % spread of the step from device to device and from
pulse to pulse:
- autograd: forward pass, `F.cross_entropy`, `backward()` and `torch.optim.SGD`, without a chip (the reference);
- aggregated: the chip is read, the gradient of the batch found (by backprop, or one_sweep, which equals it), and whole
  pulses written with the residual of their rounding carried on;
- trains: the same with stochastic pulse trains of `length` slots for each sample (`PulseTrains`).

The cells: "rpu" (constant steps, 1250 across), soft bounds of 1200 and of 63 steps; and the last with read noise of
2 %, drawn for all cells at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

import torch
import torch.nn.functional as F

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from circuits.pulse_trains import PulseTrains
from devices import Device, MemoryCell, SoftBoundsPulses
from experiments.benchmarks.timing import alternately
from experiments.common import Options, generator, launch, print_table
from mep_sim.checkpoint import RunFolder
from mep_sim.data import load
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, EPGradient, GradientStrategy, NoFeedback


def _cells() -> dict[str, Device]:
    study = devices.preset("soft-bounds-6bit")
    quiet = replace(study, read_noise=None)
    fine = MemoryCell(40e-6, 100e-6, pulses=SoftBoundsPulses(1200, sigma_dtod=0.3, sigma_c2c=0.3))
    return {
        "rpu": devices.preset("rpu"),
        "soft bounds, 1200 steps": fine,
        "soft bounds, 63 steps": quiet,
        "the same, read noise": study,
    }


@dataclass(frozen=True)
class Config(Options):
    """Time training steps on a chip over autograd's."""

    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had."""
    batch: int = 64
    """Samples per step."""
    hidden: int = 256
    """Hidden units."""
    lr: float = 0.05
    """Learning rate: it decides how many pulses a step takes."""
    length: int = 31
    """Slots of a pulse train."""
    rounds: int = 101
    """Times that all methods are timed in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "hidden", "length", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr}; choose a learning rate > 0")


COLUMNS = {
    "cell": "",
    "method": "",
    "step ms": ".2f",
    "step / autograd": ".2f",
    "quartiles": "",
    "pulses per cell": ".4f",
}


def run(config: Config) -> list[dict[str, object]]:
    """Time every update on every cell; writes the run folder."""
    data = load(config.dataset, seed=config.seed)
    folder = RunFolder.open(config.folder("benchmark_pulsed_step"), config.identity(), config.resume)
    batch, rounds, hidden = (16, 2, 8) if config.smoke else (config.batch, config.rounds, config.hidden)
    if batch > len(data.train_x):
        raise ValueError(f"batch = {batch}; {data.name} has {len(data.train_x)} training samples")
    part = slice(None, len(data.train_x) // batch * batch)
    batches = list(zip(data.train_x[part].split(batch), data.train_y[part].split(batch), strict=True))
    sizes = (data.features, hidden, data.classes)

    def autograd() -> Callable[[], object]:
        circuit = FeedforwardCircuit.from_sizes(sizes, rng=generator(config.seed))
        sgd, feed = torch.optim.SGD(circuit.parameters(), lr=config.lr), cycle(batches)

        def step() -> None:
            x, y = next(feed)
            sgd.zero_grad()
            F.cross_entropy(circuit.model(x), y).backward()
            sgd.step()

        return step

    def pulsed(cell: Device, gradient: GradientStrategy, trains: PulseTrains | None) -> tuple[Chip, Callable]:
        circuit = FeedforwardCircuit.from_sizes(sizes, rng=generator(config.seed))
        chip, feed = Chip(circuit, cell, generator(config.seed + 1), trains=trains), cycle(batches)
        optimizer = CompositeOptimizer(
            circuit.parameters(), gradient, feedback=NoFeedback(), lr=config.lr, model=circuit, chip=chip
        )

        def step() -> None:
            x, y = next(feed)
            optimizer.step(x=x, target=y)

        return chip, step

    sweep = EPGradient(phases="one_sweep")
    methods = {
        "aggregated, backprop": (BackpropGradient(), None),
        "aggregated, one_sweep": (sweep, None),
        "trains, one_sweep": (sweep, PulseTrains(config.length)),
    }
    chips = {
        (name, method): pulsed(cell, *settings)
        for name, cell in _cells().items()
        for method, settings in methods.items()
    }
    timings = alternately(
        {"autograd": autograd(), **{key: step for key, (_, step) in chips.items()}}, rounds, seconds=300
    )
    rows = []
    for key, timing in timings.items():
        cell, method = ("", "autograd") if key == "autograd" else key
        rows.append(
            {
                "cell": cell,
                "method": method,
                "step ms": 1e3 * timing.seconds,
                "step / autograd": timing.ratio,
                "quartiles": f"{timing.low:.2f}-{timing.high:.2f}",
                "pulses per cell": _pulses_per_step(chips[key][0]) if cell else None,
            }
        )
    folder.finish({"rows": rows, "source": data.source})
    title = f"Time per step, {'-'.join(map(str, sizes))}, batch {batch}, {config.threads} thread(s)"
    print_table(title, rows, COLUMNS)
    return rows


def _pulses_per_step(chip: Chip) -> float:
    return chip.pulses_per_device / next(iter(chip.crossbars.values())).writes


if __name__ == "__main__":
    launch(Config, run)
