"""Kronecker consolidation: factors against autograd, the pull against a dense solve, steering by inverses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuits import HopfieldCircuit
from mep_sim.baselines import EWC, ByOptimizer
from mep_sim.optimizers import (
    CompositeOptimizer,
    EPGradient,
    KroneckerConsolidation,
    MuonUpdate,
    SpectralConstraint,
    Surprise,
)
from mep_sim.optimizers.strategies.layers import joined
from tests.conformance import EXACT
from tests.test_baselines_gradients import network, task
from tests.test_consolidation import ONE_SWEEP, optimizer_of, train, weights
from tests.test_natural import rows
from tests.test_surprise import ONLY_LONGEST

NEVER = Surprise(ratio=1e9)
W1, W2 = "model.0.weight", "model.2.weight"


def kronecker(**settings) -> KroneckerConsolidation:
    """At every step, at a surprise after steps 3, 6, ..., with statistics of a few steps; steers nothing."""
    return KroneckerConsolidation(
        **{"stride": 1, "damping": None, "rate": 0.3, "surprise": ONLY_LONGEST, **settings}
    )


def images(n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 3, 3, generator=rng, dtype=torch.float64), torch.randint(3, (n,), generator=rng)


def convolutional() -> nn.Sequential:
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=rng)
    return model


def factors_by_autograd(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, G): positions of a kernel added up in A, averaged in G."""
    found, outputs = {}, {}
    h = x
    for i, module in enumerate(model):
        before, h = h.detach(), module(h)
        if hasattr(module, "weight"):
            h.retain_grad()
            outputs[f"model.{i}.weight"] = (module, before, h)
    F.cross_entropy(h, y, reduction="sum").backward()
    for name, (module, before, h) in outputs.items():
        a, d = rows(module, before, h.grad)
        found[name] = a.T @ a / len(x), d.T @ d / len(d)
    model.zero_grad()
    return found


# -- factors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phases", ["one_sweep", "centred"])
@pytest.mark.parametrize(
    ("make", "batch"), [(network, task), (convolutional, images)], ids=["dense", "convolution"]
)
def test_running_factors_are_those_of_autograd(make, batch, phases):
    """R <- (1 - rate) R + rate [A, G] from 0; two phases that mirror each other differ from backprop by O(beta^2)."""
    gradient = ONE_SWEEP
    if phases == "centred":
        gradient = EPGradient(phases="centred", beta=1e-4, solver=EXACT, nudged_tolerance=1e-9)
    model, rate = make(), 0.3
    optimizer = optimizer_of(model, kronecker(surprise=NEVER, rate=rate), gradient)
    expected: dict[str, list[Tensor]] = {}
    for seed in range(3):
        x, y = batch(seed=seed)
        for name, now in factors_by_autograd(model, x, y).items():
            past = expected.get(name, [torch.zeros_like(f) for f in now])
            expected[name] = [(1 - rate) * p + rate * f for p, f in zip(past, now, strict=True)]
        optimizer.step(x=x, target=y)
    for name, (a, g) in expected.items():
        state = optimizer.state[optimizer._named[name]]
        assert torch.allclose(state["running A"], a, rtol=1e-6, atol=1e-9)
        assert torch.allclose(state["running G"], g, rtol=1e-6, atol=1e-9)


