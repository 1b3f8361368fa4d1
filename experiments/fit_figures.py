"""The pictures of a fit: curves over pulses, steps over conductance, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.figures import FREE, NUDGED, figure
from experiments.fitting import Fit
from experiments.pulse_data import PulseData

_POINTS = 2000  # of a cloud, at most


def _style(best: bool) -> dict[str, object]:
    """Of a family's line: the chosen one stands out."""
    return {"lw": 2.2, "color": NUDGED, "zorder": 3} if best else {"lw": 0.9, "zorder": 2}


def curves(path: Path, data: PulseData, fits: Sequence[Fit], chosen: Fit) -> None:
    """Conductance over pulses of the first device, with the curve that each family draws from the first reading
    without noise, and the residuals of that; all cycles of all devices on top of each other."""
    own = np.flatnonzero(data.device == 0)
    breaks = np.flatnonzero(~data.follows[own])
    with figure(path, 2, 2, (12, 6.4)) as axes:
        (along, every), (left, spread) = axes
        number = np.arange(len(own))
        along.plot(number, 1e6 * data.conductance[own], ".", ms=3, color="0.45", label="measured")
        for fit in fits:
            best = fit is chosen
            style = _style(best)
            model = np.full(len(own), np.nan)
            for part in np.split(number, breaks[1:]):
                run = own[part]
                model[part] = fit.free_running(data.conductance[run[0]], data.direction[run[1:]])
            along.plot(number, 1e6 * model, label=fit.family + (" (chosen)" if best else ""), **style)
            left.plot(number, 1e6 * (data.conductance[own] - model), **style)
        along.set(
            title=f"device {data.devices[0]}: every family from its first reading on, without noise",
            ylabel="conductance (µS)",
        )
        along.legend(frameon=False, fontsize=7)
        left.axhline(0, color="0.6", lw=0.6)
        left.set(title="measured minus model (errors add up)", xlabel="reading", ylabel="µS")
        branches = []
        for device in range(len(data.devices)):
            for cycle in np.unique(data.cycle[data.device == device]):
                at = np.flatnonzero((data.device == device) & (data.cycle == cycle))
                branches.append(1e6 * data.conductance[at])
                every.plot(branches[-1], lw=0.6, color=FREE, alpha=0.5)
        every.set(title="all cycles of all devices", xlabel="reading of the cycle", ylabel="conductance (µS)")
        shortest = min(map(len, branches))
        together = np.stack([branch[:shortest] for branch in branches])
        spread.plot(together.std(0, ddof=1) if len(together) > 1 else np.zeros(shortest), color=FREE)
        spread.set(
            title="their standard deviation", xlabel="reading of the cycle", ylabel="µS", ylim=(0, None)
        )


def steps(path: Path, data: PulseData, fits: Sequence[Fit], chosen: Fit) -> None:
    """Steps over conductance, up and down, with the means of all families and the spread of the chosen one; its
    residuals; and how these compare with the spread that was fitted."""
    s = data.steps
    place, size = 1e6 * s.before, 1e6 * (s.after - s.before)
    some = np.zeros(len(place), dtype=bool)
    some[np.linspace(0, len(place) - 1, min(len(place), _POINTS)).astype(int)] = True
    with figure(path, 2, 3, (13, 6.6)) as axes:
        for column, (up, word) in enumerate(((True, "potentiation"), (False, "depression"))):
            over, under = axes[:, column]
            own = s.up == up
            order = np.flatnonzero(own)[np.argsort(place[own])]
            over.plot(place[own & some], size[own & some], ".", ms=3, alpha=0.4, color="0.5")
            for fit in fits:
                best = fit is chosen
                g, mean = _mean_by_place(place[order], 1e6 * fit.mean[order])
                label = fit.family + (" (chosen)" if best else "")
                over.plot(g, mean, label=label, **_style(best))
            over.set(title=word, ylabel="step (µS)")
            residual, sd = 1e6 * chosen.residual, 1e6 * chosen.sd
            under.plot(place[own & some], residual[own & some], ".", ms=3, alpha=0.4, color="0.5")
            for sign in (-1, 1):
                g, band = _mean_by_place(place[order], sd[order])
                under.plot(g, sign * band, color=NUDGED, lw=1.2, label="fitted spread" if sign > 0 else None)
            under.axhline(0, color="0.6", lw=0.6)
            under.set(xlabel="conductance before the pulse (µS)", ylabel="step minus mean (µS)")
            under.legend(frameon=False, fontsize=7)
        axes[0, 0].legend(frameon=False, fontsize=7)
        z = chosen.residual / chosen.sd
        shape, by_cycle = axes[:, 2]
        bins = np.linspace(-4, 4, 41)
        shape.hist(z.clip(-4, 4), bins, density=True, color=FREE, alpha=0.6, label="residuals")
        shape.plot(bins, np.exp(-0.5 * bins**2) / np.sqrt(2 * np.pi), color=NUDGED, label="normal")
        shape.set(title=f"residuals of {chosen.family} over their spread")
        shape.legend(frameon=False, fontsize=7)
        cycles = np.unique(s.cycle)
        relative = [np.sqrt(np.mean(z[s.cycle == cycle] ** 2)) for cycle in cycles]
        by_cycle.bar(cycles + 1, relative, color=FREE, alpha=0.6)
        by_cycle.axhline(1, color=NUDGED, lw=1.2)
        by_cycle.set(
            title="spread of each cycle over that of the fit",
            xlabel="cycle",
            xticks=cycles[:: -(-len(cycles) // 10)] + 1,
        )


def _mean_by_place(place: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over up to 25 groups of neighbours in `place` (n,), ascending: devices differ, a line should not zigzag."""
    groups = [part for part in np.array_split(np.arange(len(place)), min(25, len(place))) if len(part)]
    return np.array([place[part].mean() for part in groups]), np.array(
        [value[part].mean() for part in groups]
    )
