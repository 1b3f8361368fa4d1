"""Spectral bounds against the SVD; the certified one against the equilibria that a network has."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from circuits import EnergyCircuit, FeedforwardCircuit, HopfieldCircuit, ResistiveCircuit
from circuits.norms import conv_norm
from mep_sim import Sweep, settle
from mep_sim.optimizers import (
    CertifiedConstraint,
    CompositeOptimizer,
    ConstraintStrategy,
    EPGradient,
    MuonUpdate,
    NoConstraint,
    NoFeedback,
    PlainUpdate,
    SpectralConstraint,
    WindowConstraint,
    orthogonalise,
)
from mep_sim.optimizers.strategies.constraint import default_constraint
from tests.device_conformance import generator

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def normal(shape, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def with_sigma(shape, sigma: list[float], seed: int = 0) -> Tensor:
    u, _, vh = torch.linalg.svd(normal(shape, seed), full_matrices=False)
    return u * torch.tensor(sigma, dtype=torch.float64) @ vh


def norm(w: Tensor) -> float:
    return torch.linalg.svdvals(w)[0].item()


def project(constraint: ConstraintStrategy, w: Tensor, circuit: EnergyCircuit | None = None) -> Tensor:
    """The projection of one weight."""
    name = "w" if circuit is None else circuit.weights[0]
    return constraint.project({name: w}, circuit, {})[name]


# -- per layer ---------------------------------------------------------------------------------------


@few
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.floats(1e-3, 1e3),
    gamma=st.floats(0.1, 10),
)
def test_the_spectral_norm_ends_up_at_most_gamma(seed, rows, columns, scale, gamma):
    w = scale * normal((rows, columns), seed)
    # eigenvalues of the Gram matrix are exact to eps sigma_1^2
    rounding = 100 * torch.finfo(w.dtype).eps * max(norm(w) / gamma, 1) ** 2
    assert norm(project(SpectralConstraint(gamma), w)) <= gamma * (1 + rounding)


@few
@given(seed=seeds, shape=st.sampled_from([(8, 8), (20, 8), (8, 20)]))
def test_a_weight_below_gamma_is_left_as_it_is_to_the_bit(seed, shape):
    w = normal(shape, seed)
    assert torch.equal(project(SpectralConstraint(1.1 * norm(w)), w), w)


@pytest.mark.parametrize("shape", [(8, 8), (20, 8), (8, 20)])
def test_it_clips_the_leading_values_and_leaves_the_vectors(shape):
    w = with_sigma(shape, [5, 3, 2, 0.9, 0.8, 0.5, 0.2, 0.1])
    expected = with_sigma(shape, [1] * 3 + [0.9, 0.8, 0.5, 0.2, 0.1])
    assert torch.allclose(project(SpectralConstraint(1.0), w), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_holds_while_muon_raises_every_singular_value(dtype):
    """The case that a tracked bound loses: 100 orthogonal steps of 0.05 against gamma = 0.95."""
    constraint, carry = SpectralConstraint(0.95), torch.zeros(32, 64, dtype=dtype)
    w, steady = normal((32, 64), dtype=dtype) / 8, normal((32, 64), 1, dtype=dtype)
    for step in range(100):
        carry = 0.9 * carry + steady + normal((32, 64), 2 + step, dtype=dtype)
        w = project(constraint, w - 0.05 * orthogonalise(carry))
        assert norm(w.double()) <= 0.95
    assert norm(w) > 0.94


def test_the_optimizer_applies_it():
    p = nn.Parameter(normal((6, 9)))
    o = CompositeOptimizer([p], constraint=SpectralConstraint(0.95), feedback=NoFeedback(), lr=0.001)
    for seed in range(5):
        p.grad = normal((6, 9), seed)
        o.step()
        assert norm(p.detach()) <= 0.95


def test_what_is_no_linear_map_of_activity_passes():
    """Tables, gains and biases stay to the bit where a step of zero leaves them, and the weights are bounded."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm([5, 4]), nn.Flatten(), nn.Linear(20, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10).add_(1)
    before = copy.deepcopy(model)
    bounded = CompositeOptimizer(
        model.parameters(), None, PlainUpdate(), SpectralConstraint(0.5), model=model, lr=1e-300
    )
    bounded.step(x=torch.randint(9, (6, 5)), target=torch.arange(6) % 3)
    for name, p in model.named_parameters():
        assert torch.equal(p, before.get_parameter(name)) == (name != "3.weight"), name
    assert norm(model[3].weight.detach()) == pytest.approx(0.5, rel=1e-9)


