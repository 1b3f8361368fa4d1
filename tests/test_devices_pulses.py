"""Pulse models against closed forms and their own settings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import ConstantStepPulses, LevelPulses, MemoryCell, SoftBoundsPulses
from tests.device_conformance import generator, targets

LOW, HIGH = 5e-6, 65e-6
SPAN = HIGH - LOW


def cell(pulses, **parts) -> MemoryCell:
    return MemoryCell(LOW, HIGH, pulses=pulses, **parts)


def pulsed(device: MemoryCell, g0: torch.Tensor, counts: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Conductances after pulses on fresh float64 cells at g0."""
    cells = device.fabricate(tuple(g0.shape), generator(), dtype=torch.float64)
    device.program(cells, g0, generator())
    device.pulse(cells, counts, generator(seed))
    return cells.conductance


def geometric(g0: torch.Tensor, n: torch.Tensor, step_up: float, step_down: float) -> torch.Tensor:
    """Oracle: the distance to the bound ahead shrinks by (1 - 2 step / span) with each pulse."""
    up = HIGH - (HIGH - g0) * (1 - 2 * step_up / SPAN) ** n.clamp(min=0).double()
    down = LOW + (g0 - LOW) * (1 - 2 * step_down / SPAN) ** (-n).clamp(min=0).double()
    return torch.where(n > 0, up, torch.where(n < 0, down, g0))


@pytest.mark.parametrize(("steps", "asymmetry"), [(63, 0.0), (15, 0.2), (3, -0.4), (937.5, -0.25)])
def test_soft_bounds_approach_the_bound_geometrically(steps, asymmetry):
    device = cell(SoftBoundsPulses(steps, asymmetry=asymmetry))
    g0 = targets(device, (30, 41), dtype=torch.float64)
    n = torch.arange(-20, 21).expand(30, 41).contiguous()
    step = SPAN / steps
    expected = geometric(g0, n, step * (1 + asymmetry), step * (1 - asymmetry))
    got = pulsed(device, g0, n)
    if steps < 200:  # of smaller ones, several are taken at a time
        assert torch.allclose(got, expected, rtol=1e-11, atol=0)
    assert ((got - expected).abs() <= 1e-4 * (expected - g0).abs() + 1e-18).all()


def test_many_small_pulses_at_once_have_the_moments_of_one_after_another():
    """600 of 2000 steps, 40 % noise: soft bounds from the lower end reach 1 - (1 - 2 / 2000)^600 of the range, with
    variance sum_k (0.4 (2 / 2000))^2 d_k^2 (1 - 2 / 2000)^(2 (599 - k)), d_k being the distance left before pulse k."""
    device = cell(SoftBoundsPulses(2000, sigma_c2c=0.4))
    g0 = torch.full((100, 100), LOW, dtype=torch.float64)
    x = (pulsed(device, g0, torch.full((100, 100), 600)) - LOW) / SPAN
    q = 1 - 2 / 2000
    variance = 600 * (0.4 * 2 / 2000) ** 2 * q ** (2 * 599)  # d_k = q^k: all terms are equal
    assert x.mean().item() == pytest.approx(1 - q**600, abs=5 * (variance / 1e4) ** 0.5 + 1e-4 * 0.45)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / 1e4) ** 0.5 + 0.01)


def test_soft_bounds_by_hand():
    """10 steps of 6 uS: from 35 uS up 6, then 2*6*24/60 = 4.8; from 20 uS down 2*6*15/60 = 3."""
    device = cell(SoftBoundsPulses(10))
    g0 = torch.tensor([[35e-6, 35e-6, 20e-6, 65e-6, 5e-6]], dtype=torch.float64)
    got = pulsed(device, g0, torch.tensor([[1, 2, -1, 1, -1]]))
    assert torch.allclose(
        got, torch.tensor([[41e-6, 45.8e-6, 17e-6, 65e-6, 5e-6]], dtype=torch.float64), rtol=1e-12
    )


