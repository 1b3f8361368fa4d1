"""Trains of pulses that coincide: moments worked out from Bernoulli slots, and what they make of a chip's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import circuits.pulse_trains as module
import devices
from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.chip import Chip
from circuits.pulse_trains import PulseTrains
from devices import ConstantStepPulses, MemoryCell
from mep_sim.optimizers import (
    CompositeOptimizer,
    EPGradient,
    ErrorFeedback,
    MuonUpdate,
    NaturalGradient,
    NoFeedback,
    PlainUpdate,
    SpectralConstraint,
    WriteResidual,
)
from tests.device_conformance import generator

few = settings(max_examples=20, deadline=None)
D, X = torch.tensor([0.5, -0.2, 0.0]), torch.tensor([1.0, -0.4])
PATHS = {"sparse": (2.0, 2.0), "products": (2.0, 0.0), "every slot": (0.0, 2.0)}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Both ways to draw what fires, and both ways to count coincidences."""
    crowded, dense = PATHS[request.param]
    monkeypatch.setattr(module, "CROWDED", crowded)
    monkeypatch.setattr(module, "DENSE", dense)


def rows(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(D.expand(n, -1), X.expand(n, -1))]


# -- moments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [True, False])
def test_moments_are_those_of_independent_slots(path, balance):
    """scale / step / length = 0.3: a cell is pulsed in a slot with p = 0.3 |d x|, at most 0.15. Over n = 2000 samples
    of 31 slots the count has mean n 31 p and variance n 31 p (1 - p), up or down by the sign, never both."""
    trains, n, step = PulseTrains(31, balance), 2000, 0.001
    found = trains.coincide(rows(n), 0.3 * 31 * step, step, generator(0))
    p = 0.3 * torch.outer(D, X)
    slots = n * 31
    for counts, expected in ((found.down, p.clamp(min=0)), (found.up, (-p).clamp(min=0))):
        deviation = (slots * expected * (1 - expected)).sqrt()
        assert counts.dtype == torch.int32
        assert ((counts - slots * expected).abs() <= 4.5 * deviation).all()
    assert found.saturated == 0


def test_cells_of_a_line_share_its_train():
    """Cov of the counts of two cells of row j: slots p_j p_i p_k (1 - p_j). With balance both largest probabilities
    are sqrt(0.3 0.5): p_j = 0.3873, p_i = 0.3873, p_k = 0.1549."""
    trains, rng, repeats = PulseTrains(10), generator(1), 400
    counts = torch.stack(
        [(c := trains.coincide(rows(2), 3.0, 1.0, rng)).up + c.down for _ in range(repeats)]
    ).double()
    a, b = (counts[:, 0] - counts[:, 0].mean(0)).T
    p_j, p_i, p_k = 0.15**0.5, 0.15**0.5, 0.4 * 0.15**0.5
    slots = 2 * 10
    expected = slots * p_j * p_i * p_k * (1 - p_j)
    variance = slots * p_j * p_i * (1 - p_j * p_i) * slots * p_j * p_k * (1 - p_j * p_k) + expected**2
    assert (a * b).mean().item() == pytest.approx(expected, abs=4.5 * (variance / repeats) ** 0.5)


def test_beyond_certainty_lines_fire_always_and_are_reported(path):
    """scale d x / (step length) = 4 for the one pair of lines: both are to fire with probability 2, and do in all of
    5 slots; the second column, at probability 0.02, has the wanted product 0.04 but gets 0.02."""
    post, pre = torch.tensor([[1.0]]).expand(400, -1), torch.tensor([[1.0, 0.01]]).expand(400, -1)
    found = PulseTrains(5).coincide([(post, pre)], 20.0, 1.0, generator(0))
    assert found.down[0, 0] == 400 * 5
    assert found.down[0, 1].item() == pytest.approx(400 * 5 * 0.02, abs=4.5 * (40 * 0.98) ** 0.5)
    assert found.saturated == pytest.approx(2 / 3)


