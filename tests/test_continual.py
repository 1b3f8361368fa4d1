"""The continual-learning study end to end on digits, its grids, and what it refuses."""

import json
import math
from dataclasses import replace

import h5py
import numpy as np
import pytest

from experiments import continual
from experiments.continual import ContinualConfig, Row, run
from experiments.continual_methods import CHOSEN, GRIDS, cheaply, methods
from mep_sim.continual import AccuracyMatrix

SMALL = ContinualConfig(smoke=True)


def test_every_method_runs_and_can_be_resumed(tmp_path, monkeypatch):
    config = replace(SMALL, out=tmp_path)
    table = run(config)
    assert [line["row"] for line in table] == list(methods(CHOSEN))
    kept = json.loads((tmp_path / "results.json").read_text())
    for line in kept["table"]:
        (rows,) = line["matrices"]
        if line["row"] != "joint":
            before = [0.1, 0.1]  # the two metrics below do not look at it
            matrix = AccuracyMatrix(rows, before)
            assert math.isclose(100 * matrix.average, line["scores"][0])
            assert math.isclose(100 * matrix.forgetting, line["forgetting %"])
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"matrices.png", "curves.png"} <= names
    monkeypatch.setattr(continual, "train", None)  # nothing is left to compute
    again = run(replace(config, resume=True))
    assert [line["scores"] for line in again] == [line["scores"] for line in table]


def test_importance_of_cells_is_kept_with_their_conductances(tmp_path):
    run(replace(SMALL, out=tmp_path, longest=3, rows=("EP, auto-EWC, on cells",)))
    with h5py.File(tmp_path / "importance-EP__auto_EWC__on_cells.h5") as file:
        assert len(file) == 2
        for group in file.values():
            importance, conductance = group["importance"][:], group["conductance"]
            assert importance.shape == conductance.shape
            assert (importance >= 0).all()
            assert importance.max() > 0
            assert conductance.attrs["units"] == "S"
            assert 0 < np.median(conductance[:]) < 1e-3


@pytest.mark.parametrize("stream", ["rotated", "split_class", "split_task"])
def test_other_streams(tmp_path, stream):
    rows = ("EWC", "replay", "joint", "EP, Kronecker")
    table = run(replace(SMALL, out=tmp_path, stream=stream, rows=rows))
    assert [line["row"] for line in table] == list(rows)
    assert all(0 <= line["scores"][0] <= 100 for line in table)


def test_tuning_takes_the_best_on_validation(tmp_path, monkeypatch):
    looked = []

    def train(name, row: Row, seed, options):
        looked.append(row)
        score = row.method.lr
        found = dict.fromkeys(
            ("settled", "numbers/weight", "stored", "pulses/cell", "surprises", "seconds"), 0.0
        )
        judged = dict.fromkeys(continual.PERCENT, 0.0)
        return {
            **found,
            **judged,
            "accuracy": score,
            "rows": [[score] * 2] * 2,
            "before": [0, 0],
            "data": "none",
        }

    monkeypatch.setattr(continual, "train", train)
    run(replace(SMALL, out=tmp_path, tune=300, rows=("EWC", "EP, Kronecker, on cells")))
    tried = [row for row in looked if row.part == "validation"]
    assert len(tried) == len(GRIDS["EWC"]) + len(GRIDS["EP, Kronecker"])
    kept = json.loads((tmp_path / "results.json").read_text())
    for name in ("EWC", "EP, Kronecker"):
        rates = [method.lr for method in GRIDS[name]]
        assert kept["chosen"][name] == int(np.argmax(rates))
        assert sum(line["chosen"] for line in kept["grid"] if line["method"] == name) == 1
    tested = [row.method for row in looked if row.part == "test"]
    assert tested == [
        replace(GRIDS["EWC"][0], reference=None),
        methods(kept["chosen"])["EP, Kronecker, on cells"],
    ]


def test_every_method_is_tuned_as_hard():
    assert len({len(grid) for grid in GRIDS.values()}) == 1
    assert CHOSEN.keys() == GRIDS.keys()
    assert all(0 <= CHOSEN[name] < len(grid) for name, grid in GRIDS.items())
    assert all(len(set(map(repr, grid))) == len(grid) for grid in GRIDS.values())


def test_ep_is_tuned_by_one_sweep_and_nothing_else_changes():
    for grid in GRIDS.values():
        for method in grid:
            assert replace(cheaply(method), gradient=method.gradient) == method


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "shuffled"}, "unknown stream 'shuffled'; choose one of permuted"),
        ({"tasks": 0}, "tasks = 0; choose at least 1"),
        ({"samples": -1}, "samples = -1; choose at least 1"),
        ({"epochs": 0}, "epochs = 0; choose at least 1"),
        ({"batch_size": 0}, "batch_size = 0; choose at least 1"),
        ({"tune": 0}, "tune = 0; choose at least 1"),
        ({"longest": 0}, "longest = 0; choose at least 1"),
        ({"hidden": ()}, "give at least one layer"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ContinualConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ("EWCC",)}, "unknown rows"),
        ({"stream": "split_class", "tasks": 3}, "3"),
        ({"samples": 10**6}, "samples=1000000"),
    ],
)
def test_streams_that_cannot_be_made(tmp_path, settings, message):
    config = ContinualConfig(out=tmp_path, dataset="digits", **settings)
    with pytest.raises(ValueError, match=message):
        run(config)
    assert not any(tmp_path.iterdir())
