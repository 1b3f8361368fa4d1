"""The figures of continual learning: drawn, what they hold, and what they refuse."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from experiments import continual_figures
from experiments.continual_figures import curves, importance, matrices
from experiments.figures import figure
from mep_sim.continual import AccuracyMatrix


def run(tasks, rng):
    return AccuracyMatrix(rng.random((tasks, tasks)), rng.random(tasks))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A path to draw to; and the axes of what was drawn there, in a list."""
    kept = []

    @contextmanager
    def keeping(*args):
        with figure(*args) as axes:
            kept.append(axes)
            yield axes

    monkeypatch.setattr(continual_figures, "figure", keeping)
    path = tmp_path / "figure.png"
    yield path, kept
    assert not path.exists() or imread(path).std() > 0  # something is on it


@pytest.mark.parametrize(("tasks", "written"), [(1, True), (5, True), (6, False)])
def test_matrices_show_percent_in_rows_after_tasks(drawn, tasks, written):
    path, kept = drawn
    one, other = run(tasks, np.random.default_rng(0)), run(tasks, np.random.default_rng(1)).accuracy
    matrices(path, {"one": one, "other": other})
    for ax, expected in zip(kept[0][0], (one.accuracy, other), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), 100 * expected)
        cells = [f"{100 * share:.0f}" for share in expected.ravel()]
        assert [text.get_text() for text in ax.texts] == (cells if written else [])


def test_curves_by_hand(drawn):
    """After one task 80 and 90 %, after both 60 and 70: the mean and t(.975, 1) 5 = 63.53 around it."""
    path, kept = drawn
    seeds = [AccuracyMatrix([[a, 0], [a - 0.3, a - 0.1]], [0, 0]) for a in (0.8, 0.9)]
    curves(path, {"two seeds": seeds, "one": seeds[:1]})
    ax = kept[0][0, 0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 85], [2, 65]])
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].max(), band[:, 1].min()) == pytest.approx((85 + 63.531, 65 - 63.531), abs=1e-2)
    assert not len(ax.collections[1].get_paths())  # one seed has no interval
    assert {text.get_text() for text in ax.texts} == {"two seeds", "one"}


def test_names_of_curves_stand_apart_in_their_order(drawn):
    path, kept = drawn
    ends = (0.5, 0.501, 0.502, 0.9, 0.1)
    curves(path, {f"{end}": [AccuracyMatrix([[end]], [0])] for end in ends})
    ax = kept[0][0, 0]
    heights = {float(text.get_text()): text.xy[1] for text in ax.texts}
    low, high = ax.get_ylim()
    rising = [heights[end] for end in sorted(ends)]
    assert min(np.diff(rising)) >= continual_figures.LABEL_GAP * (high - low) * (1 - 1e-9)
    assert heights[0.9] == pytest.approx(90)  # alone, at its curve's end
    assert np.mean(rising[1:4]) == pytest.approx(50.1)  # pushed to both sides alike


def test_importance_by_pixel_is_summed_over_units_and_siemens_become_microsiemens(drawn):
    path, kept = drawn
    rng = torch.Generator().manual_seed(0)
    layers = [
        (name, torch.rand(shape, generator=rng), 1e-6 + 1e-5 * torch.rand(shape, generator=rng))
        for name, shape in (("layers.0.weight", (5, 9)), ("layers.1.weight", (2, 5)))
    ]
    importance(path, layers, 3)
    axes = kept[0]
    assert axes.shape == (2, 3)
    pixels = axes[0, 0].images[0].get_array()
    np.testing.assert_allclose(pixels, layers[0][1].sum(0).view(3, 3), rtol=1e-6)
    for row, (_, weights, g) in zip(axes, layers, strict=True):
        np.testing.assert_allclose(row[1].images[0].get_array(), weights)
        np.testing.assert_allclose(row[2].images[0].get_array(), 1e6 * g, rtol=1e-6)


def test_importance_of_nothing_and_of_many_decades(drawn):
    path, kept = drawn
    g = torch.full((1, 3), 1e-6)
    layers = [("none", torch.zeros(1, 3), g), ("wide", torch.tensor([[0.0, 1e-20, 10.0]]), g)]
    importance(path, layers)
    assert kept[0].shape == (2, 2)
    norm = kept[0][1, 0].images[0].norm
    assert (norm.vmin, norm.vmax) == pytest.approx((1e-5, 10))
    assert norm(np.array([0.0, 1e-20])).tolist() == [0, 0]  # the lowest colour


def test_what_cannot_be_drawn(tmp_path):
    path, square = tmp_path / "figure.png", torch.ones(2, 4)
    for draw, nothing in ((matrices, {}), (curves, {}), (curves, {"replay": []}), (importance, [])):
        with pytest.raises(ValueError, match="give at least one"):
            draw(path, nothing)
    with pytest.raises(
        ValueError, match=r"w: importance of shape \(2, 4\) and conductance of shape \(4, 2\)"
    ):
        importance(path, [("w", square, square.T)])
    with pytest.raises(ValueError, match="side = 3 for 4 inputs"):
        importance(path, [("w", square, square)], 3)
    assert not path.exists()
