"""AutoBeta against its bound by autograd, and what it promises: that both signs of it settle."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits import cost
from mep_sim.optimizers import AutoBeta, EPGradient
from mep_sim.settling import settle
from tests.conformance import CASES, COSTS, EXACT, feedforward, hopfield


def amplification(case) -> float:
    """lambda_max(I + sum_l J_{l->L} J_{l->L}') over the batch, by autograd through the model's own layers."""
    layers, states = list(case.circuit.model), [case.x]
    for layer in layers:
        states.append(layer(states[-1]).detach())
    cuts = [i + 1 for i, layer in enumerate(layers[:-1]) if not isinstance(layer, nn.Linear)]

    def above(cut):
        return lambda s: nn.Sequential(*layers[cut:])(s)

    largest = 0.0
    for b in range(len(case.x)):
        jacobians = [torch.autograd.functional.jacobian(above(cut), states[cut][b]) for cut in cuts]
        gram = torch.eye(len(states[-1][b]), dtype=torch.float64) + sum(j @ j.T for j in jacobians)
        largest = max(largest, torch.linalg.eigvalsh(gram)[-1].item())
    return largest


@pytest.mark.parametrize("name", ["feedforward-tanh-1", "feedforward-softplus-3", "feedforward-relu-2"])
@pytest.mark.parametrize("loss_type", COSTS)
def test_auto_beta_is_the_safe_share_of_the_contraction_bound(name, loss_type):
    case = CASES[name]()
    limit = 1 / (cost(loss_type).curvature * amplification(case))
    strategy = EPGradient(loss_type, AutoBeta(safety=0.3, largest=10.0))
    estimate = strategy.estimate(case.circuit, case.params, case.x, case.labels)
    assert estimate.beta == pytest.approx(0.3 * limit, rel=1e-6)
    strategy = EPGradient(loss_type, AutoBeta(safety=0.3, largest=1e-3))
    assert strategy.estimate(case.circuit, case.params, case.x, case.labels).beta == 1e-3


@pytest.mark.parametrize("loss_type", COSTS)
def test_auto_beta_of_a_linear_hopfield_network_is_half_of_where_its_minimum_goes(loss_type):
    case = CASES["hopfield-linear"]()
    auto = EPGradient(loss_type, AutoBeta(largest=10.0)).estimate(
        case.circuit, case.params, case.x, case.labels
    )
    weights, _ = case.circuit.in_order(case.params())
    sizes = case.circuit.layout.sizes
    coupling = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    ends = torch.tensor((0, *sizes)).cumsum(0).tolist()
    for i, w in enumerate(weights[1:], start=1):
        coupling[ends[i] : ends[i + 1], ends[i - 1] : ends[i]] = w
    output = torch.zeros(sum(sizes), dtype=torch.float64)
    output[ends[-2] :] = cost(loss_type).curvature

    def least(beta):
        hessian = torch.eye(sum(sizes), dtype=torch.float64) - coupling - coupling.T
        return torch.linalg.eigvalsh(hessian - beta * output.diag())[0]

    assert least(1.99 * auto.beta) > 0 > least(2.01 * auto.beta)
    boxed = CASES["hopfield-1"]()
    estimate = EPGradient(loss_type, "auto").estimate(boxed.circuit, boxed.params, boxed.x, boxed.labels)
    assert estimate.beta == min(0.5, 0.5 / cost(loss_type).curvature)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    net=st.one_of(
        st.tuples(st.just("linear"), st.floats(0.05, 5.0)),
        st.tuples(st.sampled_from(["tanh", "softplus"]), st.floats(0.05, 0.8)),
    ),
    loss_type=st.sampled_from(COSTS),
)
def test_at_an_auto_beta_both_signs_settle_in_a_few_sweeps(seed, net, loss_type):
    """A sweep contracts about as `safety` says; exactly so on a linear network, at any size of its weights."""
    hidden, scale = net
    case = feedforward(hidden, 6, 10, 8, 4, seed=seed, scale=scale)
    strategy = EPGradient(loss_type, "auto", "centred", nudged_tolerance=1e-3)
    estimate = strategy.estimate(case.circuit, case.params, case.x, case.labels)
    assert 0 < estimate.beta <= 0.5
    for nudged in estimate.nudged:
        assert nudged.converged.all()
        assert nudged.evaluations <= 40


def test_auto_beta_is_measured_at_first_often_and_then_every_so_many_steps():
    case, memory, betas = CASES["feedforward-tanh-2"](), {}, []
    strategy = EPGradient("mse", AutoBeta(largest=10.0, remeasure=6))
    for step in range(20):
        params = {name: p * (1 + 0.01 * step) for name, p in case.params().items()}
        estimate = strategy.estimate(case.circuit, lambda params=params: params, case.x, case.labels, memory)
        betas.append(estimate.beta)
    measured = [step for step in range(1, 20) if betas[step] != betas[step - 1]]
    assert measured == [1, 2, 4, 6, 12, 18]
    assert betas[-1] < betas[0]
    assert memory["beta_steps"] == 20


def test_no_beta_is_chosen_where_there_is_no_minimum():
    case = hopfield(8, 12, 10, 4, box=(-math.inf, math.inf), gain=3.0)
    around = case.bind().around(settle(CASES["hopfield-linear"]().bind(), solver=EXACT))
    with pytest.raises(ValueError, match="no beta can be chosen"):
        AutoBeta().choose(around, cost("mse"), {})


def test_auto_is_short_for_an_auto_beta():
    assert EPGradient(beta="auto") == EPGradient(beta=AutoBeta())
    assert dataclasses.replace(EPGradient(beta="auto"), phases="centred").beta == AutoBeta()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safety": 0.0}, r"safety = 0\.0"),
        ({"safety": 1.0}, r"safety = 1\.0"),
        ({"largest": 0.0}, r"largest = 0\.0"),
        ({"largest": math.inf}, "largest = inf"),
        ({"remeasure": 0}, "remeasure = 0"),
    ],
)
def test_auto_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoBeta(**options)
