"""Programming noise, read noise and drift against the numbers of their sources."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import devices
from devices import (
    MemoryCell,
    PCMDrift,
    PCMReadNoise,
    PolynomialProgrammingNoise,
    PowerLawDrift,
    WhiteReadNoise,
    WindowProgrammingNoise,
)
from tests.device_conformance import generator

SHAPE, N = (300, 200), 60000
STD_TOLERANCE = 5 / math.sqrt(2 * N)  # five standard errors of a standard deviation, relative
MICRO = 1e-6


def programmed(device, g: float, t_seconds: float = 0.0, seed: int = 1):
    cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
    device.program(cells, torch.full(SHAPE, g, dtype=torch.float64), generator(seed), t_seconds)
    return cells


# --- programming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("g_rel", "sigma_micro"),  # 0.26348 + 1.9650 g - 1.1731 g^2 by hand
    [(0.2, 0.609556), (0.5, 0.952705), (0.8, 1.084696), (1.0, 1.05538)],
)
def test_pcm_programming_sigma(g_rel, sigma_micro):
    g = programmed(devices.preset("pcm"), g_rel * 25e-6).conductance
    assert g.mean().item() == pytest.approx(g_rel * 25e-6, abs=5 * sigma_micro * MICRO / math.sqrt(N))
    assert g.std().item() == pytest.approx(sigma_micro * MICRO, rel=STD_TOLERANCE)


def test_pcm_near_zero_is_cut_at_zero_siemens():
    """Half a normal: mean sigma / sqrt(2 pi), half of the cells exactly at 0."""
    g = programmed(devices.preset("pcm"), 0.0).conductance
    assert g.min() == 0
    assert (g == 0).double().mean().item() == pytest.approx(0.5, abs=0.011)
    assert g.mean().item() == pytest.approx(0.26348e-6 / math.sqrt(2 * math.pi), rel=0.02)


def test_window_programming_noise_is_relative_to_the_span_and_kept_in_the_cells_bounds():
    device = MemoryCell(20e-6, 60e-6, programming=WindowProgrammingNoise(0.03))
    assert programmed(device, 45e-6).conductance.std().item() == pytest.approx(1.2e-6, rel=STD_TOLERANCE)
    bounded = dataclasses.replace(devices.preset("soft-bounds-6bit"), programming=WindowProgrammingNoise(0.1))
    g = programmed(bounded, 100e-6).conductance
    assert g.max().item() == pytest.approx(100e-6)
    assert (g < 100e-6 * (1 - 1e-9)).double().mean().item() == pytest.approx(0.5, abs=0.011)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((1e-6, -2e-6), r"sigma is negative at g/g_max = 0.51"),
        ((), r"give a tuple of one or more numbers"),
        ([1e-6], r"give a tuple"),
        ((0.26348, 1.9650), r"coefficients_siemens = 1.965 .*0.26 microsiemens is 0.26e-6"),
    ],
)
def test_bad_programming_polynomials_are_refused(coefficients, message):
    with pytest.raises(ValueError, match=message):
        PolynomialProgrammingNoise(coefficients)


def test_bad_window_noise_is_refused():
    with pytest.raises(ValueError, match=r"sigma_relative = 30 .*0.01 is 1 %"):
        WindowProgrammingNoise(30)


# --- read noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("relative_to", "sigma"), [("window", 0.05 * 40e-6), ("conductance", 0.05 * 50e-6)])
def test_white_read_noise_moments(relative_to, sigma):
    device = MemoryCell(20e-6, 60e-6, read_noise=WhiteReadNoise(0.05, relative_to))
    noise = device.read(programmed(device, 50e-6), generator(3)) - 50e-6
    assert noise.mean().item() == pytest.approx(0, abs=5 * sigma / math.sqrt(N))
    assert noise.std().item() == pytest.approx(sigma, rel=STD_TOLERANCE)


def test_reads_are_independent_draws():
    device = MemoryCell(20e-6, 60e-6, read_noise=WhiteReadNoise(0.05))
    cells, rng = programmed(device, 40e-6), generator(3)
    pair = torch.stack([device.read(cells, rng).flatten(), device.read(cells, rng).flatten()])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(N)


@pytest.mark.parametrize("t", [0.0, 1e4])
@pytest.mark.parametrize("g_rel", [0.001, 0.3, 1.0])
def test_pcm_read_noise_follows_the_formula(g_rel, t):
    """Q = min(0.0088/g^0.65, 0.2): 0.2, 0.019247, 0.0088; at t = 0 the age in the formula is t0 = 20 s."""
    device = MemoryCell(0.0, 25e-6, read_noise=PCMReadNoise())
    g = g_rel * 25e-6
    q = {0.001: 0.2, 0.3: 0.019247, 1.0: 0.0088}[g_rel]
    root = {0.0: 4.18388, 1e4: 4.87012}[t]  # sqrt(ln((t + 20 + 250e-9) / 500e-9))
    got = device.read(programmed(device, g, t_seconds=7.0), generator(3), t_seconds=7.0 + t)
    sigma = g * q * root
    if sigma < 0.25 * g:  # otherwise the cut at 0 S bends the moments
        assert got.mean().item() == pytest.approx(g, abs=5 * sigma / math.sqrt(N))
        assert got.std().item() == pytest.approx(sigma, rel=STD_TOLERANCE + 1e-4)
    above = (got[got > g] - g).square().mean().sqrt().item()
    assert above == pytest.approx(sigma, rel=0.02)


def test_pcm_read_of_a_cell_at_zero_is_zero():
    device = MemoryCell(0.0, 25e-6, read_noise=PCMReadNoise())
    assert (device.read(programmed(device, 0.0), generator(), t_seconds=1e5) == 0).all()


def test_bad_read_noise_is_refused():
    with pytest.raises(ValueError, match=r"relative_to = 'span' .*'window'.*'conductance'"):
        WhiteReadNoise(0.02, "span")
    with pytest.raises(ValueError, match=r"sigma_relative = 2 .*from 0 to 1"):
        WhiteReadNoise(2)
    with pytest.raises(ValueError, match=r"t0_seconds = 1e-09 .*from 2.5e-07"):
        PCMReadNoise(t0_seconds=1e-9)


# --- drift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "factor"),  # ((t + 20)/20)^-0.06 by hand: 1, 2^-0.06, 501^-0.06
    [(0.0, 1.0), (20.0, 0.9592641), (1e4, 0.6886978)],
)
def test_power_law_drift_by_hand(t, factor):
    device = MemoryCell(0.0, 25e-6, drift=PowerLawDrift(nu=0.06, t0_seconds=20.0))
    cells = programmed(device, 10e-6, t_seconds=3.0)
    got = device.read(cells, generator(), t_seconds=3.0 + t)
    assert torch.allclose(got, torch.tensor(10e-6 * factor, dtype=torch.float64), rtol=1e-6)
    assert (cells.conductance == 10e-6).all()


@pytest.mark.parametrize(
    ("g_rel", "mean", "spread"),  # -0.0155 ln g + 0.0244 and -0.0125 ln g - 0.0059, clipped
    [(1.0, 0.049, 0.008), (0.1, 0.0600901, 0.0228823), (0.03, 0.0787519, 0.0379320), (0.001, 0.1, 0.045)],
)
def test_pcm_drift_exponents_depend_on_the_conductance(g_rel, mean, spread):
    device = MemoryCell(0.0, 25e-6, drift=PCMDrift())
    nu = programmed(device, g_rel * 25e-6).params["nu_drift"]
    assert (nu >= 0).all()
    assert nu.mean().item() == pytest.approx(mean, rel=0.02)
    assert nu.std().item() == pytest.approx(spread, rel=0.04)  # |.| folds 1 to 2 % of the cells at low g


def test_programming_draws_new_exponents_and_pulses_keep_them():
    device = MemoryCell(0.0, 25e-6, drift=PCMDrift(), pulses=devices.SoftBoundsPulses(63))
    cells = programmed(device, 10e-6)
    nu = cells.params["nu_drift"].clone()
    device.pulse(cells, torch.ones(SHAPE, dtype=torch.int64), generator(), t_seconds=5.0)
    assert torch.equal(cells.params["nu_drift"], nu)
    device.program(cells, torch.full(SHAPE, 10e-6), generator(8), t_seconds=6.0)
    assert (cells.params["nu_drift"] != nu).all()


def test_a_pulse_acts_on_the_drifted_cell_and_restarts_its_clock():
    """10 uS, nu 0.1, t0 1 s: after 9 s 7.943282 uS; one step of 1 uS; after 9 s more times 0.7943282."""
    pulses = devices.ConstantStepPulses(25)
    device = MemoryCell(0.0, 25e-6, drift=PowerLawDrift(nu=0.1, t0_seconds=1.0), pulses=pulses)
    cells = programmed(device, 10e-6)
    device.pulse(cells, torch.ones(SHAPE, dtype=torch.int64), generator(), t_seconds=9.0)
    assert cells.conductance[0, 0].item() == pytest.approx(8.943282e-6, rel=1e-6)
    assert device.read(cells, generator(), t_seconds=18.0)[0, 0].item() == pytest.approx(
        7.103901e-6, rel=1e-6
    )


def test_bad_drift_is_refused():
    with pytest.raises(ValueError, match=r"PowerLawDrift.nu = 5 .*from -1 to 1"):
        PowerLawDrift(nu=5)
    with pytest.raises(ValueError, match=r"PCMDrift.t0_seconds = 0 .*The source has 20 s"):
        PCMDrift(t0_seconds=0)