def test_of_one_sample_a_and_g_make_the_whole_fisher_matrix():
    """Of a linear softmax layer: kron(G, A) is the outer product of its gradient [W, b]; the exact Fisher matrix is
    that averaged over the model's own labels, with A in common."""
    x, layer = task(1)[0], nn.Sequential(nn.Linear(4, 3)).double()
    p = torch.softmax(layer(x), 1).detach()[0]
    exact, fisher = 0, 0
    for label in range(3):
        optimizer = optimizer_of(layer, kronecker(surprise=NEVER, rate=1.0))
        optimizer.compute_gradient(x, torch.tensor([label]))
        g = joined({n: q.grad for n, q in optimizer._named.items()}, "model.0.weight").flatten()
        optimizer.consolidation.observe(
            optimizer._evidence, optimizer._named, optimizer._states, optimizer.memory
        )
        state = optimizer.state[layer[0].weight]
        found = torch.kron(state["running G"], state["running A"])
        assert torch.allclose(found, torch.outer(g, g), rtol=1e-9, atol=1e-14)
        exact, fisher = exact + p[label] * found, fisher + p[label] * state["running G"]
    seen = F.pad(x[0], (0, 1), value=1.0)
    variance = p.diag() - torch.outer(p, p)
    assert torch.allclose(fisher, variance, rtol=1e-9, atol=1e-14)
    assert torch.allclose(exact, torch.kron(variance, torch.outer(seen, seen)), rtol=1e-9, atol=1e-14)


def test_factors_add_up_over_surprises():
    """Held at the second: what was held at the first, and what runs."""
    optimizer = optimizer_of(network(), kronecker(averaging=1.0))
    total: dict[tuple[str, str], Tensor] = {}
    for step in range(7):
        states = {name: optimizer.state[p] for name, p in optimizer._named.items()}
        before = {name: states[name]["running A"].clone() for name in (W1, W2) if step}
        anchor = {name: joined(optimizer._named, name).detach().clone() for name in (W1, W2)}
        train(optimizer, 1, first=step)
        for name in (W1, W2):
            if step in (3, 6):
                total[name, "A"] = total.get((name, "A"), 0) + before[name]
                vectors = states[name]["A vectors"]
                held = (vectors * states[name]["A values"]) @ vectors.T
                assert torch.allclose(held, total[name, "A"], rtol=1e-9, atol=1e-12)
                assert torch.equal(states[name]["anchor"], anchor[name])
                assert (states[name]["A values"] >= 0).all()


# -- the pull ------------------------------------------------------------------------------------------


def held(state: dict, side: str) -> Tensor:
    return (state[f"{side} vectors"] * state[f"{side} values"]) @ state[f"{side} vectors"].T


@pytest.mark.parametrize("bias", [True, False])
def test_the_pull_solves_the_dense_system(bias):
    """D + k G D A = proposed - anchor, that is (I + k kron(G, A)) D = away, row by row."""
    model, lr, strength = network(), 0.1, 50.0
    model[0].bias.requires_grad_(bias)
    optimizer = optimizer_of(model, kronecker(strength=strength), lr=lr)
    train(optimizer, 4)
    rng = torch.Generator().manual_seed(7)
    proposed = {n: torch.randn(p.shape, generator=rng).to(p) for n, p in optimizer._named.items()}
    if not bias:
        del proposed["model.0.bias"]
    states = {name: optimizer.state[optimizer._named[name]] for name in proposed}
    found = optimizer.consolidation.pulled(proposed, dict.fromkeys(proposed, lr), states, optimizer.memory)
    assert found.keys() == proposed.keys()
    for name in (W1, W2):
        state, away = states[name], joined(proposed, name) - states[name]["anchor"]
        a, g = held(state, "A"), held(state, "G")
        assert len(a) == away.shape[1] == 6 - 2 * (name == W1) + (name == W2 or bias)
        system = torch.eye(away.numel()).double() + lr * strength * torch.kron(g, a)
        d = torch.linalg.solve(system, away.flatten()).view_as(away)
        assert (d - away).abs().max() > 0.01
        assert torch.allclose(joined(found, name) - state["anchor"], d, rtol=1e-8, atol=1e-11)


