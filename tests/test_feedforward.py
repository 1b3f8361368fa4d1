"""The feedforward energy beside its conformance suite: closed forms, ReLU's kink, bounds, parsing, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from circuits import FeedforwardCircuit, Layout, cost
from mep_sim.settling import ODE, Sweep, settle
from tests.conformance import CASES, COSTS, EXACT, feedforward, gap

FEEDFORWARD = [name for name in CASES if name.startswith("feedforward")]


@pytest.mark.parametrize("name", FEEDFORWARD)
def test_free_equilibrium_is_the_forward_pass(name):
    case = CASES[name]()
    system = case.bind()
    output = case.circuit(case.x)
    assert gap(system.readout(settle(system).state), output) < 1e-14
    assert system.energy(settle(system).state).abs().max() < 1e-28
    assert gap(system.readout(settle(system, solver=ODE(1e-11)).state), output) < 1e-9


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


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.sampled_from([None, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU]), max_size=3),
    flatten=st.booleans(),
    bias=st.booleans(),
)
def test_any_chain_of_layers_is_parsed_and_shares_its_parameters(hidden, flatten, bias):
    modules = [nn.Flatten()] if flatten else []
    for kind in hidden:
        modules += [nn.Linear(6, 6, bias=bias)] if kind is None else [nn.Linear(6, 6, bias=bias), kind()]
    model = nn.Sequential(*modules, nn.Linear(6, 3)).double()
    circuit = FeedforwardCircuit.from_sequential(model)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3) if flatten else torch.eye(6).double()
    assert circuit.layout.sizes == (6,) * len(hidden) + (3,)
    assert {id(p) for p in circuit.parameters()} == {id(p) for p in model.parameters()}
    system = circuit.bind(circuit.params(), x)
    assert torch.allclose(system.readout(settle(system).state), model(x), rtol=1e-6)


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


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)],
            r"module 1 \(BatchNorm1d\) has no energy here",
        ),
        ([nn.Conv1d(1, 1, 3), nn.Linear(3, 2)], "Conv1d"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 2)], r"module 2 \(Tanh\)"),
        ([nn.ReLU(), nn.Linear(3, 2)], r"module 0 \(ReLU\)"),
        ([nn.Linear(3, 4), nn.Flatten(), nn.Linear(4, 2)], "Flatten"),
        ([nn.Flatten()], "no Linear layer"),
        ([nn.Linear(3, 2), nn.ReLU()], "output layer ends in relu"),
    ],
)
def test_models_without_an_energy_are_refused(modules, message):
    with pytest.raises(ValueError, match=message):
        FeedforwardCircuit.from_sequential(nn.Sequential(*modules))


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
