"""Tiki-Taka: what reaches the slow array, where the fast one rests, and training with asymmetric cells."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from circuits.mapping import SymmetryReference
from circuits.pulse_trains import PulseTrains
from circuits.tiki_taka import TikiTakaChip
from devices import (
    ConstantStepPulses,
    FlickerReadNoise,
    MemoryCell,
    Operation,
    SoftBoundsPulses,
    WhiteReadNoise,
)
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, EPGradient, NoFeedback, NoWriteFeedback
from tests.device_conformance import generator

FINE = MemoryCell(1e-6, 100e-6, pulses=ConstantStepPulses(1_000_000))
W = "model.0.weight"
QUICK = SymmetryReference(alternations=1, reads=1)


def circuit(sizes=(4, 3), seed=0) -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes(sizes, "tanh", rng=generator(seed)).double()


def chip_of(device=FINE, **options) -> TikiTakaChip:
    options = {"symmetry": QUICK, **options}
    return TikiTakaChip(circuit(), device, generator(1), **options)


def push(chip: TikiTakaChip, delta: float, steps: int) -> Tensor:
    """What `steps` writes of a constant change do to the weight (3, 4)."""
    before = chip.read()[W]
    for _ in range(steps):
        chip.write({W: torch.full((3, 4), delta, dtype=torch.float64)})
    return chip.read()[W] - before


@pytest.mark.parametrize("buffered", [True, False])
def test_a_constant_change_adds_up_in_the_slow_array(buffered):
    """Constant steps do not leak: after n writes A = n delta. Of four columns, one in turn is transferred at every 2nd
    write: after 16 writes, column j has been at writes 2 (j + 1) and 2 (j + 5), so C has moved by
    0.5 delta fast_lr (2 (j + 1) + 2 (j + 5)) = 3 delta (2 j + 6)."""
    chip = chip_of(fast_lr=3.0, transfer_lr=0.5, transfer_every=2, buffered=buffered)
    moved = push(chip, 1e-3, 16)
    expected = 3e-3 * torch.tensor([6.0, 8.0, 10.0, 12.0], dtype=torch.float64)
    assert torch.allclose(moved, expected.expand(3, 4), rtol=0, atol=20 * chip.crossbars[W].step)
    assert torch.allclose(chip.fast[W].read(), torch.full((3, 4), 48e-3).double(), rtol=1e-2)


def test_soft_bounds_leak():
    """A pulse covers 2 / 20 of the way left. One up and one down lead from mid-window to 0.55 and 0.495 of it, and the
    reference is put half way, as A is; n more up to 1 - 0.4775 0.9^n, and w is twice the difference. C moves by the
    sum."""
    slow, fast = FINE, MemoryCell(1e-6, 100e-6, pulses=SoftBoundsPulses(20))
    chip = chip_of(slow, fast=fast, transfer_lr=1e-2, columns=4, rounding="nearest")
    w_max = chip.crossbars[W].w_max
    start = chip.fast[W].read() / w_max
    moved = push(chip, chip.fast[W].step, 12)
    # the reference holds the point that one pulse up and one down end at: x = 0.5 (1 - 0.1) + 0.05 less than middle
    after = chip.fast[W].read() / w_max
    a = [2 * (1 - 0.5225) * (1 - 0.9**n) for n in range(1, 13)]
    assert torch.allclose(start, torch.zeros_like(start), atol=1e-9)
    assert torch.allclose(after, torch.full_like(after, a[-1]), rtol=1e-6)
    assert torch.allclose(moved, torch.full_like(moved, 1e-2 * w_max * sum(a)), rtol=1e-3)


def test_changes_that_average_to_nothing_leave_the_fast_array_at_its_symmetry_point():
    """Up steps 1.5, down steps 0.5 of nominal: in the mean random pulses move x by (1.5 (1 - x) - 0.5 x) / 63, which
    leads to 0.75, and the mean lies there whatever the noise, as the move is linear in x. Alternating ones are as far
    above as below it, to O(1 / 63^2), and so there is the reference.
    The state is an AR(1) process of factor 1 - 2 / 63 driven by 0.75 / 63, a standard deviation of 0.047 in x: twice
    that over sqrt(3000) is 0.0017."""
    cell = MemoryCell(1e-6, 100e-6, pulses=SoftBoundsPulses(63, asymmetry=0.5))
    quick = SymmetryReference(alternations=60, reads=1)
    model = FeedforwardCircuit.from_sizes((60, 50), rng=generator(0)).double()
    chip = TikiTakaChip(model, cell, generator(1), transfer_every=1000, symmetry=quick)
    rng, fast = generator(2), chip.fast[W]
    for _ in range(100):  # whose start is forgotten by a factor 25
        signs = 2.0 * torch.randint(0, 2, (50, 60), generator=rng) - 1
        chip.write({W: signs.double() * fast.step})
    assert (fast.read() / fast.w_max).mean().item() == pytest.approx(0, abs=0.01)


def quadrants(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points in 12 dimensions and on which side of two planes they lie."""
    x = torch.randn(n, 12, generator=generator(seed), dtype=torch.float64)
    sides = (x @ torch.randn(12, 2, generator=generator(3), dtype=torch.float64)) > 0
    return x, sides[:, 0].long() + 2 * sides[:, 1].long()