@few
@given(seed=seeds, scale=st.floats(1e-2, 1e2), gamma=st.floats(0.1, 10))
def test_a_convolution_is_scaled_down_to_its_operator_norm(seed, scale, gamma):
    """Its direction stays, its bound is met, and a kernel within it is left as it is."""
    w = scale * normal((3, 2, 3, 3), seed)
    bounded = project(SpectralConstraint(gamma), w)
    assert torch.allclose(bounded, w * min(1.0, gamma / conv_norm(w)), rtol=1e-9, atol=0)
    assert conv_norm(bounded) <= gamma * (1 + 1e-12)
    assert project(SpectralConstraint(2 * conv_norm(w)), w) is w


def test_a_convolution_is_bounded_as_its_module_applies_it():
    """A grouped convolution with a stride has a smaller norm than a plain one with the same kernel."""
    circuit = nn.Module()
    circuit.conv = nn.Conv2d(4, 6, 3, stride=2, groups=2).double()
    circuit.weights = ("conv.weight",)
    w = circuit.conv.weight.detach()
    own, plain = conv_norm(w, (2, 2), 2), conv_norm(w)
    assert own < plain
    gamma = (own + plain) / 2
    assert project(SpectralConstraint(gamma), w, circuit) is w
    assert conv_norm(project(SpectralConstraint(gamma), w)) == pytest.approx(gamma)


def test_a_convolutional_network_keeps_the_bound_while_it_learns():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    constraint = SpectralConstraint.contractive(0.9)
    optimizer = CompositeOptimizer(
        model.parameters(), EPGradient(), MuonUpdate(), constraint, lr=0.2, model=model
    )
    rng = generator(3)
    for _ in range(3):
        x, y = torch.randn(8, 1, 10, 10, generator=rng), torch.randint(0, 3, (8,), generator=rng)
        optimizer.step(x=x, target=y)
    norms = [conv_norm(m.weight, m.stride) for m in (model[0], model[2])]
    assert norms == pytest.approx([0.9, 0.9], rel=1e-5)
    assert norm(model[5].weight.detach()) <= 0.9


def test_the_two_uses_have_their_ranges():
    assert SpectralConstraint.contractive() == SpectralConstraint(0.95) == SpectralConstraint()
    assert SpectralConstraint.regulariser() == SpectralConstraint(2.0)
    with pytest.raises(ValueError, match=r"gamma = 1.0 does not contract; .* use regulariser\(gamma\)"):
        SpectralConstraint.contractive(1.0)
    with pytest.raises(ValueError, match=r"gamma = 0.9 contracts; .* use contractive\(gamma\)"):
        SpectralConstraint.regulariser(0.9)


# -- all layers together -----------------------------------------------------------------------------


def coupling(circuit: HopfieldCircuit, weights: dict[str, Tensor], nudge: float = 0.0) -> Tensor:
    """The symmetric coupling of all free units, (n, n), with `nudge` at the outputs."""
    sizes = circuit.layout.sizes
    blocks = [[torch.zeros(a, b, dtype=torch.float64) for b in sizes] for a in sizes]
    for i, name in enumerate(circuit.weights[1:]):
        blocks[i + 1][i], blocks[i][i + 1] = weights[name].double(), weights[name].double().T
    blocks[-1][-1] = nudge * torch.eye(sizes[-1], dtype=torch.float64)
    return torch.cat([torch.cat(row, 1) for row in blocks])


