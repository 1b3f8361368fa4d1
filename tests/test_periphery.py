"""Converters, the options of a chip, and what a run records of any mapping."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from circuits.mapping import DifferentialPair, OffsetColumn, OneSidedPair, SymmetryReference
from circuits.periphery import Converter
from devices import (
    ConstantStepPulses,
    FlickerReadNoise,
    MemoryCell,
    Operation,
    PowerLawDrift,
    ProgramVerify,
    StuckCells,
)
from experiments import figures, recording
from experiments.learner import Learner
from mep_sim import smep
from mep_sim.trace import Trace
from tests.device_conformance import generator

SIZES = (4, 6, 3)
W1, W2 = "model.0.weight", "model.2.weight"
LOW, HIGH = 10e-6, 110e-6
STEPS = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(1000))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- converters --------------------------------------------------------------------------------------


def test_three_bits_have_seven_levels():
    """Limit 1.5: levels every 0.5 from -1.5 to 1.5; what is beyond is put on the last."""
    converter = Converter(bits=3, limit=1.5)
    x = rows([0.0, 0.2, 0.3, 0.8, 1.4, 7.0], [-0.2, -0.3, -0.7, -1.3, -1.5, -70.0])
    expected = rows([0.0, 0.0, 0.5, 1.0, 1.5, 1.5], [0.0, -0.5, -0.5, -1.5, -1.5, -1.5])
    assert torch.allclose(converter.convert(x), expected, rtol=1e-12)
    assert converter.saturated(x) == 2 / 12
    fine = torch.linspace(-2, 2, 4001, dtype=torch.float64)[None]
    assert converter.convert(fine).add(0.0).unique().numel() == 7


def test_a_programmable_gain_takes_the_largest_of_each_row():
    """3 bits: levels of a third of each row's own largest; a row of zeros stays one."""
    x = rows([3.0, 1.4, -0.4, 0.0], [-0.03, 0.014, 0.021, 0.03], [0.0, 0.0, 0.0, 0.0])
    converter = Converter(bits=3)
    expected = rows([3.0, 1.0, 0.0, 0.0], [-0.03, 0.01, 0.02, 0.03], [0.0, 0.0, 0.0, 0.0])
    assert torch.allclose(converter.convert(x), expected, rtol=1e-12, atol=1e-15)
    assert converter.saturated(x) == 0


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 12), limit=st.none() | st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_a_conversion_errs_by_half_a_level_and_not_twice(bits, limit, seed):
    x = torch.randn(3, 2, 5, generator=generator(seed), dtype=torch.float64)
    converter = Converter(bits, limit)
    once = converter.convert(x)
    most = x.flatten(1).abs().amax(1).view(3, 1, 1) if limit is None else torch.tensor(limit)
    inside = x.clamp(-most, most)
    assert once.shape == x.shape
    assert ((once - inside).abs() <= 0.5 * most / (2 ** (bits - 1) - 1) * (1 + 1e-9)).all()
    assert torch.allclose(converter.convert(once), once, rtol=1e-12)


def test_without_bits_it_only_saturates():
    x = rows([0.123, -5.0])
    assert torch.equal(Converter(bits=None, limit=2.0).convert(x), rows([0.123, -2.0]))
    assert torch.equal(Converter(bits=None).convert(x), x)


@pytest.mark.parametrize(("limit", "spread"), [(4.0, 0.2), (None, 0.05)])
def test_converter_noise_is_relative_to_its_limit(limit, spread):
    """5 % of 4, or of the largest of the row, 1."""
    x = torch.zeros(1, 40_001, dtype=torch.float64)
    x[0, 0] = 1.0
    got = Converter(bits=None, limit=limit, noise=0.05).convert(x, generator())[0, 1:]
    assert abs(got.mean().item()) < 5 * spread / 200
    assert got.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * 40_000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits = 1 of a converter; choose 2 to 24"),
        ({"bits": 8.0}, "bits = 8.0"),
        ({"limit": 0.0}, "limit = 0.0 of a converter; choose a finite limit > 0"),
        ({"limit": math.nan}, "limit = nan"),
        ({"noise": -0.1}, "noise = -0.1 of a converter; it is over the limit"),
    ],
)
def test_bad_converters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Converter(**options)


