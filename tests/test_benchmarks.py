"""Benchmarks: each runs end to end at its smoke size. What they measure is not for a test to say."""

import json
import math
import time

import pytest

from experiments.benchmarks import pulsed_step, settling, step_time
from experiments.benchmarks.timing import alternately


def test_timing_is_a_ratio_to_the_first_callable():
    calls = []

    def sleeper(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    timings = alternately({"a": sleeper("a", 0.001), "b": sleeper("b", 0.002)}, rounds=3)
    assert calls == ["a", "b"] * 4  # in turn, a round to warm up
    assert (timings["a"].ratio, timings["a"].low, timings["a"].high) == (1, 1, 1)
    assert timings["b"].low <= timings["b"].ratio <= timings["b"].high
    assert timings["b"].seconds >= 0.002


def test_timing_stops_after_a_round_when_its_time_is_up():
    calls = []
    alternately({"a": lambda: calls.append("a")}, rounds=100, seconds=0, warm_up=False)
    assert calls == ["a"]


def check_run(benchmark, rows, folder):
    assert json.loads((folder / "results.json").read_text())["rows"] == rows
    assert (folder / "finished").exists()
    for row in rows:
        assert set(row) == set(benchmark.COLUMNS)
        assert all(0 < value < math.inf for value in row.values() if isinstance(value, float))


def test_settling_compares_every_settle_with_its_products(tmp_path):
    rows = settling.run(settling.Config(out=tmp_path, smoke=True, dataset="digits", layers=(1,)))
    check_run(settling, rows, tmp_path)
    solvers = {(row["solver"], row["tolerance"]) for row in rows}
    assert solvers == {(s, 1e-3) for s in ("sweep", "euler", "rk4", "dopri5")} | {("sweep", 1e-6)}
    phases = {(row["circuit"], row["phase"]) for row in rows}
    assert phases == {
        ("hopfield, fresh", "free"),
        ("hopfield, trained", "free"),
        ("hopfield, trained", "nudged"),
        ("feedforward", "free"),
        ("feedforward", "nudged"),
    }
    assert len(rows) == len(solvers) * len(phases)
    assert all(row["settled"] == 1 for row in rows)


def test_step_time_compares_every_method_with_autograd(tmp_path):
    rows = step_time.run(step_time.Config(out=tmp_path, smoke=True, dataset="digits"))
    check_run(step_time, rows, tmp_path)
    assert [row["method"] for row in rows] == 2 * ["autograd", "one_sweep", "one_sided", "centred"]
    assert all(row["settled"] == 1 for row in rows if row["method"] != "autograd")


def test_pulsed_step_compares_every_update_with_autograd(tmp_path):
    rows = pulsed_step.run(pulsed_step.Config(out=tmp_path, smoke=True, dataset="digits"))
    check_run(pulsed_step, rows, tmp_path)
    methods = ["aggregated, backprop", "aggregated, one_sweep", "trains, one_sweep"]
    assert [row["method"] for row in rows] == ["autograd", *4 * methods]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rounds = 0"):
        settling.Config(rounds=0)
    with pytest.raises(ValueError, match=r"batches = \(0,\)"):
        settling.Config(batches=(0,))
    with pytest.raises(ValueError, match="batch = 0"):
        step_time.Config(batch=0)
    with pytest.raises(ValueError, match="length = 0"):
        pulsed_step.Config(length=0)
