"""The figures of continual learning: accuracy by task, its mean over the tasks seen, and what weights matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from experiments.figures import figure
from experiments.seeds import mean_and_half
from experiments.study_figures import COLOURS
from mep_sim.continual import AccuracyMatrix

WRITTEN_UP_TO = 5  # tasks whose numbers have room in the cells
DECADES = 6  # of importance below the largest that colours tell apart
LABEL_GAP = 0.055  # between the names of two curves, as a share of the axis


def matrices(path: Path, methods: Mapping[str, AccuracyMatrix | np.ndarray]) -> None:
    """Of each method, the accuracy on every task (columns) after each task learned (rows): R (T, T) in [0, 1], of a
    run or the mean of several."""
    if not methods:
        raise ValueError("no methods to draw; give at least one")
    with figure(path, 1, len(methods), (1.2 + 2.6 * len(methods), 3.1)) as axes:
        for ax, (name, matrix) in zip(axes[0], methods.items(), strict=True):
            percent = 100 * np.asarray(matrix.accuracy if isinstance(matrix, AccuracyMatrix) else matrix)
            ends = 0.5, len(percent) + 0.5
            image = ax.imshow(percent, vmin=0, vmax=100, cmap="viridis", extent=(*ends, *ends[::-1]))
            ax.set(xlabel="accuracy on task")
            ax.set_title(name, fontsize=10)
            ax.spines[:].set_visible(False)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
                axis.set_tick_params(length=0)
            if len(percent) <= WRITTEN_UP_TO:
                for (i, j), value in np.ndenumerate(percent):
                    colour = "white" if value < 60 else "black"
                    ax.text(j + 1, i + 1, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
        axes[0, 0].set(ylabel="after task")
        axes[0, 0].figure.colorbar(image, ax=axes[0], label="accuracy (%)", shrink=0.85)


def curves(path: Path, methods: Mapping[str, Sequence[AccuracyMatrix]]) -> None:
    """Of each method, the average accuracy over the tasks seen so far: mean over seeds and its 95 % interval."""
    if not methods or not all(methods.values()):
        raise ValueError("no methods to draw, or one without seeds; give at least one seed of each")
    with figure(path, 1, 1, (6.5, 4)) as axes:
        ax: Axes = axes[0, 0]
        ends = []
        for (name, seeds), colour in zip(methods.items(), cycle(COLOURS), strict=False):
            averages = [[100 * m.average_after(i) for i in range(m.tasks)] for m in seeds]
            mean, half = np.array([mean_and_half(at) for at in zip(*averages, strict=True)]).T
            learned = np.arange(1, len(mean) + 1)
            ax.plot(learned, mean, "o-", ms=3, lw=1.5, color=colour)
            ax.fill_between(learned, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
            ends.append((mean[-1], learned[-1], name, colour))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="tasks learned", ylabel="average accuracy over the tasks seen (%)")
        _name(ax, sorted(ends))


def _name(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside the ends (y, x) of curves, in rising order, moved as little as it takes to stand apart."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    apart = LABEL_GAP * (high - low) * np.arange(len(ends))
    heights = isotonic_regression(np.array([y for y, *_ in ends]) - apart) + apart
    for height, (_, x, name, colour) in zip(heights, ends, strict=True):
        ax.annotate(name, (x, height), (8, 0), textcoords="offset points", va="center", color=colour)


def importance(path: Path, layers: Sequence[tuple[str, Tensor, Tensor]], side: int | None = None) -> None:
    """Of each weight matrix its name, and the importance >= 0 and the conductance (S) of its cells, (out, in) each.

    side: of the square images that the first matrix reads, whose pixels are shown by the importance of all their
    cells; None for other inputs.
    """
    if not layers:
        raise ValueError("no layers to draw; give at least one")
    for name, weights, g in layers:
        if weights.ndim != 2 or weights.shape != g.shape:
            raise ValueError(
                f"{name}: importance of shape {tuple(weights.shape)} and conductance of shape {tuple(g.shape)}; "
                "give (out, in) for both"
            )
    if side is not None and side**2 != layers[0][1].shape[1]:
        raise ValueError(f"side = {side} for {layers[0][1].shape[1]} inputs; give their square root, or None")
    pictures = 2 if side is None else 3
    with figure(path, len(layers), pictures, (4 * pictures, 3 * len(layers))) as axes:
        for row, (name, weights, g) in zip(axes, layers, strict=True):
            *_, left, right = row
            values = weights.detach().double().cpu().numpy()
            _map(left, values, f"{name}: importance", norm=_log(values), cmap="magma")
            _map(right, 1e6 * g.detach().double().cpu().numpy(), f"{name}: conductance (µS)", cmap="viridis")
            for ax in (left, right):
                ax.set(xlabel="input", ylabel="unit")
        if side is not None:
            pixels = layers[0][1].detach().double().cpu().sum(0).view(side, side).numpy()
            _map(
                axes[0, 0], pixels, "importance, summed over units", "equal", norm=_log(pixels), cmap="magma"
            )
            axes[0, 0].set(xticks=(), yticks=())
            for ax in axes[1:, 0]:
                ax.set_axis_off()


def _map(ax: Axes, values: np.ndarray, title: str, aspect: str = "auto", **colours: object) -> None:
    image = ax.imshow(values, aspect=aspect, interpolation="nearest", **colours)
    ax.set_title(title, fontsize=10)
    ax.figure.colorbar(image, ax=ax)


def _log(values: np.ndarray) -> Normalize:
    """Logarithmic colours down to the least that is above zero, or so many decades; what is below has the lowest."""
    positive = values[values > 0]
    if not len(positive):
        return Normalize(0, 1)
    high = positive.max()
    return LogNorm(max(positive.min(), high / 10**DECADES), high, clip=True)
