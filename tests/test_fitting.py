"""Fits against devices of known settings: the right family, its parameters, and what read noise and devices add."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from devices import (
    ConstantStepPulses,
    ExponentialPulses,
    LinearPulses,
    MemoryCell,
    PowerPulses,
    SoftBoundsPulses,
    TablePulses,
    WhiteReadNoise,
)
from experiments import fitting
from experiments.pulse_data import measure
from tests.device_conformance import generator

LOW, HIGH = 5e-6, 65e-6


def data_of(model, **settings):
    """400 steps of one device, unless told otherwise."""
    cell = MemoryCell(LOW, HIGH, pulses=model, read_noise=settings.pop("read_noise", None))
    return measure(cell, **{"pulses": 50, "cycles": 4, "seed": 1} | settings)


def fits_of(data, names):
    """Fits of the families whose names begin like one of `names`."""
    chosen = [f for f in fitting.families(data) if f.name.startswith(tuple(names))]
    return {family.name: fitting.fit(family, data, fitting.read_noise(data)) for family in chosen}


@pytest.mark.parametrize(
    ("name", "rivals", "true", "tolerances"),
    [
        (
            "constant",
            ("linear", "soft"),
            ConstantStepPulses(30, sigma_c2c=0.3, asymmetry=0.1),
            {"steps": 2, "asymmetry": 0.04},
        ),
        (
            "linear",
            ("constant", "soft"),
            LinearPulses(30, sigma_c2c=0.2, asymmetry=-0.1, gamma_up=0.3, gamma_down=0.2),
            {"steps": 1.5, "asymmetry": 0.04, "gamma_up": 0.08, "gamma_down": 0.08},
        ),
        (
            "soft bounds",
            ("linear", "power"),
            SoftBoundsPulses(30, sigma_c2c=0.2, asymmetry=0.1),
            {"steps": 1.5, "asymmetry": 0.05},
        ),
        (
            "power",
            ("linear", "soft"),
            PowerPulses(20, sigma_c2c=0.1, gamma_up=2.5, gamma_down=2.0),
            {"steps": 3, "gamma_up": 0.4, "gamma_down": 0.4},
        ),
    ],
)
def test_right_family_and_parameters(name, rivals, true, tolerances):
    """At 10 to 30 % cycle-to-cycle noise; tolerances are about three standard errors of 200 steps per direction."""
    data = data_of(true)
    fits = fits_of(data, (name, *rivals))
    best = fitting.best(list(fits.values()))
    assert best.family == name
    for setting, tolerance in tolerances.items():
        assert abs(getattr(best.pulses, setting) - getattr(true, setting)) < tolerance, setting
    # the standard error of a spread is sigma / sqrt(2 n): 3.5 % of it for 400 steps
    assert abs(best.pulses.sigma_c2c / true.sigma_c2c - 1) < 0.12
    assert abs(best.g_min - LOW) < 0.02 * (HIGH - LOW)
    assert abs(best.g_max - HIGH) < 0.02 * (HIGH - LOW)


def test_exponential_steps_are_told_from_others_and_drawn_right():
    """Steps over 1 at mid-range (1 - 0.1 e^(2u)) / 0.9: 1.096 at u = -1, 0.809 at 1/2, 0.29 at 1."""
    true = ExponentialPulses(40, sigma_c2c=0.1, a_up=0.1, a_down=0.1, gamma_up=2.0, gamma_down=2.0)
    fits = fits_of(data_of(true, pulses=60), ("exponential", "linear", "soft"))
    best = fitting.best(list(fits.values()))
    assert best.family == "exponential"
    step = (best.g_max - best.g_min) / best.pulses.steps * (1 + best.pulses.asymmetry)  # up
    for u, expected in ((-0.8, 1 - 0.1 * math.exp(-1.6)), (0.0, 0.9), (0.5, 1 - 0.1 * math.e)):
        profile = 1 - best.pulses.a_up * math.exp(best.pulses.gamma_up * u)
        assert step * profile == pytest.approx(expected * (HIGH - LOW) / 40, rel=0.06)


def test_a_curve_of_no_family_takes_the_table():
    humps = (0.4, 1.7, 0.6, 1.0, 0.5, 1.8, 0.4)
    true = TablePulses(30, sigma_c2c=0.1, up=humps, down=humps)
    data = data_of(true, pulses=60)
    fits = fits_of(data, ("table", "linear", "soft"))
    best = fitting.best(list(fits.values()))
    assert best.family.startswith("table")
    up = (HIGH - LOW) / best.pulses.steps * (1 + best.pulses.asymmetry)
    measured = up * np.interp([1 / 6, 1 / 2, 5 / 6], np.linspace(0, 1, len(best.pulses.up)), best.pulses.up)
    # hat functions of a tenth of the range cut the tops of humps a sixth wide
    assert measured == pytest.approx(np.array([1.7, 1.0, 1.8]) * (HIGH - LOW) / 30, rel=0.25)


@pytest.mark.parametrize("c2c_of", ["move", "step"])
def test_what_noise_is_relative_to(c2c_of):
    data = data_of(SoftBoundsPulses(30, sigma_c2c=0.3, c2c_of=c2c_of))
    fit = fits_of(data, ("soft bounds",))["soft bounds"]
    assert fit.pulses.c2c_of == c2c_of
    assert fit.pulses.sigma_c2c == pytest.approx(0.3, rel=0.12)


def test_repeated_reads_part_read_noise_from_that_of_pulses():
    """0.4 % of the window is 0.24 uS beside steps of 2 uS with 10 % noise: 0.2 uS per step; two reads 0.24 uS."""
    true = SoftBoundsPulses(30, sigma_c2c=0.1, c2c_of="step")
    data = data_of(true, reads=2, read_noise=WhiteReadNoise(0.004))
    noise = fitting.read_noise(data)
    assert noise.relative_to == "window"
    known = fits_of(data, ("soft bounds",))["soft bounds"]
    family = fitting.families(data)[2]
    ignored = fitting.fit(family, data, None)
    assert known.pulses.sigma_c2c == pytest.approx(0.1, rel=0.2)
    # without: sqrt(0.2^2 + 0.24^2) / 2 = 16 %
    assert ignored.pulses.sigma_c2c == pytest.approx(0.156, rel=0.15)
    assert (
        ignored.correlation < -0.15
    )  # a reading that is too high makes one step larger and the next smaller
    cell = fitting.memory_cell(known, data, noise, "test")
    assert cell.read_noise.sigma_relative * (cell.g_max_siemens - cell.g_min_siemens) == pytest.approx(
        0.004 * (HIGH - LOW), rel=0.1
    )


def test_read_noise_by_hand():
    """Two reads 0.2 uS apart deviate by 0.1 uS each: variance 0.02 uS^2 with one degree of freedom, 0.1414 uS."""
    data = data_of(ConstantStepPulses(30), pulses=12, cycles=1)
    n = len(data.pulse)
    twice = replace(data, reads=np.full(n, 2), deviation=np.full(n, math.sqrt(0.02) * 1e-6))
    noise = fitting.read_noise(twice)
    assert noise.relative_to == "window"
    assert noise.sigma_relative * np.ptp(data.conductance) == pytest.approx(math.sqrt(0.02) * 1e-6)
    share = replace(data, reads=np.full(n, 2), deviation=0.03 * data.conductance)
    noise = fitting.read_noise(share)
    assert (noise.relative_to, noise.sigma_relative) == ("conductance", pytest.approx(0.03))
    assert fitting.read_noise(data) is None


def test_spread_between_devices():
    """12 devices whose steps spread by 20 %: their standard deviation is known to 21 % of itself; compare with it."""
    true = SoftBoundsPulses(30, sigma_c2c=0.1, sigma_dtod=0.2)
    data = data_of(true, devices=12, cycles=1, seed=3)
    fit = fits_of(data, ("soft bounds",))["soft bounds"]
    cell = MemoryCell(LOW, HIGH, pulses=true)
    made = cell.fabricate((1, 12), generator(3), dtype=torch.float64)  # the same draws as in `measure`
    steps = made.params["step_up"].numpy()[0]
    assert fit.pulses.sigma_dtod == pytest.approx(steps.std(ddof=1) / steps.mean(), rel=0.1)
    assert fit.pulses.sigma_asymmetry < 0.02
    assert (fit.g_max - fit.g_min) / fit.pulses.steps == pytest.approx(steps.mean(), rel=0.04)


def test_likelihood_is_that_of_the_formula():
    """Constant steps of 2 uS with 0.6 uS of noise, away from the bounds: normal densities, worked out by scipy."""
    data = data_of(ConstantStepPulses(30, sigma_c2c=0.3), pulses=14, cycles=6)
    fit = fits_of(data, ("constant",))["constant"]
    z = (data.steps.after - data.steps.before - fit.mean) / fit.sd
    g = data.steps.before
    inside = (g > LOW + 8e-6) & (g < HIGH - 8e-6)
    assert np.allclose(z, fit.residual / fit.sd)
    step = np.where(data.steps.up, 1 + fit.pulses.asymmetry, 1 - fit.pulses.asymmetry)
    step = step * (fit.g_max - fit.g_min) / fit.pulses.steps
    assert np.allclose(np.abs(fit.mean[inside & (g < 25e-6)]), step[inside & (g < 25e-6)], rtol=0.02)
    # the ends of the window are the data's extremes, where a density is cut off: compare all but a few nats
    total = norm.logpdf(fit.residual, scale=fit.sd).sum()
    assert abs(fit.log_likelihood - total) < 0.02 * abs(total)
    assert fit.bic == pytest.approx(5 * math.log(168) - 2 * fit.log_likelihood)
    assert fit.aicc == pytest.approx(10 + 60 / 162 - 2 * fit.log_likelihood)


def test_free_running_by_hand():
    """10 soft-bounds steps of 6 uS from 35 uS: up 6, then 2 * 6 * 24 / 60 = 4.8; down 2 * 6 * 40.8 / 60 = 8.16."""
    data = data_of(SoftBoundsPulses(30), pulses=12, cycles=1)
    fit = fits_of(data, ("soft",))["soft bounds"]
    fit = replace(fit, pulses=SoftBoundsPulses(10, sigma_c2c=0.5), g_min=LOW, g_max=HIGH)
    curve = fit.free_running(35e-6, np.array([1, 1, -1]))
    assert curve == pytest.approx([35e-6, 41e-6, 45.8e-6, 37.64e-6])


def test_too_little_is_refused():
    data = data_of(SoftBoundsPulses(30), pulses=8, cycles=1)
    with pytest.raises(ValueError, match=r"8 steps up and 8 down.*at least 10"):
        fitting.check(data)
    up = data_of(SoftBoundsPulses(30), pulses=20, cycles=1)
    with pytest.raises(ValueError, match="no depression data"):
        fitting.check(replace(up, direction=np.abs(up.direction)))
    with pytest.raises(ValueError, match="directions swapped"):
        fitting.check(replace(up, direction=-up.direction))
    with pytest.raises(ValueError, match="no pulse moves the cell"):
        fitting.check(replace(up, conductance=np.full_like(up.conductance, 2e-6)))
