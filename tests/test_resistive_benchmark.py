"""The benchmark of resistive networks, end to end at its smoke size."""

import pytest

from circuits import ngspice
from experiments.benchmarks import resistive
from tests.test_benchmarks import check_run


def test_every_rival_finds_the_same_voltages(tmp_path):
    config = resistive.Config(out=tmp_path, smoke=True, networks=("8-16-4",), errors=(5e-4,))
    rows = resistive.run(config)
    check_run(resistive, rows, tmp_path)
    finds = [row["find"] for row in rows]
    assert finds == ["rest"] * 4 + ["transient, 5e-04 V"]
    assert [row["type"] for row in rows[:2]] == ["float32", "float64"]
    assert rows[4]["dV"] <= 5e-4
    if ngspice.available():
        assert all(row["dV"] < 1e-6 and row["tight dV"] < 1e-7 for row in rows[:2])
        assert rows[4]["rival dV"] <= 5e-4


def test_without_ngspice_its_rows_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ngspice, "available", lambda: False)
    config = resistive.Config(out=tmp_path, smoke=True, networks=("8-16-4",), errors=())
    rows = resistive.run(config)
    assert [row["rival"] for row in rows[:2]] == ["ngspice: not installed"] * 2
    assert all(row["us"] > 0 and row["times"] is None for row in rows[:2])


@pytest.mark.parametrize(
    "setting", [{"networks": ("3-2",)}, {"batch": 0}, {"small_batch": 0}, {"rounds": 0}, {"errors": (1e-9,)}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} = "):
        resistive.Config(**setting)
