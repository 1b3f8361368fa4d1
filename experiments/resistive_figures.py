"""The pictures of `experiments.resistive_mnist`, drawn from its trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import figures
from experiments.learner import Learner
from experiments.recording import slug
from experiments.resistive_measures import Energy
from mep_sim.trace import Trace


def draw(folder: Path, trace: Trace, learners: list[Learner], energy: Energy) -> None:
    """All pictures of a finished run, as PNGs in `folder`."""
    errors(folder / "errors.png", trace, learners)
    figures.settling(folder / "settling.png", trace.read(f"training_{slug(learners[0].name)}"))
    heat(folder / "heat.png", energy)


def errors(path: Path, trace: Trace, learners: list[Learner]) -> None:
    """Validation and test error per epoch."""
    with figures.figure(path, 1, 1, (6, 4)) as axes:
        ax = axes[0, 0]
        for learner, colour in zip(learners, (figures.NUDGED, figures.FREE), strict=True):
            epochs = trace.read(f"epochs_{slug(learner.name)}")
            test = trace.read(f"test_{slug(learner.name)}")
            ax.plot(
                test["epoch"],
                100 * test["test_error"],
                "o-",
                ms=4,
                color=colour,
                label=f"{learner.name}: test",
            )
            if np.isfinite(epochs["validation"]).any():
                validation = 100 * (1 - epochs["validation"])
                ax.plot(epochs["epoch"], validation, "--", color=colour, label=f"{learner.name}: validation")
        ax.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
        ax.legend(frameon=False)


def heat(path: Path, energy: Energy) -> None:
    """How a sample's outputs settle, and the heat of each layer on the way: free, then nudged."""
    with figures.figure(path, 2, 2, (10, 6)) as axes:
        for column, (name, phase) in enumerate((("free", energy.free), ("nudged", energy.nudged[0]))):
            volts, watts = axes[:, column]
            ns = 1e9 * phase.times[1:]
            moved = phase.volts[1:, 0] - phase.volts[0, 0]
            busiest = moved[-1].abs().argsort(descending=True)[:12]
            volts.semilogx(ns, moved[:, busiest], lw=1)
            volts.set(title=f"{name} phase", ylabel="voltage moved (V), 12 nodes")
            for layer, power in enumerate(phase.watts[1:].T, start=1):
                watts.loglog(ns, power, label=f"layer {layer}")
            watts.set(xlabel="time (ns)", ylabel="heat (W), mean over samples")
            watts.legend(frameon=False)
