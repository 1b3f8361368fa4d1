"""NaturalGradient: its factors against autograd, its step against a dense Fisher matrix, invariance, resuming."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits import FeedforwardCircuit
from mep_sim.optimizers import EPGradient, NaturalGradient
from tests.conformance import CASES, EXACT, feedforward, relative


def natural(**options) -> NaturalGradient:
    """Converged and at a small beta, with a trust region that never binds, unless said otherwise."""
    options = {"loss_type": "mse", "beta": 1e-6, "radius": 1e9, **options}
    return NaturalGradient(solver=EXACT, nudged_tolerance=1e-11, **options)


def signals_by_autograd(circuit, x, target):
    """Per layer with a weight: its input, and the derivative of each sample's cost in its pre-activation."""
    inputs, outputs = {}, {}

    def keep(name):
        def hook(module, args, output):
            inputs[name], outputs[name] = args[0].detach(), output
            output.retain_grad()

        return hook

    modules = {name: circuit.get_submodule(name.rpartition(".")[0]) for name in circuit.weights}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    output = circuit(x)
    (0.5 * (output - F.one_hot(target, output.shape[1])).square().sum()).backward()
    for handle in handles:
        handle.remove()
    return {name: (inputs[name], outputs[name].grad) for name in circuit.weights}


def rows(module, x, delta):
    """(R, n_in + 1) and (R, n_out): a row per sample, and per position of a convolution."""
    if isinstance(module, nn.Conv2d):
        x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT.flatten(0, 1)
        delta = delta.flatten(2).mT.flatten(0, 1)
    return F.pad(x, (0, 1), value=1.0), delta


@pytest.mark.parametrize("phases", NaturalGradient.known_phases)
@pytest.mark.parametrize("name", ["feedforward-tanh-2", "feedforward-relu-2", "conv-tanh"])
def test_factors_and_step_are_those_of_backprop(name, phases):
    """A = E[s s'], G = E[delta delta'] by autograd; the step solves (G + ..) v (A + ..) = g with damping split by
    the ratio of mean eigenvalues."""
    case, memory, damping = CASES[name](), {}, 0.02
    circuit = case.circuit
    strategy = natural(phases=phases, damping=damping, beta=1e-6)
    v = strategy.estimate(circuit, case.params, case.x, case.labels, memory).gradient
    for weight, (x, delta) in signals_by_autograd(circuit, case.x, case.labels).items():
        prefix = weight.rpartition(".")[0]
        pre, post = rows(circuit.get_submodule(prefix), x, delta)
        a, g = pre.T @ pre / len(case.x), post.T @ post / len(post)
        assert relative(memory[f"{weight} A"], a) < 1e-4
        assert relative(memory[f"{weight} G"], g) < 1e-4
        pi = math.sqrt((a.trace() / len(a)) / (g.trace() / len(g)))
        a, g = (m + e * math.sqrt(damping) * torch.eye(len(m)) for m, e in ((a, pi), (g, 1 / pi)))
        gradient = post.T @ pre / len(case.x)
        dense = torch.linalg.solve(torch.kron(g, a), gradient.flatten()).view(gradient.shape)
        found = torch.cat([v[weight].flatten(1), v[f"{prefix}.bias"][:, None]], 1)
        assert relative(found, dense) < 1e-3


def test_where_inputs_and_errors_are_independent_it_is_the_dense_natural_gradient():
    """A linear layer on all pairs of an input and an error: there the Fisher matrix is a Kronecker product, and
    F^-1 g the natural gradient itself."""
    rng = torch.Generator().manual_seed(0)
    inputs, errors = (torch.randn(n, k, generator=rng, dtype=torch.float64) for n, k in ((7, 4), (5, 3)))
    x, error = inputs.repeat_interleave(len(errors), 0), errors.repeat(len(inputs), 1)
    circuit = FeedforwardCircuit(nn.Sequential(nn.Linear(4, 3)).double())
    target = (circuit(x) - error).detach()
    per_sample = torch.einsum("bi,bj->bij", error, F.pad(x, (0, 1), value=1.0)).flatten(1)
    fisher = per_sample.T @ per_sample / len(x)
    expected = torch.linalg.solve(fisher, per_sample.mean(0)).view(3, 5)
    v = natural(damping=1e-14).estimate(circuit, circuit.params, x, target).gradient
    assert relative(torch.cat([v["model.0.weight"], v["model.0.bias"][:, None]], 1), expected) < 1e-5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), hidden=st.sampled_from(["tanh", "softplus"]))
def test_affine_changes_of_the_input_change_nothing(seed, hidden):
    """The same function of x and of M x + c takes the same step as a function: W' = W M^-1, b' = b - W M^-1 c."""
    case = feedforward(hidden, 3, 4, 4, batch=64, seed=seed, scale=1.0)
    rng = torch.Generator().manual_seed(seed + 1)
    m = torch.eye(3, dtype=torch.float64) + 0.5 * torch.rand(3, 3, generator=rng, dtype=torch.float64)
    c = torch.randn(3, generator=rng, dtype=torch.float64)
    params = case.params()
    w, b = params["model.0.weight"], params["model.0.bias"]
    moved = {**params, "model.0.weight": w @ m.inverse(), "model.0.bias": b - w @ m.inverse() @ c}
    strategy = natural(damping=1e-14)
    step = strategy.estimate(case.circuit, lambda: params, case.x, case.labels).gradient
    other = strategy.estimate(case.circuit, lambda: moved, case.x @ m.T + c, case.labels).gradient
    back = other["model.0.weight"] @ m
    assert relative(back, step["model.0.weight"]) < 1e-3
    assert relative(other["model.0.bias"] + other["model.0.weight"] @ c, step["model.0.bias"]) < 1e-3
    for name in ("model.2.weight", "model.2.bias"):
        assert relative(other[name], step[name]) < 1e-3


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    radius=st.floats(1e-3, 10),
    damping=st.floats(1e-4, 10),
    size=st.floats(0.01, 100),
)
def test_the_step_stays_in_the_trust_region(seed, radius, damping, size):
    """v'Fv = v'g <= radius^2, met where the whole step would leave it; F the damped Kronecker product."""
    case = feedforward("tanh", 5, 6, 3, seed=seed)
    target = size * torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def lengths(radius):
        strategy, memory = natural(radius=radius, damping=damping), {}
        v = strategy.estimate(case.circuit, case.params, case.x, target, memory).gradient
        total = 0.0
        for weight in case.circuit.weights:
            joined = torch.cat([v[weight], v[weight.replace("weight", "bias")][:, None]], 1)
            a, g = (torch.linalg.inv(memory[f"{weight} inverse {side}"]) for side in "AG")
            total += (joined * (g @ joined @ a)).sum().item()
        return total

    whole, held = lengths(1e12), lengths(radius)
    assert held == pytest.approx(min(whole, radius**2), rel=1e-6)


