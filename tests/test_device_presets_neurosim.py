"""NeuroSim's cells: their curves worked out from the nonlinearity labels, in shares of the conductance window."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import devices
from devices.presets.neurosim import _curvature
from tests.device_conformance import generator


@pytest.mark.parametrize(
    ("label", "a"),  # the program's own table
    [
        (0.04, 31.566827),
        (0.1, 12.625807),
        (0.5, 2.519877),
        (0.63, 1.997332),
        (1.46, 0.848677),
        (1.94, 0.629249),
        (2.4, 0.499181),
        (4.88, 0.200303),
        (6.76, 0.100251),
    ],
)
def test_curvature_of_a_label(label, a):
    assert _curvature(label) == pytest.approx(a, rel=1e-5)
    assert _curvature(-label) == -_curvature(label)


#       pulses up, down; share after half of those up; first, middle (from g = 0.5) and last move up; the same down
CELLS = {
    "ag-asi": (97, 100, (48, 0.726974), (0.023628, 0.013407, 0.003254), (0.049032, 0.024682, 0.000350)),
    "taox-tio2": (102, 102, (51, 0.680344), (0.018867, 0.011516, 0.004227), (0.018502, 0.011402, 0.004364)),
    "taox-hfox": (128, 128, (64, 0.503960), (0.007936, 0.007812, 0.007690), (0.009911, 0.007959, 0.006031)),
    "pcmo": (50, 50, (25, 0.840653), (0.066758, 0.034578, 0.002564), (0.180868, 0.090438, 0.000010)),
    "alox-hfo2": (40, 40, (20, 0.688818), (0.048939, 0.029463, 0.010393), (0.031355, 0.025334, 0.019547)),
    "gst-pcm": (100, 100, (50, 0.509899), (0.010397, 0.010001, 0.009613), (0.003155, 0.013273, 0.022926)),
    "epiram": (64, 64, (32, 0.549443), (0.018871, 0.015781, 0.012769), (0.018871, 0.015781, 0.012769)),
    "hzo-fefet": (32, 32, (16, 0.670880), (0.057333, 0.035565, 0.014426), (0.016679, 0.035433, 0.052228)),
}
#       g_max, g_max / g_min, cycle-to-cycle noise over the window, volts and seconds of a pulse
TABLE = {
    "ag-asi": (3.84615e-8, 12.5, 0.035, 3.2, 300e-6),
    "taox-tio2": (2e-7, 2, 0.01, 3.0, 40e-3),
    "taox-hfox": (1e-5, 10, 0.037, 1.6, 50e-9),
    "pcmo": (4.34783e-8, 6.84, 0.01, -2.0, 1e-3),
    "alox-hfo2": (5.91716e-5, 4.43, 0.05, 0.9, 100e-6),
    "gst-pcm": (2.12314e-4, 19.8, 0.015, 0.7, 6e-6),
    "epiram": (1.23457e-5, 50.2, 0.02, 5.0, 5e-6),
    "hzo-fefet": (1.78801e-6, 45, 0.005, 3.65, 75e-9),
}


def shares(name: str, start: float, counts: list[int], quiet: bool = True, rows: int = 1) -> torch.Tensor:
    """Shares (rows, len(counts)) of the window after so many pulses, each cell from `start`."""
    device = devices.preset(name)
    if quiet:
        device = dataclasses.replace(device, pulses=dataclasses.replace(device.pulses, sigma_c2c=0.0))
    shape, low, span = (rows, len(counts)), device.g_min_siemens, device.window.span
    cells = device.fabricate(shape, generator(), dtype=torch.float64)
    device.program(cells, torch.full(shape, low + start * span, dtype=torch.float64), generator())
    device.pulse(cells, torch.tensor([counts] * rows), generator(1))
    return (cells.conductance - low) / span


@pytest.mark.parametrize("name", CELLS)
def test_pulse_curves(name):
    up, down, (half, reached), moves_up, moves_down = CELLS[name]
    one, middle, late, end = shares(name, 0.0, [1, half, up - 1, up])[0].tolist()
    assert middle == pytest.approx(reached, abs=2e-6)
    assert end == pytest.approx(1.0, abs=1e-9)  # all its pulses, and exactly there
    assert (one, end - late) == pytest.approx((moves_up[0], moves_up[2]), abs=1e-6)
    one, late, end = shares(name, 1.0, [-1, 1 - down, -down])[0].tolist()
    assert end == pytest.approx(0.0, abs=1e-9)
    assert (1 - one, late - end) == pytest.approx((moves_down[0], moves_down[2]), abs=1e-6)
    rise, fall = (shares(name, 0.5, [1, -1])[0] - 0.5).tolist()
    assert (rise, -fall) == pytest.approx((moves_up[1], moves_down[1]), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "place", "move"),
    [
        ("ag-asi", 0.336928, 0.016741),
        ("taox-tio2", 0.503932, 0.011458),
        ("taox-hfox", 0.464528, 0.007821),
        ("pcmo", 0.272204, 0.049239),
        ("alox-hfo2", 0.580984, 0.026309),
        ("gst-pcm", 0.668248, 0.009868),
        ("epiram", 0.5, 0.015781),
        ("hzo-fefet", 0.521965, 0.034609),
    ],
)
def test_symmetry_points(name, place, move):
    rise, fall = (shares(name, place, [1, -1])[0] - place).tolist()
    assert (rise, -fall) == pytest.approx((move, move), abs=1.5e-6)


@pytest.mark.parametrize("name", TABLE)
def test_windows_noise_and_pulses_of_the_table(name):
    g_max, on_off, sigma, volts, seconds = TABLE[name]
    device = devices.preset(name)
    assert device.g_max_siemens == pytest.approx(g_max, rel=1e-5)
    assert device.g_max_siemens / device.g_min_siemens == pytest.approx(on_off)
    assert (device.operation.write_volts, device.operation.write_seconds) == (volts, seconds)
    n = 20_000
    for count in (1, -1, 2, -2):  # a share of the window whatever the direction, and sqrt of the pulses
        noise = shares(name, 0.5, [count], quiet=False, rows=n)
        rounds = math.sqrt(abs(count))
        assert noise.std().item() == pytest.approx(
            sigma * rounds, rel=5 / math.sqrt(2 * n) + 0.1 * (rounds > 1)
        )
