"""The picture of what an `EPMonitor` saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mep_sim.metrics import EpochMetrics

FREE, NUDGED, ALL = "#4878a8", "#d1603d", "0.2"
COLOURS = {"loss": FREE, "energy gap": NUDGED, "free": FREE, "nudged": NUDGED, "all": ALL, "overall": ALL}
LABELLED = 8  # lines at most; a legend of more hides them


@dataclass(frozen=True)
class Panel:
    """Lines by name, read from every epoch; `limit`: a value to stay above."""

    title: str
    read: Callable[[EpochMetrics], Mapping[str, float]]
    log: bool = False
    limit: float | None = None

    def lines(self, epochs: Sequence[EpochMetrics]) -> dict[str, list[float]]:
        """Those with something to show, nan where an epoch has nothing."""
        seen = [self.read(metrics) for metrics in epochs]
        lines = {
            name: [self._shown(values.get(name, math.nan)) for values in seen]
            for name in dict.fromkeys(name for values in seen for name in values)
        }
        return {name: line for name, line in lines.items() if not all(map(math.isnan, line))}

    def _shown(self, value: float) -> float:
        return value if math.isfinite(value) and (value > 0 or not self.log) else math.nan

    def draw(self, ax: Axes, lines: Mapping[str, Sequence[float]]) -> None:
        for i, (name, line) in enumerate(lines.items()):
            colour = COLOURS.get(name, colormaps["viridis"](0.9 * i / max(len(lines) - 1, 1)))
            ax.plot(range(1, len(line) + 1), line, "o-", ms=3, color=colour, label=name)
        if self.limit is not None:
            ax.axhline(self.limit, color="0.3", lw=0.8, ls="--")
        if len(lines) <= LABELLED:
            ax.legend(frameon=False, fontsize=8)
        ax.set(title=self.title, xlabel="epoch", yscale="log" if self.log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)


def draw(epochs: Sequence[EpochMetrics], settled_threshold: float, snr_threshold: float) -> Figure:
    """A panel for everything that was measured in some epoch."""
    panels = (
        Panel("cost", lambda m: {"loss": m.loss, "energy gap": m.energy_gap}),
        Panel(
            "relative residual", lambda m: {"free": m.free_residual, "nudged": m.nudged_residual}, log=True
        ),
        Panel(
            "share settled",
            lambda m: {"free": m.free_settled, "nudged": m.nudged_settled, "all": m.settled},
            limit=settled_threshold,
        ),
        Panel(
            "nudge over noise",
            lambda m: {f"layer {i}": ratio for i, ratio in enumerate(m.snr, start=1)},
            log=True,
            limit=snr_threshold,
        ),
        Panel("operator norm", lambda m: m.sigma),
        Panel("certified margin", lambda m: {"margin": m.margin}, limit=0.0),
        Panel(
            "cosine to the exact gradient",
            lambda m: {} if m.cosine is None else {"overall": m.cosine.overall, **m.cosine.layers},
        ),
    )
    filled = [(panel, lines) for panel in panels if (lines := panel.lines(epochs))]
    columns = min(len(filled), 4)
    rows = -(-len(filled) // columns)
    # a Figure of its own, without pyplot: nothing global, and it draws without a display
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    for position, (panel, lines) in enumerate(filled, start=1):
        panel.draw(figure.add_subplot(rows, columns, position), lines)
    return figure
