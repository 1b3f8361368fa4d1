"""What all experiments share: options checked at once, launched with one line for what went wrong, tables."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiments.common import Options, generator, launch, print_table
from mep_sim.settling import SettlingError


@dataclass(frozen=True)
class Config(Options):
    """An experiment of one number."""

    beta: float = 0.1
    sizes: tuple[int, ...] = (3, 2)


def launched(monkeypatch, run, *arguments: str) -> int:
    """The exit code of `python -m experiment *arguments`, 0 where it just returns."""
    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    try:
        launch(Config, run)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "choose cpu or cuda"),
        ({"threads": 0}, "at least 1"),
        ({"seed": -1}, "0 <= seed"),
        ({"seed": 2**31}, "seed < "),
        ({"resume": True}, "--out"),
    ],
)
def test_options_out_of_range_name_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="no CUDA device; use --device cpu"):
        Options(device="cuda")


def test_identity_is_what_decides_the_results():
    one = Config(out=Path("here"))
    assert one.identity() == Config(out=Path("there"), resume=True).identity()
    assert one.identity()["sizes"] == [3, 2]  # as JSON gives it back
    for change in ({"seed": 1}, {"beta": 0.2}, {"smoke": True}, {"threads": 2}):
        assert dataclasses.replace(one, **change).identity() != one.identity()


def test_folder_is_out_or_a_new_one_under_runs():
    assert Options(out=Path("mine")).folder("name") == Path("mine")
    assert Options().folder("name").parent == Path("runs/name")


def test_generator_repeats():
    one, again, other = (torch.rand(4, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_launch_reads_the_command_line(monkeypatch):
    seen = []
    line = "--beta 0.5 --sizes 4 3 2 --seed 7 --out folder --resume"
    assert launched(monkeypatch, seen.append, *line.split()) == 0
    assert seen == [Config(beta=0.5, sizes=(4, 3, 2), seed=7, out=Path("folder"), resume=True)]


def test_launch_refuses_an_option_it_does_not_know(monkeypatch, capsys):
    assert launched(monkeypatch, print, "--gama", "2") == 2
    assert "--gama" in "".join(capsys.readouterr())


@pytest.mark.parametrize("error", [ValueError, FileExistsError, PermissionError, SettlingError])
def test_launch_ends_a_users_error_in_one_line(monkeypatch, capsys, error):
    message = "[bold]/a[/] :smile: in [0, 1) " + 30 * "and long "  # neither markup nor wrapped

    def run(_config):
        raise error(message)

    assert launched(monkeypatch, run) == 2
    assert capsys.readouterr().out == f"error: {message}\n"


def test_launch_ends_an_interrupt_with_the_way_to_go_on(monkeypatch, capsys):
    def run(_config):
        raise KeyboardInterrupt

    assert launched(monkeypatch, run) == 130
    assert "--resume" in capsys.readouterr().out


def test_launch_hides_no_bug(monkeypatch):
    def run(_config):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        launched(monkeypatch, run)


def test_table_formats_cells_and_dashes_what_is_not_there(capsys):
    full, sparse = {"learner": "[EP]", "accuracy": 0.5, "residual": 1e-6}, {"learner": "backprop"}
    formats = {"learner": "", "accuracy": ".1%", "residual": ".1e"}
    print_table("title", [full, {**sparse, "residual": float("nan")}], formats)
    cells = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["", "[EP]", "50.0%", "1.0e-06", ""] in cells
    assert ["", "backprop", "-", "-", ""] in cells
