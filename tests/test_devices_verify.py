"""Cells that fail, cells that wear out, and programming that looks at what it did."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import devices
from devices import (
    Cells,
    ConstantStepPulses,
    Device,
    Endurance,
    LevelPulses,
    MemoryCell,
    Operation,
    ProgramVerify,
    SoftBoundsPulses,
    StuckCells,
    WhiteReadNoise,
    WindowProgrammingNoise,
)
from tests.device_conformance import generator, targets

LOW, HIGH, SPAN = 10e-6, 110e-6, 100e-6
SHAPE, CELLS = (200, 200), 40_000
PLAIN = ConstantStepPulses(100)  # steps of 1 uS


def share(mask: Tensor) -> float:
    return mask.double().mean().item()


# -- stuck cells and broken lines --------------------------------------------------------------------


def test_cells_stuck_at_random_are_uniform_over_the_window():
    faults = StuckCells(fraction_at_min=0.1, fraction_at_max=0.05, fraction_at_random=0.2)
    device = MemoryCell(LOW, HIGH, pulses=PLAIN, faults=faults)
    cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
    stuck, g = cells.params["stuck"], cells.conductance.clone()
    for kind, fraction in ((-1, 0.1), (1, 0.05), (2, 0.2), (0, 0.65)):
        assert share(stuck == kind) == pytest.approx(
            fraction, abs=5 * math.sqrt(fraction * (1 - fraction)) / 200
        )
    anywhere = g[stuck == 2]
    assert anywhere.mean().item() == pytest.approx(60e-6, abs=5 * SPAN / math.sqrt(12 * 8000))
    assert anywhere.std().item() == pytest.approx(SPAN / math.sqrt(12), rel=0.03)
    device.program(cells, torch.full(SHAPE, 60e-6, dtype=torch.float64), generator())
    device.pulse(cells, torch.full(SHAPE, 5), generator())
    assert torch.equal(cells.conductance[stuck != 0], g[stuck != 0])
    assert torch.allclose(cells.conductance[stuck == 0], torch.tensor(65e-6, dtype=torch.float64))


def test_cells_of_a_broken_line_read_exactly_nothing():
    """10 % of 300 rows, 20 % of 200 columns; what is left is 0.9 0.8; noise of 5 % is not seen on a broken line."""
    device = MemoryCell(
        LOW,
        HIGH,
        programming=WindowProgrammingNoise(0.02),
        read_noise=WhiteReadNoise(0.05),
        faults=StuckCells(dead_rows=0.1, dead_columns=0.2),
    )
    cells = device.fabricate((300, 200), generator(), dtype=torch.float64)
    dead = cells.params["stuck"] == 3
    rows, columns = dead.all(1), dead.all(0)
    assert torch.equal(dead, rows[:, None] | columns[None, :])
    assert share(rows) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 300))
    assert share(columns) == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 200))
    device.program(cells, torch.full((300, 200), 60e-6, dtype=torch.float64), generator())
    read = device.read(cells, generator())
    assert (read[dead] == 0).all()
    assert (cells.conductance[dead] == 0).all()
    assert read[~dead].mean().item() == pytest.approx(60e-6, rel=1e-3)
    with pytest.raises(ValueError, match=r"dead_rows = -0.1 .*from 0 to 1"):
        StuckCells(dead_rows=-0.1)


# -- wear --------------------------------------------------------------------------------------------


def test_a_cell_stops_exactly_after_its_pulses():
    """Ten pulses of 1 uS each, up or down: 7 up, 5 asked for and 3 made, none; then it cannot be programmed either."""
    device = MemoryCell(LOW, HIGH, pulses=PLAIN, endurance=Endurance(10.7))
    cells = device.fabricate((1, 2), generator(), dtype=torch.float64)
    device.program(cells, torch.full((1, 2), 50e-6, dtype=torch.float64), generator())
    asked = [(7, 57.0, 43.0), (5, 60.0, 40.0), (4, 60.0, 40.0)]
    for count, up, down in asked:
        device.pulse(cells, torch.tensor([[count, -count]]), generator())
        assert (1e6 * cells.conductance[0]).tolist() == pytest.approx([up, down])
    assert cells.pulses.tolist() == [[16, 16]]  # what was sent, not what it did
    device.program(cells, torch.full((1, 2), 50e-6, dtype=torch.float64), generator())
    assert (1e6 * cells.conductance[0]).tolist() == pytest.approx([60, 40])


def test_pulses_and_programming_agree_on_when_a_cell_is_worn_out():
    device = MemoryCell(LOW, HIGH, pulses=PLAIN, endurance=Endurance(2.5))
    cells = device.fabricate((1, 1), generator(), dtype=torch.float64)
    for expected in (
        30e-6,
        31e-6,
    ):  # it may be programmed as long as it can be pulsed, after 0 and 1 of its 2 pulses
        device.program(cells, torch.full((1, 1), expected - 1e-6, dtype=torch.float64), generator())
        device.pulse(cells, torch.tensor([[1]]), generator())
        assert cells.conductance.item() == pytest.approx(expected)
    device.program(cells, torch.full((1, 1), 90e-6, dtype=torch.float64), generator())
    device.pulse(cells, torch.tensor([[1]]), generator())
    assert cells.conductance.item() == pytest.approx(31e-6)


def test_half_of_the_cells_outlast_the_median():
    lasts = Endurance(1e6, sigma_decades=0.5).draw(torch.zeros(SHAPE), generator())
    assert share(lasts > 1e6) == pytest.approx(0.5, abs=5 * 0.5 / 200)
    assert lasts.log10().std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * CELLS))
    assert torch.equal(lasts, lasts.floor())


def test_a_long_life_does_not_overflow_the_counts_of_a_crossbar():
    """2^31 pulses and more are left, and int32 counts are asked for: 5 of 1 uS each."""
    device = MemoryCell(LOW, HIGH, pulses=PLAIN, endurance=Endurance(1e12))
    cells = device.fabricate((2, 3), generator(), dtype=torch.float64)
    device.pulse(cells, torch.full((2, 3), 5, dtype=torch.int32), generator())
    assert torch.allclose(cells.conductance, torch.full((2, 3), LOW + 5e-6, dtype=torch.float64))


def test_an_endurance_beyond_all_counting_is_none():
    """1e15 and five decades of spread reach 1e35 pulses, more than any counter holds: such cells only go up."""
    device = MemoryCell(LOW, HIGH, pulses=PLAIN, endurance=Endurance(1e15, sigma_decades=5.0))
    cells = device.fabricate((50, 50), generator(), dtype=torch.float64)
    assert cells.params["endurance"].max() > 1e18
    device.pulse(cells, torch.full((50, 50), 5), generator())
    lasting = cells.params["endurance"] >= 5
    assert torch.allclose(cells.conductance[lasting], torch.tensor(15e-6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"endurance = Endurance.*not allowed without pulses"):
        MemoryCell(LOW, HIGH, endurance=Endurance(10))
    with pytest.raises(ValueError, match=r"Endurance.median_pulses = 0.5 .*counts pulses"):
        Endurance(0.5)


# -- program and verify ------------------------------------------------------------------------------


def without_read_noise(device: Device) -> Device:
    return dataclasses.replace(device, read_noise=None) if isinstance(device, MemoryCell) else device


def verified(device: Device, how: ProgramVerify, shape=(15, 10), **options) -> tuple[Cells, Tensor, Tensor]:
    """Fresh cells brought to uniform targets: the cells, which failed, and the errors over the window."""
    cells, wanted = device.fabricate(shape, generator(), **options), targets(device, shape, **options)
    failed = how.program(device, cells, wanted, generator(3))
    return cells, failed, (device.read(cells, generator()) - wanted).abs() / device.window.span


@pytest.mark.parametrize("name", devices.preset_names())
def test_every_preset_reaches_the_tolerance_or_says_which_cells_did_not(name):
    """Read without noise, a cell is within 4 % exactly where it is not reported."""
    device = without_read_noise(devices.preset(name))
    cells, failed, errors = verified(device, ProgramVerify(0.04, max_rounds=12, max_pulses=2000), (8, 6))
    assert failed.dtype == torch.bool
    assert failed.shape == cells.shape
    assert (errors[~failed] <= 0.04 * (1 + 1e-6)).all()
    assert (errors[failed] > 0.04 * (1 - 1e-6)).all()


@pytest.mark.parametrize("name", ["ideal", "levels-6bit", "soft-bounds-6bit", "rpu", "pcm"])
def test_technologies_fine_enough_reach_four_percent_everywhere_in_their_bounds(name):
    device = without_read_noise(devices.preset(name))
    cells, failed, _ = verified(device, ProgramVerify(0.04, max_rounds=40), (8, 6))
    if "g_lo" in cells.params:  # of rpu, with bounds of its own for each cell
        wanted, slack = targets(device, cells.shape), 0.03 * device.window.span
        within = (wanted > cells.params["g_lo"] - slack) & (wanted < cells.params["g_hi"] + slack)
        failed &= within
    assert not failed.any()


def test_verifying_beats_open_loop_programming_by_its_tolerance():
    """5 % of noise: open loop 62 % of the cells miss by more than 2.5 % (2 Phi(-0.5)); write-verify has none left."""
    device = MemoryCell(LOW, HIGH, programming=WindowProgrammingNoise(0.05))
    wanted = torch.full(SHAPE, 60e-6, dtype=torch.float64)
    cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
    device.program(cells, wanted, generator())
    missed = (cells.conductance - wanted).abs() > 0.025 * SPAN
    assert share(missed) == pytest.approx(0.617075, abs=5 * 0.5 / 200)
    failed = ProgramVerify(0.025).program(device, cells, wanted, generator(2))
    assert not failed.any()
    assert ((cells.conductance - wanted).abs() <= 0.025 * SPAN).all()


def test_rounds_run_out_as_they_should():
    """Each round misses with 0.617075; n rounds write n times, so that 0.617^n are left after n."""
    device = MemoryCell(LOW, HIGH, programming=WindowProgrammingNoise(0.05))
    wanted = torch.full(SHAPE, 60e-6, dtype=torch.float64)
    for rounds in (1, 4):
        cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
        failed = ProgramVerify(0.025, max_rounds=rounds).program(device, cells, wanted, generator(2))
        assert share(failed) == pytest.approx(0.617075**rounds, abs=5 * 0.5 / 200)


def test_averaged_reads_see_through_noise():
    """2 % read noise, tolerance 1 %: a single read is off with 2 Phi(-0.5), the mean of 16 with 2 Phi(-2)."""
    device = MemoryCell(LOW, HIGH, read_noise=WhiteReadNoise(0.02))
    wanted = torch.full(SHAPE, 60e-6, dtype=torch.float64)
    for reads, missed in ((1, 0.617075), (16, 0.0455003)):
        cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
        failed = ProgramVerify(0.01, max_rounds=1, reads=reads).program(device, cells, wanted, generator(2))
        assert share(failed) == pytest.approx(missed, abs=5 * 0.5 / 200)


def test_stuck_cells_are_reported_and_no_others():
    faults = StuckCells(fraction_at_min=0.1, fraction_at_random=0.1, dead_rows=0.1)
    device = MemoryCell(LOW, HIGH, pulses=SoftBoundsPulses(200), faults=faults)
    cells, failed, errors = verified(device, ProgramVerify(0.01), (30, 20), dtype=torch.float64)
    stuck = cells.params["stuck"] != 0
    assert stuck.any()
    assert not failed[~stuck].any()
    assert torch.equal(failed[stuck], errors[stuck] > 0.01)


def test_the_budget_of_pulses_is_kept_by_every_cell():
    """From 10 uS in steps of 1 uS, 20 pulses: targets up to 30 uS, and half a percent more, are reached."""
    device = MemoryCell(LOW, HIGH, pulses=PLAIN)
    cells = device.fabricate((1, 101), generator(), dtype=torch.float64)
    device.pulse(cells, torch.full((1, 101), -3), generator())  # earlier pulses are not of this budget
    wanted = LOW + 1e-6 * torch.arange(101, dtype=torch.float64)[None]
    failed = ProgramVerify(0.005, max_pulses=20).program(device, cells, wanted, generator())
    assert torch.equal(failed[0], torch.arange(101) > 20)
    assert torch.equal(cells.pulses[0], 3 + torch.arange(101).clamp(max=20))
    assert torch.allclose(
        cells.conductance[0], LOW + 1e-6 * torch.arange(101, dtype=torch.float64).clamp(max=20)
    )


@pytest.mark.parametrize("pulses", [PLAIN, ConstantStepPulses(100, one_sided=True), None])
def test_cells_without_a_target_are_left_alone(pulses):
    device = MemoryCell(LOW, HIGH, pulses=pulses)
    cells = device.fabricate((4, 5), generator(), dtype=torch.float64)
    device.program(cells, torch.full((4, 5), 77e-6, dtype=torch.float64), generator(), t_seconds=1.0)
    wanted = torch.full((4, 5), torch.nan, dtype=torch.float64)
    wanted[1, 2] = 40e-6
    failed = ProgramVerify(0.001).program(device, cells, wanted, generator(), t_seconds=2.0)
    assert not failed.any()
    expected = torch.full((4, 5), 77e-6, dtype=torch.float64)
    expected[1, 2] = 40e-6
    assert torch.allclose(cells.conductance, expected)
    assert (cells.written_at == torch.where(wanted.isnan(), 1.0, 2.0)).all()


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.0, 5.0, 20.0])
def test_cells_whose_step_is_not_the_nominal_one_are_reached_as_well(factor):
    """Steps of 0.25 uS times the factor, said to be 0.25: as many pulses as should do overshoot by the factor, again
    and again, if they do not become fewer."""
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(400))
    cells = device.fabricate((1, 9), generator(), dtype=torch.float64)
    for name in ("step_up", "step_down"):
        cells.params[name] *= factor
    wanted = torch.linspace(15e-6, 105e-6, 9, dtype=torch.float64)[None]
    failed = ProgramVerify(0.03).program(device, cells, wanted, generator())
    assert not failed.any()
    assert ((cells.conductance - wanted).abs() <= 0.03 * SPAN).all()


def test_a_one_sided_cell_that_is_too_high_starts_again_from_the_bottom():
    """From 77 to 40 uS: a reset, then 30 pulses up of 1 uS."""
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(100, one_sided=True))
    cells = device.fabricate((1, 1), generator(), dtype=torch.float64)
    device.program(cells, torch.full((1, 1), 77e-6, dtype=torch.float64), generator())
    wanted = torch.full((1, 1), 40e-6, dtype=torch.float64)
    assert not ProgramVerify(0.001).program(device, cells, wanted, generator()).any()
    assert cells.pulses.item() == 30


def test_what_lies_between_levels_is_reported():
    """Levels every 20 uS: within 5 uS of one, or failed."""
    device = MemoryCell(LOW, HIGH, levels=6, pulses=LevelPulses())
    wanted = 1e-6 * torch.tensor([[10, 14, 16, 20, 26, 34, 60, 109]], dtype=torch.float64)
    cells = device.fabricate((1, 8), generator(), dtype=torch.float64)
    failed = ProgramVerify(0.05, max_rounds=10).program(device, cells, wanted, generator())
    assert failed.tolist() == [[False, False, True, True, False, False, True, False]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, r"ProgramVerify.tolerance = 0.0 .*over the window"),
        ({"max_rounds": 0}, r"ProgramVerify.max_rounds = 0 .*whole number from 1"),
        ({"reads": 1.5}, r"ProgramVerify.reads = 1.5"),
        ({"max_pulses": 0}, r"ProgramVerify.max_pulses = 0"),
    ],
)
def test_bad_verification_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProgramVerify(**{"tolerance": 0.01, **settings})


def test_a_target_outside_the_window_is_refused_before_anything_is_written():
    device = MemoryCell(LOW, HIGH, pulses=PLAIN)
    cells = device.fabricate((1, 1), generator(), dtype=torch.float64)
    with pytest.raises(ValueError, match="outside the window"):
        ProgramVerify(0.01).program(device, cells, torch.full((1, 1), 2e-4, dtype=torch.float64), generator())
    assert cells.pulses.sum() == 0


# -- energy ------------------------------------------------------------------------------------------


def test_energies_of_pulses_and_reads_by_hand():
    """2 V on 50 uS for 100 ns: 20 pJ. 0.2 V for 10 ns: 20 fJ."""
    operation = Operation(write_volts=-2.0, write_seconds=1e-7, read_volts=0.2, read_seconds=1e-8)
    assert operation.joules_per_write_siemens * 50e-6 == pytest.approx(20e-12)
    assert operation.joules_per_read_siemens * 50e-6 == pytest.approx(20e-15)
    with pytest.raises(ValueError, match=r"Operation.write_volts = 300.0 .*in volts"):
        Operation(300.0, 1e-7)
    with pytest.raises(ValueError, match=r"Operation.write_seconds = 1e-15 .*100 ns is 1e-7"):
        Operation(3.0, 1e-15)
    with pytest.raises(ValueError, match=r"operation = 3.0 is not allowed: it must be an Operation, or None"):
        MemoryCell(LOW, HIGH, operation=3.0)
