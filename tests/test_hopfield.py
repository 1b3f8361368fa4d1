"""The Hopfield energy beside its conformance suite: linear solves, the box, bounds, what is local, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import HopfieldCircuit, cost
from mep_sim.settling import ODE, Sweep, settle
from tests.conformance import CASES, COSTS, EXACT, OPEN, Case, gap, hopfield


def coupling(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric W (n, n) and the drive b (B, n) of a layered circuit."""
    weights, biases = case.circuit.in_order(case.params())
    n = case.circuit.layout.n
    w = torch.zeros(n, n, dtype=torch.float64)
    ends = torch.tensor((0, *case.circuit.layout.sizes)).cumsum(0).tolist()
    for i in range(1, len(weights)):
        w[ends[i] : ends[i + 1], ends[i - 1] : ends[i]] = weights[i]
    b = [
        torch.nn.functional.linear(case.x, weights[0], biases[0]),
        *(v.expand(len(case.x), -1) for v in biases[1:]),
    ]
    return w + w.T, torch.cat(b, 1)


@pytest.mark.parametrize("sizes", [(8, 4), (8, 10, 4), (8, 12, 10, 4), (8, 12, 10, 9, 4)])
@pytest.mark.parametrize("beta", [None, 0.2, -0.2])
def test_open_box_is_a_linear_solve(sizes, beta):
    """(I - W + beta P) s = b + beta y, P the projection on the outputs."""
    case = hopfield(*sizes, box=OPEN, gain=0.3)
    w, b = coupling(case)
    matrix = torch.eye(len(w), dtype=torch.float64) - w
    system = case.bind()
    if beta is not None:
        matrix[-4:, -4:] += beta * torch.eye(4, dtype=torch.float64)
        b[:, -4:] += beta * torch.nn.functional.one_hot(case.labels, 4).double()
        system = system.around(settle(system, solver=EXACT)).nudged(cost("mse"), case.labels, beta)
    expected = torch.linalg.solve(matrix, b.T).T
    for solver in (Sweep(1e-12), ODE(1e-11), ODE(1e-11, "euler")):
        e = settle(system, solver=solver)
        assert e.converged.all()
        assert gap(e.state, expected) < 1e-9


def test_energy_is_the_quadratic_form():
    case = hopfield(8, 12, 10, 4)
    w, b = coupling(case)
    s = torch.randn(len(b), len(w), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = 0.5 * s.square().sum(1) - 0.5 * ((s @ w) * s).sum(1) - (b * s).sum(1)
    assert gap(case.bind().energy(s), expected) < 1e-13


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0), (-0.2, 0.3), (0.0, math.inf)])
@pytest.mark.parametrize("phase", [None, *COSTS])
def test_equilibria_in_a_box_satisfy_the_optimality_conditions(box, phase):
    """Force zero inside, outwards on a wall; hidden units stay in, and some rest on a wall."""
    case = hopfield(8, 12, 10, 4, box=box)
    plain = case.bind()
    system = plain if phase is None else plain.nudged(cost(phase), case.labels, 0.2)
    for solver in (Sweep(1e-12), ODE(1e-11)):
        s = settle(case.phase(phase, 0.2), solver=solver).state
        force = system.force(s)
        slack = 1e-9
        assert ((s >= system.lower - slack) & (s <= system.upper + slack)).all()
        low, high = s <= system.lower + slack, s >= system.upper - slack
        assert low.any() or high.any()
        assert (force[low] <= slack).all()
        assert (force[high] >= -slack).all()
        assert force[~low & ~high].abs().max() < slack


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(8, 4), (8, 10, 4), (8, 12, 10, 4)])
def test_largest_beta_of_an_open_box_is_where_the_minimum_is_lost(seed, sizes):
    case = hopfield(*sizes, box=OPEN, gain=0.3, seed=seed)
    w, _ = coupling(case)
    limit = case.bind().largest_beta(cost("mse"))

    def least_eigenvalue(beta):
        hessian = torch.eye(len(w), dtype=torch.float64) - w
        hessian[-4:, -4:] -= beta * torch.eye(4, dtype=torch.float64)
        return torch.linalg.eigvalsh(hessian)[0].item()

    assert least_eigenvalue(0.999 * limit) > 0
    assert least_eigenvalue(1.001 * limit) < 0
    assert case.bind().largest_beta(cost("cross_entropy")) == pytest.approx(2 * limit)


def test_an_open_box_without_a_minimum_allows_no_beta():
    """I - W indefinite: there is no free equilibrium to begin with."""
    assert hopfield(8, 10, 10, 4, box=OPEN, gain=2.0).bind().largest_beta(cost("mse")) == 0


