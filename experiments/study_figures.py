"""The figures of a device study, drawn from its summary: one line per device and grid settings, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.figures import figure

Line = Mapping[str, object]
AXES = ("device", "bits", "read_noise", "spread", "update")
TECHNOLOGY = ("device", "update")
COLOURS = ("#4878a8", "#d1603d", "#5a9e6f", "#8c6bb1", "#c9a227", "#7f7f7f", "#3fb0ac", "#b5527f")
MARKERS = "osD^v<>P*X"
COSTS = {"pulses": "pulses per cell", "energy": "energy (J)"}


def draw(folder: Path, summary: Sequence[Line]) -> None:
    """All figures that this grid has data for, as PNGs in `folder`."""
    chips = [line for line in summary if line["device"] != "digital" and "accuracy" in line]
    digital = [line for line in summary if line["device"] == "digital" and "accuracy" in line]
    if not chips:
        return
    ranking(folder / "ranking.png", chips, digital)
    costs = [cost for cost in COSTS if any(line.get(cost) is not None for line in chips)]
    if costs:
        costs_of(folder / "costs.png", chips, costs)
    if any(line.get("steps") is not None for line in chips):
        against(
            folder / "bits.png", chips, digital, "bits", _resolution, "log2(pulses across the window + 1)"
        )
    for axis, label in (
        ("read_noise", "read noise over the window (%)"),
        ("spread", "device-to-device spread of the step (%)"),
    ):
        if len({line[axis] for line in chips} - {None}) > 1:
            against(folder / f"{axis}.png", chips, digital, axis, _share(axis), label)


def _resolution(line: Line) -> float | None:
    return None if line.get("steps") is None else math.log2(line["steps"] + 1)


def _share(axis: str) -> Callable[[Line], float | None]:
    return lambda line: None if line[axis] is None else 100 * line[axis]


def name_of(line: Line, axes: Sequence[str] = AXES) -> str:
    """A line's settings in words, leaving out what is the device's own."""
    words = {
        "device": "{}",
        "bits": "{} bits",
        "read_noise": "{:.3g} noise",
        "spread": "{:.3g} spread",
        "update": "{}",
    }
    names = {**line, "device": Path(line["device"]).stem}
    return ", ".join(words[axis].format(names[axis]) for axis in axes if names[axis] is not None)


def _half(line: Line, name: str) -> float:
    half = line.get(f"{name}_half", math.nan)
    return 0.0 if math.isnan(half) else 100 * half


def _mark_digital(digital: Sequence[Line], draw_line: Callable[..., object]) -> None:
    for line, style in zip(digital, cycle(("--", ":", "-.")), strict=False):
        name = f"digital, {line['update']}"
        draw_line(100 * line["accuracy"], color="0.4", lw=1, ls=style, label=name, zorder=0)


def against(
    path: Path,
    chips: Sequence[Line],
    digital: Sequence[Line],
    axis: str,
    position: Callable[[Line], float | None],
    label: str,
) -> None:
    """Accuracy against one axis of the grid; lines join what differs along it alone."""
    curves: dict[str, list[Line]] = {}
    for line in chips:
        if position(line) is not None:
            curves.setdefault(name_of(line, [name for name in AXES if name != axis]), []).append(line)
    with figure(path, 1, 1, (9, max(4.0, 0.22 * len(curves)))) as axes:
        ax: Axes = axes[0, 0]
        looks = cycle((colour, marker) for marker in MARKERS for colour in COLOURS)
        for (name, lines), (colour, marker) in zip(curves.items(), looks, strict=False):
            lines = sorted(lines, key=position)
            ax.errorbar(
                [position(line) for line in lines],
                [100 * line["accuracy"] for line in lines],
                [_half(line, "accuracy") for line in lines],
                color=colour,
                marker=marker,
                ms=4,
                lw=1,
                capsize=2,
                label=name,
            )
        _mark_digital(digital, ax.axhline)
        ax.set(xlabel=label, ylabel="test accuracy (%)", ylim=_limits([*chips, *digital]))
        ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def ranking(path: Path, chips: Sequence[Line], digital: Sequence[Line]) -> None:
    """Technologies and update rules by their best accuracy; a dot with its 95 % interval for each point of the grid."""
    names = _places(chips)
    with figure(path, 1, 1, (8, 1.4 + 0.26 * len(names))) as axes:
        ax: Axes = axes[0, 0]
        colours = _by_update(chips)
        for line in chips:
            ax.errorbar(
                100 * line["accuracy"],
                names[name_of(line, TECHNOLOGY)],
                xerr=_half(line, "accuracy"),
                fmt="o",
                ms=4,
                lw=1,
                capsize=2,
                color=colours[line["update"]],
            )
        _mark_digital(digital, ax.axvline)
        means = [100 * line["accuracy"] for line in [*chips, *digital]]
        # spaced by the logarithm of the error, or one technology that fails would hide how the others differ
        ax.set_xscale(
            "function", functions=(lambda a: -np.log10(np.maximum(100 - a, 1e-3)), lambda b: 100 - 10**-b)
        )
        left, right = min(means) - 0.2 * (100 - min(means)), max(means) + 0.2 * (100 - max(means))
        ax.set(xlabel="test accuracy (%)", xlim=(left, right))
        ax.set_xticks([tick for tick in TICKS if left < tick < right])
        ax.minorticks_off()
        _label(ax, list(names))
        ax.legend(frameon=False, fontsize=7)


def costs_of(path: Path, chips: Sequence[Line], costs: Sequence[str]) -> None:
    """What training took of every technology, the most accurate on top; a dot for each point of the grid."""
    names = _places(chips)
    with figure(path, 1, len(costs), (3.5 + 4.5 * len(costs), 1.4 + 0.26 * len(names))) as axes:
        colours = _by_update(chips)
        for ax, cost in zip(axes[0], costs, strict=True):
            for line in chips:
                if line.get(cost):
                    place = names[name_of(line, TECHNOLOGY)]
                    ax.plot(line[cost], place, "o", ms=4, color=colours[line["update"]])
            ax.set(xlabel=COSTS[cost], xscale="log")
            _label(ax, list(names) if ax is axes[0, 0] else [""] * len(names))


TICKS = (0, 10, 50, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 99.5)  # of accuracies in percent


def _places(chips: Sequence[Line]) -> dict[str, int]:
    """Technologies and update rules, each with its row, in the order they come in."""
    names = dict.fromkeys(name_of(line, TECHNOLOGY) for line in chips)
    return {name: place for place, name in enumerate(names)}


def _label(ax: Axes, names: Sequence[str]) -> None:
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.grid(axis="y", lw=0.3)


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    """Of accuracies in percent: all means are seen, wide intervals of few seeds are cut off."""
    means = [100 * line["accuracy"] for line in lines]
    margin = max(0.5, 0.15 * (max(means) - min(means)))
    return min(means) - margin, max(means) + margin


def _by_update(chips: Sequence[Line]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(line["update"] for line in chips), cycle(COLOURS), strict=False))
