"""EWC and SI: penalties against autograd, proximal steps against their objective, importances against theory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mep_sim.baselines import EWC, SI, Autograd, OnlineEWC, diagonal_fisher
from tests.test_baselines_gradients import assert_same, network, task

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31)
strengths = st.floats(0, 1e4)


def shake(model: nn.Module, seed: int, by: float = 0.3) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=rng, dtype=p.dtype)


def learnt(make, tasks: int = 2, seed: int = 0):
    """A baseline after some tasks between which the weights moved; its model; the quadratics (F, w) by name."""
    model = network(seed)
    baseline, quadratics = make(Autograd(model)), []
    for t in range(tasks):
        x, y = task(seed=seed + t)
        fisher = diagonal_fisher(baseline.gradients, x, y)
        quadratics.append({n: (fisher[n], p.detach().clone()) for n, p in model.named_parameters()})
        baseline.end_task(x, y)
        shake(model, seed + t)
    return baseline, model, quadratics


def explicit(strength, model, quadratics):
    """strength/2 sum_t F_t (w - w_t)^2, term by term."""
    named = dict(model.named_parameters())
    terms = [(f * (named[n] - w).square()).sum() for q in quadratics for n, (f, w) in q.items()]
    return 0.5 * strength * sum(terms)


# -- the pull ----------------------------------------------------------------------------------------


@few
@given(seed=seeds, strength=strengths, tasks=st.integers(1, 3))
def test_the_penalty_of_ewc_is_the_sum_of_its_tasks_and_grad_gets_its_gradient(seed, strength, tasks):
    ewc, model, quadratics = learnt(lambda g: EWC(g, strength, pull="penalty"), tasks, seed)
    expected = explicit(strength, model, quadratics)
    assert torch.allclose(ewc.penalty(), expected, rtol=1e-9, atol=1e-12)
    params = list(model.parameters())
    raw = [torch.ones_like(p) for p in params]
    for p, g in zip(params, raw, strict=True):
        p.grad = g
    for total in (expected, ewc.penalty()):
        pulled = torch.autograd.grad(total, params)
        ewc.before_step()
        for p, g, pull in zip(params, raw, pulled, strict=True):
            assert torch.allclose(p.grad, g + pull, rtol=1e-9, atol=1e-9)
            assert torch.equal(g, torch.ones_like(g))  # whoever else holds it sees no change
            p.grad = g
    before = [p.detach().clone() for p in params]
    ewc.after_step(0.1)
    assert all(map(torch.equal, params, before))


@few
@given(seed=seeds, strength=strengths, lr=st.floats(1e-4, 1e3))
def test_the_implicit_step_minimises_the_proximal_objective(seed, strength, lr):
    """w+ = argmin penalty(w) + |w - w-|^2 / (2 lr): there lr times the penalty's gradient is w- - w+."""
    ewc, model, _ = learnt(lambda g: EWC(g, strength), seed=seed)
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    ewc.before_step()
    assert all(p.grad is None for p in params)
    ewc.after_step(lr)
    pull = torch.autograd.grad(ewc.penalty(), params)
    for p, start, g in zip(params, before, pull, strict=True):
        assert torch.allclose(lr * g, start - p, rtol=1e-6, atol=1e-9 * (1 + lr * strength))