def test_a_noisy_converter_wants_a_generator():
    with pytest.raises(ValueError, match=r"noise = 0.1 draws random numbers: pass a generator"):
        Converter(noise=0.1).convert(rows([1.0]))


# -- chips -------------------------------------------------------------------------------------------


def circuit(seed: int = 0) -> FeedforwardCircuit:
    return FeedforwardCircuit.from_sizes(SIZES, "tanh", rng=generator(seed)).double()


def chip_of(device: devices.Device = STEPS, seed: int = 0, **options) -> Chip:
    return Chip(circuit(seed), device, generator(seed), **options)


@pytest.mark.parametrize("mapping", [None, OffsetColumn(), SymmetryReference(5, 1)])
def test_a_chip_of_any_mapping_learns_and_goes_on_bit_for_bit(mapping):
    noisy = dataclasses.replace(STEPS, read_noise=FlickerReadNoise(0.01))

    def step(chip: Chip, k: int) -> float:
        x = torch.randn(12, 4, generator=generator(k), dtype=torch.float64)
        y = torch.randint(0, 3, (12,), generator=generator(k))
        optimizer = smep(chip.circuit.parameters(), model=chip.circuit, chip=chip, momentum=0.0, lr=0.02)
        return optimizer.step(x=x, target=y).item()

    chip, other = (chip_of(noisy, seed, mapping=mapping, read_seconds=0.01) for seed in (0, 1))
    step(chip, 0)
    for name in (W1, W2):
        assert chip.crossbars[name].mapping == (mapping or DifferentialPair())
    other.circuit.load_state_dict(chip.circuit.state_dict())
    other.load_state_dict(chip.state_dict())
    assert [step(chip, k) for k in (1, 2)] == [step(other, k) for k in (1, 2)]
    assert all(torch.equal(chip.read()[name], other.read()[name]) for name in (W1,))


def test_every_read_takes_its_time():
    """1 s per read, drift (t + 1)^-0.5: the read of programming at 1 s, three more at 2, 3, 4 s."""
    chip = chip_of(MemoryCell(LOW, HIGH, drift=PowerLawDrift(0.5)), read_seconds=1.0)
    for t in (2.0, 3.0, 4.0):
        read = chip.read()
        assert chip.t_seconds == t
        assert torch.allclose(read[W1], chip.targets[W1] * (t + 1) ** -0.5, rtol=1e-9)
    assert chip_of().t_seconds == 0


def test_reads_close_in_time_share_slow_noise():
    noise = FlickerReadNoise(0.02, shortest_seconds=1.0, longest_seconds=1.0)
    still, slow = (chip_of(MemoryCell(LOW, HIGH, read_noise=noise), read_seconds=t) for t in (0.0, 10.0))
    assert torch.equal(still.read()[W1], still.read()[W1])
    one, other = ((slow.read()[W1] - slow.targets[W1]).flatten() for _ in range(2))
    assert abs(torch.dot(one, other) / one.norm() / other.norm()) < 0.8  # 24 cells, exp(-10) of it left


