"""Devices as a whole: the conformance suite on every preset, cells, composition, resolution."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devices
from devices import (
    Cells,
    ConstantStepPulses,
    FlickerReadNoise,
    LevelPulses,
    MemoryCell,
    PCMDrift,
    PowerLawDrift,
    SoftBoundsPulses,
    StuckCells,
    WhiteReadNoise,
    WindowProgrammingNoise,
)
from tests.device_conformance import ALL_CHECKS, counts, counts_for, generator, targets

FULL = MemoryCell(
    2e-6,
    50e-6,
    levels=40,
    pulses=SoftBoundsPulses(20, 0.2, 0.4, 0.1, 0.05, 0.1),
    programming=WindowProgrammingNoise(0.02),
    read_noise=WhiteReadNoise(0.03, relative_to="conductance"),
    drift=PowerLawDrift(nu=0.05, sigma_nu=0.01, t0_seconds=2.0),
    source="every part at once",
)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", devices.preset_names())
def test_preset_conforms(name, check):
    check(devices.preset(name))


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("noise", [FULL.read_noise, FlickerReadNoise(0.02, "conductance")])
def test_all_parts_together_conform(noise, check):
    check(dataclasses.replace(FULL, read_noise=noise))


# --- presets --------------------------------------------------------------------------------------


def test_every_preset_cites_its_source_in_one_line():
    for name in devices.preset_names():
        line = devices.describe(name)
        assert line.startswith(f"{name}: ")
        assert devices.preset(name).source in line
        assert "\n" not in line


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'soft-bound-6bit'. Did you mean 'soft-bounds-6bit'\?.*pcm"):
        devices.preset("soft-bound-6bit")
    with pytest.raises(ValueError, match=r"Unknown device 'xyzzy'. Known presets: ideal.*\.json"):
        devices.resolve("xyzzy")


def test_numbers_of_the_presets():
    study = devices.preset("soft-bounds-6bit")
    assert study.step_siemens == pytest.approx(99e-6 / 63)
    assert (study.pulses.sigma_dtod, study.pulses.sigma_c2c) == (0.3, 0.3)
    assert devices.preset("soft-bounds-4bit").step_siemens == pytest.approx(99e-6 / 15)
    assert devices.preset("levels-6bit").step_siemens == pytest.approx(99e-6 / 63)
    assert devices.preset("rpu").step_siemens / devices.preset("rpu").window.span == pytest.approx(0.0016 / 2)
    assert devices.preset("pcm").step_siemens is None
    assert devices.preset("ideal").step_siemens is None


# --- cells ----------------------------------------------------------------------------------------


def test_cells_to_and_clone_are_copies_and_keep_time_stamps_exact():
    cells = FULL.fabricate((3, 4), generator())
    FULL.program(cells, targets(FULL, (3, 4)), generator(), t_seconds=123456789.25)
    double = cells.to(dtype=torch.float64)
    assert double.conductance.dtype == double.params["g_hi"].dtype == torch.float64
    assert double.pulses.dtype == torch.int64
    single = double.to("cpu", torch.float32)
    assert (single.written_at == 123456789.25).all()
    single.conductance.zero_()
    cells.clone().params["g_lo"].zero_()
    assert (double.conductance > 0).all()
    assert (cells.params["g_lo"] > 0).any()
    with pytest.raises(ValueError, match=r"float16 is not allowed: choose torch\.float32"):
        cells.to(dtype=torch.float16)


def test_cells_state_errors_name_the_keys():
    state = FULL.fabricate((3, 4), generator()).state_dict()
    del state["pulses"]
    state["age"] = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"missing keys \['pulses'\] and unknown keys \['age'\]"):
        Cells.from_state_dict(state)
    with pytest.raises(ValueError, match=r"g_lo has shape \(2,\), conductance \(3, 4\)"):
        Cells.new(torch.zeros(3, 4), {"g_lo": torch.zeros(2)})


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 3, 4), 5, (2.0, 3)])
def test_fabricate_refuses_what_is_not_rows_and_cols(shape):
    for device in (FULL, devices.preset("ideal")):
        with pytest.raises(ValueError, match=r"is not allowed: an array is \(rows, cols\)"):
            device.fabricate(shape, generator())
        with pytest.raises(ValueError, match=r"choose torch\.float32 or torch\.float64"):
            device.fabricate((2, 2), generator(), dtype=torch.bfloat16)


# --- composition ----------------------------------------------------------------------------------


def test_wrong_part_in_a_slot_is_refused():
    with pytest.raises(ValueError, match=r"MemoryCell.drift = WhiteReadNoise.*must be a Drift, or None"):
        MemoryCell(1e-6, 1e-4, drift=WhiteReadNoise(0.1))
    with pytest.raises(ValueError, match=r"levels = None: set levels"):
        MemoryCell(1e-6, 1e-4, pulses=LevelPulses())
    with pytest.raises(ValueError, match=r"source = 3 is not allowed"):
        MemoryCell(1e-6, 1e-4, source=3)


def test_a_spread_that_is_there_at_once_does_not_go_with_pulses():
    pulses = devices.SoftBoundsPulses(63)
    MemoryCell(1e-6, 1e-4, pulses=pulses, drift=devices.LogarithmicDrift(-1e-7, 0.0, 1e-8))
    with pytest.raises(ValueError, match=r"sigma_siemens = 1e-06 is not allowed beside pulses"):
        MemoryCell(1e-6, 1e-4, pulses=pulses, drift=devices.LogarithmicDrift(-1e-7, 1e-6))


@pytest.mark.parametrize(
    ("low", "high", "levels", "message"),
    [
        (1e-4, 1e-6, None, r"g_min_siemens = 0.0001 is not allowed: it must lie below"),
        (-1e-6, 1e-4, None, r"g_min_siemens = -1e-06 .*from 0 to 1"),
        (1.0, 25.0, None, r"g_max_siemens = 25.0 .*25 microsiemens is 25e-6"),
        (1e-6, float("nan"), None, r"g_max_siemens = nan"),
        (1e-6, 1e-4, 1, r"levels = 1 .*2 to 65536"),
        (1e-6, 1e-4, 6.0, r"levels = 6.0 .*whole number"),
        (1e-6, 1e-4, True, r"levels = True"),
    ],
)
def test_bad_windows_are_refused(low, high, levels, message):
    with pytest.raises(ValueError, match=message):
        MemoryCell(low, high, levels=levels)


def test_finite_levels_are_the_nearest_ones_and_programming_them_again_changes_nothing():
    device = MemoryCell(10e-6, 40e-6, levels=7)  # levels every 5 uS
    cells = device.fabricate((1, 5), generator(), dtype=torch.float64)
    g = torch.tensor([[10e-6, 12.4e-6, 12.6e-6, 38e-6, 40e-6]], dtype=torch.float64)
    device.program(cells, g, generator())
    expected = torch.tensor([[10e-6, 10e-6, 15e-6, 40e-6, 40e-6]], dtype=torch.float64)
    assert torch.allclose(cells.conductance, expected, rtol=1e-12)
    for bits in (1, 6, 16):
        fine = MemoryCell(1e-6, 100e-6, levels=2**bits)
        cells = fine.fabricate((40, 30), generator())
        fine.program(cells, targets(fine), generator())
        once = cells.conductance.clone()
        fine.program(cells, once, generator())
        assert torch.equal(cells.conductance, once)
        assert once.unique().numel() <= 2**bits


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(0, 1e-4),
    span=st.floats(1e-6, 1e-3),
    levels=st.none() | st.integers(2, 65536),
    seed=st.integers(0, 2**32),
)
def test_program_then_read_is_exact_up_to_half_a_level(low, span, levels, seed):
    device = MemoryCell(low, low + span, levels=levels)
    cells = device.fabricate((4, 5), generator(), dtype=torch.float64)
    g = targets(device, (4, 5), seed, torch.float64)
    device.program(cells, g, generator())
    half_level = 0.0 if levels is None else 0.5 * device.window.level_spacing
    assert (
        (device.read(cells, generator()) - g).abs() <= half_level * (1 + 1e-9) + 1e-12 * (low + span)
    ).all()


# --- stuck cells ----------------------------------------------------------------------------------


def test_stuck_cells_fractions_and_immobility():
    faults = StuckCells(fraction_at_min=0.1, fraction_at_max=0.05)
    device = dataclasses.replace(
        devices.preset("soft-bounds-6bit"), faults=faults, drift=PCMDrift(), read_noise=None
    )
    shape = (200, 200)
    cells = device.fabricate(shape, generator())
    stuck = cells.params["stuck"]
    n = stuck.numel()
    for value, fraction in ((-1, 0.1), (1, 0.05)):
        assert abs((stuck == value).sum().item() / n - fraction) < 4 * (fraction * (1 - fraction) / n) ** 0.5
    device.program(cells, targets(device, shape), generator())
    k = torch.ones(shape, dtype=torch.int64)
    for t in (1.0, 2.0):
        device.pulse(cells, k, generator(4), t_seconds=t)
        k = -k
    g = device.read(cells, generator(), t_seconds=1e6)
    assert torch.allclose(g[stuck < 0], torch.tensor(1e-6))
    assert torch.allclose(g[stuck > 0], torch.tensor(100e-6))
    assert (cells.pulses == 2).all()
    moved = (g[stuck == 0] != 1e-6) & (g[stuck == 0] != 100e-6)
    assert moved.float().mean() > 0.98


def test_stuck_cell_limits():
    with pytest.raises(ValueError, match=r"fraction_at_min = 1.5 .*from 0 to 1"):
        StuckCells(fraction_at_min=1.5)
    with pytest.raises(ValueError, match=r"fraction_at_max \+ fraction_at_random = 1.4"):
        StuckCells(0.7, 0.7)
    all_stuck = MemoryCell(1e-6, 1e-4, faults=StuckCells(0.5, 0.5)).fabricate((20, 20), generator())
    assert (all_stuck.params["stuck"] != 0).all()


# --- resolution -----------------------------------------------------------------------------------


def test_with_bits_sets_levels_and_steps():
    assert devices.with_bits(devices.preset("soft-bounds-6bit"), 6) == devices.preset("soft-bounds-6bit")
    assert devices.with_bits(devices.preset("levels-8bit"), 3).levels == 8
    assert devices.with_bits(devices.preset("rpu"), 16).pulses == ConstantStepPulses(
        65535, sigma_dtod=0.3, sigma_c2c=0.3, sigma_asymmetry=0.01, sigma_bounds=0.3
    )
    both = devices.with_bits(FULL, 5)
    assert (both.levels, both.pulses.steps) == (32, 31)


def test_with_bits_refuses_what_has_no_resolution():
    for name, kind in (("pcm", "MemoryCell"), ("ideal", "Ideal")):
        with pytest.raises(ValueError, match=rf"{kind} has neither levels nor pulses.*soft-bounds-6bit"):
            devices.with_bits(devices.preset(name), 6)
    for bits in (0, 17, 2.5):
        with pytest.raises(ValueError, match=rf"bits = {bits} is not allowed.*from 1 to 16"):
            devices.with_bits(FULL, bits)


def test_only_pulsed_cells_draw_random_numbers():
    """No pulses, no draws: the generator advances with the pulses, not with the size of the array."""
    device = devices.preset("soft-bounds-6bit")
    cells = device.fabricate((50, 50), generator())
    rng = generator()
    state = rng.get_state()
    device.pulse(cells, torch.zeros(50, 50, dtype=torch.int64), rng)
    assert torch.equal(rng.get_state(), state)
    assert cells.pulses.sum() == 0
    k = counts((50, 50))
    device.pulse(cells, k, rng)
    assert cells.pulses.sum() == k.abs().sum()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", devices.preset_names())
def test_presets_work_on_a_gpu_with_a_generator_there(name):
    device, rng = devices.preset(name), torch.Generator("cuda").manual_seed(0)
    cells = device.fabricate((40, 30), rng, device="cuda")
    device.program(cells, targets(device).cuda(), rng)
    if device.step_siemens is not None:
        k = counts_for(device).cuda()
        device.pulse(cells, k, rng, t_seconds=1.0)
        assert torch.equal(cells.pulses, k.abs())
    g = device.read(cells, rng, t_seconds=2.0)
    assert g.device.type == "cuda"
    assert g.isfinite().all()
    assert cells.to("cpu").conductance.device.type == "cpu"