def test_the_pull_comes_every_stride_th_step_with_as_many_times_the_strength():
    """A plain step, pulled at lr stride strength; in between, none. Statistics decay as if seen each step."""
    stride, model, lr, strength, rate = 3, network(), 0.1, 5.0, 0.3
    long = Surprise(ratio=1e9, refractory=1, longest=4)
    optimizer = optimizer_of(
        model, kronecker(stride=stride, strength=strength, surprise=long, rate=rate), lr=lr
    )
    pulled = []
    for step in range(12):
        x, y = task(seed=step)
        factors = factors_by_autograd(model, x, y)
        before = {name: p.detach().clone() for name, p in optimizer._named.items()}
        past = {n: optimizer.state[optimizer._named[n]].get("running A") for n in (W1, W2)}
        optimizer.step(x=x, target=y)
        plain = {n: p - lr * optimizer.estimate.gradient[n] for n, p in before.items()}
        for name in (W1, W2):
            state, found = optimizer.state[optimizer._named[name]], joined(optimizer._named, name)
            if step % stride == 0:
                keep = (1 - rate) ** stride
                past_a = torch.zeros_like(factors[name][0]) if past[name] is None else past[name]
                expected = keep * past_a + (1 - keep) * factors[name][0]
                assert torch.allclose(state["running A"], expected, rtol=1e-9, atol=1e-12)
            else:
                assert torch.equal(state["running A"], past[name])
            away = joined(plain, name)
            if "anchor" in state and step % stride == 0:
                away = away - state["anchor"]
                system = torch.kron(held(state, "G"), held(state, "A")) * (lr * strength * stride)
                system += torch.eye(len(system)).double()
                away = state["anchor"] + torch.linalg.solve(system, away.flatten()).view_as(away)
                pulled.append(step)
            assert torch.allclose(found, away, rtol=1e-8, atol=1e-11)
    assert pulled == [6, 6, 9, 9]  # a surprise at steps 5 and 10


def test_a_bound_holds_of_what_is_pulled():
    settings = {"update": MuonUpdate(), "constraint": SpectralConstraint(0.6)}
    model = network()
    train(optimizer_of(model, kronecker(damping=3.0), **settings), 8)
    for layer in (model[0], model[2]):
        assert torch.linalg.matrix_norm(layer.weight, 2) <= 0.6


# -- steering ------------------------------------------------------------------------------------------


def steered_step(damping: float | None, strategy=ONE_SWEEP, edit=None):
    """An optimizer after the fifth step, which follows a surprise, its weights before it, and the raw gradient."""
    model = network()
    optimizer = optimizer_of(model, kronecker(damping=damping, strength=0.0), strategy)
    train(optimizer, 4)
    before = {name: p.detach().clone() for name, p in optimizer._named.items()}
    raw = dict(optimizer.compute_gradient(*task(seed=4)).gradient)
    if edit is not None:
        edit(optimizer)
    grads = {name: p.grad for name, p in optimizer._named.items()}
    optimizer.step()
    moved = {name: (before[name] - p) / 0.1 for name, p in optimizer._named.items()}
    return optimizer, raw, grads, moved


@pytest.mark.parametrize("phases", ["one_sweep", "centred"])
def test_a_contrast_is_steered_by_the_inverse_of_what_is_in_use(phases):
    """gradient (I + A / damping)^-1 is what is learnt."""
    damping = 0.5
    optimizer, raw, _, moved = steered_step(damping, EPGradient(phases=phases))
    for name in (W1, W2):
        a = held(optimizer.state[optimizer._named[name]], "A")
        expected = joined(raw, name) @ torch.linalg.inv(torch.eye(len(a)).double() + a / damping)
        assert torch.allclose(joined(moved, name), expected, rtol=1e-7, atol=1e-10)
        assert not torch.allclose(expected, joined(raw, name), rtol=0.05, atol=0)


@pytest.mark.parametrize("samples", [2, 20])
def test_few_samples_are_steered_as_their_gradient_is(samples):
    """In one call by their activities, in two by the gradient, on which others may have worked."""
    ends = []
    for in_one_call in (True, False):
        model = network()
        optimizer = optimizer_of(model, kronecker(damping=0.5))
        train(optimizer, 4)
        x, y = task(samples, seed=4)
        if in_one_call:
            optimizer.step(x=x, target=y)
        else:
            optimizer.compute_gradient(x, y)
            optimizer.step()
        ends.append(weights(model))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(*ends, strict=True))


