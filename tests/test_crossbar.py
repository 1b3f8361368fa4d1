"""The mapping of weights on pairs of conductances, and what whole pulses make of a weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import devices
from circuits.crossbar import Crossbar
from devices import ConstantStepPulses, Device, Ideal, MemoryCell, SoftBoundsPulses, WhiteReadNoise
from tests.device_conformance import generator, same

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
LEVELS = devices.preset("levels-8bit")


def crossbar(device: Device, shape=(8, 5), w_max=1.0, seed=0, **options) -> Crossbar:
    return Crossbar(shape, device, w_max, generator(seed), **{"dtype": torch.float64, **options})


def full(value: float) -> Tensor:
    return torch.full((8, 5), value, dtype=torch.float64)


def uniform(shape, most: float = 1.0, seed: int = 0) -> Tensor:
    return most * (2 * torch.rand(shape, generator=generator(seed), dtype=torch.float64) - 1)


# -- mapping -----------------------------------------------------------------------------------------


@few
@given(
    seed=seeds,
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    w_max=st.floats(1e-3, 1e3),
    low=st.floats(0, 50e-6),
    span=st.floats(1e-6, 1e-3),
    precision=st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)]),
)
def test_an_ideal_pair_reads_what_was_programmed(seed, rows, columns, w_max, low, span, precision):
    """To rounding, for every window: G+ - G- = W span / w_max around mid-window, in both directions."""
    dtype, tolerance = precision
    array = crossbar(Ideal(low, low + span), (rows, columns), w_max, dtype=dtype)
    weight = uniform((rows, columns), w_max, seed).to(dtype)
    array.program(weight)
    # the pair's conductances are of the size of g_max: that over the span is what rounding is magnified by
    assert torch.allclose(array.read(), weight, rtol=0, atol=tolerance * w_max * (low + span) / span)
    g_plus, g_minus = array.cells["plus"].conductance, array.cells["minus"].conductance
    assert torch.allclose(g_plus - g_minus, weight * (span / w_max), rtol=0, atol=tolerance * (low + span))
    assert torch.allclose(0.5 * (g_plus + g_minus), torch.full_like(g_plus, low + span / 2), rtol=1e-6)


def test_single_precision_reads_a_programmed_weight_to_a_millionth():
    array = crossbar(devices.preset("ideal"), (50, 40), 2.0, dtype=torch.float32)
    weight = uniform((50, 40), 2.0).float()
    array.program(weight)
    assert (array.read() - weight).abs().max() < 1e-6 * 2.0


def test_the_largest_weight_has_one_cell_at_each_end_of_the_window():
    array = crossbar(Ideal(5e-6, 65e-6), (1, 3), 0.7)
    array.program(torch.tensor([[0.7, -0.7, 0.0]], dtype=torch.float64))
    assert torch.allclose(
        array.cells["plus"].conductance, torch.tensor([[65e-6, 5e-6, 35e-6]], dtype=torch.float64)
    )
    assert torch.allclose(
        array.cells["minus"].conductance, torch.tensor([[5e-6, 65e-6, 35e-6]], dtype=torch.float64)
    )


def test_a_weight_beyond_the_range_is_counted_and_saturates():
    array = crossbar(devices.preset("ideal"), (1, 4), 1.0)
    weight = torch.tensor([[1.0, -1.0, 1.5, -30.0]], dtype=torch.float64)
    assert array.beyond(weight) == 0.5
    array.program(weight)
    assert torch.allclose(array.read(), torch.tensor([[1, -1, 1, -1]], dtype=torch.float64))


# -- writing -----------------------------------------------------------------------------------------


@few
@given(seed=seeds, w_max=st.floats(1e-3, 1e3), most=st.integers(1, 127))
def test_exact_levels_move_by_counts_times_the_step(seed, w_max, most):
    array = crossbar(LEVELS, w_max=w_max)
    array.program(full(0.0))
    counts = torch.randint(-most, most + 1, (8, 5), generator=generator(seed)).double()
    written = array.write(counts * array.step, array.read())
    assert array.step == pytest.approx(2 * w_max / 255)
    assert torch.allclose(written, counts * array.step, rtol=1e-12, atol=0)
    assert torch.allclose(array.read(), written, rtol=0, atol=1e-9 * w_max)
    assert torch.equal(array.cells["plus"].pulses, counts.abs().long())
    assert array.pulses_per_cell == counts.abs().mean().item()


@few
@given(seed=seeds)
def test_a_wanted_change_is_rounded_to_the_nearest_pulse(seed):
    array = crossbar(LEVELS, rounding="nearest")
    wanted = uniform((8, 5), 0.2, seed)
    written = array.write(wanted, array.read())
    assert torch.allclose(written / array.step, (wanted / array.step).round(), rtol=0, atol=1e-9)
    assert (written - wanted).abs().max() <= 0.5 * array.step * (1 + 1e-9)


def test_stochastic_rounding_never_errs_by_a_whole_pulse_and_follows_its_generator():
    wanted = uniform((8, 5), 0.2)
    arrays = [crossbar(LEVELS, rounding="stochastic", seed=s) for s in (1, 1, 2)]
    written = [a.write(wanted, a.read()) for a in arrays]
    assert all((w - wanted).abs().max() < arrays[0].step for w in written)
    assert torch.equal(written[0], written[1])
    assert not torch.equal(written[0], written[2])


def test_exact_levels_stop_at_the_ends_while_the_controller_counts_on():
    array = crossbar(LEVELS, (1, 2))
    array.program(torch.zeros(1, 2, dtype=torch.float64))
    start = array.read()
    written = array.write(torch.tensor([[1.5, -1.5]], dtype=torch.float64), start)
    assert torch.allclose(written, torch.tensor([[1.5, -1.5]], dtype=torch.float64), rtol=0, atol=array.step)
    assert torch.allclose(
        array.read(), torch.tensor([[1.0, -1.0]], dtype=torch.float64), rtol=0, atol=array.step
    )


@pytest.mark.parametrize("device", [LEVELS, devices.preset("soft-bounds-6bit")])
def test_a_change_of_any_size_takes_no_more_pulses_than_the_range_has(device):
    """A diverging network asks for absurd changes: that must not take for ever. 2 w_max is all there is."""
    array = crossbar(device)
    written = array.write(full(1e30), array.read())
    assert torch.allclose(written, full(2.0), rtol=0, atol=array.step)
    assert array.pulses_per_cell <= 2 / array.step + 1


@pytest.mark.parametrize("steps", [15, 63, 1200])
def test_soft_bounds_take_the_nominal_step_at_zero_and_less_further_out(steps):
    """Push-pull from W = 0: W_n = w_max (1 - (1 - 2 / steps)^n), whose first step is the nominal one."""
    array = crossbar(MemoryCell(1e-6, 100e-6, pulses=SoftBoundsPulses(steps)), w_max=0.8)
    array.program(full(0.0))
    assert array.step == pytest.approx(2 * 0.8 / steps)
    for n in range(1, 6):
        array.write(full(array.step), array.read())
        expected = 0.8 * (1 - (1 - 2 / steps) ** n)
        assert torch.allclose(array.read(), full(expected), rtol=1e-9)


def test_with_spread_the_nominal_step_is_the_mean_step_at_zero():
    """30 % between devices and between pulses, up and down: mean within 5 standard errors, and their spread:
    two cells of a pair share a step, each with variance (1 + .09)(1 + .09) - 1."""
    pulses = SoftBoundsPulses(63, sigma_dtod=0.3, sigma_c2c=0.3)
    array = crossbar(MemoryCell(1e-6, 100e-6, pulses=pulses), (200, 200))
    array.program(torch.zeros(200, 200, dtype=torch.float64))
    sign = torch.ones(200, 200, dtype=torch.float64)
    sign[::2] = -1
    array.write(sign * array.step, array.read())
    moves = sign * array.read() / array.step
    spread = math.sqrt((1.09**2 - 1) / 2)
    assert moves.mean().item() == pytest.approx(1, abs=5 * spread / 200)
    assert moves.std().item() == pytest.approx(spread, rel=0.03)


def test_push_pull_evens_out_an_asymmetric_cell():
    """Up steps 1.3, down steps 0.7 of nominal: a pair still moves by the nominal step both ways."""
    device = MemoryCell(1e-6, 100e-6, pulses=ConstantStepPulses(100, asymmetry=0.3))
    array = crossbar(device)
    for count in (4, -7):
        array.program(full(0.0))
        array.write(full(count * array.step), array.read())
        assert torch.allclose(array.read(), full(count * array.step), rtol=1e-9)


def test_without_pulses_the_last_read_plus_the_change_is_programmed():
    array = crossbar(devices.preset("ideal"), (1, 3))
    assert array.step is None
    array.program(torch.tensor([[0.1, 0.2, 0.9]], dtype=torch.float64))
    delta = torch.tensor([[0.05, -0.3, 0.5]], dtype=torch.float64)
    assert torch.equal(array.write(delta, array.read()), delta)
    assert torch.allclose(array.read(), torch.tensor([[0.15, -0.1, 1.0]], dtype=torch.float64), atol=1e-12)
    assert array.pulses_per_cell == 2  # direct writes


# -- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "w_max"), [(0.02, 1.0), (0.05, 3.0)])
def test_the_read_noise_of_a_weight_is_that_of_two_cells(sigma, w_max):
    """sqrt(2) sigma w_max for noise relative to the window, the same at every weight inside it."""
    device = MemoryCell(1e-6, 100e-6, read_noise=WhiteReadNoise(sigma))
    array = crossbar(device, (200, 200), w_max)
    weight = uniform((200, 200), 0.5 * w_max)  # so far from 0 S that no reading is cut off there
    array.program(weight)
    error = array.read() - weight
    expected = math.sqrt(2) * sigma * w_max
    assert error.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * 40_000))
    assert abs(error.mean().item()) < 5 * expected / 200
    again = array.read() - weight
    assert abs((error * again).mean().item()) < 5 * expected**2 / 200  # drawn afresh


def test_a_power_law_scales_the_weight():
    """Both cells lose the same factor, and so does their difference."""
    array = crossbar(MemoryCell(1e-6, 100e-6, drift=devices.PowerLawDrift(0.05)))
    weight = uniform((8, 5))
    array.program(weight)
    assert torch.allclose(array.read(1e4), weight * 10_001**-0.05, rtol=1e-9, atol=1e-12)


# -- state and complaints ----------------------------------------------------------------------------


def test_its_state_is_its_cells_and_its_range():
    array, other = (
        crossbar(devices.preset("soft-bounds-6bit"), w_max=w, seed=s) for w, s in [(1.0, 1), (7.0, 2)]
    )
    array.write(uniform((8, 5), 0.3), array.read())
    other.load_state_dict(array.state_dict())
    assert same(array.cells["plus"], other.cells["plus"])
    assert same(array.cells["minus"], other.cells["minus"])
    assert other.step == array.step
    other.write(uniform((8, 5), 0.3), other.read())
    assert not same(array.cells["plus"], other.cells["plus"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("device", [LEVELS, devices.preset("ideal")])
def test_what_is_not_finite_never_reaches_the_cells(device, bad):
    array = crossbar(device)
    array.program(uniform((8, 5)))
    before = array.read()
    wrong = full(0.0)
    wrong[3, 2] = bad
    with pytest.raises(ValueError, match=r"weights to program contain NaN or infinity; check"):
        array.program(wrong)
    with pytest.raises(ValueError, match=r"changes to write contain NaN or infinity; lower lr"):
        array.write(wrong, before)
    assert torch.equal(array.read(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w_max": 0.0}, "w_max = 0.0; the largest weight of a crossbar must be > 0"),
        ({"w_max": math.nan}, "w_max = nan"),
        ({"rounding": "up"}, "unknown rounding 'up'; choose one of nearest, stochastic"),
        ({"shape": (0, 3)}, r"shape = \(0, 3\) is not allowed"),
        ({"dtype": torch.float16}, "float16 is not allowed: choose"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(options, message):
    with pytest.raises(ValueError, match=message):
        crossbar(LEVELS, **options)


def test_a_direct_write_is_made_only_where_it_moves_more_than_it_errs_by():
    """1 % of a window of 50 uS by two cells: sqrt(2) 0.01 w_max. Weights moved by less stay, untouched."""
    device = MemoryCell(0.0, 50e-6, programming=devices.WindowProgrammingNoise(0.01))
    array = crossbar(device, (1, 4), w_max=2.0)
    assert array.threshold == pytest.approx(2**0.5 * 0.01 * 2.0)
    array.program(torch.zeros(1, 4, dtype=torch.float64))
    before = array.read()
    wanted = torch.tensor([[0.028, -0.029, 0.0, 0.5]], dtype=torch.float64)
    written = array.write(wanted, before)
    assert torch.equal(written, torch.tensor([[0.0, -0.029, 0.0, 0.5]], dtype=torch.float64))
    assert torch.equal(array.read()[0, [0, 2]], before[0, [0, 2]])
    assert torch.equal(array.cells["plus"].pulses, torch.tensor([[1, 2, 1, 2]]))
    assert array.read()[0, 3].item() == pytest.approx(before[0, 3].item() + 0.5, abs=5 * array.threshold)
    assert crossbar(devices.preset("ideal")).threshold == 0
