"""Consolidation at a surprise: when the cost surprises, what is then held, and where the pull leads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mep_sim.optimizers import AutoEWC, CompositeOptimizer, NoFeedback, Surprise, SurpriseGated
from mep_sim.optimizers.strategies.consolidation import Evidence
from tests.test_baselines_gradients import network, task
from tests.test_consolidation import optimizer_of, train, weights
from tests.test_layers import one_by_one

GATED = [SurpriseGated, AutoEWC]


# -- when --------------------------------------------------------------------------------------------


def surprises(surprise: Surprise, costs: list[float]) -> tuple[list[int], dict]:
    memory: dict = {}
    found = [t for t, c in enumerate(costs) if surprise.noticed(torch.tensor(c, dtype=torch.float64), memory)]
    return found, memory


def surprises_in_words(ratio, rate, refractory, longest, costs) -> list[int]:
    """By the docstring, step by step with what was last new; the first step is no surprise, but counts as new."""
    found, begun, mean = [], 0, costs[0]
    for t in range(1, len(costs)):
        rested = t - begun > refractory
        overdue = longest is not None and t - begun > longest
        if (rested and costs[t] > ratio * mean) or overdue:
            found.append(t)
            begun, mean = t, costs[t]
        else:
            mean += rate * (costs[t] - mean)
    return found


@settings(max_examples=200, deadline=None)
@given(
    ratio=st.sampled_from([1.1, 2.0, 3.0]),
    rate=st.sampled_from([0.01, 0.3, 1.0]),
    refractory=st.integers(1, 6),
    extra=st.none() | st.integers(0, 6),
    costs=st.lists(st.floats(0, 5), min_size=1, max_size=40),
)
def test_surprises_are_those_of_the_docstring(ratio, rate, refractory, extra, costs):
    longest = None if extra is None else refractory + extra
    found, memory = surprises(Surprise(ratio, rate, refractory, longest), costs)
    assert found == surprises_in_words(ratio, rate, refractory, longest, costs)
    assert memory["surprises"] == len(found)
    assert memory["steps since surprise"] == len(costs) - 1 - (found[-1] if found else 0)
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert all(gap > refractory for gap in gaps)
    assert longest is None or all(gap <= longest + 1 for gap in gaps)


def test_a_jump_of_the_cost_surprises_once_it_may():
    """Cost 1, then 4: above 3 x 1 at the first step that is not refractory; its mean then begins at 4."""
    costs = [1.0] * 5 + [4.0] * 5
    assert surprises(Surprise(refractory=3), costs)[0] == [5]
    assert surprises(Surprise(refractory=7, rate=0.01), costs)[0] == [8]
    assert surprises(Surprise(refractory=3), costs)[1]["mean cost"] == 4.0
    assert surprises(Surprise(refractory=3, rate=0.5), [1.0, 3.0])[1]["mean cost"] == 2.0
    assert surprises(Surprise(refractory=2, longest=2), [1.0] * 10)[0] == [3, 6, 9]
    assert surprises(Surprise(refractory=1), [1.0, 1.0, 3.0])[0] == []  # it has to exceed 3 x 1


# -- what is held --------------------------------------------------------------------------------------

ONLY_LONGEST = Surprise(ratio=1e9, refractory=1, longest=2)  # at steps 3, 6, ... from 0


@pytest.mark.parametrize("averaging", [1.0, 0.3])
@pytest.mark.parametrize("kind", GATED)
def test_running_and_held_statistics_and_pulls_are_those_worked_by_hand(kind, averaging):
    """Eight steps with two surprises, in which importances add up and the anchor is the last one."""
    rate, strength, lr, model, oracle = 0.3, 40.0, 0.1, network(), network()
    strategy = kind(strength=strength, rate=rate, averaging=averaging, surprise=ONLY_LONGEST)
    optimizer = optimizer_of(model, strategy, lr=lr)
    mean = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    running = {name: torch.zeros_like(p) for name, p in oracle.named_parameters()}
    held, anchors = {name: r.clone() for name, r in running.items()}, {}
    for step in range(8):
        x, y = task(seed=step)
        optimizer.step(x=x, target=y)
        each = one_by_one(oracle, x, y)
        with torch.no_grad():
            for name, p in oracle.named_parameters():
                mean[name] = (1 - averaging) * mean[name] + averaging * p
                if step in (3, 6):
                    held[name] += running[name]
                    anchors[name] = mean[name].clone()
                g = each[name].mean(0)
                square = each[name].square().mean(0) if kind is SurpriseGated else len(x) * g**2
                running[name] = (1 - rate) * running[name] + rate * square
                k = lr * strength * held[name]
                p -= lr * g
                p.copy_((p + k * anchors.get(name, p)) / (1 + k))
        for name, p in model.named_parameters():
            state = optimizer.state[p]
            assert torch.allclose(p, oracle.get_parameter(name), rtol=1e-9, atol=1e-12)
            assert torch.allclose(state["running importance"], running[name], rtol=1e-8)
            assert ("anchor" in state) == (step >= 3)
            if step >= 3:
                assert torch.allclose(state["importance"], held[name], rtol=1e-8)
                assert torch.allclose(state["anchor"], anchors[name], rtol=1e-9, atol=1e-12)
    assert optimizer.memory["surprises"] == 2


def test_what_is_consolidated_does_not_change_until_the_next_surprise():
    optimizer = optimizer_of(network(), AutoEWC(rate=0.5, surprise=ONLY_LONGEST))
    train(optimizer, 4)
    held = [optimizer.state[p]["importance"].clone() for p in optimizer._named.values()]
    train(optimizer, 2, first=4)
    for p, importance in zip(optimizer._named.values(), held, strict=True):
        assert torch.equal(optimizer.state[p]["importance"], importance)
        assert not torch.equal(optimizer.state[p]["running importance"], importance)


# -- where the pull leads ------------------------------------------------------------------------------

positive = st.floats(1e-6, 1e6)


@given(strength=positive, lr=st.floats(1e-6, 10), importance=st.floats(0, 1e3), anchor=st.floats(-10, 10))
def test_the_pull_ends_at_the_minimum_of_penalty_and_distance(strength, lr, importance, anchor):
    """strength / 2 F (w - a)^2 + (w - proposed)^2 / (2 lr): its slope there is 0, between the two."""
    proposed = torch.tensor([-3.0, 0.0, 7.0]).double()
    state = {k: torch.full_like(proposed, v) for k, v in (("importance", importance), ("anchor", anchor))}
    strategy = AutoEWC(strength=strength)
    w = strategy.pulled({"w": proposed}, {"w": lr}, {"w": state}, {})["w"]
    slope = strength * importance * (w - anchor) + (w - proposed) / lr
    assert (slope.abs() <= 1e-12 * 10 * (strength * importance + 1 / lr)).all()
    low, high = (f(proposed, state["anchor"]) for f in (torch.minimum, torch.maximum))
    assert ((w >= low - 1e-9) & (w <= high + 1e-9)).all()


@pytest.mark.parametrize("kind", GATED)
def test_strength_0_is_no_pull(kind):
    models = [network(), network()]
    train(optimizer_of(models[0]), 6)
    train(optimizer_of(models[1], kind(strength=0.0, surprise=ONLY_LONGEST)), 6)
    for p, q in zip(*map(weights, models), strict=True):
        assert torch.equal(p, q)


def test_any_strength_is_stable():
    """Where the penalty's own gradient would diverge, at lr strength F of 1e6, weights stay at their anchors."""
    model = network()
    optimizer = optimizer_of(model, AutoEWC(strength=1e12, rate=0.5, surprise=ONLY_LONGEST))
    train(optimizer, 4)
    anchors = [optimizer.state[p]["anchor"].clone() for p in model.parameters()]
    train(optimizer, 2, first=4)  # up to the next surprise
    for p, anchor in zip(model.parameters(), anchors, strict=True):
        assert optimizer.state[p]["importance"].min() > 1e-9
        assert torch.allclose(p, anchor, rtol=0, atol=1e-3)


