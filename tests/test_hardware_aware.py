"""Gradients at perturbed weights: which weights they are taken at, and that their randomness resumes."""

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import devices
from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.crossbar import Crossbar
from circuits.mapping import OneSidedPair, SymmetryReference
from devices import MemoryCell, PowerLawDrift
from mep_sim import checkpoint
from mep_sim.optimizers import (
    BackpropGradient,
    CompositeOptimizer,
    DeviceWeights,
    EPGradient,
    Estimate,
    GradientStrategy,
    ImplicitGradient,
    NoFeedback,
    NoisyWeights,
    PlainUpdate,
)
from mep_sim.settling import Sweep
from tests.conformance import flat, relative
from tests.device_conformance import generator

W1, W2 = "model.0.weight", "model.2.weight"
# (1023 s + 1 s) / 1 s to the power of -0.1 is a half
FALLING, HALVED = MemoryCell(0.0, 25e-6, drift=PowerLawDrift(nu=0.1, t0_seconds=1.0)), 1023.0


def circuit(seed: int = 0) -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes((4, 6, 3), "tanh", rng=generator(seed)).double()


def batch(seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(seed)
    return torch.randn(12, 4, generator=rng, dtype=torch.float64), torch.randint(0, 3, (12,), generator=rng)


def gradient(strategy: GradientStrategy, at, memory=None):
    x, y = batch()
    return strategy.estimate(at, at.params, x, y, memory).gradient


@dataclass(frozen=True)
class Spy(GradientStrategy):
    """Keeps what it reads, twice, and says the gradient is that."""

    seen: list = field(default_factory=list)

    def estimate(self, circuit, read, x, target, memory=None) -> Estimate:
        self.seen.extend([read(), read()])
        return Estimate(self.seen[-1], x.sum(), x)


def seen(strategy: GradientStrategy, at) -> list:
    """The weights that the strategy's inner one, a Spy, reads in one estimate."""
    strategy.inner.seen.clear()
    gradient(strategy, at)
    return strategy.inner.seen


# -- where the gradient is taken --------------------------------------------------------------------------


@pytest.mark.parametrize("w_range", [None, 5.0])
def test_noise_has_its_strength_over_the_largest_weight_and_leaves_biases_alone(w_range):
    layer = nn.Linear(300, 200)
    nn.init.normal_(layer.weight, 0, 0.1, generator=generator(0))
    large = FeedforwardCircuit(nn.Sequential(layer))
    weight = large.params()["model.0.weight"].detach()
    w_max = weight.abs().max() if w_range is None else 5 * weight.square().mean().sqrt()
    strategy = NoisyWeights(Spy(), 0.03, w_range=w_range, seed=1)
    strategy.estimate(large, large.params, torch.zeros(1, 300), torch.zeros(1, dtype=torch.int64))
    for params in strategy.inner.seen:
        noise = (params["model.0.weight"] - weight) / w_max
        n = noise.numel()
        assert noise.std().item() == pytest.approx(0.03, rel=4 / math.sqrt(2 * n))
        assert noise.mean().item() == pytest.approx(0, abs=4 * 0.03 / math.sqrt(n))
        assert params["model.0.bias"] is large.params()["model.0.bias"]
    first, second = ((params["model.0.weight"] - weight).flatten() for params in strategy.inner.seen)
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert correlation == pytest.approx(0, abs=4 / math.sqrt(first.numel()))  # every read draws anew


@settings(max_examples=15, deadline=None)
@given(sigma=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_it_is_the_inner_gradient_at_the_perturbed_weights(sigma, seed):
    at, rng = circuit(), generator(seed)
    x, y = batch()
    moved = dict(at.params())
    for name in (W1, W2):
        w = moved[name].detach()
        xi = torch.randn(w.shape, generator=rng, dtype=w.dtype)
        moved[name] = w + xi * sigma * w.abs().max()
    expected = BackpropGradient("mse").estimate(at, lambda: moved, x, y).gradient
    found = gradient(NoisyWeights(BackpropGradient("mse"), sigma, w_range=None, seed=seed), at)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-12, atol=1e-14)


def test_weights_out_of_range_are_read_at_its_end_and_still_learn():
    # root mean square of (3, 0, 0, 4) over 4 entries: 2.5
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    at = FeedforwardCircuit(nn.Sequential(layer))
    strategy = NoisyWeights(Spy(), 0.0, w_range=1.4)
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    strategy.estimate(at, at.params, x, y)
    clipped = torch.tensor([[3.0, 0.0], [0.0, -3.5]], dtype=torch.float64)
    torch.testing.assert_close(strategy.inner.seen[0]["model.0.weight"], clipped)
    # mse of outputs (3, -3.5) against 0: the gradient of every weight is its line's output, the clipped one's too
    inner = NoisyWeights(BackpropGradient("mse"), 0.0, w_range=1.4).estimate(at, at.params, x, y)
    expected = torch.tensor([[3.0, 3.0], [-3.5, -3.5]], dtype=torch.float64)
    torch.testing.assert_close(inner.gradient["model.0.weight"], expected)
    assert torch.equal(layer.weight, torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64))


