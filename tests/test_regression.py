"""Regression by EP: end to end at its smoke size, ridge against scikit-learn's own cross-validation."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.regression import FOLDS, METHODS, RIDGE, SETS, Config, Row, run, train

SMOKE = Config(smoke=True, sets=("linnerud",), seeds=1, workers=1)


def test_smoke_compares_ep_with_backprop_and_ridge(tmp_path):
    (table,) = run(dataclasses.replace(SMOKE, out=tmp_path)).values()
    assert [row["row"] for row in table] == ["ridge", *METHODS]
    assert [row["to"] for row in table] == [None, *(m.reference for m in METHODS.values())]
    for row in table:
        is_ep = row["row"].startswith("EP")
        assert row["settled"] == 1 if is_ep else math.isnan(row["settled"])
        assert row["scores"][0] < 100


@pytest.mark.parametrize("name", ["diabetes", "linnerud"])
def test_ridge_is_what_scikit_learn_cross_validates(name):
    samples = SETS[name]()
    ridge = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), RidgeCV(RIDGE)), transformer=StandardScaler()
    )
    folds = KFold(FOLDS, shuffle=True, random_state=3)
    expected = r2_score(samples.y, cross_val_predict(ridge, samples.x, samples.y, cv=folds))
    assert train("ridge", Row.of("ridge", name), 3, SMOKE)["R²"] == pytest.approx(expected, abs=1e-9)


def test_ep_learns_what_backprop_learns_by_the_same_update():
    """Muon forgets the length of a gradient, of which a finite beta takes some."""
    found = [
        train("", Row(method, "diabetes", 0.05), 0, SMOKE)["R²"] for method in ("EP, Muon", "backprop, Muon")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert found[0] > 0.1  # better than the mean


def test_no_sample_is_predicted_by_a_network_that_saw_it(monkeypatch):
    """Targets of noise: what generalises at all has seen them."""
    rng = np.random.default_rng(0)
    noise = dataclasses.replace(SETS["linnerud"](), x=rng.normal(size=(60, 40)), y=rng.normal(size=(60, 2)))
    monkeypatch.setitem(SETS, "linnerud", lambda: noise)
    assert train("", Row("EP, SGD", "linnerud", 0.02), 0, dataclasses.replace(SMOKE, smoke=False))["R²"] < 0


def test_tuning_tries_every_factor_and_leaves_ridge_out():
    table = dataclasses.replace(SMOKE, tune=(0.5, 1.0)).table("linnerud")
    assert len(table) == 2 * len(METHODS)
    assert {row.method for row in table.values()} == set(METHODS)
    assert all(row.reference is None for row in table.values())


def test_every_method_has_a_rate_for_every_set():
    assert {len(method.rates) for method in METHODS.values()} == {len(SETS)}


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match=r"unknown sets \['boston'\]; choose among"):
        Config(sets=("boston",))
