"""Distortions, smoothed labels, the table over seeds with its cells, and the experiment on full MNIST, made small."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import mnist_full
from experiments.augment import Augment, smoothed
from experiments.common import generator
from experiments.mnist_full import COLUMNS, ROWS, FullConfig, Network, run
from experiments.seeds import SeedsOptions, interval, tabulate
from mep_sim.data import load
from mep_sim.optimizers import BackpropGradient, EPGradient
from mep_sim.settling import Sweep

IMAGES = torch.rand(40, 1, 12, 12, generator=generator(0))


# -- distortions and labels -----------------------------------------------------------------------------


def test_shifts_are_whole_pixels_with_the_border_repeated():
    moved = Augment(shift=2)(IMAGES, generator(1))
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2), mode="replicate")
    shifts = set()
    for image, source in zip(moved, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5)]
        errors = [(image - source[:, i : i + 12, j : j + 12]).abs().max().item() for i, j in places]
        assert min(errors) < 1e-5
        shifts.add(places[errors.index(min(errors))])
    assert {i for i, _ in shifts} == {j for _, j in shifts} == set(range(5))


def test_no_distortion_is_the_identity():
    torch.testing.assert_close(Augment(shift=0)(IMAGES, generator(0)), IMAGES, atol=1e-5, rtol=0)


@given(
    shift=st.integers(0, 3),
    rotation=st.floats(0, 90),
    zoom=st.floats(0, 0.5),
    elastic=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_distortions_interpolate_and_repeat_by_seed(shift, rotation, zoom, elastic, seed):
    distort = Augment(shift, rotation, zoom, elastic)
    one, again = distort(IMAGES[:4], generator(seed)), distort(IMAGES[:4], generator(seed))
    assert torch.equal(one, again)
    low, high = IMAGES[:4].amin((1, 2, 3)), IMAGES[:4].amax((1, 2, 3))
    assert (one.amin((1, 2, 3)) >= low - 1e-5).all()
    assert (one.amax((1, 2, 3)) <= high + 1e-5).all()
    flat = torch.full_like(IMAGES[:4], 0.3)
    torch.testing.assert_close(distort(flat, generator(seed)), flat, atol=1e-5, rtol=0)


def test_rotation_turns_about_the_centre_by_at_most_its_angle():
    # a bright pixel on the axis, 8 pixels above the centre: how far its centre of mass has turned
    image = torch.zeros(200, 1, 33, 33)
    image[:, :, 7:10, 15:18] = 1
    turned = Augment(shift=0, rotation=30)(image, generator(0)).squeeze(1)
    axis = torch.arange(33.0) - 16
    mass = turned.sum((1, 2))
    x, y = (turned.sum(1) * axis).sum(1) / mass, (turned.sum(2) * axis).sum(1) / mass
    angle = torch.rad2deg(torch.atan2(x, -y))
    assert angle.abs().max() < 30.5
    assert angle.abs().max() > 27
    # of a uniform angle: mean 0, deviation 30 / sqrt 3, each within four standard errors of 200 draws
    assert abs(angle.mean()) < 4 * 30 / math.sqrt(3 * 200)
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((200,), 8.0), atol=0.1, rtol=0)


def test_zoom_changes_size_about_the_centre():
    image = torch.zeros(200, 1, 33, 33)
    image[:, :, 11:22, 11:22] = 1
    area = Augment(shift=0, zoom=0.2)(image, generator(0)).sum((1, 2, 3)) / 121
    assert 0.78**2 < area.min() < 0.85**2
    assert 1.15**2 < area.max() < 1.22**2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "whole number of pixels >= 0"),
        ({"shift": 1.5}, "whole number of pixels >= 0"),
        ({"rotation": 180.0}, "0 <= rotation < 180"),
        ({"zoom": 1.0}, "0 <= zoom < 1"),
        ({"elastic": math.nan}, "0 <= elastic < inf"),
    ],
)
def test_distortions_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.floats(0, 0.9))
def test_smoothed_labels_are_distributions_with_the_label_on_top(labels, smoothing):
    labels = torch.tensor(labels)
    soft = smoothed(labels, 5, smoothing)
    torch.testing.assert_close(soft.sum(1), torch.ones(len(labels)))
    assert torch.equal(soft.argmax(1), labels)
    others = soft.scatter(1, labels.unsqueeze(1), smoothing / 5)
    torch.testing.assert_close(others, torch.full_like(soft, smoothing / 5))


# -- the table over seeds -------------------------------------------------------------------------------


def test_interval_is_students():
    # t(0.975, 2) = 4.3027 from tables; mean 2, deviation 1 of three values
    assert interval([1.0, 2.0, 3.0]) == f"2.00 ± {4.3027 / math.sqrt(3):.2f}"
    assert interval([1.0, 2.0, 3.0], "+").startswith("+2.00")
    assert interval([1.5]) == "1.50"


@dataclasses.dataclass(frozen=True)
class Toy:
    level: float
    reference: str | None = None


def toy(name: str, row: Toy, seed: int, options: SeedsOptions) -> dict:
    """Stands for training; 0.9 cannot be done."""
    if row.level == 0.9:
        raise ValueError(f"{name} diverged")
    return {"accuracy": row.level + 0.01 * seed**2, "cost": float(seed), "data": "toys"}


def table(folder, rows, workers=1, **options):
    config = SeedsOptions(out=folder, workers=workers, **options)
    return tabulate("toys", rows, toy, config, {"cost": ".1f"})


def test_differences_are_paired_seed_by_seed_and_cells_are_kept(tmp_path, capsys):
    rows = {"low": Toy(0.5, "high"), "high": Toy(0.6)}
    low, high = table(tmp_path, rows, seeds=2, seed=1)
    assert low["scores"] == pytest.approx([51, 54])
    assert low["differences"] == pytest.approx([-10, -10])
    assert low["difference"] == "-10.00 ± 0.00"
    assert (low["to"], high["to"], low["cost"]) == ("high", None, 1.5)
    assert json.loads((tmp_path / "results.json").read_text()) == [low, high]
    capsys.readouterr()
    with pytest.raises(FileExistsError, match="--resume"):
        table(tmp_path, rows, seeds=2)
    more = table(tmp_path, rows, seeds=3, seed=1, resume=True)  # only what is missing
    assert [line[:3] for line in capsys.readouterr().out.splitlines() if ", seed " in line] == ["1/2", "2/2"]
    assert more[0]["scores"] == pytest.approx([51, 54, 59])
    with pytest.raises(ValueError, match="other settings"):
        table(tmp_path, {**rows, "low": Toy(0.4)}, seeds=2, seed=1, resume=True)


def test_processes_give_the_same_table(tmp_path):
    rows = {"low": Toy(0.5, "high"), "high": Toy(0.6)}
    alone, pooled = (table(tmp_path / str(workers), rows, workers, seeds=2) for workers in (1, 2))
    assert alone == pooled


def test_failure_keeps_the_cells_before_it(tmp_path):
    rows = {"good": Toy(0.5), "bad": Toy(0.9), "late": Toy(0.6)}
    with pytest.raises(ValueError, match="bad diverged"):
        table(tmp_path, rows, seeds=1)
    assert (tmp_path / "good-0.json").exists()
    assert not (tmp_path / "bad-0.json").exists()


# -- the experiment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_row_and_its_control_differ_in_the_gradient_alone_and_start_alike(name):
    row = ROWS[name]
    if not isinstance(row.gradient, EPGradient) or row.gradient.phases == "one_sweep":
        assert isinstance(row.gradient, BackpropGradient)
        return
    controls = [
        other
        for other in ROWS.values()
        if dataclasses.replace(other, gradient=row.gradient, reference=None)
        == dataclasses.replace(row, reference=None)
        and other is not row
    ]
    assert len(controls) == 1
    data = load("digits", samples=100, validation=0)
    learners = [r.shrunk().learner(name, data, 3, "cpu") for r in (row, *controls)]
    for one, other in zip(*(learner.circuit.parameters() for learner in learners), strict=True):
        assert torch.equal(one, other)
    x, y = data.train_x.view(-1, 1, 8, 8)[:6], data.train_y[:6]
    prepared = [learner.prepare(x, y, learner.order) for learner in learners]
    assert torch.equal(prepared[0][0], prepared[1][0])
    assert torch.equal(prepared[0][1], prepared[1][1])


@pytest.mark.parametrize("name", [name for name in ROWS if "conv" in name or "512" in name])
def test_gradients_of_a_row_converge_and_agree_with_backprop_for_a_small_nudge(name):
    data = load("digits", samples=100, validation=0)
    row = ROWS[name].shrunk()
    ep = dataclasses.replace(row, gradient=EPGradient(beta=1e-3, solver=Sweep(1e-6))).learner(
        name, data, 0, "cpu"
    )
    x, y = ep.prepare(data.train_x.view(-1, 1, 8, 8)[:16], data.train_y[:16], generator(0))
    estimate = ep.optimizer.compute_gradient(x, y)
    exact = BackpropGradient().estimate(ep.circuit, ep.circuit.params, x, y)
    assert all(phase.converged.all() for phase in estimate.nudged)
    flat, other = (torch.cat([g.flatten() for g in e.gradient.values()]) for e in (estimate, exact))
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > 0.999


def test_initial_weights_have_he_variance():
    data = load("digits", samples=100, validation=0)
    circuit = Network((300,), (40,), "relu").build(data, generator(0))
    conv, hidden, head = (circuit.params()[name] for name in circuit.weights)
    for weight, gain in ((conv, math.sqrt(2)), (hidden, math.sqrt(2)), (head, 1.0)):
        expected = gain / math.sqrt(weight[0].numel())
        # a standard deviation estimated from n draws is off by 1 / sqrt(2 n)
        assert abs(weight.std() / expected - 1) < 4 / math.sqrt(2 * weight.numel())


def test_smoke_run_end_to_end_and_tuning_leaves_the_test_part_alone(tmp_path, monkeypatch):
    rows = ("conv: EP, Adam", "conv: backprop, Adam")
    config = FullConfig(dataset="digits", smoke=True, rows=rows, seeds=1, out=tmp_path / "final")
    table = run(config)
    assert [row["row"] for row in table] == list(rows)
    assert table[0]["settled"] == 1
    assert set(COLUMNS) <= set(table[0])
    tuned = dataclasses.replace(config, rows=rows[1:], tune=(0.5, 2.0), out=tmp_path / "tune")
    lr = ROWS[rows[1]].lr
    assert list(tuned.table()) == [f"{rows[1]}, lr {lr / 2:g}", f"{rows[1]}, lr {lr * 2:g}"]
    data = load("digits")
    broken = dataclasses.replace(data, test_x=torch.full_like(data.test_x, torch.nan))
    held = dataclasses.replace(broken, train_x=data.train_x[:100], train_y=data.train_y[:100])
    monkeypatch.setattr(mnist_full, "load", lambda *_, **__: held)
    name, row = next(iter(tuned.table().items()))
    assert mnist_full.train(name, row, 0, tuned)["accuracy"] == pytest.approx(
        _trained_accuracy(name, row, held), abs=1e-9
    )


def _trained_accuracy(name, row, data):
    learner = row.learner(name, data, 0, "cpu")
    for _ in range(row.epochs):
        list(learner.train_epoch(data.train_x.view(-1, 1, 8, 8), data.train_y))
    return learner.accuracy(data.validation_x.view(-1, 1, 8, 8), data.validation_y)


def test_held_out_images_are_not_trained_on():
    config = FullConfig(dataset="digits", smoke=True, tune=(0.1,))
    data = config.data(0)
    assert (len(data.train_x), len(data.validation_x)) == (400, 100)
    assert not {tuple(x) for x in data.train_x.tolist()} & {tuple(x) for x in data.validation_x.tolist()}
    assert len(dataclasses.replace(config, tune=()).data(0).validation_x) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ("nothing",)}, "unknown rows"),
        ({"seeds": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
        ({"tune": (0.0,)}, "finite factors > 0"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"gamma": 0.5}, "gamma >= 1"),
        ({"smoothing": 1.0}, "0 <= smoothing < 1"),
        ({"activation": "swish"}, "unknown activation"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FullConfig(**options).table()