# -- gradients of one's own ----------------------------------------------------------------------------


def test_a_closure_tells_the_cost_and_counts_as_one_sample():
    model, (x, y) = network(), task()
    optimizer = CompositeOptimizer(
        model.parameters(), feedback=NoFeedback(), consolidation=AutoEWC(rate=0.25)
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert optimizer.memory["mean cost"] == loss.item()
    for p in model.parameters():
        assert torch.allclose(optimizer.state[p]["running importance"], 0.25 * p.grad.square(), rtol=1e-12)


def test_parameters_without_a_gradient_have_no_importance():
    model = network()
    optimizer = CompositeOptimizer(model.parameters(), consolidation=AutoEWC(surprise=ONLY_LONGEST))
    before = weights(model)
    for _ in range(6):

        def closure() -> Tensor:
            model[0].weight.grad = torch.ones_like(model[0].weight)
            return torch.tensor(1.0)

        optimizer.step(closure)
    assert "anchor" in optimizer.state[model[0].weight]
    for p, q in list(zip(model.parameters(), before, strict=True))[1:]:
        assert torch.equal(p, q)
        assert not optimizer.state.get(p)


def test_backward_and_step_do_not_tell_the_cost():
    model, (x, y) = network(), task()
    before = weights(model)
    optimizer = CompositeOptimizer(model.parameters(), model=model, consolidation=AutoEWC())
    nn.functional.cross_entropy(model(x), y).backward()
    message = r"AutoEWC is gated by the cost, .* use step\(x=, target=\), or step\(closure\)"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert not optimizer.memory
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# -- it complains --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, r"ratio = 1.0; choose a finite ratio > 1, such as 3"),
        ({"ratio": float("inf")}, r"ratio = inf; choose a finite ratio > 1"),
        ({"rate": 0.0}, r"rate = 0.0 of the slow mean cost; choose 0 < rate <= 1, such as 0.01"),
        ({"rate": 1.1}, r"rate = 1.1 of the slow mean cost"),
        ({"refractory": 0}, r"refractory = 0 steps; choose at least 1, such as 200"),
        (
            {"longest": 199},
            r"longest = 199 steps .* refractory = 200 .* choose longest >= refractory, or None",
        ),
    ],
)
def test_surprises_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Surprise(**settings)


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, r"strength = -1.0; choose a finite strength >= 0, such as 300"),
        ({"strength": float("inf")}, r"strength = inf; choose a finite strength >= 0"),
        ({"rate": 0.0}, r"rate = 0.0 of the statistics; choose 0 < rate <= 1, such as 0.002"),
        ({"rate": 2.0}, r"rate = 2.0 of the statistics"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_a_cost_is_needed_before_anything_is_noted():
    memory: dict = {}
    with pytest.raises(ValueError, match="gated by the cost"):
        AutoEWC().observe(Evidence({}), {}, {}, memory)
    assert not memory
