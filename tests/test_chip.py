"""A circuit on crossbars: cells are the truth, Parameters the last read, training continues bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import devices
from circuits import FeedforwardCircuit, HopfieldCircuit, ResistiveCircuit
from circuits.chip import Chip
from circuits.mapping import DifferentialPair, OffsetColumn, OneCell
from circuits.pulse_trains import PulseTrains
from devices import ConstantStepPulses, MemoryCell, PowerLawDrift
from mep_sim import checkpoint, muon_backprop, smep
from mep_sim.optimizers import CompositeOptimizer, EPGradient, PlainUpdate
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


# -- resistive networks ------------------------------------------------------------------------------

FINE = MemoryCell(1e-7, 1e-4, pulses=ConstantStepPulses(10_000_000))
WINDOWED = [name for name in devices.preset_names() if not devices.preset(name).one_sided]


def resistive(device: devices.Device, seed: int = 0) -> ResistiveCircuit:
    window = device.g_min_siemens, device.g_max_siemens
    return ResistiveCircuit(SIZES, window=window, rng=generator(seed)).double()


def learner(circuit: ResistiveCircuit, chip: Chip | None, lr: float = 1e-10) -> CompositeOptimizer:
    gradient = EPGradient("mse", beta=0.05 * circuit.window[1], phases="centred")
    return CompositeOptimizer(circuit.parameters(), gradient, model=circuit, chip=chip, lr=lr)


@pytest.mark.parametrize("name", WINDOWED)
def test_conductances_of_a_network_are_cells_of_any_preset(name):
    """Programmed or pulsed: what is read is the cells' conductances in siemens, and learning works on it."""
    device = devices.preset(name)
    chip = Chip(resistive(device), device, generator(1))
    optimizer = learner(chip.circuit, chip, 1e-3 * device.g_max_siemens**2)
    assert train(optimizer, 2) != [0, 0]
    read = chip.read()
    for weight, crossbar in chip.crossbars.items():
        assert crossbar.w_max == device.g_max_siemens
        assert crossbar.cell_count == read[weight].numel()
        cells = crossbar.cells["plus"].conductance
        assert (read[weight] >= 0).all()
        # by no more than what reads and cells err by
        assert (read[weight] - cells).abs().mean() < 0.2 * device.window.span


def test_an_ideal_chip_trains_a_network_as_it_trains_without():
    device = devices.Ideal(1e-7, 1e-4)
    plain, on_chip = resistive(device), resistive(device)
    chip = Chip(on_chip, device, generator(1))
    losses = train(learner(plain, None), 5), train(learner(on_chip, chip), 5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    moved = 0.0
    for name, p in plain.named_parameters():
        assert torch.allclose(chip.read()[name], p, rtol=1e-9, atol=0)
        moved = max(moved, (p - resistive(device).params()[name]).abs().max().item())
    assert moved > 1e-6


def test_pulse_trains_move_conductances_by_the_gradient_in_the_mean():
    """With default settings of the optimizer: its window is that of the cells, which keep to it themselves."""
    chip = Chip(resistive(FINE), FINE, generator(1), trains=PulseTrains(1000))
    optimizer = learner(chip.circuit, chip, lr=1e-12)
    start, total, repeats = chip.state_dict(), {}, 10
    x, y = batch()
    for _ in range(repeats):
        before = chip.read()
        optimizer.step(x=x, target=y)
        for name, after in chip.read().items():
            total[name] = total.get(name, 0.0) + (after - before[name]) / repeats
        chip.load_state_dict({**start, "rng": chip.rng.get_state()})
    for name, moved in total.items():
        assert chip.saturated[name] == 0
        expected = -1e-12 * optimizer.estimate.gradient[name]
        assert (moved - expected).norm() < 0.15 * expected.norm()


@pytest.mark.parametrize("mapping", [DifferentialPair(), OffsetColumn()])
def test_a_conductance_is_no_difference_of_two(mapping):
    with pytest.raises(ValueError, match=r"makes weights of differences; .* choose OneCell"):
        Chip(resistive(FINE), FINE, generator(), mapping=mapping)
    Chip(resistive(FINE), FINE, generator(), mapping=OneCell())


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e-4), (1e-7, 5e-5)])
def test_cells_that_do_not_reach_the_window_are_refused(low, high):
    with pytest.raises(
        ValueError, match=r"window \(1e-07, 0.0001\) S of the circuit is wider than that of the cells"
    ):
        Chip(resistive(FINE), MemoryCell(low, high), generator())


def test_cells_that_only_go_up_are_refused():
    device = MemoryCell(1e-7, 1e-4, pulses=ConstantStepPulses(100, one_sided=True))
    with pytest.raises(ValueError, match="those of this device only go up: choose a device of both"):
        Chip(resistive(device), device, generator())