@few
@given(
    seed=seeds,
    sizes=st.lists(st.integers(1, 8), min_size=2, max_size=6),
    scale=st.floats(0.1, 10),
    gamma=st.floats(0.5, 0.99),
    beta=st.floats(-0.4, 0.4),
    loss_type=st.sampled_from(["mse", "cross_entropy"]),
)
def test_the_certified_bound_holds_for_the_whole_coupling(seed, sizes, scale, gamma, beta, loss_type):
    circuit = HopfieldCircuit(sizes, gain=scale, rng=generator(seed)).double()
    constraint = CertifiedConstraint(gamma, beta, loss_type)
    weights = constraint.project({k: v.detach() for k, v in circuit.params().items()}, circuit, {})
    largest = torch.linalg.eigvalsh(coupling(circuit, weights, constraint.nudge))[-1]
    assert largest <= gamma * (1 + 1e-9)


@pytest.mark.parametrize(("layers", "cap"), [(2, 1.0), (3, 0.7071), (4, 0.6180)])
def test_orthogonal_layers_meet_the_bound_exactly(layers, cap):
    """gamma = 2 cos(pi / (N + 1)) kappa for N free layers of equal norm: nothing is given away."""
    circuit = HopfieldCircuit((5,) * (layers + 1)).double()
    weights = {name: 3 * torch.eye(5, dtype=torch.float64) for name in circuit.weights}
    bounded = CertifiedConstraint(0.9, beta=0.0).project(weights, circuit, {})
    assert torch.linalg.eigvalsh(coupling(circuit, bounded))[-1].item() == pytest.approx(0.9, rel=1e-6)
    for name in circuit.weights[1:]:
        assert norm(bounded[name]) == pytest.approx(0.9 * cap, rel=1e-4)
    assert bounded[circuit.weights[0]] is weights[circuit.weights[0]]


def test_layers_within_the_bound_are_left_to_the_bit_and_small_ones_leave_room():
    circuit = HopfieldCircuit((4, 4, 4, 4)).double()
    eye, (_, first, last) = torch.eye(4, dtype=torch.float64), circuit.weights
    within = {first: 0.6 * eye, last: 0.6 * eye}
    bounded = CertifiedConstraint(0.95, beta=0.0).project(within, circuit, {})
    assert all(bounded[name] is within[name] for name in within)
    uneven = {first: 2 * eye, last: 0.3 * eye}
    bounded = CertifiedConstraint(0.95, beta=0.0).project(uneven, circuit, {})
    assert bounded[last] is uneven[last]
    assert norm(bounded[first]) == pytest.approx(math.sqrt(0.95**2 - 0.3**2), rel=1e-6)


def equilibria(circuit: HopfieldCircuit, starts: int = 20) -> Tensor:
    """The free states reached from random starts, (starts, n), each with no force left."""
    rng = generator(1)
    system = circuit.bind(circuit.params(), torch.zeros(starts, circuit.features, dtype=torch.float64))
    start = 4 * torch.rand(starts, circuit.layout.n, generator=rng, dtype=torch.float64) - 2
    settled = settle(system, start.clamp(system.lower, system.upper), Sweep(1e-10, max_sweeps=5000))
    assert settled.converged.all()
    return settled.state


@pytest.mark.parametrize("width", [1, 6])
def test_three_layers_have_two_equilibria_under_the_bound_per_layer_and_one_under_the_certified(width):
    """sigma = 0.9 everywhere, a little bias: units in the box [-1, 1] hold each other up, or down."""
    circuit = HopfieldCircuit((2, width, width, width), box=(-1.0, 1.0)).double()
    together = torch.full((width, width), 0.9 / width, dtype=torch.float64)  # sigma 0.9, along (1, ..., 1)
    with torch.no_grad():
        for name in circuit.weights[1:]:
            circuit.get_parameter(name).copy_(together)
        for name in circuit.biases:
            circuit.get_parameter(name).fill_(0.05)
    params = {name: p.detach() for name, p in circuit.params().items()}

    weights = {name: params[name] for name in circuit.weights}
    per_layer = SpectralConstraint.contractive(0.95).project(weights, circuit, {})
    assert all(torch.equal(per_layer[name], params[name]) for name in circuit.weights[1:])
    states = equilibria(circuit)
    sides = states.mean(1, keepdim=True).sign()
    held = torch.tensor([[0.9, 1.0, 0.9], [0.05, 0, 0.05]], dtype=torch.float64).repeat_interleave(width, 1)
    assert torch.allclose(states, sides * held[0] + held[1], rtol=0, atol=1e-6)
    assert {-1.0, 1.0} == set(sides.flatten().tolist())

    circuit.load_state_dict(CertifiedConstraint(0.95).project(params, circuit, {}))
    states = equilibria(circuit)
    assert (states - states[0]).abs().max() < 1e-6


