"""The pictures and the table of the presets; and the example in docs/devices.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import devices
from experiments import device_curves

DOCS = Path(__file__).parents[1] / "docs" / "devices.md"


def test_smoke(tmp_path):
    folder = device_curves.run(device_curves.Config(out=tmp_path / "run", smoke=True))
    assert (folder / "device_curves.png").stat().st_size > 10_000
    assert len((folder / "devices.md").read_text().splitlines()) == 2 + 3


def test_the_table_counts_the_pulses_across_the_window():
    text = device_curves.table({"six": devices.preset("levels-6bit"), "exact": devices.preset("ideal")})
    assert "| `six` | 1 to 100 | 63 | LevelPulses |" in text
    assert "| `exact` | 1 to 100 | programmed | exact |" in text


def test_the_document_has_the_table_of_all_presets():
    assert (
        device_curves.table({name: devices.preset(name) for name in devices.preset_names()})
        in DOCS.read_text()
    )


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="columns = 0; choose at least 1"):
        device_curves.Config(columns=0)


def test_the_worked_example_runs_and_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "class DomainPulses" in block)
    assert len([line for line in code.splitlines() if line.strip()]) < 25
    rng = torch.Generator().manual_seed(0)
    names = {"x": torch.randn(4, 784, generator=rng), "y": torch.randint(10, (4,), generator=rng)}
    exec(code, names)
    assert names["chip"].pulses_per_device > 0
    again = devices.load("domains.json", own_types=[names["DomainPulses"]])
    assert again == names["cell"]
