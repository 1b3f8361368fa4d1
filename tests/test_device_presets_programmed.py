"""Presets that are programmed: spread, drift and read noise against numbers worked out from their sources."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import devices
from devices import (
    LogarithmicDrift,
    LogarithmicReadNoise,
    MicrosiemensProgrammingNoise,
    SaturatingProgrammingNoise,
    SonosDrift,
)
from tests.device_conformance import generator

SHAPE, N = (200, 200), 40_000
STD_TOLERANCE = 5 / math.sqrt(2 * N)
MICRO, NANO_OF_SONOS = 1e-6, 1e-8  # a nanoampere at 0.1 V
HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0


def only(name: str, *parts: str, **settings) -> devices.MemoryCell:
    """A preset with these parts and no others."""
    device = devices.preset(name, **settings)
    out = {"programming", "drift", "read_noise"} - set(parts)
    return dataclasses.replace(device, **dict.fromkeys(out))


def programmed(device: devices.MemoryCell, g: float, t_seconds: float = 0.0):
    cells = device.fabricate(SHAPE, generator(), dtype=torch.float64)
    device.program(cells, torch.full(SHAPE, g, dtype=torch.float64), generator(1), t_seconds)
    return cells


def check_normal(x: torch.Tensor, mean: float, sigma: float, spare: float = 0.0) -> None:
    assert x.mean().item() == pytest.approx(mean, abs=5 * sigma / math.sqrt(N) + 1e-6 * abs(mean))
    assert x.std().item() == pytest.approx(sigma, rel=STD_TOLERANCE + spare)


# --- programming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "g_micro", "sigma_micro"),
    [
        ("pcm", {}, 2.5, 0.448249),
        ("pcm", {}, 12.5, 0.952705),
        ("pcm-hermes", {}, 0.05 * 10.35, None),  # half of a sigma from 0 S: cut off
        ("pcm-hermes", {}, 5.175, 0.865313),
        ("pcm-hermes", {}, 10.35, 1.007567),
        ("pcm-joshi", {}, 10.0, 0.866191),
        ("pcm-joshi", {}, 25.0, 1.065523),
        ("rram-wan", {}, 10.0, 2.413600),
        ("rram-wan", {}, 20.0, 2.361800),
        ("rram-wan", {}, 39.26, 1.680641),
        ("rram-wan", {"days": 1}, 20.0, 3.909000),
        ("rram-wan", {"days": 2}, 20.0, 3.929125),
        ("rram-milo", {}, 50.0, 4.326971),
        ("rram-milo", {}, 100.0, 3.871621),
        ("rram-milo", {}, 225.0, 2.733246),
        ("cmo-hfox", {}, 9.0, 0.112831),
        ("cmo-hfox", {}, 50.0, 0.575732),
        ("cmo-hfox", {}, 88.2, 1.007021),
        ("cmo-hfox", {"acceptance_percent": 0.2}, 9.0, 0.010430),
        ("cmo-hfox", {"acceptance_percent": 0.2}, 88.2, 0.095078),
        ("sonos", {}, 1.0, 8.60846e-2),  # 100 nA at 0.1 V
        ("sonos", {}, 5.0, 18.71997e-2),
        ("sonos", {}, 16.0, 19.88437e-2),
        ("sonos", {"read_volts": 0.2}, 8.0, 19.88437e-2 / 2),
    ],
)
def test_programming_sigma(name, settings, g_micro, sigma_micro):
    g = programmed(devices.preset(name, **settings), g_micro * MICRO).conductance
    if sigma_micro is None:
        above = (g[g > g_micro * MICRO] - g_micro * MICRO).square().mean().sqrt().item()
        assert above == pytest.approx(0.268718 * MICRO, rel=0.02)
    else:
        check_normal(g, g_micro * MICRO, sigma_micro * MICRO, spare=1e-4)


# --- phase-change memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "g_rel", "mean", "spread", "factors"),  # factors: at once, after an hour, a day, a year
    [
        ("pcm", 0.1, 0.060090, 0.022882, (1.0, 0.731705, 0.604697, 0.424204)),
        ("pcm", 0.5, 0.049, 0.008, (1.0, 0.775129, 0.663524, 0.496946)),
        ("pcm-hermes", 0.05, 0.097735, 0.033649, (1.0, 0.749931, 0.552489, 0.310453)),
        ("pcm-hermes", 0.5, 0.056400, 0.012075, (1.0, 0.846990, 0.710072, 0.509149)),
        ("pcm-hermes", 1.0, 0.017400, 0.005500, (1.0, 0.950057, 0.899757, 0.812005)),
    ],
)
def test_pcm_drift(name, g_rel, mean, spread, factors):
    device = only(name, "drift")
    g = g_rel * device.g_max_siemens
    cells = programmed(device, g, t_seconds=5.0)
    check_normal(cells.params["nu_drift"], mean, spread, spare=0.01)  # 0.2 % of them are folded over at low g
    cells.params["nu_drift"].fill_(mean)
    for t, factor in zip((0.0, HOUR, DAY, YEAR), factors, strict=True):
        got = device.read(cells, generator(), t_seconds=5.0 + t)[0, 0].item()
        assert got / g == pytest.approx(factor, rel=2e-5)


@pytest.mark.parametrize(
    ("name", "g_rel", "t", "sigma"),
    [
        ("pcm", 0.5, 0.0, 0.057773),
        ("pcm", 0.5, 3600.0, 0.065795),
        ("pcm", 1.0, 0.0, 0.036818),
        ("pcm-hermes", 0.05, 0.0, 0.118697),
        ("pcm-hermes", 0.5, 0.0, 0.094812),
        ("pcm-hermes", 1.0, 0.0, 0.073403),
    ],
)
def test_pcm_read_noise(name, g_rel, t, sigma):
    device = only(name, "read_noise")
    g = g_rel * device.g_max_siemens
    check_normal(device.read(programmed(device, g), generator(3), t) / g, 1.0, sigma, spare=1e-4)


# --- SONOS ----------------------------------------------------------------------------------------

SHIFTS = {  # nA, at 100, 500, 1000 and 1600 nA
    1: (1.7352, -0.1743, -5.0661, -11.5322),
    2: (2.4305, -1.5174, -11.1688, -22.3723),
    3: (3.6212, -1.2628, -13.4762, -26.9059),
    4: (3.6177, -4.4200, -19.0960, -38.2715),
    5: (4.1178, -4.3540, -21.5673, -40.6984),
}


@pytest.mark.parametrize("day", SHIFTS)
def test_sonos_shifts_day_by_day(day):
    """Without the spread; the printed coefficients have six digits."""
    device = only("sonos", "drift")
    currents = torch.tensor([[100.0, 500.0, 1000.0, 1600.0]], dtype=torch.float64)
    cells = device.fabricate((1, 4), generator(), dtype=torch.float64)
    device.program(cells, currents * NANO_OF_SONOS, generator(), t_seconds=100.0)
    cells.params["relaxation"].zero_()
    assert torch.allclose(device.read(cells, generator(), 100.0) / NANO_OF_SONOS, currents, rtol=1e-12)
    shift = device.read(cells, generator(), 100.0 + day * DAY) / NANO_OF_SONOS - currents
    assert shift[0].tolist() == pytest.approx(SHIFTS[day], abs=0.05)
    previous = torch.tensor([SHIFTS.get(day - 1, (0, 0, 0, 0))])
    halfway = device.read(cells, generator(), 100.0 + (day - 0.5) * DAY) / NANO_OF_SONOS - currents
    assert halfway[0].tolist() == pytest.approx(((shift + previous) / 2)[0].tolist(), abs=0.05)


@pytest.mark.parametrize(
    ("day", "current", "sigma"),
    [
        (0, 500, 18.71997),
        (0.5, 500, 21.29035),
        (1, 100, 10.60574),
        (3, 500, 28.52988),
        (4, 100, 13.04445),
        (5, 500, 31.47790),
        (5, 1600, 34.56369),
    ],
)
def test_sonos_spread_grows_to_that_of_the_day(day, current, sigma):
    """Programming and relaxation together; the shift, whose slope is a few per cent, acts on the programmed spread."""
    device = only("sonos", "programming", "drift")
    cells = programmed(device, current * NANO_OF_SONOS)
    got = device.read(cells, generator(), day * DAY) / NANO_OF_SONOS
    assert got.std().item() == pytest.approx(sigma, rel=0.04)
    if (day, current) == (5, 500):  # the relaxation alone: sqrt(31.47790^2 - 18.71997^2)
        device = only("sonos", "drift")
        got = device.read(programmed(device, current * NANO_OF_SONOS), generator(), day * DAY) / NANO_OF_SONOS
        check_normal(got, 500 - 4.3540, 25.3065, spare=1e-4)


@pytest.mark.parametrize(("current", "sigma"), [(100, 4.67288), (500, 11.34607), (1600, 12.57290)])
def test_sonos_read_noise_is_drawn_by_every_read_and_does_not_grow(current, sigma):
    device = only("sonos", "read_noise")
    cells = programmed(device, current * NANO_OF_SONOS)
    for t in (0.0, 4 * DAY):
        check_normal(device.read(cells, generator(3), t) / NANO_OF_SONOS, current, sigma, spare=1e-4)


def test_sonos_is_not_known_later_than_five_days():
    device = devices.preset("sonos")
    cells = programmed(device, 5e-6)
    device.read(cells, generator(), 5 * DAY)
    with pytest.raises(
        ValueError, match=r"cell 6 days after it was written is not known: .* 0 to 5 days.*drift = None"
    ):
        device.read(cells, generator(), 6 * DAY)
    assert devices.preset("sonos", read_volts=0.2).g_max_siemens == pytest.approx(8e-6)
    assert device.g_max_siemens / device.g_min_siemens == pytest.approx(1e7)


# --- CMO/HfOx -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "mean", "sigma"),  # t = 1 s is the time of the write
    [
        (1.0, 0.0, 0.411833),
        (HOUR, -0.728810, 0.755851),
        (DAY, -1.011664, 0.889366),
        (YEAR, -1.536767, 1.137229),
    ],
)
def test_cmo_hfox_relaxes_with_the_logarithm_of_time(t, mean, sigma):
    device = only("cmo-hfox", "drift")
    cells = programmed(device, 50e-6, t_seconds=3.0)
    got = device.read(cells, generator(), 3.0 + t - 1.0) / MICRO
    check_normal(got, 50 + mean, sigma)
    assert (cells.conductance == 50e-6).all()
    later = device.read(cells, generator(), 3.0 + 2 * t) / MICRO
    pair = torch.stack([(got - 50).flatten(), (later - 50).flatten()])
    assert torch.corrcoef(pair)[0, 1].item() > 1 - 1e-9  # a cell keeps its rank


@pytest.mark.parametrize(("t", "sigma"), [(1.0, 0.170674), (3600.0, 0.217502)])
def test_cmo_hfox_read_noise(t, sigma):
    device = only("cmo-hfox", "read_noise")
    check_normal(
        device.read(programmed(device, 50e-6), generator(3), t - 1.0) / MICRO, 50.0, sigma, spare=1e-4
    )


# --- ranges and bad settings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("rram-wan", (1e-6, 50e-6)),
        ("rram-milo", (10e-6, 225e-6)),
        ("cmo-hfox", (9e-6, 90e-6)),
        ("pcm-joshi", (0, 26e-6)),
    ],
)
def test_a_window_wider_than_the_fit_is_refused(name, window):
    low, high = window
    with pytest.raises(
        ValueError, match=r"The window .* is not allowed: this programming noise was fitted from.*Narrow"
    ):
        dataclasses.replace(devices.preset(name), g_min_siemens=low, g_max_siemens=high)


@pytest.mark.parametrize(
    ("name", "g_micro"),
    [
        ("pcm", 26),
        ("pcm-hermes", 11),
        ("rram-wan", 40),
        ("rram-milo", 40),
        ("sonos", 17),
        ("cmo-hfox", 8),
        ("epiram", 13),
    ],
)
def test_targets_outside_what_the_source_measured_are_refused(name, g_micro):
    device = devices.preset(name)
    cells = device.fabricate((1, 1), generator())
    with pytest.raises(ValueError, match=r"outside the window, first .* S: allowed are .* Clamp or rescale"):
        device.program(cells, torch.full((1, 1), g_micro * MICRO), generator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MicrosiemensProgrammingNoise((1.0, -0.2), 0, 10), r"sigma is negative at 5.1 uS"),
        (lambda: MicrosiemensProgrammingNoise((1.0,), 10, 1), r"lowest = 10 .*Swap"),
        (lambda: MicrosiemensProgrammingNoise((), 0, 10), r"coefficients = \(\) .*the constant first"),
        (lambda: MicrosiemensProgrammingNoise((1.0,), -1, 10), r"lowest = -1 .*in microsiemens"),
        (lambda: LogarithmicDrift(-2.0), r"LogarithmicDrift.slope_siemens = -2.0"),
        (lambda: LogarithmicDrift(0.0, t0_seconds=0), r"t0_seconds = 0"),
        (lambda: LogarithmicReadNoise(1e-6, t0_seconds=1e-7), r"t0_seconds = 1e-07 .*from 1e-06"),
        (lambda: SaturatingProgrammingNoise(20.0, 1e-6), r"SaturatingProgrammingNoise.a_siemens = 20.0"),
        (lambda: SaturatingProgrammingNoise(1e-6, 0.0), r"b_siemens = 0.0"),
        (lambda: SonosDrift(0.0), r"SonosDrift.read_volts = 0.0"),
        (lambda: devices.HermesDrift(0.0), r"HermesDrift.t0_seconds = 0.0 .*The source has 200 s"),
        (lambda: devices.HermesReadNoise(1e-9), r"HermesReadNoise.t0_seconds = 1e-09 .*The source has 200 s"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