def test_the_certificate_holds_while_training():
    """Muon on a 3-free-layer network, with a step that breaks the bound each time before it is projected."""
    circuit = HopfieldCircuit((4, 16, 16, 3), rng=generator())
    constraint = CertifiedConstraint(0.9, beta=0.3)
    optimizer = CompositeOptimizer(
        circuit.parameters(),
        EPGradient(beta=0.3, phases="centred"),
        MuonUpdate(),
        constraint,
        lr=0.2,
        model=circuit,
    )
    rng = generator(2)
    for _ in range(5):
        x, y = torch.randn(32, 4, generator=rng), torch.randint(0, 3, (32,), generator=rng)
        optimizer.step(x=x, target=y)
        largest = torch.linalg.eigvalsh(coupling(circuit, circuit.state_dict(), constraint.nudge))[-1]
        assert 0.5 < largest <= 0.9 * (1 + 1e-5)


def test_weights_of_other_owners_count_but_do_not_move():
    circuit = HopfieldCircuit((4, 4, 4, 4)).double()
    eye, (_, first, last) = torch.eye(4, dtype=torch.float64), circuit.weights
    circuit.get_parameter(first).data.copy_(0.5 * eye)
    bounded = CertifiedConstraint(0.9, beta=0.0).project({last: eye}, circuit, {})
    assert set(bounded) == {last}
    assert norm(bounded[last]) == pytest.approx(math.sqrt(0.9**2 - 0.5**2), rel=1e-6)
    circuit.get_parameter(first).data.copy_(eye)
    with pytest.raises(ValueError, match=r"does not own couple by 1 alone, above gamma = 0.9; pass it all"):
        CertifiedConstraint(0.9, beta=0.0).project({last: eye}, circuit, {})


# -- windows of conductances -------------------------------------------------------------------------


def resistive(window: tuple[float, float] = (1e-7, 1e-4)) -> ResistiveCircuit:
    return ResistiveCircuit((4, 5, 3), window=window, rng=generator()).double()


@few
@given(seed=seeds, low=st.floats(-5, 5), span=st.floats(1e-3, 5))
def test_a_window_moves_what_is_outside_to_its_ends_and_nothing_else(seed, low, span):
    w = normal((5, 7), seed)
    held = project(WindowConstraint(low, low + span), w)
    expected = [[min(max(x, low), low + span) for x in row] for row in w.tolist()]
    assert held.tolist() == expected


@pytest.mark.parametrize(
    "low_high", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)]
)
def test_a_window_has_two_ends(low_high):
    with pytest.raises(ValueError, match=r"choose finite low < high, such as 1e-7 and 1e-4 S"):
        WindowConstraint(*low_high)


def test_the_default_is_the_window_of_the_circuit_and_else_nothing():
    assert default_constraint(None) == NoConstraint()
    assert default_constraint(HopfieldCircuit((3, 2))) == NoConstraint()
    assert default_constraint(resistive((2e-7, 3e-5))) == WindowConstraint(2e-7, 3e-5)
    circuit = resistive()
    o = CompositeOptimizer(circuit.parameters(), EPGradient("mse"), model=circuit)
    assert o.constraint == WindowConstraint(1e-7, 1e-4)
    assert CompositeOptimizer(HopfieldCircuit((3, 2)).parameters()).constraint == NoConstraint()


