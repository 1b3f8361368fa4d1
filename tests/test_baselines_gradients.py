"""Where baselines get gradients from: per-sample squares against loops, estimates against backprop, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import devices
from circuits import CrossEntropy, FeedforwardCircuit, SquaredError, cost
from circuits.chip import Chip
from circuits.hopfield import HopfieldCircuit
from circuits.pulse_trains import PulseTrains
from mep_sim.baselines import EWC, SI, Autograd, ByOptimizer
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, EPGradient, InParts


def network(seed: int = 0, *extra: nn.Module) -> nn.Sequential:
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), *extra, nn.Tanh(), nn.Linear(6, 3)).double()
    for p in model.parameters():
        nn.init.normal_(p, generator=rng, std=0.5)
    return model


def task(n: int = 7, seed: int = 1, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=rng, dtype=torch.float64), torch.randint(classes, (n,), generator=rng)


def by(strategy, model: nn.Module | None = None, **settings) -> ByOptimizer:
    model = model or network()
    return ByOptimizer(CompositeOptimizer(model.parameters(), strategy, model=model, **settings))


def assert_same(found: dict, expected: dict, rtol: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found.values(), expected.values(), strict=True):  # names differ by the circuit's prefix
        assert torch.allclose(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_autograd_is_the_gradient_of_the_mean_cost_and_leaves_grad_alone(name):
    model, (x, y) = network(), task()
    found = Autograd(model, name).gradient(x, y)
    assert all(p.grad is None for p in model.parameters())
    c, output = cost(name), model(x)
    c.value(output, c.target(y, output.detach())).mean().backward()
    assert_same(found, {n: p.grad for n, p in model.named_parameters()})


class Twice(nn.Module):
    """One layer met twice, and a residual."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + self.inner(torch.tanh(self.inner(x))))


def frozen() -> nn.Sequential:
    model = network()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


MODELS = {  # by factors where all that learns is in layers met once, else sample by sample
    "dense": (network, True),
    "one layer": (lambda: nn.Linear(4, 3), True),
    "in place, no bias": (
        lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(inplace=True), nn.Linear(6, 3)),
        True,
    ),
    "frozen": (frozen, True),
    "met twice": (Twice, False),
    "tied": (tied, False),
    "norm": (lambda: network(0, nn.LayerNorm(6)), False),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 3)),
        False,
    ),
    "positions": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Flatten(), nn.Linear(6, 3)),
        False,
    ),
}