@few
@given(seed=st.integers(0, 2**31), n_out=st.integers(1, 6), n_in=st.integers(1, 6), n=st.integers(1, 5))
def test_counts_are_no_more_than_the_slots_and_only_where_both_lines_have_a_signal(seed, n_out, n_in, n):
    rng = generator(seed)
    post, pre = (torch.randn(n, k, generator=rng) for k in (n_out, n_in))
    post[post.abs() < 0.5] = 0
    pre[0] = 0
    found = PulseTrains(8).coincide([(post, pre)], 4.0, 1.0, rng)
    driven = (post != 0).float().T @ (pre != 0).float()
    assert ((found.up + found.down) <= 8 * driven).all()
    assert (found.up >= 0).all()
    assert (found.down >= 0).all()


def test_up_and_down_pulses_do_not_cancel():
    """Two samples of opposite error that both fire in every slot: 4 up and 4 down, nothing net."""
    post, pre = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    found = PulseTrains(4).coincide([(post, pre)], 4.0, 1.0, generator(0))
    assert (found.up.item(), found.down.item()) == (4, 4)


# -- factors -----------------------------------------------------------------------------------------


def batch(n=6):
    rng = generator(5)
    return torch.rand(n, 4, generator=rng, dtype=torch.float64), torch.randint(0, 3, (n,), generator=rng)