def test_without_damping_the_gradient_is_left_alone():
    optimizer, raw, grads, moved = steered_step(None)
    assert all(torch.equal(raw[name], g) for name, g in grads.items())
    assert all(torch.allclose(raw[name], m, rtol=1e-9, atol=1e-12) for name, m in moved.items())
    assert not any("filter" in state for state in optimizer.state.values())


def test_what_was_changed_in_grad_is_steered_with_it():
    """A penalty that a baseline adds between gradient and step; factors stay those of the batch."""
    damping, added = 0.5, {}

    def edit(optimizer: CompositeOptimizer) -> None:
        ewc = EWC(ByOptimizer(optimizer), strength=100.0, pull="penalty")
        ewc.end_task(*task(20))
        raw = {name: p.grad.clone() for name, p in optimizer._named.items()}
        with torch.no_grad():
            for p in optimizer._named.values():
                p += 0.1  # away from the anchor
        ewc.before_step()
        with torch.no_grad():
            for p in optimizer._named.values():
                p -= 0.1
        added.update({name: p.grad - raw[name] for name, p in optimizer._named.items()})

    optimizer, raw, _, moved = steered_step(damping, edit=edit)
    untouched = steered_step(damping)[0]
    for name in (W1, W2):
        a = held(optimizer.state[optimizer._named[name]], "A")
        change = joined(added, name)
        assert change.abs().max() > 0.01
        expected = (joined(raw, name) + change) @ torch.linalg.inv(torch.eye(len(a)).double() + a / damping)
        assert torch.allclose(joined(moved, name), expected, rtol=1e-7, atol=1e-10)
        states = [o.state[o._named[name]] for o in (optimizer, untouched)]
        assert torch.equal(states[0]["running A"], states[1]["running A"])


def test_directions_that_were_never_used_are_learnt_freely():
    """The first input is dead while the past is learned: what its weights learn is not filtered, the rest hardly
    moves."""
    x, y = task(20)
    quiet = x.clone()
    quiet[:, 0] = 0
    model = nn.Sequential(nn.Linear(4, 3)).double()
    optimizer = optimizer_of(model, kronecker(damping=1e-6, strength=0.0))
    for _ in range(4):
        optimizer.step(x=quiet, target=y)
    before = [w.clone() for w in weights(model)]
    outputs = model(quiet).detach()
    gradient = optimizer.compute_gradient(x, y).gradient["model.0.weight"].clone()
    optimizer.step()
    moved = (model[0].weight - before[0]).detach()
    assert torch.allclose(moved[:, 0], -0.1 * gradient[:, 0], rtol=1e-4)
    assert moved[:, 1:].abs().max() < 1e-4 * moved[:, 0].abs().max()
    assert torch.allclose(model(quiet), outputs, rtol=0, atol=1e-5)


# -- it complains --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, r"damping = 0.0; choose a finite damping > 0, such as 3, or None"),
        ({"damping": float("inf")}, r"damping = inf; choose a finite damping > 0"),
        ({"stride": 0}, r"stride = 0 steps; choose a whole number of 1 or more, such as 10"),
        ({"stride": 2.5}, r"stride = 2.5 steps; choose a whole number"),
        ({"strength": -1.0}, r"strength = -1.0; choose a finite strength >= 0"),
        ({"rate": 0.0}, r"rate = 0.0 of the statistics"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KroneckerConsolidation(**settings)


def test_a_circuit_with_feedback_is_refused():
    circuit = HopfieldCircuit((4, 6, 3))
    message = "a HopfieldCircuit has no contrast of one error and one activity .* use SurpriseGated, AutoEWC or Prec"
    with pytest.raises(ValueError, match=message):
        CompositeOptimizer(circuit.parameters(), model=circuit, consolidation=KroneckerConsolidation())


def test_a_bias_that_learns_alone_is_refused():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = optimizer_of(model, KroneckerConsolidation())
    with pytest.raises(
        ValueError, match=r"model.0.bias learns and its weight does not: freeze both, or use Sur"
    ):
        train(optimizer, 1)
