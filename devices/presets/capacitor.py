"""Capacitors that hold a weight as charge. Normalised weights."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.checks import check_number
from devices.drift import Leak
from devices.linear_step import LinearPulses


def capacitor(
    g_min_siemens: float = 40e-6, g_max_siemens: float = 100e-6, update_seconds: float = 1e-6
) -> MemoryCell:
    """CMOS capacitor read through a transistor: nearly linear steps, and a leak.

    Source: Li et al., VLSI 2018, as published with aihwkit (CapacitorPresetDevice), in weights w = -1..1: up
    0.005 (1 - 0.05 w), down 0.005 (1 + 0.05 w), so steps = 2 / 0.005 = 400; cycle-to-cycle 0.3 x 0.005 at every w;
    spreads 0.1 (step), 0.06 (asymmetry), 0.07 (bounds); w decays to 0, mid-window, with a lifetime of 1e6 updates,
    spread 0.3.

    update_seconds  time between two updates, which turns the lifetime into seconds: 1e6 update_seconds. A choice, as
                    the window is; 1e-15 to 1e9 s

    Where this departs: slopes are relative to the cell's own bounds, there to the nominal ones; their spread (0.01)
    is not modelled; lifetimes are drawn anew with every programming; the leak is exponential in time, there
    (1 - 1/lifetime) per update, which differs by 5e-7 of it.
    """
    check_number("capacitor.update_seconds", update_seconds, 1e-15, 1e9, "It is in seconds: 1 us is 1e-6.")
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=LinearPulses.in_weights(
            0.005,
            -1.0,
            1.0,
            gamma_up=0.05,
            gamma_down=0.05,
            sigma_dtod=0.1,
            sigma_c2c=0.3,
            c2c_of="step",
            sigma_asymmetry=0.06,
            sigma_bounds=0.07,
        ),
        drift=Leak(tau_seconds=1e6 * update_seconds, rest=0.5, sigma_tau=0.3),
        source="Li et al., VLSI 2018, values from aihwkit; window and time per update chosen",
    )


PRESETS = (capacitor,)
