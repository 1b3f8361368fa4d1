"""A circuit on crossbars: cells are the truth, Parameters the last read, training continues bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import devices
from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.chip import Chip
from devices import MemoryCell, PowerLawDrift
from mep_sim import checkpoint, muon_backprop, smep
from mep_sim.optimizers import CompositeOptimizer, PlainUpdate
from tests.device_conformance import generator

SIZES = (4, 6, 3)
W1, W2, B1 = "model.0.weight", "model.2.weight", "model.0.bias"


def circuit(seed: int = 0) -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes(SIZES, "tanh", rng=generator(seed)).double()


def chip_of(device: str | devices.Device = "ideal", seed: int = 0, **options) -> Chip:
    cell = devices.preset(device) if isinstance(device, str) else device
    return Chip(circuit(seed), cell, generator(seed), **options)


def batch(seed: int = 5) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(12, 4, generator=rng, dtype=torch.float64), torch.randint(0, 3, (12,), generator=rng)


def optimizer_of(chip: Chip) -> CompositeOptimizer:
    return smep(chip.circuit.parameters(), model=chip.circuit, chip=chip, gamma=2.0)


def train(optimizer: CompositeOptimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for i in range(first, first + steps):
        x, y = batch(i)
        losses.append(optimizer.step(x=x, target=y).item())
    return losses


# -- reading and programming -------------------------------------------------------------------------


def test_an_ideal_chip_reads_the_weights_it_was_made_with():
    before = {name: p.detach().clone() for name, p in circuit().named_parameters()}
    chip = chip_of()
    read = chip.read()
    assert read.keys() == before.keys()
    for name, weight in read.items():
        assert torch.allclose(weight, before[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [circuit, lambda: HopfieldCircuit(SIZES, rng=generator()).double()])
def test_parameters_mirror_the_last_read_and_reads_are_fresh(make):
    chip = Chip(make(), devices.preset("soft-bounds-6bit"), generator())
    read = chip.read()
    first = {name: w.clone() for name, w in read.items()}
    second = chip.read()
    for name in chip.circuit.weights:
        assert torch.equal(chip.circuit.params()[name], second[name])
        assert not torch.equal(first[name], second[name])  # read noise drawn anew
        assert torch.equal(first[name], read[name])  # and the earlier read left alone
        assert second[name].data_ptr() != chip.circuit.params()[name].data_ptr()


def test_biases_stay_digital():
    chip = chip_of("soft-bounds-6bit")
    assert set(chip.crossbars) == {W1, W2}
    assert chip.holds(W1)
    assert not chip.holds(B1)
    assert chip.read()[B1] is chip.circuit.params()[B1]


@pytest.mark.parametrize("w_range", [2.0, 5.0])
def test_the_range_is_a_multiple_of_the_root_mean_square(w_range):
    chip, weights = chip_of(w_range=w_range), circuit().params()
    for name, crossbar in chip.crossbars.items():
        rms = math.sqrt(weights[name].square().mean().item())
        assert crossbar.w_max == pytest.approx(w_range * rms)


def test_the_clock_drives_the_drift():
    chip = chip_of(MemoryCell(1e-6, 100e-6, drift=PowerLawDrift(0.05)))
    at_once = chip.read()[W1].clone()
    chip.t_seconds = 1e4
    assert torch.allclose(chip.read()[W1], at_once * 10_001**-0.05, rtol=1e-9, atol=1e-12)


def test_programming_replaces_the_weights():
    chip, other = chip_of(seed=0), circuit(1).params()
    chip.program(other)
    for name in (W1, W2):
        expected = other[name].clamp(-chip.crossbars[name].w_max, chip.crossbars[name].w_max)
        assert torch.allclose(chip.circuit.params()[name], expected, rtol=0, atol=1e-12)


# -- writing -----------------------------------------------------------------------------------------


def test_written_pulses_are_counted_per_device():
    """3 pulses on all of W1 (6 x 4), 1 on one weight of W2 (3 x 6): (2 24 3 + 2) / (2 (24 + 18))."""
    chip = chip_of("levels-8bit")
    deltas = {name: torch.zeros_like(chip.circuit.params()[name]) for name in chip.crossbars}
    assert chip.pulses_per_device == 0
    deltas[W1] += 3 * chip.crossbars[W1].step
    deltas[W2][1, 2] = -chip.crossbars[W2].step
    before, written = chip.read(), chip.write(deltas)
    assert chip.pulses_per_device == pytest.approx((2 * 24 * 3 + 2) / (2 * 42))
    after = chip.read()
    for name in (W1, W2):
        assert torch.allclose(written[name], deltas[name], rtol=1e-9, atol=1e-12)
        assert torch.allclose(after[name] - before[name], deltas[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", ["ep", "backprop"])
def test_training_an_ideal_chip_is_training_without_a_chip(mode):
    plain = circuit()
    without = smep(plain.parameters(), model=plain, mode=mode)
    chip = chip_of(w_range=20.0)
    with_chip = smep(chip.circuit.parameters(), model=chip.circuit, mode=mode, chip=chip)
    assert train(with_chip, 10) == pytest.approx(train(without, 10), rel=1e-9)
    read = chip.read()
    for name, p in plain.named_parameters():
        assert torch.allclose(read[name], p, rtol=0, atol=1e-9)


def test_single_precision_follows_as_far_as_its_rounding():
    plain, chip = (
        circuit().float(),
        Chip(circuit().float(), devices.preset("ideal"), generator(), w_range=20.0),
    )
    x, y = batch()
    for net, options in [(plain, {}), (chip.circuit, {"chip": chip})]:
        CompositeOptimizer(net.parameters(), update=PlainUpdate(), model=net, lr=0.1, **options).step(
            x=x.float(), target=y
        )
    read = chip.read()
    for name, p in plain.named_parameters():
        assert torch.allclose(read[name], p, rtol=0, atol=1e-5)


def test_an_own_backward_pass_trains_the_chip_too():
    """loss.backward(); optimizer.step() learns as step(x=, target=) does: the Parameters show each write."""
    chips = [chip_of("levels-8bit"), chip_of("levels-8bit")]
    direct, own = (muon_backprop(chip.circuit.parameters(), model=chip.circuit, chip=chip) for chip in chips)
    for i in range(5):
        x, y = batch(i)
        expected = direct.step(x=x, target=y).item()
        own.zero_grad()
        loss = nn.functional.cross_entropy(chips[1].circuit(x), y)
        loss.backward()
        own.step()
        assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(chips[0].read()[W1], chips[1].read()[W1])
    assert chips[0].pulses_per_device > 0


# -- resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("device", ["soft-bounds-6bit", "levels-4bit", "pcm", "ideal"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_training_goes_on_bit_for_bit(tmp_path, device, rounding, through_a_file):
    """On a chip made anew from other weights: noise, cells, clock, range, residuals all come back."""
    chip = chip_of(device, rounding=rounding)
    optimizer = optimizer_of(chip)
    train(optimizer, 3)
    chip.t_seconds = 2.0
    state = {"model": chip.circuit.state_dict(), "chip": chip.state_dict(), "opt": optimizer.state_dict()}
    if through_a_file:
        checkpoint.save(tmp_path / "c.pt", state)
        state = checkpoint.load(tmp_path / "c.pt")
    else:
        state = copy.deepcopy(state)
    expected, expected_weights = train(optimizer, 3, first=3), chip.read()

    resumed = chip_of(device, seed=1, rounding=rounding)
    again = optimizer_of(resumed)
    resumed.circuit.load_state_dict(state["model"])
    resumed.load_state_dict(state["chip"])
    again.load_state_dict(state["opt"])
    assert train(again, 3, first=3) == expected
    got = resumed.read()
    assert all(torch.equal(got[name], expected_weights[name]) for name in expected_weights)
    assert resumed.pulses_per_device == chip.pulses_per_device


def test_a_snapshot_does_not_follow_the_chip():
    chip = chip_of("soft-bounds-6bit")
    state = chip.state_dict()
    frozen = copy.deepcopy(state)
    train(optimizer_of(chip), 2)
    for name in (W1, W2):
        for side in ("plus", "minus"):
            assert torch.equal(
                state["crossbars"][name]["cells"][side]["conductance"],
                frozen["crossbars"][name]["cells"][side]["conductance"],
            )
        assert torch.equal(state["last"][name], frozen["last"][name])


def test_loading_restores_what_the_parameters_mirror():
    chip, other = chip_of("levels-8bit"), chip_of("levels-8bit", seed=1)
    other.load_state_dict(chip.state_dict())
    assert torch.equal(other.circuit.params()[W1], chip.circuit.params()[W1])


# -- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_range", [0.0, -1.0, math.nan])
def test_a_range_that_is_none_is_refused(w_range):
    with pytest.raises(ValueError, match=f"w_range = {w_range}; choose w_range > 0, such as 5"):
        chip_of(w_range=w_range)


def test_weights_of_zero_have_no_range():
    empty = circuit()
    nn.init.zeros_(empty.params()[W2])
    with pytest.raises(ValueError, match=r"w_max = 0.0"):
        Chip(empty, devices.preset("ideal"), generator())


def test_a_network_that_blew_up_is_not_programmed():
    broken = circuit()
    broken.params()[W1].data[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"{W1} holds NaN"):
        Chip(broken, devices.preset("ideal"), generator())
    chip = chip_of("levels-8bit")
    with pytest.raises(ValueError, match="changes to write contain NaN"):
        chip.write({W1: torch.full((6, 4), math.nan, dtype=torch.float64)})


def test_kernels_live_on_crossbars_as_matrices():
    """A convolution's kernel (out, in, kh, kw) is an array (out, in kh kw); the rest of the model is digital."""
    torch.manual_seed(0)
    modules = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    circuit = FeedforwardCircuit(nn.Sequential(*modules), input_shape=(2, 3, 3))
    before = {name: p.detach().clone() for name, p in circuit.params().items()}
    chip = Chip(circuit, devices.preset("ideal"), generator())
    assert chip.crossbars["model.0.weight"].cells["plus"].conductance.shape == (3, 8)
    assert set(chip.crossbars) == {"model.0.weight", "model.4.weight"}
    read = chip.read()
    assert all(torch.allclose(read[name], before[name], atol=1e-6) for name in before)
    delta = 0.01 * torch.randn(3, 2, 2, 2, generator=generator(1))
    written = chip.write({"model.0.weight": delta})["model.0.weight"]
    assert torch.allclose(chip.read()["model.0.weight"], before["model.0.weight"] + written, atol=1e-6)