def test_convolutions_keep_their_shape():
    at = FeedforwardCircuit(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    x, y = torch.randn(2, 1, 4, 4, generator=generator()), torch.tensor([0, 1])
    for strategy in (NoisyWeights(sigma=0.1), DeviceWeights(device=devices.preset("pcm"))):
        found = strategy.estimate(at, at.params, x, y).gradient
        assert {name: g.shape for name, g in found.items()} == {n: p.shape for n, p in at.params().items()}


def test_ep_and_backprop_see_the_same_perturbation_and_agree():
    at = circuit()
    exact = gradient(NoisyWeights(BackpropGradient(), 0.1, seed=3), at)
    swept = gradient(NoisyWeights(EPGradient(phases="one_sweep"), 0.1, seed=3), at)
    torch.testing.assert_close(flat(swept), flat(exact), rtol=1e-9, atol=1e-12)
    errors = []
    for beta in (1e-2, 1e-3):
        ep = EPGradient(beta=beta, solver=Sweep(1e-13), nudged_tolerance=1e-10)
        errors.append(relative(flat(gradient(NoisyWeights(ep, 0.1, seed=3), at)), flat(exact)))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # O(beta), as without noise
    assert relative(flat(exact), flat(gradient(BackpropGradient(), at))) > 0.01


def test_any_circuit_and_strategy_can_be_wrapped():
    at = HopfieldCircuit((4, 6, 3), rng=generator()).double()
    x, y = batch()
    exact = ImplicitGradient(solver=Sweep(1e-12), adjoint_tolerance=1e-10)
    ep = EPGradient(beta=1e-3, phases="centred", solver=Sweep(1e-13), nudged_tolerance=1e-9)
    one, other = (
        NoisyWeights(inner, 0.05, seed=2).estimate(at, at.params, x, y).gradient for inner in (ep, exact)
    )
    assert relative(flat(one), flat(other)) < 1e-3


# -- a device's own noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compensation", [None, "global", "column"])
def test_weights_of_a_device_are_those_of_its_drifted_crossbars(compensation):
    at = circuit()
    strategy = DeviceWeights(Spy(), device=FALLING, t_seconds=HALVED, compensation=compensation)
    factor = 0.5 if compensation is None else 1.0
    for params in seen(strategy, at):
        for name in (W1, W2):
            torch.testing.assert_close(params[name], factor * at.params()[name].detach())


def test_weights_of_a_device_are_drawn_as_a_crossbar_draws_them():
    at, pcm = circuit(), devices.preset("pcm")
    mapping = OneSidedPair()
    first, second = seen(
        DeviceWeights(Spy(), device=pcm, t_seconds=60.0, mapping=mapping, w_range=3.0, seed=7), at
    )
    rng = generator(7)
    for params in (first, second):
        for name in (W1, W2):
            w = at.params()[name].detach()
            w_max = 3 * w.square().mean().sqrt().item()
            crossbar = Crossbar(tuple(w.shape), pcm, w_max, rng, mapping=mapping, dtype=w.dtype)
            crossbar.program(w)
            torch.testing.assert_close(params[name], crossbar.read(60.0), rtol=1e-12, atol=1e-15)
    assert not torch.equal(first[W1], second[W1])


# -- training ---------------------------------------------------------------------------------------------


def test_a_step_moves_the_weights_themselves_by_the_gradient_at_the_perturbed_ones():
    at = circuit()
    before = {name: p.detach().clone() for name, p in at.params().items()}
    strategy = NoisyWeights(BackpropGradient(), 0.1, seed=4)
    expected = gradient(strategy, at)
    x, y = batch()
    plain = CompositeOptimizer(
        at.parameters(), strategy, PlainUpdate(), feedback=NoFeedback(), lr=0.1, model=at
    )
    plain.step(x=x, target=y)
    for name, p in at.params().items():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "strategy",
    [
        NoisyWeights(BackpropGradient(), 0.1, seed=2),
        NoisyWeights(EPGradient(phases="random_sign", seed=5), 0.1, seed=2),
        DeviceWeights(device=devices.preset("pcm"), t_seconds=3600.0),
    ],
    ids=["noise", "noise around random signs", "device"],
)
def test_training_goes_on_bit_for_bit(tmp_path, strategy):
    x, y = batch()

    def learner(seed: int) -> CompositeOptimizer:
        at = circuit(seed)
        return CompositeOptimizer(at.parameters(), strategy, lr=0.1, model=at)

    straight, again = learner(0), learner(1)
    losses = [straight.step(x=x, target=y).item() for _ in range(3)]
    assert len(set(losses)) == 3
    state = {"circuit": straight.circuit.state_dict(), "optimizer": straight.state_dict()}
    checkpoint.save(tmp_path / "c.pt", state)
    state = checkpoint.load(tmp_path / "c.pt")
    again.circuit.load_state_dict(state["circuit"])
    again.load_state_dict(state["optimizer"])
    for _ in range(3):
        assert torch.equal(straight.step(x=x, target=y), again.step(x=x, target=y))
    for p, q in zip(straight.circuit.parameters(), again.circuit.parameters(), strict=True):
        assert torch.equal(p, q)


