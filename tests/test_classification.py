"""The comparison of optimizers on digits: end to end at its smoke size, and what its rows have to agree in."""

import dataclasses
import json
import math

import pytest
import torch

from experiments import classification
from experiments.classification import METHODS, TASKS, Config, Row, run, train
from mep_sim.settling import SettlingError

SMOKE = Config(smoke=True, tasks=("digits-30",), seeds=1, workers=1, rounds=1)


def trained(method: str, lr: float) -> classification.Learner:
    """After two epochs at the smoke size."""
    data = TASKS["digits-30"].data(0, SMOKE)
    learner = Row(method, "digits-30", lr).learner(data, 0, SMOKE)
    for _ in range(2):
        for _ in learner.fit(data.train_x, data.train_y, None):
            pass
    return learner


def test_smoke_compares_the_rows_asked_for_and_times_them_over_sgd(tmp_path):
    rows = ("backprop, Muon", "EqProp", "SMEP")
    results = run(dataclasses.replace(SMOKE, rows=rows, out=tmp_path))
    table, times = results["digits-30"], results["time"]
    assert [row["row"] for row in table] == list(rows)
    assert [row["to"] for row in table] == [
        None,
        None,
        "backprop, Muon",
    ]  # only what is there to compare with
    assert math.isnan(table[0]["settled"])
    assert table[1]["settled"] == table[2]["settled"] == 1
    assert [row["row"] for row in times] == ["backprop, SGD", *rows]
    assert times[0]["over SGD"] == 1
    assert all(row["s/epoch"] > 0 for row in times)
    assert {row["row"] for row in times if "orthogonalising" in row} == {"backprop, Muon", "SMEP"}
    assert all(row["orthogonalising"] > 0 for row in times if "orthogonalising" in row)
    assert json.loads((tmp_path / "time.json").read_text()) == times


@pytest.mark.parametrize(
    ("method", "same", "lr"), [("EqProp", "backprop, SGD", 0.1), ("SMEP", "backprop, Muon", 0.05)]
)
def test_one_sweep_learns_what_backprop_learns(method, same, lr):
    """Other code for the gradient, and for SGD another optimizer too: the same weights to rounding."""
    ours, theirs = trained(f"{method}, one_sweep", lr), trained(same, lr)
    for a, b in zip(ours.circuit.parameters(), theirs.circuit.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert ours.history[0]["loss"] == pytest.approx(theirs.history[0]["loss"], rel=1e-5)


def test_one_sweep_has_the_rates_of_the_backprop_that_it_is():
    for name, method in METHODS.items():
        if name.endswith("one_sweep"):
            same = METHODS[method.reference]
            assert (method.mnist, method.digits) == (same.mnist, same.digits)


@pytest.mark.parametrize("method", METHODS)
def test_every_row_starts_at_the_same_weights_and_leaves_the_same_order_of_samples(method):
    data = TASKS["digits-30"].data(0, SMOKE)
    reference = Row.of("backprop, SGD", "digits-30").learner(data, 0, SMOKE)
    learner = Row.of(method, "digits-30").learner(data, 0, SMOKE)
    for a, b in zip(learner.circuit.parameters(), reference.circuit.parameters(), strict=True):
        assert torch.equal(a, b)
    for one in (learner, reference):
        for _ in one.fit(data.train_x, data.train_y, None):
            pass
    assert torch.equal(learner.order.get_state(), reference.order.get_state())


def test_tuning_judges_every_factor_on_the_validation_part():
    config = dataclasses.replace(SMOKE, rows=("SMEP",), tune=(0.5, 2.0))
    lr = Row.of("SMEP", "digits-30").lr
    table = config.table("digits-30")
    assert [row.lr for row in table.values()] == [0.5 * lr, 2 * lr]
    assert all(row.reference is None for row in table.values())
    data, row = TASKS["digits-30"].data(0, config), Row("SMEP", "digits-30", lr)
    learner = trained("SMEP", lr)
    assert train("SMEP", row, 0, config)["accuracy"] == learner.accuracy(data.validation_x, data.validation_y)
    assert train("SMEP", row, 0, SMOKE)["accuracy"] == learner.accuracy(data.test_x, data.test_y)


def test_a_rate_that_diverges_is_a_finding_when_tuning_and_an_error_else(capsys):
    row = Row("EqProp", "digits-30", 1e30)
    config = dataclasses.replace(SMOKE, tune=(1.0,))
    assert math.isnan(train("EqProp, lr 1e30", row, 0, config)["accuracy"])
    assert "EqProp, lr 1e30" in capsys.readouterr().out
    with pytest.raises(SettlingError, match="diverged"):
        train("EqProp", row, 0, SMOKE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("cifar",)}, r"unknown tasks \['cifar'\]; choose among"),
        ({"rounds": 0}, "rounds = 0"),
        ({"tune": (0.0,)}, "factor 0.0 to tune"),
        ({"seeds": 0}, "seeds = 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_unknown_rows_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="unknown rows"):
        run(dataclasses.replace(SMOKE, rows=("SGD",), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
