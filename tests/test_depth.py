"""Very deep residual nets: signals that neither die nor explode, gradients by depth, and the experiment made small."""

import dataclasses
import json
import math

import pytest
import torch

from experiments import depth
from experiments.common import generator
from experiments.depth import EULER_STEPS, POWERS, Bench, Config, cosine, measure, residual_net, run
from mep_sim.data import load
from mep_sim.optimizers import BackpropGradient, EPGradient

DATA = load("digits", samples=64)
X, Y = DATA.train_x[:8], DATA.train_y[:8]


def bench(blocks: int, activation: str = "tanh") -> Bench:
    return Bench(residual_net(DATA.features, DATA.classes, blocks, 24, activation, generator(0)), X, Y, 1)


# -- the nets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", POWERS)
def test_branch_weights_shrink_with_depth_and_nothing_else_does(activation):
    circuit = residual_net(300, 10, 40, 20, activation, generator(0))
    stem, *branches, head = (circuit.params()[name].detach() for name in circuit.weights)
    for weight, expected in (
        (stem, 300**-0.5),
        (torch.stack(branches), 40 ** POWERS[activation] * 20**-0.5),
        (head, 20**-0.5),
    ):
        # a standard deviation estimated from n draws is off by 1 / sqrt(2 n)
        assert abs(weight.std() / expected - 1) < 4 / math.sqrt(2 * weight.numel())
    assert not any(p.any() for name, p in circuit.params().items() if name.endswith("bias"))


@pytest.mark.parametrize("activation", POWERS)
def test_the_signal_neither_dies_nor_explodes(activation):
    sizes = []
    for blocks in (10, 400):
        model = residual_net(DATA.features, DATA.classes, blocks, 64, activation, generator(0)).model
        stream = model[0](X)
        sizes.append(model[1:-1](stream).norm() / stream.norm())
    # a block adds 1 / depth of the stream: at most e times its size for tanh (in squares) and for relu
    assert all(1 <= size < math.e for size in sizes)
    assert abs(sizes[0] / sizes[1] - 1) < 0.3


# -- their gradients ------------------------------------------------------------------------------------


def test_one_sweep_keeps_its_digits_in_a_very_deep_net():
    b = bench(150)
    gradient = b.estimate(EPGradient(phases="one_sweep")).gradient
    for name, exact in b.exact.items():
        torch.testing.assert_close(gradient[name].double(), exact, rtol=0, atol=1e-5 * exact.abs().max())


@pytest.mark.parametrize("activation", POWERS)
def test_converged_gradient_goes_to_the_exact_one_with_beta(activation):
    b = bench(100, activation)
    far, near = (
        b.row("EP", lambda beta=beta: b.estimate(Config(activation=activation).ep(beta)))
        for beta in (1e-2, 1e-4)
    )
    assert far["settled"] == near["settled"] == 1
    assert max(far["residual/error"], near["residual/error"]) < 1e-3
    assert near["cosine"] > max(far["cosine"], 0.999)
    assert near["first layer"] > max(far["first layer"], 0.999)


def test_centred_gradient_is_closer_than_the_one_sided_one():
    b = bench(100)
    beta = 0.5 * b.limit()
    one_sided, centred = (b.estimate(Config().ep(beta, p)) for p in ("one_sided", "centred"))
    error, other = (1 - cosine(e.gradient, b.exact) for e in (one_sided, centred))
    assert other < 0.1 * error


def test_limit_is_where_minus_beta_loses_its_minimum():
    # of a net whose blocks do nothing: |J|^2 = sigma(head)^2 for each of the layers below the output
    circuit = residual_net(DATA.features, DATA.classes, 30, 24, "tanh", generator(0))
    with torch.no_grad():
        for name in circuit.weights[1:-1]:
            circuit.get_parameter(name).zero_()
    head = circuit.get_parameter(circuit.weights[-1]).detach()
    expected = 1 / (0.5 * (1 + 31 * torch.linalg.matrix_norm(head, 2).item() ** 2))
    assert Bench(circuit, X, Y, 1).limit() == pytest.approx(expected, rel=1e-3)


def test_an_error_descends_one_block_a_step():
    b = bench(EULER_STEPS + 10)
    estimate = b.descend()
    moved = [layer.abs().max().item() for layer in b.circuit.layout.split(estimate.nudged[0].deviation)]
    # the output is the first to feel the target, the lowest blocks have not heard of it yet
    reached = sum(size > 0 for size in moved)
    assert moved[-reached:] == [size for size in moved if size > 0]
    assert EULER_STEPS - 2 <= reached <= EULER_STEPS
    assert estimate.nudged[0].settled_fraction == 0
    assert not estimate.gradient[b.circuit.weights[0]].any()


