"""The feedforward energy beside its conformance suite: closed forms, kinks, bounds, what is local, complex beta."""

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits import FeedforwardCircuit, Layout, cost
from mep_sim.settling import ODE, Sweep, settle
from tests.conformance import (
    CASES,
    COSTS,
    EXACT,
    Case,
    check_contrast_is_the_energies_derivative,
    check_solvers_agree_in_float64,
    feedforward,
    gap,
    gradient_checks,
    sequential,
)


def max_pool() -> Case:
    return sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(4, 4),
        x=(1, 8, 8),
        kink_free=1e-3,
        centred_order=1,
    )


HELD = [check_solvers_agree_in_float64, *gradient_checks]
HELD.remove(check_contrast_is_the_energies_derivative)
NETS = {name: build for name, build in CASES.items() if not name.startswith(("hopfield", "resistive"))} | {
    "max-pool": max_pool
}


@pytest.mark.parametrize("name", NETS)
def test_free_equilibrium_is_the_forward_pass(name):
    case = NETS[name]()
    system = case.bind()
    output = case.circuit(case.x)
    assert gap(system.readout(settle(system).state), output) < 1e-14
    assert system.energy(settle(system).state.clone()).abs().max() < 1e-28


@pytest.mark.parametrize("check", HELD, ids=lambda f: f.__name__)
def test_winners_of_max_pooling_are_held(check):
    """What the suite asks of estimates, and of both paths, but for what compares with winners that move. (In a free
    transient of large inputs they change, and an ODE solver slides along the kinks for long.)"""
    check(max_pool())


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.1, -0.1, 1.0])
def test_linear_network_against_its_quadratic(hidden_layers, beta):
    """E + beta C = 1/2 |A s - b|^2 + beta/2 |s_L - y|^2, A = I - (W below the diagonal): one linear solve."""
    sizes = (8, *(12, 10, 9)[:hidden_layers], 4)
    case = feedforward("linear", *sizes, scale=0.4)
    layers = [m for m in case.circuit.model if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in layers], [m.bias.detach() for m in layers]
    layout = case.circuit.layout
    a = torch.eye(layout.n, dtype=torch.float64)
    ends = torch.tensor((0, *layout.sizes)).cumsum(0).tolist()
    for i in range(1, len(weights)):
        a[ends[i] : ends[i + 1], ends[i - 1] : ends[i]] = -weights[i]
    b = torch.cat(
        [nn.functional.linear(case.x, weights[0], biases[0]), *(v.expand(4, -1) for v in biases[1:])], 1
    )
    output = torch.zeros(layout.n, dtype=torch.float64)
    output[ends[-2] :] = 1.0
    y = torch.zeros_like(b)
    y[:, ends[-2] :] = nn.functional.one_hot(case.labels, 4).double()
    expected = torch.linalg.solve(a.T @ a + beta * output.diag(), (b @ a + beta * y).T).T
    system = case.bind()
    nudged = system.around(settle(system, solver=EXACT)).nudged(cost("mse"), case.labels, beta)
    for solver in (Sweep(1e-12), ODE(1e-11), ODE(1e-11, "euler")):
        e = settle(nudged, solver=solver)
        assert e.converged.all()
        assert gap(e.state, expected) < 1e-9


# -- ReLU's kink ----------------------------------------------------------------------------------------


def relu_settled(constrain, loss_type, beta, solver, sizes=(20, 30, 30, 10)):
    case = feedforward("relu", *sizes, constrain=constrain, scale=1.0, batch=32)
    return settle(case.phase(loss_type, beta), solver=solver)


@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("beta", [0.1, 0.4])
@pytest.mark.parametrize(
    "solver", [Sweep(1e-6), ODE(1e-6, "euler", max_evaluations=800)], ids=["sweep", "ode"]
)
def test_plain_relu_has_a_floor_that_holding_states_at_zero_removes(loss_type, beta, solver):
    """Two hidden layers: the force jumps where a pre-activation crosses zero, and nothing rests there."""
    plain, held = (relu_settled(constrain, loss_type, beta, solver) for constrain in (False, True))
    assert held.converged.all()
    assert plain.settled_fraction < 1
    assert plain.relative_residual.max() > 1e-3


@pytest.mark.parametrize("loss_type", COSTS)
def test_one_hidden_layer_of_plain_relu_settles(loss_type):
    """The kink needs an error above it that answers: with one hidden layer its input is clamped."""
    assert relu_settled(False, loss_type, 0.4, Sweep(1e-6), (20, 30, 10)).converged.all()


@pytest.mark.parametrize("hidden", ["softplus", "tanh", "gelu"])
def test_smooth_activations_are_free_anywhere(hidden):
    system = feedforward(hidden, 8, 10, 4).bind()
    assert torch.isinf(system.lower).all()


