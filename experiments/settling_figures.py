"""The pictures of how resistive networks come to rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from experiments.figures import FREE, NUDGED, figure
from experiments.settling_times import Point
from experiments.settling_transients import Descent, Overlay

NODES = 6  # drawn
LEAST_VOLTS, LEAST_WATTS = (
    1e-12,
    1e-17,
)  # a logarithm has no zero; below are rounding errors of the co-content


def overlay(path: Path, found: Overlay) -> None:
    """Left: the nodes that move most and one in between, by the judge (dots) and the accurate integration (lines).
    Right: the largest difference of any node to the judge, over time, of every integration."""
    ns = 1e9 * found.seconds
    judge = found.volts[found.judge]
    ours = found.volts[next(iter(found.volts))]
    order = judge[-1].argsort()
    chosen = order[torch.linspace(0, len(order) - 1, NODES).long()]
    with figure(path, 1, 2, (11, 4)) as axes:
        left, right = axes[0]
        for k, node in enumerate(chosen.tolist()):
            left.semilogx(ns[1:], 1e3 * ours[1:, node], color=f"C{k}", lw=1.2)
            left.semilogx(ns[1::3], 1e3 * judge[1::3, node], ".", color=f"C{k}", ms=5)
        left.set(xlabel="time (ns)", ylabel="node voltage (mV)", title=f"dots: {found.judge}, lines: tr_bdf2")
        for name in found.volts:
            if name != found.judge:
                difference = found.difference(name)[1:].clamp(min=LEAST_VOLTS)
                right.loglog(ns[1:], difference, label=name)
        right.set(xlabel="time (ns)", ylabel=f"max |V - V of {found.judge}| over nodes (V)")
        right.legend(frameon=False)


def descent(path: Path, found: Descent) -> None:
    """Left: co-content above where each phase ends, sample by sample, which only falls. Right: heat of each layer,
    the mean over samples, over what it is in the free equilibrium. Free, and then nudged from there."""
    ns = 1e9 * found.seconds
    free, nudged = found.phases
    with figure(path, 1, 2, (11, 4)) as axes:
        left, right = axes[0]
        for name, colour, phase in (("free", FREE, free), ("nudged", NUDGED, nudged)):
            above = found.energy[phase] - found.energy[phase][-1]
            since = ns[phase] - ns[phase][0]
            lines = left.loglog(since[1:-1], above[1:-1].clamp(min=LEAST_WATTS), color=colour, lw=0.8)
            lines[0].set_label(name)
        left.set(xlabel="time since the phase began (ns)", ylabel="co-content above its end (W)")
        left.legend(frameon=False)
        for layer, heat in enumerate(found.heat.T, start=1):
            settled = heat[found.nudged_from - 1]
            right.plot(ns, heat / settled, label=f"layer {layer}: {1e6 * settled:.3g} µW at rest")
        right.axvline(ns[found.nudged_from], color="0.7", lw=0.8)
        right.set(xlabel="time (ns); nudged from the line on", ylabel="heat over heat at rest")
        right.legend(frameon=False)


def times(path: Path, panels: Mapping[str, Sequence[Point]], tolerance: float) -> None:
    """Settling time against what each panel is named for: medians, and the middle 80 % over samples and seeds."""
    with figure(path, 1, len(panels), (4.3 * len(panels), 3.8)) as axes:
        for ax, (label, points) in zip(axes[0], panels.items(), strict=True):
            for k, series in enumerate(dict.fromkeys(point.series for point in points)):
                mine = [point for point in points if point.series == series]
                at = [point.at for point in mine]
                low, median, high = zip(*(point.nanoseconds for point in mine), strict=True)
                ax.fill_between(at, low, high, color=f"C{k}", alpha=0.2, lw=0)
                ax.plot(at, median, "o-", ms=4, color=f"C{k}", label=series)
            ax.set(xlabel=label, ylim=(0, None))
            ax.legend(frameon=False)
        axes[0, 0].set_ylabel(f"settling time of the outputs to {tolerance:g} (ns)")


def race(path: Path, rows: Sequence[Mapping[str, object]], column: str) -> None:
    """Time a sample against the largest error, of every solver that settled, a panel for every kind of diode."""
    kinds = list(dict.fromkeys(row["diodes"] for row in rows))
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    with figure(path, 1, len(kinds), (4.3 * len(kinds), 4.2)) as axes:
        for ax, kind in zip(axes[0], kinds, strict=True):
            for row in rows:
                if row["diodes"] == kind and column in row:
                    k = solvers.index(row["solver"])
                    error = max(row["max error (V)"], LEAST_VOLTS)
                    ax.loglog(row[column], error, "os^Dv*"[k % 6], color=f"C{k}", label=row["solver"])
            ax.set(title=f"{kind} diodes", xlabel=f"{column.replace('ms/sample', 'time per sample (ms)')}")
            ax.legend(frameon=False, fontsize=7)
        axes[0, 0].set_ylabel("largest error of a node (V)")
