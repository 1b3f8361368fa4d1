"""The pictures of a training run, drawn from its trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from circuits.chip import Chip
from experiments.learner import Learner
from experiments.recording import conductances, programmed, slug
from mep_sim.trace import Trace

FREE, NUDGED = "#4878a8", "#d1603d"
ARRAYS = (NUDGED, FREE, "#6a994e", "#7b5ea7")  # of a weight, in the order of its mapping


def draw(folder: Path, trace: Trace, learners: list[Learner], epochs: int) -> None:
    """All pictures of a finished run, as PNGs in `folder`."""
    first = learners[0]
    learning_curves(folder / "learning_curves.png", trace, learners)
    settling(folder / "settling.png", trace.read(f"training_{slug(first.name)}"))
    transient(folder / "transient.png", trace.read(f"transient_epoch_{epochs}"), first.circuit.layout.sizes)
    if first.chip is not None:
        cells(folder, trace, first.chip)


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    # A Figure of one's own, without pyplot: nothing global, and it draws without a display.
    canvas = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    yield axes
    canvas.savefig(path, dpi=130)


def learning_curves(path: Path, trace: Trace, learners: list[Learner]) -> None:
    """Cost per step, smoothed, and validation error per epoch, of all learners."""
    with figure(path, 1, 2, (10, 3.8)) as axes:
        left, right = axes[0]
        for learner in learners:
            series = trace.read(f"training_{slug(learner.name)}")
            width = max(len(series["loss"]) // 50, 1)
            smooth = np.convolve(series["loss"], np.ones(width) / width, "valid")
            left.semilogy(series["step"][width - 1 :], np.maximum(smooth, 1e-6), label=learner.name)
            epochs = trace.read(f"epochs_{slug(learner.name)}")
            right.plot(epochs["epoch"], 100 * (1 - epochs["validation"]), "o-", ms=4, label=learner.name)
        left.set(xlabel="step", ylabel="training cost (nats)")
        right.set(xlabel="epoch", ylabel="validation error (%)", ylim=(0, None))
        right.legend(frameon=False)


def settling(path: Path, series: dict[str, np.ndarray]) -> None:
    """How well and how fast both phases settled, step by step."""
    with figure(path, 1, 2, (10, 3.4)) as axes:
        left, right = axes[0]
        for name, colour in (("free_residual", FREE), ("nudged_residual", NUDGED)):
            if np.isfinite(series[name]).any():
                left.semilogy(
                    series["step"], series[name], lw=0.8, color=colour, label=name.replace("_", " ")
                )
                left.legend(frameon=False)
        left.set(xlabel="step", ylabel="relative residual")
        right.plot(series["step"], series["evaluations"], lw=0.8, color="0.3", label="evaluations")
        right.plot(
            series["step"], series["time"], lw=0.8, color=FREE, label="simulated time (time constants)"
        )
        right.set(xlabel="step", ylabel="per settle", ylim=(0, None))
        right.legend(frameon=False)


def transient(path: Path, t: dict[str, np.ndarray], sizes: tuple[int, ...]) -> None:
    """The sample that its nudge moves most, settling free (from s = 0) and then nudged: units, energy, force."""
    time, outputs = t["time"], sizes[-1]
    begin = int(np.argmax(t["beta"] > 0))
    free, nudged = slice(0, begin), slice(begin, None)
    chosen = int(np.argmax(np.abs(t["state"][-1] - t["state"][begin]).max(1)))
    state, target = t["state"][:, chosen], int(t["target"][chosen])
    moved = state[nudged] - state[begin]
    busiest = np.argsort(-np.abs(state[-1, :-outputs]))[:12]
    colours = [NUDGED if unit == target else "0.6" for unit in range(outputs)]
    with figure(path, 2, 3, (12, 5.6)) as axes:
        hidden, output, energy, hidden_moved, output_moved, force = axes.flat
        hidden.plot(time[free], state[free][:, busiest], lw=0.9)
        hidden.set(title="free: the 12 most active hidden units", ylabel="state")
        hidden_moved.plot(time[nudged], moved[:, busiest], lw=0.9)
        hidden_moved.set(title="nudged: the same units", ylabel="state minus free state")
        for ax, rows, trajectories in (
            (output, free, state[free, -outputs:]),
            (output_moved, nudged, moved[:, -outputs:]),
        ):
            for colour, trajectory in zip(colours, trajectories.T, strict=True):
                ax.plot(time[rows], trajectory, lw=0.9 if colour == "0.6" else 2, color=colour)
        output.set(title=f"free: output units (target {target} in colour)")
        output_moved.set(title="nudged: the same units")
        for ax, name, title in (
            (energy, "energy", "energy, beta C included"),
            (force, "residual", "projected force"),
        ):
            for label, colour, rows in (("free", FREE, free), ("nudged", NUDGED, nudged)):
                ax.semilogy(time[rows], t[name][rows, chosen].clip(1e-12), color=colour, label=label)
            ax.set(title=title)
            ax.legend(frameon=False)
        for ax in (hidden_moved, output_moved, force):
            ax.set(xlabel="time (time constants)")


def cells(folder: Path, trace: Trace, chip: Chip) -> None:
    """Both pictures of a chip's arrays."""
    window = (chip.device.g_min_siemens, chip.device.g_max_siemens)
    arrays = {}
    for weight, crossbar in chip.crossbars.items():
        recorded = trace.read(conductances(weight))
        arrays[weight] = {name: recorded[name] for name in crossbar.cells}
    conductance_maps(folder / "conductances.png", arrays, window)
    programmed_scatter(folder / "programmed.png", {w: trace.read(programmed(w)) for w in chip.crossbars})