@pytest.mark.parametrize(("factor", "bounded"), [(0.99, True), (1.01, False)])
def test_in_a_closed_box_only_the_output_can_run_away(factor, bounded):
    """Along the outputs the energy at -beta is (1 - beta) |o|^2 / 2 + linear terms: bounded for beta < 1."""
    case = hopfield(8, 12, 10, 4)
    beta = factor * case.bind().largest_beta(cost("mse"))
    system = case.bind().nudged(cost("mse"), case.labels, -beta)
    s = torch.rand(
        len(case.x), system.layout.n, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    far, farther = s.clone(), s.clone()
    case.circuit.layout.output(far)[:] = 1e5
    case.circuit.layout.output(farther)[:] = 1e6
    assert (system.energy(farther) > system.energy(far)).all() == bounded


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=2, max_size=5),
    gain=st.floats(0.05, 1.5),
    beta=st.floats(-2, 2),
    loss_type=st.sampled_from(COSTS),
    seed=st.integers(0, 999),
)
def test_margin_is_certain_of_the_whole_coupling(sizes, gain, beta, loss_type, seed):
    """1 - lambda_max(W + |beta| C'' on the output) is never less, and the same for both signs of beta."""
    case = hopfield(*sizes, gain=gain, seed=seed)
    w, _ = coupling(case)
    w.diagonal()[-sizes[-1] :] += abs(beta) * cost(loss_type).curvature
    margin = case.bind().margin(cost(loss_type), beta)
    assert margin <= 1 - torch.linalg.eigvalsh(w)[-1].item() + 1e-12
    assert margin == case.bind().margin(cost(loss_type), -beta)


@pytest.mark.parametrize("layers", [2, 3, 4, 7])
@pytest.mark.parametrize("gamma", [0.3, 0.7])
def test_margin_of_a_chain_of_rotations_is_exact(layers, gamma):
    """N layers coupled by gamma times a rotation: lambda_max = 2 cos(pi / (N + 1)) gamma."""
    case = hopfield(4, *[4] * layers)
    with torch.no_grad():
        for weight in case.circuit.in_order(case.circuit.params())[0]:
            weight.copy_(gamma * torch.linalg.qr(weight)[0])
    w, _ = coupling(case)
    margin = case.bind().margin(cost("mse"), 0.0)
    assert margin == pytest.approx(1 - 2 * math.cos(math.pi / (layers + 1)) * gamma, rel=1e-9)
    assert margin == pytest.approx(1 - torch.linalg.eigvalsh(w)[-1].item(), rel=1e-9)


@pytest.mark.parametrize("loss_type", COSTS)
def test_with_a_margin_every_start_ends_in_the_same_equilibrium(loss_type):
    """Nudged by either sign, from any corner of the box."""
    case, beta = hopfield(8, 12, 10, 4, gain=0.3), 0.2
    assert case.bind().margin(cost(loss_type), beta) > 0
    rng = torch.Generator().manual_seed(0)
    for sign in (1, -1):
        nudged = case.bind().nudged(cost(loss_type), case.labels, sign * beta)
        corners = [torch.randint(2, nudged.initial_state().shape, generator=rng).double() for _ in range(5)]
        ends = [settle(nudged, corner, EXACT).state for corner in corners]
        assert all(gap(end, ends[0]) < 1e-11 for end in ends)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hopfield")])
@pytest.mark.parametrize("loss_type", COSTS)
def test_a_layers_contrast_follows_from_its_own_synapses(name, loss_type):
    case = CASES[name]()
    circuit, beta = case.circuit, 0.1 * case.kink_free
    free = settle(case.bind(), solver=EXACT)
    nudged = case.bind().around(free).nudged(cost(loss_type), case.labels, beta)
    at = settle(nudged, solver=Sweep(1e-9))
    states = [(case.x, case.x), *zip(*map(circuit.layout.split, (free.state, at.deviation)), strict=True)]
    found = {}
    for layer in range(len(circuit.layout.sizes)):
        inputs = [states[i + 1] for i in circuit.inputs_of(layer)]
        own = {name: case.params()[name] for name in circuit.layer_parameters(layer)}
        found |= circuit.local_contrast(layer, own, inputs, states[layer + 1], beta)
    contrast = nudged.contrast(free, at)
    assert found.keys() == contrast.keys() == case.params().keys()
    assert all(gap(found[parameter], contrast[parameter]) < 1e-9 for parameter in contrast)


def test_weights_are_drawn_with_their_gain(rng):
    circuit = HopfieldCircuit((400, 300, 200), gain=0.7, rng=rng)
    for weight, fan_in in zip(circuit.in_order(circuit.params())[0], (400, 300), strict=True):
        assert weight.std().item() == pytest.approx(0.7 / math.sqrt(fan_in), rel=0.02)


@pytest.mark.parametrize("sizes", [(3,), (), (3, 0, 2)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="at least an input and an output size"):
        HopfieldCircuit(sizes)


@pytest.mark.parametrize("box", [(1.0, 0.0), (0.0, 0.0), (math.nan, 1.0)])
def test_an_empty_box_is_refused(box):
    with pytest.raises(ValueError, match="is empty"):
        HopfieldCircuit((3, 2), box=box)
