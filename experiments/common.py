"""What all experiments share: their options, how they are launched, and the table they end with."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mep_sim.settling import SettlingError

# a pipe has no width to fit a table in; what is printed names paths, whose brackets are no markup
console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False)
C = TypeVar("C", bound="Options")


@dataclass(frozen=True)
class Options:
    """Options of every experiment."""

    out: Path | None = None
    """Folder of this run; by default a new one under runs/."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Networks of this size gain little from more, and stall where cores are shared."""
    smoke: bool = False
    """A run of seconds that touches everything and shows nothing."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the checkpoint in --out."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device = {self.device!r}; choose cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device = 'cuda', but torch finds no CUDA device; use --device cpu")
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}; use at least 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed}; choose 0 <= seed < 2**31")
        if self.resume and self.out is None:
            raise ValueError("--resume needs the --out folder of the run to go on with")

    def identity(self) -> dict:
        """What decides the results, in plain types: what a resumed run must share."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("out", "resume")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def folder(self, name: str) -> Path:
        return self.out or Path("runs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def launch(config: type[C], run: Callable[[C], object]) -> None:
    """Read the command line into `config` and run; what a user got wrong ends in one line and exit code 2."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    try:
        options = _parse(config)
        torch.set_num_threads(options.threads)
        run(options)
    except (ValueError, OSError, SettlingError) as error:
        console.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; --resume goes on from the last checkpoint")
        sys.exit(130)


def _parse(config: type[C]) -> C:
    """The command line as `config`, which tyro reads unchecked: it would put our errors into a box of its own."""
    unchecked = type(
        config.__name__, (config,), {"__post_init__": lambda _: None, "__module__": config.__module__}
    )
    return config(**vars(tyro.cli(unchecked, description=sys.modules[config.__module__].__doc__)))


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def progress_bars() -> Progress:
    """Bars with the time left, on a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def print_table(title: str, rows: Sequence[Mapping[str, object]], formats: Mapping[str, str]) -> None:
    """Print rows; `formats` maps each column to a format spec. What is None or nan shows as a dash."""
    table = Table(title=title, title_justify="left")
    for column in formats:
        words = formats[column] == ""
        table.add_column(column, justify="left" if words else "right", no_wrap=words, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column), spec) for column, spec in formats.items()))
    console.print(table)


def _cell(value: object, spec: str) -> str:
    return "-" if value is None or value != value else format(value, spec)