def accuracy_with(make, lr: float) -> float:
    """Mean accuracy over the last 100 of 400 steps on batches of four."""
    chip = make(circuit((12, 4)))
    settings = {"feedback": NoFeedback(), "write_feedback": NoWriteFeedback(), "lr": lr}
    parameters = chip.circuit.parameters()
    optimizer = CompositeOptimizer(parameters, BackpropGradient(), model=chip.circuit, chip=chip, **settings)
    (x, y), right = quadrants(500, 99_999), []
    for i in range(400):
        batch, target = quadrants(4, i)
        optimizer.step(x=batch, target=target)
        if i >= 300 and i % 10 == 0:
            right.append((chip.circuit(x).argmax(1) == y).double().mean())
    return torch.stack(right).mean().item()


def test_it_learns_with_asymmetric_cells_better_than_direct_pulses():
    """Up steps 1.6, down steps 0.4 of nominal, 31 across: pulses that average to nothing pull a weight off. Direct
    pulses do best at a rate of 0.1 (tried: 0.02, 0.1, 0.3), with single cells compared with their symmetry points."""
    cell = MemoryCell(1e-6, 100e-6, pulses=SoftBoundsPulses(31, asymmetry=0.6, sigma_c2c=0.3))
    symmetry = SymmetryReference(100, 4)
    direct = accuracy_with(
        lambda c: Chip(c, cell, generator(1), mapping=symmetry, rounding="stochastic"), 0.1
    )
    both = {"symmetry": symmetry, "columns": 4, "transfer_lr": 0.02}
    tiki_taka = accuracy_with(lambda c: TikiTakaChip(c, cell, generator(1), **both), 0.5)
    assert tiki_taka > direct + 0.03


def test_energy_is_known_where_both_arrays_say_their_voltages():
    powered = dataclasses.replace(FINE, operation=Operation(2.0, 1e-7))
    assert chip_of(powered, fast=FINE).joules is None
    assert chip_of(FINE, fast=powered).joules is None
    both = chip_of(powered)
    expected = [sum(parts) for parts in zip(*(array.joules for array in both.arrays), strict=True)]
    assert both.joules == tuple(expected)


@pytest.mark.parametrize("trains", [None, PulseTrains(10)])
@pytest.mark.parametrize("noise", [WhiteReadNoise(0.02), FlickerReadNoise(0.02)])
def test_training_goes_on_bit_for_bit(trains, noise):
    cell = dataclasses.replace(devices.preset("soft-bounds-6bit"), read_noise=noise)

    def make() -> tuple[TikiTakaChip, CompositeOptimizer]:
        chip = TikiTakaChip(
            circuit((4, 6, 3)),
            cell,
            generator(1),
            symmetry=QUICK,
            columns=3,
            trains=trains,
            read_seconds=1e-3,
        )
        feedback = NoFeedback()
        gradient = EPGradient(phases="one_sweep")
        options = {"lr": 0.5, "model": chip.circuit, "chip": chip}
        return chip, CompositeOptimizer(chip.circuit.parameters(), gradient, feedback=feedback, **options)

    def run(optimizer: CompositeOptimizer, first: int) -> list[float]:
        found = []
        for i in range(first, first + 5):
            x = torch.randn(6, 4, generator=generator(i), dtype=torch.float64)
            y = torch.randint(0, 3, (6,), generator=generator(i))
            found.append(optimizer.step(x=x, target=y).item())
        return found

    chip, optimizer = make()
    run(optimizer, 0)
    weights = {name: p.clone() for name, p in chip.circuit.state_dict().items()}
    state, learnt = chip.state_dict(), copy.deepcopy(optimizer.state_dict())
    expected = run(optimizer, 5)
    other, again = make()
    other.circuit.load_state_dict(weights)
    other.load_state_dict(state)
    again.load_state_dict(learnt)
    assert run(again, 5) == expected
    assert other.pulses_per_device == chip.pulses_per_device


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fast_lr": 0.0}, "fast_lr = 0.0; choose fast_lr > 0"),
        ({"transfer_lr": -1.0}, "transfer_lr = -1.0; choose"),
        ({"transfer_every": 0}, "transfer_every = 0; choose at least 1"),
        ({"columns": 0}, "columns = 0; choose at least 1"),
        ({"device": devices.preset("pcm")}, "the slow array is written by pulses"),
        ({"fast": devices.preset("pcm")}, "a device without pulses has no symmetry point"),
    ],
)
def test_settings_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        chip_of(**options)