# -- bounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(8, 10, 4), (8, 12, 10, 4)])
def test_measured_largest_beta_is_where_a_linear_network_loses_its_minimum(seed, sizes):
    case = feedforward("linear", *sizes, seed=seed, scale=1.0, batch=1)
    system = case.bind()
    around = system.around(settle(system, solver=EXACT))
    limit = around.largest_beta(cost("mse"))
    assert system.largest_beta(cost("mse")) <= limit * (1 + 1e-9)

    def least_eigenvalue(beta):
        nudged = system.nudged(cost("mse"), case.labels, -beta)
        at = torch.zeros(system.layout.n, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(lambda s: nudged.energy(s[None]).sum(), at)
        return torch.linalg.eigvalsh(hessian)[0].item()

    assert least_eigenvalue(0.999 * limit) > 0
    assert least_eigenvalue(1.001 * limit) < 0


def test_a_bound_that_is_enough_is_not_measured():
    """The cheap bound is returned where it lies above what is asked for."""
    case = CASES["feedforward-softplus-3"]()
    system = case.bind()
    around = system.around(settle(system, solver=EXACT))
    certified, measured = system.largest_beta(cost("mse")), around.largest_beta(cost("mse"))
    assert certified < measured
    assert around.largest_beta(cost("mse"), enough=0.9 * certified) == certified
    assert around.largest_beta(cost("mse"), enough=1.1 * certified) == measured


@pytest.mark.parametrize("name", NETS)
def test_amplification_is_what_a_unit_force_on_the_output_moves_it(name):
    """The free state's Hessian is A'A, A = I - J: at the output its inverse is I + sum_l J_{l->L} J_{l->L}'."""
    case = NETS[name]()
    system, largest = case.bind(), 0.0
    free = settle(system, solver=EXACT)
    classes = system.layout.sizes[-1]
    for i in range(len(case.x)):
        single = case.bind(x=case.x[i : i + 1])
        hessian = torch.autograd.functional.hessian(
            lambda s, e=single: e.energy(s[None]).sum(), free.state[i]
        )
        compliance = torch.linalg.inv(hessian)[-classes:, -classes:]
        largest = max(largest, torch.linalg.eigvalsh(compliance)[-1].item())
    around = system.around(free)
    assert around.amplification() == pytest.approx(largest, rel=1e-9)
    for loss_type in COSTS:
        c = cost(loss_type)
        limit = 1 / (c.curvature * largest)
        assert around.largest_beta(c) == pytest.approx(limit, rel=1e-9)
        for beta in (0.5 * limit, 0.999 * limit, 1.001 * limit, -3 * limit):
            margin = around.margin(c, beta)
            assert margin <= 1 - abs(beta) / limit + 1e-9
            assert (margin > 0) == (abs(beta) < limit)


# -- what a layer sees ----------------------------------------------------------------------------------


def nudged_phase(case: Case, loss_type: str):
    system = case.bind()
    free = settle(system, solver=EXACT)
    nudged = system.around(free).nudged(cost(loss_type), case.labels, 0.1 * case.kink_free)
    return free, nudged, settle(nudged, solver=Sweep(1e-9))


@pytest.mark.parametrize("name", NETS)
def test_signals_multiply_to_the_contrast(name):
    case = NETS[name]()
    free, nudged, at = nudged_phase(case, "cross_entropy")
    contrast, signals = nudged.contrast(free, at), nudged.signals(at)
    assert signals.keys() == set(case.circuit.weights)
    for weight, (post, pre) in signals.items():
        expected = contrast[weight]
        assert torch.allclose(
            (post.T @ pre).view_as(expected) / len(case.x), expected, rtol=1e-10, atol=1e-14
        )
        if (bias := weight.removesuffix("weight") + "bias") in contrast:
            assert torch.allclose(post.sum(0) / len(case.x), contrast[bias], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NETS)
def test_a_layers_contrast_follows_from_its_own_synapses(name):
    case = NETS[name]()
    circuit = case.circuit
    free, nudged, at = nudged_phase(case, "mse")
    contrast, found = nudged.contrast(free, at), {}
    states = [(case.x, case.x), *zip(*map(circuit.layout.split, (free.state, at.deviation)), strict=True)]
    for layer in range(len(circuit.layout.sizes)):
        own = {name: case.params()[name] for name in circuit.layer_parameters(layer) if name in contrast}
        inputs = [states[i + 1] for i in circuit.inputs_of(layer)]
        found |= circuit.local_contrast(layer, own, inputs, states[layer + 1], nudged.nudge.beta)
    assert found.keys() == contrast.keys() == case.params().keys()
    size = max(g.abs().max() for g in contrast.values())
    for parameter, gradient in contrast.items():
        assert (found[parameter] - gradient).abs().max() <= 1e-12 * size, parameter


# -- complex beta ---------------------------------------------------------------------------------------

ANALYTIC = {name: CASES[name] for name in ("feedforward-softplus-2", "feedforward-linear-2", "residual-tanh")} | {
    "norms": lambda: sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Softplus(),
        nn.Linear(6, 3), x=(5,),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("loss_type", COSTS)
def test_at_a_complex_beta_the_continued_energy_is_stationary(name, loss_type):
    """dE = 0 along every direction of the complex states, conj beta settles to the conjugate state, and the
    contrast is the derivative of the energies' difference in the parameters, without a conjugate."""
    case, rng, h = ANALYTIC[name](), torch.Generator().manual_seed(0), 1e-5
    assert case.circuit.not_analytic() == ()

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=rng, dtype=torch.complex128)

    params = {n: p.to(torch.complex128) for n, p in case.params().items()}
    system = case.circuit.bind(params, case.x.to(torch.complex128))
    free = settle(system, solver=EXACT)
    assert gap(free.state.real, settle(case.bind(), solver=EXACT).state) < 1e-13
    beta = cmath.rect(0.1, 2.0)
    nudged = system.nudged(cost(loss_type), case.labels, beta)
    at, mirrored = (
        settle(phase, free.state, Sweep(1e-12))
        for phase in (nudged, system.nudged(cost(loss_type), case.labels, beta.conjugate()))
    )
    assert at.converged.all()
    assert (mirrored.state - at.state.conj()).abs().max() < 1e-10

    def slope(function, z, d):
        return (function(z + h * d) - function(z - h * d)) / (2 * h)

    d = normal(at.state)
    assert (slope(nudged.energy, at.state, d).abs() <= 1e-7 * slope(nudged.energy, free.state, d).abs()).all()
    d = {n: normal(p) for n, p in params.items()}
    lowered = [
        slope(
            lambda t, s=s: system.rebind({n: p + t * d[n] for n, p in params.items()}).energy(s).mean(),
            0.0,
            1.0,
        )
        for s in (at.state, free.state)
    ]
    contrast = nudged.contrast(free, at)
    assert abs(
        sum((contrast[n] * d[n]).sum() for n in params) * beta - (lowered[0] - lowered[1])
    ) <= 1e-7 * abs(beta)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("conv-relu", ["Conv2d", "ReLU", "AvgPool2d", "Conv2d", "ReLU"]),
        ("layer-norm", ["GELU"]),
        ("hard-sigmoid", ["Hardsigmoid", "Hardsigmoid"]),
    ],
)
def test_modules_without_a_continuation_are_named(name, modules):
    found = [m for m in CASES[name]().circuit.not_analytic() if "AdaptiveAvgPool2d" not in m]
    assert [m.rpartition("(")[2].removesuffix(")") for m in found] == modules