@pytest.mark.parametrize(("make", "dense"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("chunk_size", [3, 100])
def test_squares_are_those_of_a_loop_over_samples(make, dense, chunk_size, monkeypatch):
    gradients, (x, y) = Autograd(make().double(), chunk_size=chunk_size), task()
    weight = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    each = [gradients.gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    if dense:
        monkeypatch.setattr("mep_sim.baselines.samples._by_vmap", None)
    for w in (None, weight):
        factor = torch.ones(len(x)) if w is None else w
        expected = {
            n: sum(f * g[n].square() for f, g in zip(factor, each, strict=True)) / len(x) for n in each[0]
        }
        found = gradients.squares(x, y, w)
        assert found.keys() == expected.keys()
        assert_same(found, expected)


def test_what_does_not_learn_has_no_gradient():
    model, (x, y) = network(), task()
    model[0].weight.requires_grad_(False)
    gradients = Autograd(model)
    names = {"0.bias", "2.weight", "2.bias"}
    assert gradients.gradient(x, y).keys() == gradients.squares(x, y).keys() == names
    part = ByOptimizer(CompositeOptimizer(model[2].parameters(), BackpropGradient(), model=model))
    assert part.parameters.keys() == part.gradient(x, y).keys() == {"model.2.weight", "model.2.bias"}


@pytest.mark.parametrize(
    "strategy",
    [BackpropGradient(), EPGradient(phases="one_sweep"), InParts(EPGradient(phases="one_sweep"), 3)],
    ids=["backprop", "one sweep", "in parts"],
)
def test_an_optimizers_exact_strategies_are_autograd_under_any_cost(strategy):
    model, (x, y) = network(), task()
    autograd, estimated = Autograd(model), by(strategy, model)
    for c in (CrossEntropy(), SquaredError()):
        autograd.cost = estimated.cost = c
        assert estimated.cost == c
        assert_same(estimated.gradient(x, y), autograd.gradient(x, y))
        assert torch.equal(estimated.outputs(x), autograd.outputs(x))
    with estimated.under(CrossEntropy()):
        assert estimated.cost == CrossEntropy()
    assert estimated.cost == SquaredError()


def test_squares_by_a_backprop_optimizer_are_autograds():
    model, (x, y) = network(), task()
    weight = torch.arange(len(x), dtype=torch.float64)
    assert_same(by(BackpropGradient(), model).squares(x, y, weight), Autograd(model).squares(x, y, weight))


def test_squares_of_an_estimate_are_asked_of_the_estimate(monkeypatch):
    (x, y), asked = task(), []
    gradients = by(EPGradient())

    def squares(weight):
        asked.append(weight)
        return {name: p.detach().square() for name, p in gradients.parameters.items()} | {"other": 0}

    monkeypatch.setattr(EPGradient, "estimate", lambda *_, **__: SimpleNamespace(squares=squares))
    found = gradients.squares(x, y, y.double())
    assert found.keys() == gradients.parameters.keys()
    assert torch.equal(asked[0], y.double())


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (InParts(EPGradient(), 3), "InParts gives no gradients sample by sample; use EPGradient"),
        (
            EPGradient(),
            r"of layers, and model.1.weight, model.1.bias learn too: freeze them, or use Autograd",
        ),
    ],
)
def test_squares_that_an_estimate_does_not_give(strategy, message):
    with pytest.raises(ValueError, match=message):
        by(strategy, network(0, nn.LayerNorm(6))).squares(*task())


@pytest.mark.parametrize("share", [None, torch.arange(7).double()])
def test_squares_by_one_sweep_are_autograds(share):
    model, (x, y) = network(), task()
    found = by(EPGradient(phases="one_sweep"), model).squares(x, y, share)
    assert_same(found, Autograd(model).squares(x, y, share))


def test_outputs_of_a_circuit_with_feedback_are_those_at_rest():
    circuit = HopfieldCircuit((4, 6, 3), rng=torch.Generator().manual_seed(0)).double()
    x, y = task()
    gradients = ByOptimizer(CompositeOptimizer(circuit.parameters(), EPGradient(), model=circuit))
    found = gradients._estimate(x, y).output
    assert torch.allclose(gradients.outputs(x), found, rtol=1e-4, atol=1e-6)


def test_batch_norm_and_dropout_mix_samples_until_eval():
    x, y = task()
    for module, kind in ((nn.BatchNorm1d(6), "BatchNorm1d"), (nn.Dropout(0.5), "Dropout")):
        model = network(0, module)
        with pytest.raises(ValueError, match=rf"1, a {kind} in training mode, .* model.eval\(\) first"):
            Autograd(model).squares(x, y)
        each = [Autograd(model.eval()).gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        expected = {n: torch.stack([g[n].square() for g in each]).mean(0) for n in each[0]}
        assert_same(Autograd(model).squares(x, y), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autograd(nn.Linear(2, 2).requires_grad_(False)), "no parameter of the Linear learns"),
        (lambda: Autograd(nn.Linear(2, 2), "hinge"), "unknown cost 'hinge'"),
        (lambda: Autograd(nn.Linear(2, 2), chunk_size=0), "chunk_size = 0; choose a whole number"),
        (lambda: ByOptimizer(CompositeOptimizer([nn.Parameter(torch.ones(2))])), "pass model= when making"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_optimizer_of_a_circuit_names_parameters_as_the_circuit():
    circuit = FeedforwardCircuit(network())
    optimizer = CompositeOptimizer(circuit.parameters(), model=circuit)
    assert ByOptimizer(optimizer).parameters.keys() == circuit.params().keys()


def on_chip(**settings) -> ByOptimizer:
    circuit = FeedforwardCircuit(network())
    chip = Chip(circuit, devices.preset("ideal"), torch.Generator().manual_seed(0), **settings)
    strategy = EPGradient(phases="one_sweep")
    return ByOptimizer(CompositeOptimizer(circuit.parameters(), strategy, model=circuit, chip=chip))


def test_an_ideal_chip_gives_the_gradients_of_its_weights_and_takes_no_implicit_pull():
    gradients, (x, y) = on_chip(), task()
    assert_same(gradients.gradient(x, y), Autograd(network()).gradient(x, y), rtol=1e-8)
    assert torch.allclose(gradients.outputs(x), Autograd(network()).outputs(x), rtol=1e-8)
    gradients.optimizer.gradient = BackpropGradient()
    assert_same(gradients.squares(x, y), Autograd(network()).squares(x, y), rtol=1e-8)
    for make in (EWC, SI):
        make(gradients, pull="penalty")
        with pytest.raises(ValueError, match=r"pull = 'implicit' sets weights, which a chip .* 'penalty'"):
            make(gradients)


def test_pulse_trains_are_refused_as_they_do_not_look_at_gradients():
    with pytest.raises(ValueError, match=r"never looks at .grad, .* make it without trains"):
        on_chip(trains=PulseTrains())