def test_the_dac_converts_what_is_driven_into_the_chip_and_nothing_else():
    """Two bits: an input of rows (1, 0.4, -0.6) is learned from as (1, 0, -1)."""
    x, y = rows([1.0, 0.4, -0.6, 0.0], [0.2, 0.04, 0.16, -0.2]), torch.tensor([0, 2])
    seen = rows([1.0, 0.0, -1.0, 0.0], [0.2, 0.0, 0.2, -0.2])
    converting, plain = chip_of(dac=Converter(bits=2)), chip_of()
    assert torch.allclose(converting.drive(x), seen, rtol=1e-12)
    assert plain.drive(x) is x
    losses = [
        smep(chip.circuit.parameters(), model=chip.circuit, chip=chip).step(x=batch, target=y).item()
        for chip, batch in ((converting, x), (plain, seen))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert torch.equal(converting.read()[W1], plain.read()[W1])


def test_verified_programming_of_a_chip_reports_its_failures_by_weight():
    faults = StuckCells(fraction_at_max=0.3)
    chip = chip_of(dataclasses.replace(STEPS, faults=faults), programming=ProgramVerify(0.005))
    for name, crossbar in chip.crossbars.items():
        stuck = torch.cat([cells.params["stuck"].flatten() for cells in crossbar.cells.values()]) != 0
        assert chip.failed[name] == stuck.double().mean().item() > 0
    assert chip_of(programming=ProgramVerify(0.005)).failed == {W1: 0.0, W2: 0.0}


def test_the_energy_of_a_chip_by_hand():
    """42 weights, pairs that add up to 120 uS: a read 42 x 120 uS x 0.1^2 V^2 x 10 ns = 504 fJ; two so far."""
    device = dataclasses.replace(STEPS, operation=Operation(2.0, 1e-7))
    chip = chip_of(device)
    chip.read()
    assert chip.joules[0] == 0
    assert chip.joules[1] == pytest.approx(2 * 504e-15)
    chip.write({W1: torch.full((6, 4), 3 * chip.crossbars[W1].step, dtype=torch.float64)})
    write, read = chip.joules  # 3 pulses on each cell of 24 pairs of 120 uS: 3 x 24 x 120 uS x 4e-7 J/S
    assert write == pytest.approx(3 * 24 * 120e-6 * 4e-7)
    assert read == pytest.approx(2 * 504e-15)
    assert chip_of().joules is None


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_reads_take_a_finite_time(seconds):
    with pytest.raises(ValueError, match=f"read_seconds = {seconds}; choose a finite time >= 0 s"):
        chip_of(read_seconds=seconds)


# -- what a run records ------------------------------------------------------------------------------

ONE_SIDED = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(1000, one_sided=True))


@pytest.mark.parametrize(
    ("mapping", "cell", "arrays"),
    [
        (OffsetColumn(), STEPS, {"plus": 6, "reference": 1}),
        (SymmetryReference(2, 1), STEPS, {"plus": 6, "reference": 6}),
        (OneSidedPair(), ONE_SIDED, {"plus": 6, "minus": 6}),
    ],
    ids=["offset", "symmetry", "one-sided"],
)
def test_a_run_of_any_mapping_records_and_draws_its_arrays(tmp_path, mapping, cell, arrays):
    """6 x 4 weights: the cells before and after an epoch, in siemens, under the names that the mapping gives them."""
    chip = chip_of(cell, mapping=mapping)
    optimizer = smep(chip.circuit.parameters(), model=chip.circuit, chip=chip, lr=0.02)
    learner = Learner("one", optimizer, epochs=1, batch_size=6, order=generator(1))
    x = torch.randn(12, 4, generator=generator(2), dtype=torch.float64)
    with Trace.create(tmp_path / "trace.h5", config={}, seed=0) as trace:
        recording.declare(trace, [learner])
        recording.start(trace, learner)
        before = {name: cells.conductance.clone() for name, cells in chip.crossbars[W1].cells.items()}
        for number, metrics in learner.fit(x, torch.arange(12) % 3, None):
            recording.step(trace, learner, number, metrics)
        recording.epoch(trace, learner, 1)
        trace.flush()
        recorded = trace.read(recording.conductances(W1))
        if mapping == OffsetColumn():  # drawing takes longer than all the rest
            figures.cells(tmp_path, trace, chip)
    for name, rows_ in arrays.items():
        assert recorded[name].shape == (2, rows_, 4)
        after = chip.crossbars[W1].cells[name].conductance
        for k, g in enumerate((before[name], after)):
            assert torch.allclose(torch.as_tensor(recorded[name][k]).double(), g, rtol=1e-6)
    assert recorded.keys() >= arrays.keys()
    assert (recorded["plus"][0] != recorded["plus"][1]).any()
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("*.png"))) == (2 if mapping == OffsetColumn() else 0)