def conductance_maps(
    path: Path, weights: dict[str, dict[str, np.ndarray]], window: tuple[float, float]
) -> None:
    """First array of every weight before and after training, and histograms of all its arrays. weights: by name, the
    conductances (epochs, rows, cols) S of its arrays by name."""
    low, high = 1e6 * window[0], 1e6 * window[1]
    bins = np.linspace(low, high, 60)
    with figure(path, len(weights), 3, (11, 2.9 * len(weights))) as axes:
        for row, (name, arrays) in zip(axes, weights.items(), strict=True):
            first, *_ = arrays
            for ax, index, label in ((row[0], 0, "before"), (row[1], -1, "after")):
                g = 1e6 * arrays[first][index]
                image = ax.imshow(g, aspect="auto", vmin=low, vmax=high, cmap="viridis", interpolation="none")
                ax.set(title=f"{name}: {first} {label} training", xlabel="input", ylabel="unit")
            ax.figure.colorbar(image, ax=row[1], label="µS")
            drawn = [(first, 0, "before", "0.5")]
            drawn += [(array, -1, "after", ARRAYS[k % len(ARRAYS)]) for k, array in enumerate(arrays)]
            for array, index, label, colour in drawn:
                g = 1e6 * arrays[array][index].ravel()
                row[2].hist(g, bins, histtype="step", color=colour, label=f"{array} {label}")
            row[2].set(xlabel="conductance (µS)", ylabel="cells", yscale="log")
            row[2].legend(frameon=False, fontsize=8)


def programmed_scatter(path: Path, arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """Weight read against weight asked for, right after programming."""
    with figure(path, 1, len(arrays), (4.2 * len(arrays), 4)) as axes:
        for ax, (name, pair) in zip(axes[0], arrays.items(), strict=True):
            target, read = pair["target"].ravel(), pair["read"].ravel()
            shown = np.linspace(0, target.size - 1, min(target.size, 8000)).astype(int)
            ax.plot(target[shown], read[shown], ".", ms=2, alpha=0.3, color=FREE)
            ends = [target.min(), target.max()]
            ax.plot(ends, ends, color="0.3", lw=0.8)
            ax.set(
                title=f"{name}: error {np.std(read - target):.2g} rms",
                xlabel="weight asked for",
                ylabel="weight read",
            )


def phase_noise(
    path: Path,
    accuracies: Mapping[str, Sequence[tuple[float, float]]],
    cosines: Mapping[str, Mapping[str, Sequence[float]]],
    betas: Sequence[float],
) -> None:
    """Test accuracy by beta of every method, (beta, %) pairs; and cosines over `betas`, predicted and measured."""
    with figure(path, 1, 2, (13, 5)) as axes:
        left, right = axes[0]
        for i, (name, points) in enumerate(accuracies.items()):
            left.semilogx(
                *zip(*points, strict=True), "osD^v"[i // 10 % 5] + "-", ms=4, color=f"C{i % 10}", label=name
            )
        left.set(xlabel="beta", ylabel="test accuracy (%)")
        left.legend(frameon=False, fontsize=6, loc="lower right")
        for i, (name, found) in enumerate(cosines.items()):
            right.semilogx(betas, found["predicted"], "-", color=f"C{i}", label=f"{name}: predicted")
            right.semilogx(betas, found["measured"], "o", color=f"C{i}", label="measured")
        right.set(xlabel="beta", ylabel="cosine to the gradient without noise", ylim=(0, 1.02))
        right.legend(frameon=False, fontsize=7)
