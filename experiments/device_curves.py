"""Draw what every preset does: conductance against pulses, or against time and target where it has no pulses.

Leaves one picture, and one table of the presets in markdown for docs/devices.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes

import devices
from devices import Device
from experiments.common import Options, console, generator, launch
from experiments.figures import figure

CELLS, MOST_PULSES, POINTS = 200, 20_000, 120
DOWN, UP, BAND = "tab:red", "tab:blue", 0.2


@dataclass(frozen=True)
class Config(Options):
    """Draw the presets."""

    presets: tuple[str, ...] = ()
    """Names or device files; all presets by default."""
    columns: int = 4
    """Panels in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns < 1:
            raise ValueError(f"columns = {self.columns}; choose at least 1")


def run(config: Config) -> Path:
    """Write device_curves.png and devices.md into the folder, and return it."""
    names = config.presets or devices.preset_names()
    names = names[:3] if config.smoke else names
    cells = {Path(name).stem: devices.resolve(name) for name in names}
    folder = config.folder("device_curves")
    folder.mkdir(parents=True, exist_ok=True)
    rows = math.ceil(len(cells) / config.columns)
    size = (3.1 * config.columns, 2.3 * rows)
    with figure(folder / "device_curves.png", rows, config.columns, size) as axes:
        for ax in axes.flat[len(cells) :]:
            ax.axis("off")
        for ax, (name, cell) in zip(axes.flat, cells.items(), strict=False):
            panel = programmed if cell.step_siemens is None else pulsed
            panel(ax, cell, generator(config.seed))
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
        axes[0, 0].figure.supylabel("conductance (µS)")
    (folder / "devices.md").write_text(table(cells), encoding="utf-8")
    console.print(f"device_curves.png and devices.md are in {folder}", soft_wrap=True)
    return folder


def pulsed(ax: Axes, cell: Device, rng: torch.Generator) -> None:
    """Pulses across the window and back: one cell, and the middle 80 % of many. A one-sided cell only goes up."""
    across = math.ceil(1.5 * cell.window.span / cell.step_siemens)
    stride = max(math.ceil(min(max(across, 8), MOST_PULSES) / POINTS), 1)
    array = cell.fabricate((1, CELLS), rng, dtype=torch.float64)
    cell.program(array, torch.full_like(array.conductance, cell.g_min_siemens), rng)
    curve = [array.conductance[0].clone()]
    moves = max(across // stride, 2) if across <= MOST_PULSES else POINTS
    for sign in (1,) if cell.one_sided else (1, -1):
        for _ in range(moves):
            cell.pulse(array, torch.full((1, CELLS), sign * stride), rng)
            curve.append(array.conductance[0].clone())
    g = 1e6 * torch.stack(curve).numpy()
    pulses = stride * np.arange(len(g))
    low, middle, high = np.quantile(g, (0.1, 0.5, 0.9), axis=1)
    for part, colour in ((slice(0, moves + 1), UP), (slice(moves, None), DOWN)):
        ax.fill_between(pulses[part], low[part], high[part], color=colour, alpha=BAND, lw=0)
        ax.plot(pulses[part], middle[part], color=colour, lw=1.5)
        ax.plot(pulses[part], g[part, 0], color=colour, lw=0.5)
    ax.set_xlabel("pulses", fontsize=7)


def programmed(ax: Axes, cell: Device, rng: torch.Generator) -> None:
    """What is read right after programming, and a day later, over the targets: the mean and the middle 80 %."""
    # ends excluded: noise at the lower one is cut off at 0 S
    targets = torch.linspace(cell.g_min_siemens, cell.g_max_siemens, 12, dtype=torch.float64)
    array = cell.fabricate((len(targets), CELLS), rng, dtype=torch.float64)
    cell.program(array, targets[:, None].expand(-1, CELLS).contiguous(), rng)
    for seconds, colour, label in ((0.0, UP, "at once"), (86400.0, DOWN, "after a day")):
        g = 1e6 * cell.read(array, rng, seconds).numpy()
        low, middle, high = np.quantile(g, (0.1, 0.5, 0.9), axis=1)
        ax.fill_between(1e6 * targets.numpy(), low, high, color=colour, alpha=BAND, lw=0)
        ax.plot(1e6 * targets.numpy(), middle, color=colour, lw=1.2, label=label)
    ax.legend(frameon=False, fontsize=6)
    ax.set_xlabel("target (µS)", fontsize=7)


def table(cells: dict[str, Device]) -> str:
    """The presets as a markdown table."""
    lines = [
        "| preset | window µS | pulses across | what moves and blurs it | source |",
        "|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        low, high = 1e6 * cell.g_min_siemens, 1e6 * cell.g_max_siemens
        step = cell.step_siemens
        pulses = "programmed" if step is None else f"{1e-6 * (high - low) / step:.4g}"
        parts = [
            getattr(cell, part, None)
            for part in ("pulses", "write_noise", "programming", "read_noise", "drift", "faults")
        ]
        kinds = ", ".join(type(part).__name__ for part in parts if part is not None)
        lines.append(
            f"| `{name}` | {low:.3g} to {high:.3g} | {pulses} | {kinds or 'exact'} | {cell.source} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch(Config, run)