def test_cosine_is_taken_over_the_parameters_of_the_second():
    a = {"v": torch.tensor([3.0, 0.0]), "w": torch.tensor([[4.0]])}
    assert cosine(a, {"v": torch.tensor([1.0, 0.0]), "w": torch.tensor([[0.0]])}) == pytest.approx(0.6)
    assert cosine(a, {"w": torch.tensor([[-2.0]])}) == pytest.approx(-1)


def test_table_marks_what_has_no_minimum():
    config = Config(dataset="digits", width=16, batch_size=8, rounds=1, betas=(0.3, 1e-3))
    rows = measure(20, config, DATA)
    assert {row["depth"] for row in rows} == {20}
    limit = next(row["beta"] for row in rows if "limit of -beta" in row["gradient"])
    assert 1e-3 < limit < 0.3
    above = [row for row in rows if "above the limit" in row["gradient"]]
    assert [row["beta"] for row in above] == [0.3]
    auto = [row["beta"] for row in rows if "auto" in row["gradient"]]
    assert auto == pytest.approx([0.5 * limit] * 2)
    assert rows[0]["gradient"] == "one_sweep"
    assert rows[0]["cosine"] > 1 - 1e-6


# -- training and the run -------------------------------------------------------------------------------

SMALL = Config(dataset="digits", depths=(), train_depth=2, smoke=True)


def test_learners_differ_in_the_gradient_alone():
    ep, backprop = SMALL.shrunk().learners(DATA)
    assert isinstance(ep.optimizer.gradient, EPGradient)
    assert isinstance(backprop.optimizer.gradient, BackpropGradient)
    assert (ep.lr, ep.optimizer.update) == (backprop.lr, backprop.optimizer.update)
    assert ep.lr == pytest.approx(0.03 / 2)
    assert torch.equal(ep.order.get_state(), backprop.order.get_state())
    for one, other in zip(ep.circuit.parameters(), backprop.circuit.parameters(), strict=True):
        assert torch.equal(one, other)


def test_smoke_run_end_to_end(tmp_path):
    config = Config(dataset="digits", smoke=True, betas=(0.01,), out=tmp_path)
    results = run(config)
    assert {row["depth"] for row in results["gradients"]} == {3, 8}
    assert [row["learner"] for row in results["trained"]] == ["EP", "backprop"]
    ep, backprop = results["trained"]
    assert ep["settled"] == 1
    assert ep["cosine"] > 0.98
    assert backprop["cosine"] == pytest.approx(1)
    assert abs(ep["loss"] / backprop["loss"] - 1) < 0.05  # a learning curve each, and nearly the same one
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [row["gradient"] for row in kept["gradients"]] == [row["gradient"] for row in results["gradients"]]
    with pytest.raises(FileExistsError, match="finished run"):
        run(config)


def test_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    whole = run(dataclasses.replace(SMALL, out=tmp_path / "whole"))["trained"]
    part = dataclasses.replace(SMALL, out=tmp_path / "part")
    keep, kept = depth.keep, []

    def interrupted(*arguments):
        keep(*arguments)
        kept.append(None)
        if len(kept) == 2:  # before training, and after EP's first epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(depth, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(part)
    monkeypatch.setattr(depth, "keep", keep)
    resumed = run(dataclasses.replace(part, resume=True))["trained"]
    for one, other in zip(whole, resumed, strict=True):
        assert {**one, "s/step": None} == pytest.approx({**other, "s/step": None}, nan_ok=True)


def test_trains_none_when_told_so(tmp_path):
    config = dataclasses.replace(SMALL, depths=(2,), train_depth=0, betas=(), out=tmp_path)
    assert run(config)["trained"] == []
    assert not (tmp_path / "learning_curves.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (0,)}, "at least 1 block"),
        ({"train_depth": -1}, "train_depth = 0 to train none"),
        ({"depths": (), "train_depth": 0}, "nothing to do"),
        ({"width": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"rounds": 0}, "at least 1"),
        ({"activation": "gelu"}, "tanh, relu"),
        ({"lr": 0.0}, "finite learning rate > 0"),
        ({"betas": (-0.1,)}, "finite beta > 0"),
        ({"tolerance": 0.0, "betas": ()}, "0 < tolerance < 1"),
    ],
)
def test_options_out_of_range_name_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