def test_factors_average_over_steps_and_inverses_are_kept():
    """The plain mean at first, then m <- decay m + (1 - decay) new; after the first `refresh` steps an inverse stays
    for as many."""
    case, decay, refresh = CASES["feedforward-tanh-1"](), 0.75, 3
    strategy = natural(decay=decay, refresh=refresh)
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, 8, generator=rng, dtype=torch.float64) for _ in range(9)]
    labels = torch.arange(6) % 4
    memory, mean, inverses = {}, None, []
    for step, x in enumerate(batches):
        strategy.estimate(case.circuit, case.params, x, labels, memory)
        s = F.pad(x, (0, 1), value=1.0)
        new = s.T @ s / len(s)
        keep = min(decay, step / (step + 1))
        mean = new if mean is None else keep * mean + (1 - keep) * new
        assert torch.allclose(memory["model.0.weight A"], mean, rtol=1e-12, atol=1e-12)
        inverses.append(memory["model.0.weight inverse A"])
    fresh = [i for i in range(1, len(inverses)) if not torch.equal(inverses[i], inverses[i - 1])]
    assert fresh == [1, 2, 3, 6]


def train(strategy, case, params, memory, batches):
    for x, y in batches:
        gradient = strategy.estimate(case.circuit, lambda params=params: params, x, y, memory).gradient
        params = {name: p - 0.1 * gradient[name] for name, p in params.items()}
    return params


def test_training_resumes_bit_for_bit():
    case = CASES["feedforward-tanh-1"]()
    strategy = NaturalGradient(beta="auto", phases="random_sign", seed=3, refresh=2)
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(6, 8, generator=rng, dtype=torch.float64), torch.randint(4, (6,), generator=rng))
        for _ in range(10)
    ]
    straight = train(strategy, case, case.params(), {}, batches)
    memory = {}
    half = train(strategy, case, case.params(), memory, batches[:5])
    file = io.BytesIO()
    torch.save((half, memory), file)
    file.seek(0)
    half, memory = torch.load(file, weights_only=True)
    resumed = train(strategy, case, half, memory, batches[5:])
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    forgetful = train(strategy, case, half, {}, batches[5:])
    assert not any(torch.equal(forgetful[name], straight[name]) for name in straight)


def test_a_silent_layer_is_no_division_by_zero():
    """All units of a ReLU layer off: its G and its gradient are zero, and so is its step."""
    case = feedforward("relu", 6, 5, 3)
    params = case.params()
    params["model.0.bias"] = torch.full_like(params["model.0.bias"], -100.0)
    v = natural().estimate(case.circuit, lambda: params, case.x, case.labels).gradient
    assert not v["model.0.weight"].any()
    assert all(g.isfinite().all() for g in v.values())
    assert v["model.2.bias"].any()


def test_other_parameters_keep_their_plain_gradient():
    case = CASES["layer-norm"]()
    plain = EPGradient("mse", 1e-3, solver=EXACT)
    v, g = (
        s.estimate(case.circuit, case.params, case.x, case.labels).gradient
        for s in (NaturalGradient("mse", 1e-3, solver=EXACT), plain)
    )
    layers = {name.rpartition(".")[0] for name in case.circuit.weights}
    others = [name for name in g if name.rpartition(".")[0] not in layers]
    assert len(others) == 4
    assert all(torch.equal(v[name], g[name]) for name in others)
    assert v.keys() == g.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay = 1\.0"),
        ({"decay": -0.1}, r"decay = -0\.1"),
        ({"damping": 0.0}, r"damping = 0\.0"),
        ({"damping": math.inf}, "damping = inf"),
        ({"radius": 0.0}, r"radius = 0\.0"),
        ({"radius": math.nan}, "radius = nan"),
        ({"refresh": 0}, "refresh = 0"),
        ({"phases": "one_sweep"}, "unknown phases 'one_sweep' of NaturalGradient"),
        ({"beta": 0.0}, r"beta = 0\.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NaturalGradient(**options)


def test_a_circuit_without_signals_is_refused():
    case = CASES["hopfield-1"]()
    with pytest.raises(ValueError, match="HopfieldCircuit gives no signals"):
        case.gradient(NaturalGradient())


def test_a_factor_that_rounding_made_indefinite_is_refused():
    case = CASES["feedforward-tanh-1"]()
    strategy = NaturalGradient(damping=1e-30)
    with pytest.raises(ValueError, match="raise damping"):
        strategy.estimate(
            case.circuit, lambda: case.params(torch.float32), 1e4 * case.x[:1].float(), case.labels[:1]
        )
