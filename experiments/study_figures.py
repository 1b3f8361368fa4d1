"""The figures of a device study, drawn from its summary: one line per device and grid settings, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes

from experiments.figures import figure

Line = Mapping[str, object]
AXES = ("device", "bits", "read_noise", "spread", "update")
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
        ax.set(xlabel=label, ylabel="test accuracy (%)")
        ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def ranking(path: Path, chips: Sequence[Line], digital: Sequence[Line]) -> None:
    """Technologies by their accuracy, best on top, with 95 % intervals."""
    with figure(path, 1, 1, (8, 1.4 + 0.24 * len(chips))) as axes:
        ax: Axes = axes[0, 0]
        places = range(len(chips))
        colours = _by_update(chips)
        for place, line in zip(places, chips, strict=True):
            accuracy, half = 100 * line["accuracy"], _half(line, "accuracy")
            ax.errorbar(accuracy, place, xerr=half, fmt="o", ms=4, capsize=2, color=colours[line["update"]])
        _mark_digital(digital, ax.axvline)
        ax.set(xlabel="test accuracy (%)", ylim=(len(chips) - 0.4, -0.6))
        ax.set_yticks(places, [name_of(line) for line in chips], fontsize=8)
        ax.grid(axis="y", lw=0.3)
        ax.legend(frameon=False, fontsize=7)


def costs_of(path: Path, chips: Sequence[Line], costs: Sequence[str]) -> None:
    """What training took of every technology, most accurate on top."""
    with figure(path, 1, len(costs), (3 + 4.5 * len(costs), 1.4 + 0.24 * len(chips))) as axes:
        colours = _by_update(chips)
        for ax, cost in zip(axes[0], costs, strict=True):
            places = [place for place, line in enumerate(chips) if line.get(cost) is not None]
            values = [chips[place][cost] for place in places]
            ax.barh(places, values, color=[colours[chips[place]["update"]] for place in places], height=0.7)
            if any(value > 0 for value in values):
                ax.set_xscale("log")
            ax.set(xlabel=COSTS[cost], ylim=(len(chips) - 0.4, -0.6))
        axes[0, 0].set_yticks(range(len(chips)), [name_of(line) for line in chips], fontsize=8)
        for ax in axes[0, 1:]:
            ax.set_yticks([])


def _by_update(chips: Sequence[Line]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(line["update"] for line in chips), cycle(COLOURS), strict=False))