def test_steps_far_too_long_end_at_the_ends_of_the_window():
    circuit = resistive()
    o = CompositeOptimizer(circuit.parameters(), EPGradient("mse", beta=1e-6), model=circuit, lr=1.0)
    x, y = normal((6, 4)), torch.arange(6) % 3
    for _ in range(2):
        o.step(x=x, target=y)
        for w in circuit.parameters():
            assert bool(((w == 1e-7) | (w == 1e-4) | ((w > 1e-7) & (w < 1e-4))).all())
            assert bool((w == 1e-7).any() & (w == 1e-4).any())


def test_a_narrower_window_is_allowed_and_a_wider_one_refused():
    circuit = resistive()
    CompositeOptimizer(circuit.parameters(), constraint=WindowConstraint(1e-6, 1e-5), model=circuit)
    for low, high in ((1e-8, 1e-4), (1e-7, 2e-4)):
        with pytest.raises(ValueError, match=r"is wider than the window of the circuit, \(1e-07, 0.0001\)"):
            CompositeOptimizer(circuit.parameters(), constraint=WindowConstraint(low, high), model=circuit)


@pytest.mark.parametrize("constraint", [NoConstraint(), SpectralConstraint(0.9), CertifiedConstraint(0.9)])
def test_what_lets_conductances_leave_their_window_is_refused(constraint):
    circuit = resistive()
    message = type(constraint).__name__
    if not isinstance(constraint, CertifiedConstraint):
        message += (
            r" lets weights leave \[1e-07, 0.0001\].*choose WindowConstraint\(1e-07, 0.0001\), the default"
        )
    with pytest.raises(ValueError, match=message if "lets" in message else "Resistive"):
        CompositeOptimizer(circuit.parameters(), constraint=constraint, model=circuit)


# -- it complains ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "settings_", "message"),
    [
        (SpectralConstraint, {"gamma": 0.0}, "gamma = 0.0; choose gamma > 0"),
        (SpectralConstraint, {"gamma": math.nan}, "gamma = nan"),
        (
            CertifiedConstraint,
            {"gamma": 1.0},
            "gamma = 1.0 certifies nothing; choose 0 < gamma < 1, such as 0.95",
        ),
        (
            CertifiedConstraint,
            {"beta": -2.0},
            r"beta = -2.0 alone takes 1 of gamma = 0.95; choose \|beta\| < 1.9 for cross_entropy",
        ),
        (CertifiedConstraint, {"beta": 1.0, "loss_type": "mse"}, r"choose \|beta\| < 0.95 for mse"),
        (CertifiedConstraint, {"beta": math.nan}, "beta = nan"),
        (CertifiedConstraint, {"loss_type": "hinge"}, "unknown cost 'hinge'"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(constraint, settings_, message):
    with pytest.raises(ValueError, match=message):
        constraint(**settings_)


def test_a_kernel_of_another_dimension_is_refused():
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3, 3))
    with pytest.raises(
        ValueError, match=r"param-0 of shape \(2, 2, 3, 3, 3\) is neither a matrix nor a kernel"
    ):
        CompositeOptimizer([kernel], constraint=SpectralConstraint())
    CompositeOptimizer([{"params": [kernel], "role": "vector"}], constraint=SpectralConstraint())


def test_a_kernel_of_one_dimension_is_bounded_as_a_row_of_pixels():
    w = 3 * normal((4, 3, 5))
    bounded = project(SpectralConstraint(0.5), w)
    assert torch.equal(bounded, project(SpectralConstraint(0.5), w.unsqueeze(2)).squeeze(2))
    assert conv_norm(bounded.unsqueeze(2)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (None, "needs to know which layers couple: pass model="),
        (
            FeedforwardCircuit.from_sizes((3, 4, 2)),
            "FeedforwardCircuit has one free equilibrium whatever its weights",
        ),
    ],
)
def test_a_certificate_is_for_hopfield_circuits(circuit, message):
    params = [nn.Parameter(torch.ones(2, 2))] if circuit is None else circuit.parameters()
    with pytest.raises(ValueError, match=message):
        CompositeOptimizer(params, constraint=CertifiedConstraint(), model=circuit)