@pytest.mark.parametrize("phases", ["one_sided", "centred", "one_sweep"])
@pytest.mark.parametrize("make", [FeedforwardCircuit.from_sizes, HopfieldCircuit])
def test_factors_multiply_to_the_gradient(phases, make):
    if (make, phases) == (HopfieldCircuit, "one_sweep"):
        pytest.skip("not defined")
    circuit, (x, y) = make((4, 6, 3), rng=generator(0)).double(), batch()
    estimate = EPGradient(phases=phases).estimate(circuit, circuit.params, x, y)
    factors = estimate.factors()
    assert set(factors) == set(circuit.weights)
    for name, pairs in factors.items():
        product = sum(post.T @ pre for post, pre in pairs) / len(x)
        assert torch.allclose(product, estimate.gradient[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("errors", ["read", "double_sampled"])
def test_factors_are_of_the_errors_that_the_gradient_is_made_of(errors):
    circuit, (x, y) = FeedforwardCircuit.from_sizes((4, 6, 3), rng=generator(0)).double(), batch()
    rng = generator(1)

    def read():
        noise = {
            name: 0.1 * torch.randn(p.shape, generator=rng).double() for name, p in circuit.params().items()
        }
        return {name: p + noise[name] for name, p in circuit.params().items()}

    estimate = EPGradient(phases="centred", errors=errors, beta=0.5).estimate(circuit, read, x, y)
    for name, pairs in estimate.factors().items():
        product = sum(post.T @ pre for post, pre in pairs) / len(x)
        assert torch.allclose(product, estimate.gradient[name], rtol=1e-6, atol=1e-9)


# -- on the chip -------------------------------------------------------------------------------------


TRAINS = PulseTrains(200)


def chip_of(trains=TRAINS, device=None, **options) -> Chip:
    circuit = FeedforwardCircuit.from_sizes((4, 6, 3), "tanh", rng=generator(0)).double()
    device = device or MemoryCell(1e-6, 100e-6, pulses=ConstantStepPulses(1_000_000))
    return Chip(circuit, device, generator(1), trains=trains, **options)


def optimizer_of(chip: Chip, **options) -> CompositeOptimizer:
    settings = {"gradient": EPGradient(phases="one_sweep"), "lr": 0.1, **options}
    return CompositeOptimizer(chip.circuit.parameters(), model=chip.circuit, chip=chip, **settings)


def test_a_step_moves_the_weights_by_the_gradient_in_the_mean():
    """A million constant steps: 1200 independent draws of one step average to -lr gradient."""
    chip, (x, y) = chip_of(PulseTrains(1000)), batch()
    optimizer = optimizer_of(chip, lr=1e-3)
    start, total, repeats = chip.state_dict(), {}, 40
    for _ in range(repeats):
        before = chip.read()
        optimizer.step(x=x, target=y)
        after = chip.read()
        for name in chip.circuit.weights:
            total[name] = total.get(name, 0) + (after[name] - before[name])
        rng = chip.rng.get_state()
        chip.load_state_dict({**start, "rng": rng})
    gradient = optimizer.estimate.gradient
    for name, moved in total.items():
        assert chip.saturated[name] == 0
        step = chip.crossbars[name].step
        # a sum of Bernoulli slots has a variance below its mean count, here the sum of |d x| over samples
        slack = 5 * step * (repeats * 1e-3 * 6 * gradient[name].abs().max() / step) ** 0.5
        assert (moved + repeats * 1e-3 * gradient[name]).abs().max() < slack


def test_biases_take_their_digital_step():
    chip, (x, y) = chip_of(), batch()
    before = {name: p.detach().clone() for name, p in chip.circuit.named_parameters()}
    optimizer = optimizer_of(chip)
    optimizer.step(x=x, target=y)
    b = "model.0.bias"
    expected = before[b] - 0.1 * optimizer.estimate.gradient[b]
    assert torch.allclose(chip.circuit.params()[b], expected, rtol=1e-12)


def test_training_by_trains_goes_on_bit_for_bit():
    def run(chip, optimizer, first):
        return [
            optimizer.step(x=batch(i + 2)[0], target=batch(i + 2)[1]).item() for i in range(first, first + 3)
        ]

    chip = chip_of(device=devices.preset("soft-bounds-6bit"))
    optimizer = optimizer_of(chip)
    run(chip, optimizer, 0)
    state = chip.circuit.state_dict(), chip.state_dict(), optimizer.state_dict()
    state = tuple({k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for s in state)
    expected = run(chip, optimizer, 3)
    other = chip_of(device=devices.preset("soft-bounds-6bit"))
    again = optimizer_of(other)
    other.circuit.load_state_dict(state[0])
    other.load_state_dict(state[1])
    again.load_state_dict(state[2])
    assert run(other, again, 3) == expected


# -- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1001])
def test_a_train_has_slots(length):
    with pytest.raises(ValueError, match=f"length = {length} of a pulse train; choose 1 to 1000"):
        PulseTrains(length)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"feedback": ErrorFeedback()}, "feedback = ErrorFeedback"),
        ({"write_feedback": WriteResidual()}, "write_feedback = WriteResidual"),
        ({"constraint": SpectralConstraint()}, "constraint = SpectralConstraint"),
        ({"clip_norm": 1.0}, "clip_norm = 1.0 with a chip that learns by pulse trains"),
        ({"update": MuonUpdate()}, "update = MuonUpdate.*which pulse trains move: use PlainUpdate"),
        ({"update": PlainUpdate(weight_decay=0.1)}, "update = PlainUpdate"),
    ],
)
def test_what_trains_cannot_do_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        optimizer_of(chip_of(), **options)


def test_trains_need_a_batch_and_an_estimate_that_is_a_sum_over_samples():
    chip, (x, y) = chip_of(), batch()
    nn.functional.cross_entropy(chip.circuit(x), y).backward()
    with pytest.raises(ValueError, match=r"pulse trains learn sample by sample: step\(x=x, target=y\)"):
        optimizer_of(chip).step()
    with pytest.raises(
        ValueError, match="NaturalGradient gives no factors of single samples, which Chip needs"
    ):
        optimizer_of(chip, gradient=NaturalGradient()).step(x=x, target=y)


def test_a_device_without_pulses_takes_no_trains():
    chip, (x, y) = chip_of(device=devices.preset("ideal")), batch()
    with pytest.raises(ValueError, match="a device without pulses takes no pulse trains"):
        optimizer_of(chip, feedback=NoFeedback()).step(x=x, target=y)
