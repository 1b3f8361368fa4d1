"""The benchmark of wired arrays, end to end at its smoke size."""

import pytest

from experiments.benchmarks import wires
from tests.test_benchmarks import check_run


def test_rivals_agree_to_six_digits(tmp_path):
    rows = wires.run(wires.Config(out=tmp_path, smoke=True))
    check_run(wires, rows, tmp_path)
    assert [row["ohm"] for row in rows] == [1.0] * 3 + [10.0] * 3
    assert [row["rival"].split(":")[0] for row in rows] == 2 * ["sparse LU", "badcrossbar", "ngspice"]
    assert all(row["difference"] < 1e-6 for row in rows if row["rival ms"])
    assert rows[0]["rival ms"] is not None  # sparse LU is scipy's


@pytest.mark.parametrize(
    "setting", [{"sizes": ()}, {"sizes": (0,)}, {"ohms": (0.0,)}, {"low": 1e-3}, {"rounds": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} = "):
        wires.Config(**setting)