def test_both_pulls_agree_for_small_steps():
    moved = {}
    for pull in ("implicit", "penalty"):
        ewc, model, _ = learnt(lambda g, pull=pull: EWC(g, 1.0, pull=pull))
        before = [p.detach().clone() for p in model.parameters()]
        ewc.before_step()
        if pull == "penalty":
            torch.optim.SGD(model.parameters(), lr=1e-5).step()
        ewc.after_step(1e-5)
        moved[pull] = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert moved["penalty"].norm() > 0
    assert torch.allclose(moved["implicit"], moved["penalty"], rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_limit_of_stability_is_where_gradient_descent_diverges(momentum):
    """On the stiffest weight alone, a little below and above lr strength Omega = 2 (1 + momentum)."""
    ewc, _, _ = learnt(lambda g: EWC(g, 3.0, pull="penalty"))
    limit = 2 * (1 + momentum) / (3.0 * max(omega.max().item() for omega in ewc.importance.values()))
    ewc.check_stable(0.99 * limit, momentum)
    with pytest.raises(ValueError, match=r"diverges from .* use pull = 'implicit', or a strength below 2.97"):
        ewc.check_stable(1.01 * limit, momentum)
    for lr, grows in ((0.99 * limit, False), (1.01 * limit, True)):
        w, velocity, stiffness = 1.0, 0.0, 2 * (1 + momentum) / limit
        for _ in range(2000):
            velocity = momentum * velocity + stiffness * w
            w -= lr * velocity
        assert (abs(w) > 1) == grows
    learnt(lambda g: EWC(g, 3.0))[0].check_stable(100 * limit)  # an implicit pull is stable


def test_before_the_first_task_nothing_pulls():
    model = network()
    for make in (EWC, OnlineEWC, SI):
        for pull in ("implicit", "penalty"):
            baseline, before = make(Autograd(model), pull=pull), [p.clone() for p in model.parameters()]
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            baseline.before_step()
            baseline.after_step(0.1)
            baseline.check_stable(1e9)
            assert all(bool((p.grad == 1).all()) for p in model.parameters())
            assert all(map(torch.equal, model.parameters(), before))
            assert baseline.penalty().item() == 0


# -- EWC ---------------------------------------------------------------------------------------------


def test_two_numbers_per_weight_whatever_the_tasks():
    ewc, model, _ = learnt(EWC, 4)
    stored = sum(t.numel() for kind in (ewc.importance, ewc.anchor) for t in kind.values())
    assert stored == ewc.numbers_per_weight * sum(p.numel() for p in model.parameters())


def test_a_weight_without_fisher_keeps_its_first_anchor():
    """An input that is always 0: no gradient, no pull, no 0 / 0."""
    model, (x, y) = nn.Linear(4, 3).double(), task()
    x[:, 2] = 0
    ewc = EWC(Autograd(model))
    for _ in range(2):
        ewc.end_task(x, y)
        shake(model, 0)
    ewc.after_step(1.0)
    assert bool((ewc.importance["weight"][:, 2] == 0).all())
    assert all(p.isfinite().all() for p in model.parameters())


def test_online_ewc_after_one_task_is_ewc_and_then_decays_with_the_latest_anchor():
    ewc, _, _ = learnt(EWC, 1)
    online, _, _ = learnt(OnlineEWC, 1)
    assert_same(online.importance, ewc.importance)
    assert torch.equal(online.penalty(), ewc.penalty())
    online, _, quadratics = learnt(lambda g: OnlineEWC(g, decay=0.3), 3)
    for name in online.importance:
        f, w = zip(*(q[name] for q in quadratics), strict=True)
        assert torch.allclose(online.importance[name], 0.09 * f[0] + 0.3 * f[1] + f[2], rtol=1e-10)
        assert torch.equal(online.anchor[name], w[2])


def test_fisher_of_some_samples():
    """The first ones, or without replacement: with all of them drawn it is the mean over all."""
    gradients, (x, y) = Autograd(network()), task()
    first = EWC(gradients, samples=3)
    first.end_task(x, y)
    assert_same(first.importance, diagonal_fisher(gradients, x[:3], y[:3]))
    drawn = EWC(gradients, samples=7, rng=torch.Generator().manual_seed(0))
    drawn.end_task(x, y)
    assert_same(drawn.importance, diagonal_fisher(gradients, x, y))


# -- SI ----------------------------------------------------------------------------------------------


def train(baseline, lr: float, steps: int, x, y) -> None:
    optimizer = torch.optim.SGD(baseline.gradients.model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        for name, g in baseline.gradients.gradient(x, y).items():
            baseline.gradients.parameters[name].grad = g
        baseline.before_step()
        optimizer.step()
        baseline.after_step(lr)


def loss(gradients, x, y) -> float:
    output, c = gradients.outputs(x), gradients.cost
    return c.value(output, c.target(y, output)).mean().item()


def test_the_path_of_si_adds_up_to_what_the_loss_fell_by():
    """On a quadratic (a linear model under the squared error) a step dw = -lr g of gradient descent lowers the loss
    by sum -g dw - 1/2 dw'H dw: omega is exact up to O(lr), with a halved lr and twice the steps half as wrong."""
    errors = []
    for lr, steps in ((0.02, 50), (0.01, 100)):
        model, (x, y) = nn.Linear(4, 3).double(), task()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        si = SI(Autograd(model, "mse"))
        before = loss(si.gradients, x, y)
        train(si, lr, steps, x, y)
        fell = before - loss(si.gradients, x, y)
        errors.append((sum(omega.sum().item() for omega in si.path.values()) - fell) / fell)
    assert 0 < errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("pull", ["implicit", "penalty"])
def test_importances_of_si_by_hand(pull):
    """One weight, two tasks of two steps: gradients handed in, changes made by hand, pulls included."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight[:] = torch.tensor([[1.0], [1.0]])
    si = SI(Autograd(model), strength=2.0, damping=0.5, pull=pull)
    w, omega, importance, start = model.weight, torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1)
    for gradients in ([[-1.0, 1.0], [-2.0, 0.5]], [[0.3, 0.2], [0.1, 0.4]]):
        omega = torch.zeros(2, 1)
        for g, step in zip(gradients, (0.1, 0.2), strict=True):
            g, before = torch.tensor(g).double()[:, None], w.detach().clone()
            w.grad = g.clone()
            si.before_step()
            with torch.no_grad():
                w += step  # both rise: the first with its gradient against it
            si.after_step(0.1)
            k = 0.1 * 2.0 * importance if pull == "implicit" else torch.zeros(2, 1)
            assert torch.allclose(w.double(), ((before + step) + k * start) / (1 + k))
            omega = omega - g * (w.detach() - before)
        si.end_task(torch.zeros(1, 1).double(), torch.zeros(1, dtype=torch.int64))
        importance = (importance + omega / ((w.detach() - start).square() + 0.5)).clamp(min=0)
        start = w.detach().clone()
        assert torch.allclose(si.importance["weight"], importance, rtol=1e-12)
        assert torch.equal(si.anchor["weight"], start)
        assert bool((si.path["weight"] == 0).all())
    assert importance[1] == 0 < importance[0]


def test_the_path_sees_the_raw_gradient_even_where_it_is_clipped_in_place():
    paths = []
    for clip in (False, True):
        model, (x, y) = network(), task()
        si = SI(Autograd(model))
        for name, g in si.gradients.gradient(x, y).items():
            si.gradients.parameters[name].grad = g
        si.before_step()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-9)
        shake(model, 0)
        si.after_step(0.1)
        paths.append(si.path)
    assert_same(*paths)


def test_a_step_that_was_not_announced_is_refused():
    with pytest.raises(ValueError, match="after_step without before_step"):
        SI(Autograd(network())).after_step(0.1)


# -- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: EWC(g, -1.0), "strength = -1.0; choose a finite strength >= 0"),
        (lambda g: EWC(g, float("nan")), "strength = nan; choose"),
        (lambda g: SI(g, float("inf")), "strength = inf; choose"),
        (lambda g: EWC(g, pull="hard"), "unknown pull 'hard'; choose one of implicit, penalty"),
        (lambda g: EWC(g, fisher="true"), "fisher 'true'; choose one of empirical, sampled, exact, batched"),
        (lambda g: EWC(g, fisher="sampled"), "fisher = 'sampled' draws labels: give it an rng"),
        (lambda g: EWC(g, samples=0), "samples = 0; choose a whole number of 1 or more"),
        (lambda g: EWC(g, batch_size=0), "batch_size = 0; choose"),
        (
            lambda g: EWC(g, samples=8).end_task(*task(7)),
            "samples = 8 of a task of 7; choose at most as many",
        ),
        (lambda g: OnlineEWC(g, decay=0.0), "decay = 0.0; choose 0 < decay <= 1"),
        (lambda g: OnlineEWC(g, decay=1.1), "decay = 1.1; choose"),
        (lambda g: SI(g, damping=0.0), "damping = 0.0; choose a finite damping > 0"),
        (lambda g: EWC(g).after_step(-0.1), "lr = -0.1; give the step's learning rate"),
        (lambda g: EWC(g.model), r"gradients = Sequential; give Autograd\(model\)"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make(Autograd(network()))