def test_draws_follow_the_seed_and_go_on_in_memory():
    at, strategy, memory = circuit(), NoisyWeights(sigma=0.1, seed=1), {}
    first = flat(gradient(strategy, at, memory))
    second = flat(gradient(strategy, at, copy.deepcopy(memory)))
    assert torch.equal(first, flat(gradient(strategy, at)))
    assert torch.equal(second, flat(gradient(strategy, at, memory)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, flat(gradient(NoisyWeights(sigma=0.1, seed=2), at)))


# -- settings ---------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_inner_strategy():
    assert NoisyWeights(BackpropGradient("mse")).loss_type == "mse"
    assert NoisyWeights().loss_type == "cross_entropy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyWeights(0.05), "inner = 0.05; give a GradientStrategy"),
        (lambda: NoisyWeights(sigma=-0.1), "sigma = -0.1.*choose 0 to 1"),
        (lambda: NoisyWeights(sigma=math.nan), "sigma = nan"),
        (lambda: NoisyWeights(w_range=0.0), "w_range = 0.0; choose a finite w_range > 0"),
        (lambda: DeviceWeights(device="pcm"), "device = 'pcm'; give a Device"),
        (lambda: DeviceWeights(device=FALLING, t_seconds=-1.0), "t_seconds = -1.0; choose a finite time"),
        (lambda: DeviceWeights(device=FALLING, compensation="row"), "unknown compensation 'row'"),
        (lambda: DeviceWeights(device=FALLING, mapping=SymmetryReference()), "no symmetry point"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
