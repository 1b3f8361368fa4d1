"""What cells carry from one write or read to the next: a hidden state, slow noise, a leaking charge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from devices import (
    Cells,
    ConstantStepPulses,
    FlickerReadNoise,
    HiddenStateNoise,
    Leak,
    MemoryCell,
    SoftBoundsPulses,
)
from tests.device_conformance import generator

LOW, HIGH = 10e-6, 110e-6
SHAPE, CELLS = (200, 200), 40_000


def fabricated(device: MemoryCell, g: float, shape=SHAPE, t_seconds: float = 0.0) -> Cells:
    cells = device.fabricate(shape, generator(), dtype=torch.float64)
    device.program(cells, torch.full(shape, g, dtype=torch.float64), generator(1), t_seconds)
    return cells


# -- noise of a write around a hidden state ----------------------------------------------------------

WRITTEN = MemoryCell(
    LOW, HIGH, pulses=ConstantStepPulses(100), write_noise=HiddenStateNoise(3.0)
)  # steps of 1 uS


def test_write_noise_does_not_add_up_over_writes():
    """3 steps of 1 uS after one write and after thirty, and independent from one to the next."""
    cells, rng, errors = fabricated(WRITTEN, 50e-6), generator(2), []
    for n in range(31):
        errors.append((cells.conductance - (50e-6 + n * 1e-6)) / 3e-6)
        WRITTEN.pulse(cells, torch.ones(SHAPE, dtype=torch.int64), rng)
    for error in (errors[0], errors[1], errors[30]):
        assert abs(error.mean().item()) < 5 / 200
        assert error.std().item() == pytest.approx(1, rel=5 / math.sqrt(2 * CELLS))
    for one, other in ((0, 1), (1, 2), (1, 30)):
        assert abs((errors[one] * errors[other]).mean().item()) < 5 / 200


def test_the_hidden_state_follows_the_path_without_noise():
    quiet = MemoryCell(LOW, HIGH, pulses=WRITTEN.pulses)
    cells, bare = fabricated(WRITTEN, 40e-6), fabricated(quiet, 40e-6)
    counts = torch.randint(-40, 41, SHAPE, generator=generator(3))
    for k in (counts, counts.flip(0)):
        WRITTEN.pulse(cells, k, generator(4))
        quiet.pulse(bare, k, generator(5))
    assert torch.allclose(cells.params["hidden"], bare.conductance, rtol=1e-12)


def test_write_noise_stays_until_the_next_write_and_only_of_cells_that_are_written():
    cells = fabricated(WRITTEN, 50e-6)
    first = WRITTEN.read(cells, generator(7), t_seconds=1.0)
    assert torch.equal(WRITTEN.read(cells, generator(8), t_seconds=1e9), first)
    counts = torch.zeros(SHAPE, dtype=torch.int64)
    counts[0] = 1
    WRITTEN.pulse(cells, counts, generator(9), t_seconds=1e9)
    again = WRITTEN.read(cells, generator(10), t_seconds=1e9)
    assert torch.equal(again[1:], first[1:])
    assert (again[0] != first[0]).all()


def test_write_noise_is_relative_to_the_nominal_step_at_mid_window():
    """Soft bounds of 50 steps: 2 uS, whatever the step where the cell is."""
    device = MemoryCell(LOW, HIGH, pulses=SoftBoundsPulses(50), write_noise=HiddenStateNoise(1.5))
    for g in (30e-6, 90e-6):
        cells = fabricated(device, g)
        assert (cells.conductance - g).std().item() == pytest.approx(3e-6, rel=5 / math.sqrt(2 * CELLS))


# -- 1/f noise ---------------------------------------------------------------------------------------

SLOW = MemoryCell(LOW, HIGH, read_noise=FlickerReadNoise(0.02, shortest_seconds=1.0, longest_seconds=1e3))


def noise(device: MemoryCell, cells: Cells, rng: torch.Generator, t_seconds: float) -> Tensor:
    """Of a read of cells at 60 uS, over its standard deviation of 2 uS."""
    return (device.read(cells, rng, t_seconds) - 60e-6) / 2e-6


def test_one_process_per_decade():
    assert SLOW.read_noise.correlation_seconds == pytest.approx((1.0, 10.0, 100.0, 1000.0))
    assert FlickerReadNoise(0.1, longest_seconds=1e-3).correlation_seconds == (1e-3,)
    ends = FlickerReadNoise(0.1, shortest_seconds=2.0, longest_seconds=500.0).correlation_seconds
    assert ends == pytest.approx((2.0, 2 * 250 ** (1 / 3), 2 * 250 ** (2 / 3), 500.0))


def test_slow_noise_has_the_autocorrelation_of_its_processes():
    """sum_k exp(-dt / 10^k) / 4, k = 0..3. dt = 5: (e^-5 + e^-.5 + e^-.05 + e^-.005) / 4 = 0.63988; dt = 50: 0.39112;
    dt = 45, between the two: 0.40637; 1e5 s later, nothing is left."""
    cells, rng = fabricated(SLOW, 60e-6), generator(2)
    at = {t: noise(SLOW, cells, rng, t) for t in (0.0, 5.0, 50.0, 1e5)}
    for x in at.values():
        assert abs(x.mean().item()) < 5 / 200
        assert x.std().item() == pytest.approx(1, rel=5 / math.sqrt(2 * CELLS))
    for one, other, expected in (
        (0.0, 5.0, 0.639878),
        (0.0, 50.0, 0.391124),
        (5.0, 50.0, 0.406371),
        (50.0, 1e5, 0.0),
    ):
        assert (at[one] * at[other]).mean().item() == pytest.approx(expected, abs=5 * math.sqrt(2) / 200)


def test_reads_at_the_same_time_are_the_same_and_take_no_random_numbers():
    cells, rng = fabricated(SLOW, 60e-6), generator(2)
    first = SLOW.read(cells, rng, 3.0)
    state = rng.get_state()
    assert torch.equal(SLOW.read(cells, rng, 3.0), first)
    assert torch.equal(rng.get_state(), state)
    nearly = SLOW.read(cells, rng, 3.0 + 1e-6)  # changes by sqrt(2 dt sum_k 1 / tau_k / 4) = 7.5e-4 of 2 uS
    assert (nearly - first).std().item() == pytest.approx(2e-6 * math.sqrt(2e-6 * 1.111 / 4), rel=0.02)


def test_a_single_process_forgets_exponentially():
    device = MemoryCell(
        LOW, HIGH, read_noise=FlickerReadNoise(0.02, shortest_seconds=2.0, longest_seconds=2.0)
    )
    cells, rng = fabricated(device, 60e-6), generator(2)
    one, other = (noise(device, cells, rng, t) for t in (10.0, 12.0))
    assert (one * other).mean().item() == pytest.approx(
        math.exp(-1), abs=5 * math.sqrt(1 + math.exp(-2)) / 200
    )


def test_slow_noise_goes_on_bit_for_bit_from_a_snapshot():
    cells, rng = fabricated(SLOW, 60e-6, (4, 5)), generator(2)
    SLOW.read(cells, rng, 3.0)
    twin, twin_rng = Cells.from_state_dict(cells.state_dict()), torch.Generator()
    twin_rng.set_state(rng.get_state())
    assert torch.equal(SLOW.read(twin, twin_rng, 3.0), SLOW.read(cells, rng, 3.0))
    later = SLOW.read(cells, rng, 20.0)
    assert torch.equal(SLOW.read(twin, twin_rng, 20.0), later)
    other = cells.clone()
    SLOW.read(other, rng, 500.0)
    assert torch.equal(SLOW.read(cells, rng, 20.0), later)  # a clone has a memory of its own


def test_noise_with_a_memory_does_not_run_backwards():
    cells, rng = fabricated(SLOW, 60e-6, (4, 5)), generator(2)
    SLOW.read(cells, rng, 3.0)
    with pytest.raises(
        ValueError, match=r"t_seconds = 2 s lies before the last read at 3 s.*time only runs forward"
    ):
        SLOW.read(cells, rng, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"shortest_seconds": 10.0, "longest_seconds": 1.0},
            r"shortest_seconds = 10.0 .*must not exceed.*Swap",
        ),
        ({"shortest_seconds": 0.0}, r"shortest_seconds = 0.0 .*from 1e-12"),
        ({"sigma_relative": 2.0}, r"FlickerReadNoise.sigma_relative = 2.0 .*0.02 is 2 %"),
        ({"relative_to": "step"}, r"relative_to = 'step'"),
    ],
)
def test_bad_slow_noise_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlickerReadNoise(**{"sigma_relative": 0.02, **settings})


# -- leak --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "micro"),
    [(0.0, 110.0), (100 * math.log(2), 85.0), (100.0, 78.393972), (300.0, 62.489353), (1e6, 60.0)],
)
def test_a_charge_leaks_exponentially_to_its_rest(t, micro):
    """60 + 50 exp(-t / 100 s) uS from the upper bound to mid-window, and its mirror image from the lower."""
    device = MemoryCell(LOW, HIGH, drift=Leak(100.0))
    for g, expected in ((HIGH, micro), (LOW, 120 - micro)):
        cells = fabricated(device, g, (1, 1))
        assert device.read(cells, generator(), t).item() == pytest.approx(1e-6 * expected, rel=1e-7)


def test_pulses_act_on_what_has_leaked():
    """110 uS, rest 60: at 50 s 60 + 50 e^-.5 = 90.3265; a step of 5 up: 95.3265; at 120 s 60 + 35.3265 e^-.7."""
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(20), drift=Leak(100.0))
    cells = fabricated(device, HIGH, (1, 1))
    device.pulse(cells, torch.tensor([[1]]), generator(), t_seconds=50.0)
    assert cells.conductance.item() == pytest.approx(95.326533e-6)
    assert device.read(cells, generator(), 120.0).item() == pytest.approx(77.542638e-6, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(rest=st.floats(0, 1), g=st.floats(0, 1), first=st.floats(0, 1e3), second=st.floats(0, 1e3))
def test_leaking_twice_is_leaking_once_for_both_times(rest, g, first, second):
    leak, window = Leak(70.0, rest=rest), MemoryCell(LOW, HIGH).window
    start = torch.tensor([LOW + g * (HIGH - LOW)], dtype=torch.float64)
    params = leak.draw(start, window, generator())
    assert params["leak_rest"].item() == pytest.approx(LOW + rest * 100e-6)

    def after(g: Tensor, t: float) -> Tensor:
        return leak.after(torch.tensor([t], dtype=torch.float64), g, params)

    assert torch.allclose(after(after(start, first), second), after(start, first + second), rtol=1e-9)


def test_the_spread_of_the_leak_is_that_of_its_time():
    """Rates 1 / (100 s (1 + 0.1 xi)): times of mean 100 s and spread 10 s; each programming draws them anew."""
    device = MemoryCell(LOW, HIGH, drift=Leak(100.0, sigma_tau=0.1))
    cells = fabricated(device, HIGH)
    first = 1 / cells.params["leak_rate"]
    assert first.mean().item() == pytest.approx(100, abs=5 * 10 / 200)
    assert first.std().item() == pytest.approx(10, rel=5 / math.sqrt(2 * CELLS))
    device.program(cells, torch.full(SHAPE, HIGH, dtype=torch.float64), generator(9), t_seconds=1.0)
    again = 1 / cells.params["leak_rate"]
    assert abs(((first - 100) * (again - 100)).mean().item()) < 5 * 100 / 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau_seconds": 0.0}, r"Leak.tau_seconds = 0.0 .*in seconds"),
        ({"rest": 1.5}, r"Leak.rest = 1.5 .*share of the window"),
        ({"sigma_tau": -0.1}, r"Leak.sigma_tau = -0.1 .*relative"),
    ],
)
def test_bad_leaks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Leak(**{"tau_seconds": 1.0, **settings})


def test_a_negative_write_noise_and_one_without_pulses_are_refused():
    with pytest.raises(ValueError, match=r"sigma_steps = -1.0 .*relative to the step"):
        HiddenStateNoise(-1.0)
    with pytest.raises(ValueError, match=r"write_noise = HiddenStateNoise.*not allowed without pulses"):
        MemoryCell(LOW, HIGH, write_noise=HiddenStateNoise(1.0))


# -- time --------------------------------------------------------------------------------------------


def test_a_write_of_no_cell_at_all_does_not_move_the_clock():
    """Nothing was written at 5 s, so that 1 s is still after the last write; a snapshot agrees."""
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(20))
    cells = device.fabricate((2, 3), generator())
    device.pulse(cells, torch.zeros(2, 3, dtype=torch.int64), generator(), t_seconds=5.0)
    device.program(cells, torch.full((2, 3), torch.nan), generator(), t_seconds=5.0)
    assert (cells.since(1.0) == 1.0).all()
    device.pulse(cells, torch.tensor([[0, 0, 0], [0, 1, 0]]), generator(), t_seconds=2.0)
    for state in (cells, Cells.from_state_dict(cells.state_dict()), cells.clone()):
        with pytest.raises(ValueError, match=r"t_seconds = 1.5 s lies before the last write at 2 s"):
            state.check_time(1.5)
        assert state.since(2.5).tolist() == [[2.5, 2.5, 2.5], [2.5, 0.5, 2.5]]
