"""What single samples tell a layer: squares of their gradients against torch.func and against estimates one by one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from circuits import FeedforwardCircuit
from mep_sim.optimizers import BackpropGradient, EPGradient, HolomorphicGradient, InParts, SampledEPGradient
from mep_sim.optimizers.strategies.layers import joined, joined_pairs, mean_squares, parted
from tests.conformance import EXACT, OPEN, Case, feedforward, hopfield, sequential

ONE_SWEEP = EPGradient(phases="one_sweep")


def convolution() -> Case:
    """Overlapping patches, and a kernel without a bias above one with."""
    return sequential(
        nn.Conv2d(2, 3, 2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, 2, stride=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
        x=(2, 3, 3),
    )


def text() -> Case:
    """A linear layer at five positions."""
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3))
    for p in model.double().parameters():
        nn.init.normal_(p, std=0.5, generator=rng)
    words = torch.randint(7, (4, 5), generator=rng)
    return Case(FeedforwardCircuit(model), words, torch.randint(3, (4,), generator=rng))


def no_biases() -> Case:
    return sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False), x=(5,))


CASES = {
    "dense": lambda: feedforward("tanh", 5, 4, 4, 3),
    "relu": lambda: feedforward("relu", 5, 6, 3),
    "no biases": no_biases,
    "convolution": convolution,
    "text": text,
}


def estimate(case: Case, strategy=ONE_SWEEP, samples: slice = slice(None)):
    return strategy.estimate(case.circuit, case.params, case.x[samples], case.labels[samples])


def one_by_one(circuit: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of each sample's cross-entropy (B, ...), by torch.func."""

    def loss(params, sample, label):
        return nn.functional.cross_entropy(functional_call(circuit, params, (sample[None],)), label[None])

    params = {name: p.detach() for name, p in circuit.named_parameters()}
    return vmap(grad(loss), (None, 0, 0))(params, x, y)


def expected_squares(each: dict[str, Tensor], share: Tensor, names) -> dict[str, Tensor]:
    return {n: torch.tensordot(share, each[n].square(), 1) / len(share) for n in names}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert torch.allclose(found[name], value, rtol=rtol, atol=rtol * value.abs().max().item()), name


@pytest.mark.parametrize("name", CASES)
def test_squares_of_one_sweep_are_those_of_torch_func(name):
    """All samples, shares of them, and each alone: rows are sample by sample, not position by position."""
    case = CASES[name]()
    each, found = one_by_one(case.circuit, case.x, case.labels), estimate(case)
    covered = [n for n in each if n != "model.0.weight"] if name == "text" else each
    batch = len(case.x)
    assert_close(found.squares(), expected_squares(each, torch.ones(batch).double(), covered))
    for share in (torch.rand(batch, generator=torch.Generator().manual_seed(1)), *torch.eye(batch)):
        assert_close(found.squares(share.double()), expected_squares(each, share.double(), covered))


SETTLED = {
    "centred": EPGradient(phases="centred"),
    "one sided": EPGradient(),
    "random sign": EPGradient(phases="random_sign", seed=1),
    "double sampled": EPGradient(phases="centred", errors="double_sampled"),
    "squared error": EPGradient("mse", phases="centred"),
}
CIRCUITS = {
    "dense": CASES["dense"],
    "convolution": convolution,
    "hopfield": lambda: hopfield(5, 6, 3),
    "linear hopfield": lambda: hopfield(5, 4, 4, 3, box=OPEN),
}


RUNS = [(n, p) for n in CIRCUITS for p in SETTLED if not (p == "double sampled" and "hopfield" in n)]


@pytest.mark.parametrize(("name", "phases"), RUNS)
def test_squares_of_settled_phases_are_those_of_estimates_of_single_samples(name, phases):
    """With the cross terms of phases that pulse with opposite signs."""
    case = CIRCUITS[name]()
    strategy = dataclasses.replace(SETTLED[phases], solver=EXACT, nudged_tolerance=1e-12)
    singles = [estimate(case, strategy, slice(i, i + 1)).gradient for i in range(len(case.x))]
    each = {n: torch.stack([g[n] for g in singles]) for n in singles[0]}
    share = torch.arange(1.0, len(case.x) + 1).double()
    assert_close(estimate(case, strategy).squares(share), expected_squares(each, share, each), rtol=1e-7)


@pytest.mark.parametrize("phases", ["one_sided", "centred"])
def test_squares_of_phases_that_nearly_cancel_survive_single_precision(phases):
    """A nudge of 1e-3: states in (0, 1) differ by 1e-4, products of two phases' squares by 1e-8 of themselves."""
    case, strategy = hopfield(5, 6, 3), EPGradient(beta=1e-3, phases=phases)
    single, double = (
        strategy.estimate(
            case.circuit, lambda dtype=dtype: case.params(dtype), case.x.to(dtype), case.labels
        ).squares()
        for dtype in (torch.float32, torch.float64)
    )
    for name, expected in double.items():
        assert torch.allclose(single[name].double(), expected, rtol=0, atol=1e-3 * expected.max().item())


@pytest.mark.parametrize("strategy", [BackpropGradient(), HolomorphicGradient(), InParts(EPGradient(), 2)])
def test_estimates_that_are_no_plain_mean_over_samples_have_no_squares(strategy):
    assert estimate(CASES["dense"](), strategy).squares() is None
    assert estimate(CASES["dense"](), SampledEPGradient()).squares() is None


def test_squares_are_of_what_is_asked_for():
    """Of a layer of which only the weight, only the bias or nothing learns."""
    case = CASES["convolution"]()
    found = estimate(case)
    whole, factors = found.squares(), found.factors()
    for names in (["model.0.weight"], ["model.0.bias", "model.5.weight"], []):
        part = mean_squares(factors, {n: found.gradient[n] for n in names}, len(case.x))
        assert_close(part, {n: whole[n] for n in names})


@pytest.mark.parametrize("name", CASES)
def test_layers_are_joined_and_parted(name):
    """parted(joined) is what was joined, and pairs with a 1 appended add up to the joined gradient."""
    case = CASES[name]()
    found = estimate(case)
    factors, params = found.factors(), case.params()
    for weight in case.circuit.weights:
        layer = joined(params, weight)
        again = parted(layer, params, weight)
        assert all(torch.equal(params[n], p) for n, p in again.items())
        assert sum(p.numel() for p in again.values()) == layer.numel()
        pairs = joined_pairs(factors, params, weight)
        total = sum(post.T @ pre for post, pre in pairs) / len(case.x)
        assert torch.allclose(total, joined(found.gradient, weight), rtol=1e-10, atol=1e-14)
