"""Pulse models whose step depends on the state: moves worked out by hand, in a window of 10 to 110 uS."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from devices import (
    ConstantStepPulses,
    ExponentialPulses,
    LinearPulses,
    MemoryCell,
    PowerLawDrift,
    PowerPulses,
    SoftBoundsPulses,
    StepPulses,
    TablePulses,
)
from tests.device_conformance import generator

LOW, SPAN = 10e-6, 100e-6  # ten steps are 10 uS each


def cell(pulses: StepPulses, **parts) -> MemoryCell:
    return MemoryCell(LOW, LOW + SPAN, pulses=pulses, **parts)


def moved(pulses: StepPulses, x: list[float] | Tensor, counts: int, seed: int = 0) -> Tensor:
    """How far pulses take cells at the places x (n,) of the window, over its span."""
    device = cell(pulses)
    x = torch.as_tensor(x, dtype=torch.float64).unsqueeze(0)
    cells = device.fabricate(tuple(x.shape), generator(seed), dtype=torch.float64)
    device.program(cells, LOW + SPAN * x, generator())
    device.pulse(cells, torch.full(x.shape, counts), generator(seed + 1))
    return ((cells.conductance - LOW) / SPAN - x)[0]


def near(got: Tensor, expected: list[float], rel: float = 1e-9) -> bool:
    return torch.allclose(got, torch.tensor(expected, dtype=got.dtype), rtol=rel, atol=1e-12)


# -- linear steps ------------------------------------------------------------------------------------


def test_linear_steps_by_hand():
    """u = 2x - 1 = -0.6 and 0.6: up 0.1 (1 - 0.5 u), down 0.1 (1 - 0.25 u)."""
    pulses = LinearPulses(10, gamma_up=0.5, gamma_down=-0.25)
    assert near(moved(pulses, [0.2, 0.5, 0.8], 1), [0.13, 0.1, 0.07])
    assert near(moved(pulses, [0.2, 0.5, 0.8], -1), [-0.115, -0.1, -0.085])
    assert cell(pulses).step_siemens == pytest.approx(10e-6)


@pytest.mark.parametrize("count", [1, -1, 7, -7])
def test_linear_steps_of_gamma_1_are_soft_bounds_and_of_gamma_0_constant(count):
    x = torch.linspace(0, 1, 23, dtype=torch.float64)
    for gamma, same in ((1.0, SoftBoundsPulses), (0.0, ConstantStepPulses)):
        linear = LinearPulses(13, asymmetry=0.2, gamma_up=gamma, gamma_down=gamma)
        assert near(moved(linear, x, count), moved(same(13, asymmetry=0.2), x, count).tolist())


def test_a_fit_in_weights_by_hand():
    """dw 0.1, weights -1 to 3, gamma 0.6 and 0.5, bias 0.2: up 0.12 (1 - 0.2 w), down 0.08 (1 + 0.5 w)."""
    pulses = LinearPulses.in_weights(0.1, -1.0, 3.0, 0.6, 0.5, bias=0.2)
    w = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64)
    assert near(4 * moved(pulses, (w + 1) / 4, 1), [0.132, 0.12, 0.096, 0.084])
    assert near(4 * moved(pulses, (w + 1) / 4, -1), [-0.06, -0.08, -0.12, -0.14])
    # mid-window is w = 1: up 0.096, down 0.12, of a range 4 wide
    assert cell(pulses).step_siemens == pytest.approx(SPAN * 0.108 / 4)
    assert pulses.asymmetry == pytest.approx(-0.024 / 0.216)


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(-2, -0.2),
    high=st.floats(0.2, 2),
    gammas=st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.just((1.0, 1.0)),
    bias=st.floats(-0.3, 0.3),
)
def test_a_fit_in_weights_moves_as_published_at_every_weight(low, high, gammas, bias):
    """Of the step family in weights w: up dw (1 + bias) (1 - gamma w / w_max), down with w_min; soft bounds too."""
    dw, (up, down) = 0.01, gammas
    pulses = LinearPulses.in_weights(dw, low, high, up, down, bias)
    place = torch.tensor([0.1, 0.35, 0.5, 0.9], dtype=torch.float64)
    w = low + (high - low) * place
    width = high - low
    rises = [dw * (1 + bias) * (1 - up * v / high) for v in w.tolist()]
    falls = [-dw * (1 - bias) * (1 - down * v / low) for v in w.tolist()]
    assert near(width * moved(pulses, place, 1), rises, rel=1e-7)
    assert near(width * moved(pulses, place, -1), falls, rel=1e-7)


@pytest.mark.parametrize(
    ("a", "first", "half"),
    [
        (
            0.5,
            0.035582,
            0.731059,
        ),  # (1 - exp(-1/32)) / (1 - exp(-2)); half: (1 - 1/e) / (1 - 1/e^2) = e / (e + 1)
        (2.0, 0.019778, 0.562177),  # (1 - exp(-1/128)) / (1 - exp(-1/2)); 1 / (1 + exp(-1/4))
        (-0.5, 0.004969, 0.268941),  # (exp(1/32) - 1) / (exp(2) - 1); 1 / (1 + e)
        (math.inf, 1 / 64, 0.5),
    ],
)
def test_nonlinear_pulses_follow_the_closed_curve(a, first, half):
    """x(P) = (1 - exp(-P / A)) / (1 - exp(-P_max / A)), A = a P_max, after 1, half and all of 64 pulses; and down,
    mirrored, with the other coefficient a straight line."""
    up, down = LinearPulses.nonlinear(64, a, math.inf), LinearPulses.nonlinear(64, math.inf, a)
    for count, expected in ((1, first), (32, half), (64, 1.0)):
        assert moved(up, [0.0], count).item() == pytest.approx(expected, abs=1e-6)
        assert moved(down, [1.0], -count).item() == pytest.approx(-expected, abs=1e-6)
        assert moved(up, [1.0], -count).item() == pytest.approx(-count / 64, abs=1e-9)
        assert moved(down, [0.0], count).item() == pytest.approx(count / 64, abs=1e-9)


# -- other curves ------------------------------------------------------------------------------------


def test_exponential_steps_by_hand():
    """z = u: up 1 - 0.25 2^z, down 1 + 4^-z, at the bounds and in the middle, in steps of 0.01."""
    pulses = ExponentialPulses(100, a_up=0.25, a_down=-1.0, gamma_up=math.log(2), gamma_down=math.log(4))
    assert near(moved(pulses, [0.0, 0.5, 0.9], 1), [0.00875, 0.0075, 0.01 * (1 - 0.25 * 2**0.8)])
    assert near(moved(pulses, [0.1, 0.5, 1.0], -1), [-0.01 * (1 + 4**0.8), -0.02, -0.0125])
    assert cell(pulses).step_siemens == pytest.approx(SPAN * 0.01 * (0.75 + 2) / 2)
    shifted = ExponentialPulses(100, a_up=0.25, gamma_up=math.log(2), slope=-2.0, offset=1.0)
    assert near(moved(shifted, [0.5, 0.75], 1), [0.005, 0.0075])  # z = 1, 0


def test_exponential_steps_that_would_turn_round_are_none():
    """1 - 0.9 2^(2u): 0.1 in the middle, and 1 - 0.9 2 < 0 at u = 1/2."""
    pulses = ExponentialPulses(10, a_up=0.9, gamma_up=math.log(4))
    assert near(moved(pulses, [0.5, 0.75, 0.95], 1), [0.01, 0.0, 0.0])


def test_exponential_noise_has_its_offset_and_slope():
    """0.1 (|move| + 0.02 + 0.1 x), moves of 0.075 up and 0.2 down from the middle: 0.0145 and 0.027 of the range."""
    curve = {"a_up": 0.25, "a_down": -1.0, "gamma_up": math.log(2), "gamma_down": math.log(4)}
    pulses = ExponentialPulses(10, sigma_c2c=0.1, c2c_add=0.02, c2c_slope=0.1, **curve)
    middle = torch.full((40_000,), 0.5, dtype=torch.float64)
    for count, mean, spread in ((1, 0.075, 0.0145), (-1, -0.2, 0.027)):
        got = moved(pulses, middle, count)
        assert got.mean().item() == pytest.approx(mean, abs=5 * spread / 200)
        assert got.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * 40_000))


def test_power_steps_by_hand():
    """Up 0.01 (2 (1 - x))^2, down 0.01 (2 x)^0.5."""
    pulses = PowerPulses(100, gamma_up=2.0, gamma_down=0.5)
    assert near(moved(pulses, [0.25, 0.5, 1.0], 1), [0.0225, 0.01, 0.0])
    assert near(moved(pulses, [0.02, 0.5, 0.98], -1), [-0.002, -0.01, -0.014])


def test_table_steps_are_interpolated():
    """Up 2, 1, 0 at x = 0, 1/2, 1; down 0, 0.6, 1.2, 4.2 at the thirds."""
    pulses = TablePulses(100, up=(2.0, 1.0, 0.0), down=(0.0, 0.6, 1.2, 4.2))
    assert near(moved(pulses, [0.0, 0.25, 0.5, 0.75, 1.0], 1), [0.02, 0.015, 0.01, 0.005, 0.0])
    assert near(
        moved(pulses, [0.0, 1 / 6, 0.5, 2 / 3, 5 / 6, 1.0], -1), [0, -3e-3, -9e-3, -0.012, -0.027, -0.042]
    )
    assert cell(pulses).step_siemens == pytest.approx(SPAN * 0.01 * 0.95)


def test_a_table_of_spreads():
    """0.1 steps at the lower bound, 0.5 at the upper: 0.2 at a quarter, whatever the move there."""
    pulses = TablePulses(20, up=(1.0, 1.0), down=(2.0, 0.5), sigma=(0.1, 0.5))
    quarter = torch.full((40_000,), 0.25, dtype=torch.float64)
    for count, mean in ((1, 0.05), (-1, -0.05 * 1.625)):
        got = moved(pulses, quarter, count)
        assert got.mean().item() == pytest.approx(mean, abs=5 * 0.01 / 200)
        assert got.std().item() == pytest.approx(0.2 * 0.05, rel=5 / math.sqrt(2 * 40_000))


@pytest.mark.parametrize(
    "pulses", [PowerPulses(10, gamma_down=0.5), TablePulses(10, up=(2.0, 0.0), down=(0.0, 2.0))]
)
def test_a_cell_that_drifted_out_of_its_bounds_comes_back_to_them(pulses):
    """11 uS fall to 5.5 uS, below the 10 uS of the lower bound: a pulse down leaves them there, one up a step above."""
    device = cell(pulses, drift=PowerLawDrift(nu=1.0, t0_seconds=1.0))
    cells = device.fabricate((1, 2), generator(), dtype=torch.float64)
    device.program(cells, torch.full((1, 2), 11e-6, dtype=torch.float64), generator())
    device.pulse(cells, torch.tensor([[-1, 1]]), generator(), t_seconds=1.0)
    down, up = cells.conductance[0].tolist()
    assert down == pytest.approx(10e-6)
    assert 10e-6 <= up <= 30e-6


# -- spreads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "spread"), [("move", 0.3 * 0.05), ("step", 0.3 * 0.1)])
def test_cycle_to_cycle_noise_of_the_move_or_of_the_step(of, spread):
    """At three quarters a soft-bounds pulse up moves by half a step of 0.1."""
    got = moved(
        SoftBoundsPulses(10, sigma_c2c=0.3, c2c_of=of), torch.full((40_000,), 0.75, dtype=torch.float64), 1
    )
    assert got.mean().item() == pytest.approx(0.05, abs=5 * spread / 200)
    assert got.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * 40_000))


@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_log_normal_steps_have_median_1(sigma):
    """Median 1, mean exp(sigma^2 / 2), logarithms of spread sigma; up and down alike."""
    device = cell(ConstantStepPulses(10, sigma_dtod=sigma, dtod="log-normal"))
    params = device.fabricate((200, 200), generator(), dtype=torch.float64).params
    factor = params["step_up"] / 10e-6
    assert torch.equal(params["step_up"], params["step_down"])
    assert factor.median().item() == pytest.approx(1, abs=5 * 1.2533 * sigma / 200)
    assert factor.log().std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * 40_000))
    moments = math.sqrt(math.expm1(sigma**2))  # relative spread
    assert factor.mean().item() == pytest.approx(math.exp(sigma**2 / 2), rel=5 * moments / 200)


# -- one direction only ------------------------------------------------------------------------------


def test_one_sided_cells_refuse_to_go_down_and_stay_as_they_were():
    device = cell(ConstantStepPulses(10, asymmetry=0.2, one_sided=True))
    assert device.one_sided
    assert device.step_siemens == pytest.approx(12e-6)  # of a pulse up: there is no other
    cells = device.fabricate((2, 2), generator())
    before = cells.clone()
    with pytest.raises(ValueError, match=r"counts ask 2 cell\(s\) to go down.*program\(\).*OneSidedPair"):
        device.pulse(cells, torch.tensor([[1, -1], [-3, 0]]), generator())
    assert torch.equal(cells.pulses, before.pulses)
    assert torch.equal(cells.conductance, before.conductance)
    device.pulse(cells, torch.tensor([[2, 0], [0, 0]]), generator())
    assert cells.conductance[0, 0].item() == pytest.approx(34e-6)


@settings(max_examples=30, deadline=None)
@given(
    gammas=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    steps=st.floats(1, 100),
    asymmetry=st.floats(-0.9, 0.9),
    count=st.integers(-6, 6),
)
def test_several_pulses_equal_one_after_another_inside_the_bounds(gammas, steps, asymmetry, count):
    pulses = LinearPulses(steps, asymmetry=asymmetry, gamma_up=gammas[0], gamma_down=gammas[1])
    device, counts = cell(pulses), torch.full((1, 9), count)
    arrays = [device.fabricate((1, 9), generator(), dtype=torch.float64) for _ in range(2)]
    for cells in arrays:
        device.program(cells, torch.linspace(LOW, LOW + SPAN, 9, dtype=torch.float64)[None], generator())
    device.pulse(arrays[0], counts, generator())
    for _ in range(abs(count)):
        device.pulse(arrays[1], counts.sign(), generator())
    at_once, singly = (cells.conductance for cells in arrays)
    assert torch.allclose(at_once, singly, rtol=1e-12)
    assert ((at_once >= LOW) & (at_once <= LOW + SPAN)).all()


# -- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearPulses(10, gamma_up=1.5), r"LinearPulses.gamma_up = 1.5 .*from -1 to 1"),
        (lambda: LinearPulses.in_weights(0.1, 0.0, 1.0, 0, 0), r"w_min = 0.0.*takes w_min < 0 < w_max"),
        (lambda: LinearPulses.in_weights(0.1, -1.0, 1.0, 0, 0, bias=1.0), r"bias = 1.0.*-1 < bias < 1"),
        (lambda: LinearPulses.in_weights(-0.1, -1.0, 1.0, 0, 0), r"dw_min = -0.1.*dw_min > 0"),
        (lambda: LinearPulses.nonlinear(0, 1.0, 1.0), r"pulses = 0 .*whole number from 1"),
        (lambda: LinearPulses.nonlinear(64, 0.0, 1.0), r"a_up = 0.0 .*at least 0.01"),
        (lambda: LinearPulses.nonlinear(64, 1.0, math.nan), r"a_down = nan .*at least 0.01"),
        (lambda: PowerPulses(10, gamma_down=-1.0), r"PowerPulses.gamma_down = -1.0 .*from 0 to 20"),
        (lambda: ExponentialPulses(10, a_up=2.0), r"moves up of -?0, -?0 and -?0.*Check the signs"),
        (lambda: ExponentialPulses(10, a_down=-1.0, gamma_down=100.0), r"moves down of inf, 2 and 1 steps"),
        (lambda: ExponentialPulses(10, c2c_add=-0.1), r"c2c_add = -0.1 .*share of the range"),
        (lambda: TablePulses(10), r"TablePulses.up = \(\) .*two or more"),
        (lambda: TablePulses(10, up=[1.0, 1.0], down=(1.0, 1.0)), r"TablePulses.up = \[1.0, 1.0\] .*tuple"),
        (lambda: TablePulses(10, up=(1.0, -1.0), down=(1.0, 1.0)), r"TablePulses.up = -1.0 .*magnitudes"),
        (lambda: TablePulses(10, up=(1.0, 0.0, 1.0), down=(1.0, 1.0)), r"moves 0 up and 1 down at mid-range"),
        (
            lambda: TablePulses(10, sigma_c2c=0.1, up=(1.0, 1.0), down=(1.0, 1.0), sigma=(0.1, 0.1)),
            r"give one of them",
        ),
        (lambda: SoftBoundsPulses(10, c2c_of="both"), r"c2c_of = 'both' .*'move', 'step'"),
        (lambda: SoftBoundsPulses(10, dtod="uniform"), r"dtod = 'uniform' .*'normal', 'log-normal'"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