# -- layout ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3))
def test_layout_names_slices_of_one_tensor(sizes, batch):
    layout = Layout(tuple(sizes))
    s = torch.arange(batch * layout.n).reshape(batch, layout.n).float()
    parts = layout.split(s)
    assert [p.shape for p in parts] == [(batch, n) for n in sizes]
    assert torch.equal(torch.cat(parts, 1), s)
    assert torch.equal(layout.output(s), parts[-1])
    parts[0].fill_(-1)
    assert (s[:, : sizes[0]] == -1).all()
    row = layout.fill(tuple(float(i) for i in range(len(sizes))), s)
    assert row.tolist() == [float(i) for i, n in enumerate(sizes) for _ in range(n)]


# -- building -------------------------------------------------------------------------------------------


def test_weights_are_drawn_with_the_gain_of_their_activation(rng):
    circuit = FeedforwardCircuit.from_sizes((400, 300, 200), "relu", rng=rng)
    hidden, output = (circuit.params()[name] for name in circuit.weights)
    assert hidden.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert output.std().item() == pytest.approx(math.sqrt(1 / 300), rel=0.02)


@pytest.mark.parametrize("sizes", [(3,), (), (3, 0, 2)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="at least an input and an output size"):
        FeedforwardCircuit.from_sizes(sizes)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="unknown activation 'mish'"):
        FeedforwardCircuit.from_sizes((3, 4, 2), "mish")


@pytest.mark.parametrize("x", [torch.zeros(8), torch.zeros(2, 7), torch.zeros(2, 8, dtype=torch.int64)])
@pytest.mark.parametrize("name", ["feedforward-tanh-1", "hopfield-1"])
def test_input_is_checked(name, x):
    circuit = CASES[name]().circuit
    with pytest.raises(ValueError, match=r"this circuit takes floats \(B, 8\)"):
        circuit.bind(circuit.params(), x)


@pytest.mark.parametrize("target", [torch.zeros(4, 5), torch.zeros(4), torch.tensor([0, 1, 2])])
@pytest.mark.parametrize("name", ["feedforward-tanh-1", "hopfield-1"])
def test_targets_are_checked(name, target):
    with pytest.raises(ValueError, match="target"):
        CASES[name]().bind().nudged(cost("mse"), target, 0.1)