def test_constant_steps_are_linear_and_stop_at_the_bounds():
    device = cell(ConstantStepPulses(10, asymmetry=0.1))  # up 6.6 uS, down 5.4 uS
    g0 = torch.tensor([[35e-6, 35e-6, 35e-6, 35e-6]], dtype=torch.float64)
    got = pulsed(device, g0, torch.tensor([[3, -3, 5, -6]]))
    expected = torch.tensor([[54.8e-6, 18.8e-6, 65e-6, 5e-6]], dtype=torch.float64)
    assert torch.allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "model", [SoftBoundsPulses(20, 0.3, 0.0, 0.1, 0.05, 0.2), ConstantStepPulses(20, 0.3)]
)
def test_a_batch_of_pulses_equals_one_after_another(model):
    device = cell(model)
    shape = (20, 30)
    cells = device.fabricate(shape, generator(), dtype=torch.float64)
    device.program(cells, targets(device, shape, dtype=torch.float64), generator())
    single = cells.clone()
    counts = torch.randint(-9, 10, shape, generator=generator(7))
    device.pulse(cells, counts, generator())
    for k in range(9):
        device.pulse(single, counts.sign() * (counts.abs() > k), generator())
    assert torch.allclose(cells.conductance, single.conductance, rtol=1e-12, atol=0)
    assert torch.equal(cells.pulses, single.pulses)


def test_cycle_to_cycle_noise_has_the_set_moments_and_is_drawn_per_pulse():
    """sigma_c2c = 0.17 relative to the move; n small pulses at constant step: std grows as sqrt(n)."""
    shape, sigma, steps = (300, 200), 0.17, 500
    n_cells, step = 60000, SPAN / 500
    g0 = torch.full(shape, LOW + 0.25 * SPAN, dtype=torch.float64)
    for model, move in (
        (SoftBoundsPulses(steps, sigma_c2c=sigma), 1.5 * step),
        (ConstantStepPulses(steps, sigma_c2c=sigma), step),
    ):
        delta = pulsed(cell(model), g0, torch.ones(shape, dtype=torch.int64)) - g0
        assert delta.mean().item() == pytest.approx(move, abs=5 * sigma * move / n_cells**0.5)
        assert delta.std().item() == pytest.approx(sigma * move, rel=5 / (2 * n_cells) ** 0.5)
    delta = pulsed(cell(ConstantStepPulses(steps, sigma_c2c=sigma)), g0, torch.full(shape, 9)) - g0
    assert delta.mean().item() == pytest.approx(9 * step, rel=1e-3)
    assert delta.std().item() == pytest.approx(3 * sigma * step, rel=5 / (2 * n_cells) ** 0.5)


def test_device_to_device_spread_has_the_set_moments_and_scales_both_directions():
    model = SoftBoundsPulses(40, sigma_dtod=0.13, asymmetry=0.2, sigma_bounds=0.08)
    cells = cell(model).fabricate((300, 200), generator(), dtype=torch.float64)
    step, p, tolerance = SPAN / 40, cells.params, 5 / (2 * 60000) ** 0.5
    for name, mean in (("step_up", 1.2 * step), ("step_down", 0.8 * step)):
        assert p[name].mean().item() == pytest.approx(mean, rel=5 * 0.13 / 60000**0.5)
        assert p[name].std().item() == pytest.approx(0.13 * mean, rel=tolerance)
    assert torch.allclose(p["step_up"] / p["step_down"], torch.tensor(1.5, dtype=torch.float64))
    for name, mean in (("g_hi", HIGH), ("g_lo", LOW)):
        assert p[name].mean().item() == pytest.approx(mean, abs=5 * 0.04 * SPAN / 60000**0.5)
    assert p["g_hi"].std().item() == pytest.approx(0.08 * SPAN / 2, rel=tolerance)
    assert torch.corrcoef(torch.stack([p["g_hi"].flatten(), p["g_lo"].flatten()]))[0, 1].abs() < 0.02


def test_spread_of_the_asymmetry():
    cells = cell(SoftBoundsPulses(40, sigma_asymmetry=0.05)).fabricate(
        (300, 200), generator(), dtype=torch.float64
    )
    up, down = cells.params["step_up"], cells.params["step_down"]
    assert torch.allclose(up + down, torch.tensor(2 * SPAN / 40, dtype=torch.float64))
    assert ((up - down) / (up + down)).std().item() == pytest.approx(0.05, rel=0.015)


