"""What every baseline obeys: the same under EP's one sweep as under autograd, checkpoints, bad tasks."""

from __future__ import annotations

import copy

import pytest
import torch

from circuits import CrossEntropy, SquaredError
from mep_sim import checkpoint
from mep_sim.baselines import AGEM, EWC, GEM, SI, Autograd, ByOptimizer, OnlineEWC, Replay
from mep_sim.optimizers import CompositeOptimizer, EPGradient, NoFeedback
from tests.test_baselines_gradients import network, task


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


MAKERS = {
    "ewc": lambda g: EWC(g, 10.0, pull="penalty"),
    "ewc, batched": lambda g: EWC(g, 10.0, "batched", batch_size=3),
    "ewc, exact": lambda g: EWC(g, 10.0, "exact"),
    "ewc, sampled": lambda g: EWC(g, 10.0, "sampled", rng=generator()),
    "online ewc": lambda g: OnlineEWC(g, 10.0, decay=0.5),
    "si": lambda g: SI(g, 10.0, pull="penalty"),
    "gem": lambda g: GEM(g, 5, rng=generator()),
    "agem": lambda g: AGEM(g, 5, 4, generator()),
    "replay": lambda g: Replay(g, 13, 4, generator()),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def run(baseline, tasks: int, lr: float = 0.05) -> list[torch.Tensor]:
    """Three steps on each task, by hand; every `.grad` on the way, and the weights at the end."""
    seen, params = [], baseline.gradients.parameters
    for t in range(tasks):
        x, y = task(9, seed=t)
        y[:3] = torch.arange(3)
        for _ in range(3):
            for name, g in baseline.gradients.gradient(x, y).items():
                params[name].grad = g
            baseline.before_step()
            seen += [p.grad.clone() for p in params.values()]
            with torch.no_grad():
                for p in params.values():
                    p -= lr * p.grad
            baseline.after_step(lr)
        baseline.end_task(x, y)
    return seen + [p.detach().clone() for p in params.values()]


def by_ep() -> ByOptimizer:
    """One sweep is backprop exactly."""
    model = network()
    return ByOptimizer(CompositeOptimizer(model.parameters(), EPGradient(phases="one_sweep"), model=model))


@every
def test_under_eps_one_sweep_it_is_what_it_is_under_autograd(make):
    expected, found = run(make(Autograd(network())), 2), run(make(by_ep()), 2)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-10)


@every
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(make, tmp_path):
    baseline = make(Autograd(network()))
    run(baseline, 2)
    saved = {"baseline": baseline.state_dict(), "model": baseline.gradients.model.state_dict()}
    checkpoint.save(tmp_path / "c.pt", saved)
    state = checkpoint.load(tmp_path / "c.pt")
    other = make(Autograd(network(5)))
    other.gradients.model.load_state_dict(state["model"])
    other.load_state_dict(state["baseline"])
    assert other.stored_samples == baseline.stored_samples
    for a, b in zip(run(baseline, 2), run(other, 2), strict=True):
        assert torch.equal(a, b)


def test_a_state_is_checked_against_what_it_is_loaded_into(rng):
    ewc = MAKERS["ewc"](Autograd(network()))
    run(ewc, 1)
    state = ewc.state_dict()
    wide = EWC(Autograd(torch.nn.Linear(4, 3).double()))
    with pytest.raises(ValueError, match=r"the state has 0.weight of shape \(6, 4\), the model no such"):
        wide.load_state_dict(state)
    with pytest.raises(ValueError, match="another rng setting"):
        EWC(Autograd(network()), rng=rng).load_state_dict(state)
    gradients = Autograd(network())
    gem = GEM(gradients, 3, rng=rng)
    for c in (CrossEntropy(), SquaredError()):
        gradients.cost = c
        gem.end_task(*task())
    state, other = gem.state_dict(), GEM(gradients, 3, rng=copy.deepcopy(rng))
    with pytest.raises(ValueError, match=r"under CrossEntropy\(\), SquaredError\(\); give these as costs="):
        other.load_state_dict(state)
    other.load_state_dict(state, costs=[CrossEntropy(), SquaredError()])
    assert [stored.cost for stored in other.memory] == [CrossEntropy(), SquaredError()]


@every
def test_a_task_that_is_none_is_refused(make):
    baseline, (x, y) = make(Autograd(network())), task()
    with pytest.raises(ValueError, match="the task has no samples; give end_task those"):
        baseline.end_task(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"labels of shape \(6,\) .* for 7 samples; give one int64 label"):
        baseline.end_task(x, y[:6])
    with pytest.raises(ValueError, match=r"labels of shape \(7,\) and type torch.float64"):
        baseline.end_task(x, y.double())


def test_the_usage_with_an_optimizer_of_the_library():
    """`compute_gradient`, `before_step`, `step`, `after_step`: plain descent on the penalised loss."""
    gradients = by_ep()
    optimizer = gradients.optimizer
    optimizer.feedback = NoFeedback()
    ewc, (x, y) = EWC(gradients, 10.0, "batched", pull="penalty"), task()
    ewc.end_task(x, y)
    with torch.no_grad():
        for p in gradients.parameters.values():
            p += 0.1
    before = {name: p.detach().clone() for name, p in gradients.parameters.items()}
    pull = dict(
        zip(before, torch.autograd.grad(ewc.penalty(), list(gradients.parameters.values())), strict=True)
    )
    g = gradients.gradient(x, y)
    optimizer.compute_gradient(x, y)
    ewc.before_step()
    optimizer.step()
    ewc.after_step(0.01)
    for name, p in gradients.parameters.items():
        assert torch.allclose(p, before[name] - 0.01 * (g[name] + pull[name]), rtol=1e-9, atol=1e-12)
