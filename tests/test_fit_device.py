"""From a measurement to a preset file that experiments take, and the errors of the command line."""

from __future__ import annotations

import json
import sys

import pytest

import devices
from devices import MemoryCell, SoftBoundsPulses
from experiments import crossbar_mnist
from experiments.common import launch
from experiments.fit_device import COLUMNS, Config, run
from experiments.pulse_csv import write_csv
from experiments.pulse_data import measure


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    return out, run(Config(smoke=True, out=out))


def test_smoke_leaves_every_file(smoke):
    out, _ = smoke
    names = {
        "config.json",
        "results.json",
        "finished",
        "fitted.json",
        "simulated.csv",
        "curves.png",
        "steps.png",
    }
    assert {file.name for file in out.iterdir()} == names
    for name in ("curves.png", "steps.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert (out / name).stat().st_size > 20_000


def test_smoke_tells_all_families_apart(smoke):
    """The measured cell has 40 soft-bounds steps with 20 % noise, read twice with 0.2 % noise of 60 uS."""
    rows = json.loads((smoke[0] / "results.json").read_text())["rows"]
    assert [row["family"].split(" of ")[0] for row in rows] == [
        "constant",
        "linear",
        "soft bounds",
        "exponential",
        "power",
        "table",
    ]
    assert set(COLUMNS) <= set(rows[0])
    assert [row["family"] for row in rows if row["chosen"]] == ["soft bounds"]
    assert min(row["BIC - best"] for row in rows) == 0


def test_the_preset_is_taken_by_path(smoke):
    out, results = smoke
    cell = crossbar_mnist.Config(cell=str(out / "fitted.json")).memory_cell()
    assert cell == results["cell"] == devices.load(out / "fitted.json")
    assert isinstance(cell.pulses, SoftBoundsPulses)
    assert cell.pulses.sigma_c2c == pytest.approx(0.2, rel=0.15)
    assert cell.read_noise.sigma_relative * (cell.g_max_siemens - cell.g_min_siemens) == pytest.approx(
        0.002 * 60e-6, rel=0.15
    )
    assert "fitted to simulation" in cell.source


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["fit_device", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        launch(Config, run)
    last = capsys.readouterr().out.splitlines()[-1]
    assert end.value.code == 2
    assert last.startswith("error: ")
    return last


def test_what_is_wrong_ends_in_one_line(monkeypatch, capsys, tmp_path):
    def line(text: str) -> str:
        path = tmp_path / "pulses.csv"
        path.write_text("pulse,direction,conductance_siemens\n" + text)
        return refused(monkeypatch, capsys, path, "--out", tmp_path / "run")

    assert "give the CSV file" in refused(monkeypatch, capsys)
    assert "branch = 20 without a file" in refused(monkeypatch, capsys, "--smoke", "--branch", 20)
    assert "No such file" in refused(monkeypatch, capsys, tmp_path / "nowhere.csv")
    assert "line 3: pulse 5 after pulse 1" in line("1,up,1e-6\n5,up,2e-6\n")
    assert "The likely unit is conductance_uS" in line("1,up,25\n2,up,26\n")
    ramp = "".join(f"{k},up,{k + 1}e-6\n" for k in range(20))
    assert "no depression data" in line(ramp)
    assert "too few" in line("0,0,1e-6\n1,up,2e-6\n2,down,1e-6\n")
    assert not (tmp_path / "run").exists()


def test_a_changed_file_is_another_run(tmp_path):
    path = tmp_path / "pulses.csv"
    write_csv(measure(MemoryCell(5e-6, 65e-6, pulses=SoftBoundsPulses(20)), pulses=12), path)
    before = Config(csv=path).identity()
    path.write_text(path.read_text() + "\n")
    assert Config(csv=path).identity()["csv_sha256"] != before["csv_sha256"]