def test_steps_and_ranges_stay_positive_at_extreme_spread():
    model = SoftBoundsPulses(40, sigma_dtod=2.0, sigma_asymmetry=1.0, sigma_bounds=1.0)
    p = cell(model).fabricate((300, 200), generator(), dtype=torch.float64).params
    assert min(p["step_up"].min(), p["step_down"].min()) > 0
    assert (p["g_hi"] > p["g_lo"]).all()
    assert (p["g_lo"] >= 0).all()


def test_alternating_pulses_lead_to_the_symmetry_point():
    """asymmetry a: up and down moves are equal at the fraction (1 + a)/2 of the window."""
    device = cell(SoftBoundsPulses(200, asymmetry=0.3))
    cells = device.fabricate((1, 2), generator(), dtype=torch.float64)
    device.program(cells, torch.tensor([[LOW, HIGH]], dtype=torch.float64), generator())
    for _ in range(600):
        for sign in (1, -1):
            device.pulse(cells, torch.full((1, 2), sign), generator())
    assert torch.allclose(
        (cells.conductance - LOW) / SPAN, torch.tensor(0.65, dtype=torch.float64), atol=0.01
    )


@settings(max_examples=40, deadline=None)
@given(
    steps=st.floats(1, 100),
    spreads=st.tuples(
        st.floats(0, 1), st.floats(0, 5), st.floats(-0.9, 0.9), st.floats(0, 0.5), st.floats(0, 1)
    ),
    soft=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_no_pulse_leaves_the_bounds_of_its_cell(steps, spreads, soft, seed):
    device = cell((SoftBoundsPulses if soft else ConstantStepPulses)(steps, *spreads))
    rng = generator(seed)
    cells = device.fabricate((6, 7), rng)
    for _ in range(5):
        device.pulse(cells, torch.randint(-6, 7, (6, 7), generator=rng), rng)
        assert (cells.conductance >= cells.params["g_lo"]).all()
        assert (cells.conductance <= cells.params["g_hi"]).all()


def test_level_pulses_move_exactly_one_level_for_ever():
    device = MemoryCell(LOW, HIGH, levels=13, pulses=LevelPulses())  # 5 uS apart
    cells = device.fabricate((1, 4), generator())
    device.program(cells, torch.tensor([[5e-6, 30e-6, 30e-6, 65e-6]]), generator())
    device.pulse(cells, torch.tensor([[-1, 2, -3, 1]]), generator())
    assert torch.allclose(cells.conductance, torch.tensor([[5e-6, 40e-6, 15e-6, 65e-6]]))
    start = cells.conductance.clone()
    for sign in (1, -1):
        for _ in range(200):
            device.pulse(cells, torch.tensor([[0, 2 * sign, sign, 0]]), generator())
    assert cells.conductance[0, 0] == start[0, 0]
    assert torch.allclose(
        cells.conductance[0, 1:3], torch.tensor([5e-6, 5e-6])
    )  # hard ends, no rounding left


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "steps",
            0,
            r"SoftBoundsPulses.steps = 0 is not allowed: it must be a number from 1 to 1e\+07.*63 for",
        ),
        ("steps", "63", r"steps = '63'"),
        ("sigma_dtod", -0.1, r"sigma_dtod = -0.1 .*0.3 is 30 %"),
        ("sigma_c2c", float("inf"), r"sigma_c2c = inf"),
        ("asymmetry", 1.0, r"asymmetry = 1.0 .*-0.99 to 0.99"),
        ("sigma_asymmetry", 2.0, r"sigma_asymmetry = 2.0"),
        ("sigma_bounds", float("nan"), r"sigma_bounds = nan .*half the window"),
    ],
)
def test_bad_settings_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message):
        SoftBoundsPulses(**{"steps": 63, setting: value})


def test_huge_counts_are_carried_out_in_full():
    device = cell(ConstantStepPulses(1e5))
    got = pulsed(device, torch.tensor([[LOW]], dtype=torch.float64), torch.tensor([[20000]]))
    assert got.item() == pytest.approx(LOW + 0.2 * SPAN, rel=1e-9)
