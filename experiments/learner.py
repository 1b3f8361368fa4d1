"""One network being trained: circuit, chip where it has one, optimizer; an epoch, an accuracy, a state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from circuits import EnergyCircuit
from circuits.chip import Chip
from mep_sim.data import batches
from mep_sim.monitor import StepMetrics, metrics_of
from mep_sim.optimizers import (
    AdamUpdate,
    CompositeOptimizer,
    DionUpdate,
    MuonUpdate,
    PlainUpdate,
    UpdateStrategy,
)
from mep_sim.settling import Sweep, settle

# name -> (rule, learning rate); muon's rate was chosen on the validation split, the others are only usual ones
UPDATES: dict[str, tuple[UpdateStrategy, float]] = {
    "muon": (MuonUpdate(), 0.05),
    "dion": (DionUpdate(), 0.02),
    "plain": (PlainUpdate(), 0.05),
    "adam": (AdamUpdate(), 1e-3),
}


def update_rule(name: str) -> tuple[UpdateStrategy, float]:
    """The update rule of that name and its default learning rate."""
    if name not in UPDATES:
        raise ValueError(f"unknown update {name!r}; choose one of {', '.join(UPDATES)}")
    return UPDATES[name]


Prepare = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


class Learner:
    """Trains one network with a learning rate that falls linearly to zero over `epochs`.

    prepare: what a batch (x, y) is turned into before a step, given the generator `order` too.
    history: per epoch the means of its steps' metrics, "validation" accuracy and "seconds".
    """

    def __init__(
        self,
        name: str,
        optimizer: CompositeOptimizer,
        epochs: int,
        batch_size: int,
        order: torch.Generator,
        step_seconds: float = 0.0,
        prepare: Prepare | None = None,
    ):
        self.name, self.optimizer, self.order, self.prepare = name, optimizer, order, prepare
        self.epochs, self.batch_size = epochs, batch_size
        self.step_seconds = step_seconds
        self.lr = optimizer.param_groups[0]["lr"]
        self.steps = 0
        self.history: list[dict[str, float]] = []

    @property
    def circuit(self) -> EnergyCircuit:
        return self.optimizer.circuit

    @property
    def chip(self) -> Chip | None:
        return self.optimizer.chip

    def rehearse(self, x: Tensor, y: Tensor) -> None:
        """Estimate one gradient at (x, y) and keep nothing of it: what cannot work fails before a run begins."""
        gradient = self.optimizer.gradient.estimate(self.circuit, self.circuit.params, x, y).gradient
        if not all(g.isfinite().all() for g in gradient.values()):
            raise ValueError(f"{self.name}: the first gradient is not finite; lower beta or w_range")

    def train_epoch(self, x: Tensor, y: Tensor) -> Iterator[tuple[int, StepMetrics]]:
        """One pass over the data; yields (step, metrics) after each step. x (N, d), y (N,)."""
        per_epoch = -(-len(x) // self.batch_size)
        for batch, target in batches(x, y, self.batch_size, self.order):
            rate = self.lr * max(1 - self.steps / (self.epochs * per_epoch), 0.0)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if self.chip is not None:
                self.chip.t_seconds += self.step_seconds
            if self.prepare is not None:
                batch, target = self.prepare(batch, target, self.order)
            try:
                self.learn(batch, target)
            except torch.linalg.LinAlgError as error:
                where = f"{self.name} diverged at step {self.steps + 1}"
                raise ValueError(f"{where}: lower lr = {self.lr}, beta or w_range") from error
            self.steps += 1
            yield self.steps, self.metrics()

    def learn(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch."""
        self.optimizer.step(x=x, target=y)

    def metrics(self) -> StepMetrics:
        """Of the last step."""
        return metrics_of(self.optimizer)

    def fit(
        self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None
    ) -> Iterator[tuple[int, StepMetrics | None]]:
        """One epoch, its record appended to `history`; yields as `train_epoch`. Without a validation part its
        accuracy is nan."""
        started, collected = time.perf_counter(), []
        for step, metrics in self.train_epoch(x, y):
            collected.append(metrics)
            yield step, metrics
        seconds = time.perf_counter() - started
        record = {name: float(value) for name, value in vars(StepMetrics.mean(collected)).items()}
        accuracy = math.nan if validation is None else self.accuracy(*validation)
        self.history.append({**record, "validation": accuracy, "seconds": seconds})

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """Outputs (N, C) at the free equilibrium, with the chip as read now. x (N, d)."""
        if self.chip is None:
            params = self.circuit.params()
        else:
            params, x = self.chip.read(), self.chip.drive(x)
        systems = (self.circuit.bind(params, part) for part in x.split(2000))
        return torch.cat([system.readout(settle(system, solver=Sweep(1e-4)).state) for system in systems])

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of (x, y) classified right."""
        return int((self.outputs(x).argmax(1) == y).sum()) / len(x)

    def state_dict(self) -> dict:
        return {
            "circuit": self.circuit.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "chip": None if self.chip is None else self.chip.state_dict(),
            "order": self.order.get_state(),
            "steps": self.steps,
            "history": [dict(record) for record in self.history],
        }

    def load_state_dict(self, state: dict) -> None:
        self.circuit.load_state_dict(state["circuit"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.chip is not None:
            self.chip.load_state_dict(state["chip"])
        self.order.set_state(state["order"].cpu())
        self.steps, self.history = state["steps"], state["history"]
