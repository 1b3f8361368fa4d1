"""Cells of the MLP+NeuroSim V3.0 manual (Chen et al., IEEE TCAD 37:3067, 2018): pulse curves in siemens.

A cell takes P equal pulses from G_min to G_max along G = G_min + B (1 - exp(-p / A)), and along another curve back.
Its nonlinearity label NL says how far the curve, drawn from (0, 0) to (1, 1), bulges: by 0.07 |NL| across the diagonal,
which is the rule behind the program's table. Labels keep their sign as in that program: depression with a positive one
starts with its *smallest* steps (GST PCM, FeFET). The steps that follow are linear in G: LinearPulses.nonlinear.

Noise from cycle to cycle, a share of the window, is added by every pulse at every G. Not modelled: device-to-device
spread of the label (off in the source by default), read noise, cell-to-cell ranges (same). The operation is the set
pulse, also where the reset pulse differs. No cell stores more finely than in single pulses of `pulse`; `program` is
exact, as if verified.
"""

from __future__ import annotations

import math
from dataclasses import replace

from devices.cell import MemoryCell
from devices.linear_step import LinearPulses
from devices.operation import Operation


def ag_asi() -> MemoryCell:
    """Ag:a-Si, Jo 2010: 97 pulses up, 100 down, NL 2.4/-4.88, 26 MOhm, on/off 12.5, 3.2 V 300 us, noise 3.5 %."""
    return _cell(
        "Jo et al., Nano Lett. 2010", (97, 100), 2.4, -4.88, 26e6, 12.5, 0.035, Operation(3.2, 300e-6)
    )


def taox_tio2() -> MemoryCell:
    """TaOx/TiO2: 102 pulses, NL 1.85/-1.79, 5 MOhm, on/off 2, 3 V 40 ms, noise < 1 % (1 % taken); of the V2.0 table."""
    return _cell("TaOx/TiO2 (V2.0 table)", 102, 1.85, -1.79, 5e6, 2, 0.01, Operation(3.0, 40e-3))


def taox_hfox() -> MemoryCell:
    """TaOx/HfOx, Wu 2018: 128 pulses, NL 0.04/-0.63, 100 kOhm, on/off 10, 1.6 V 50 ns, noise 3.7 %."""
    return _cell("Wu et al., VLSI 2018", 128, 0.04, -0.63, 100e3, 10, 0.037, Operation(1.6, 50e-9))


def pcmo() -> MemoryCell:
    """PCMO, Park 2013: 50 pulses, NL 3.68/-6.76, 23 MOhm, on/off 6.84, -2 V 1 ms, noise < 1 % (1 % taken)."""
    return _cell("Park et al., IEDM 2013", 50, 3.68, -6.76, 23e6, 6.84, 0.01, Operation(-2.0, 1e-3))


def alox_hfo2() -> MemoryCell:
    """AlOx/HfO2, Woo 2016: 40 pulses, NL 1.94/-0.61, 16.9 kOhm, on/off 4.43, 0.9 V 100 us, noise 5 %."""
    return _cell("Woo et al., EDL 2016", 40, 1.94, -0.61, 16.9e3, 4.43, 0.05, Operation(0.9, 100e-6))


def gst_pcm() -> MemoryCell:
    """GST PCM, Kuzum 2011: 100 pulses, NL 0.10/2.4, 4.71 kOhm, on/off 19.8, 0.7 V 6 us, noise 1.5 %.

    The table says 100 to 120 pulses, and a label of 0.105, which the program truncates to 0.10.
    """
    return _cell("Kuzum et al., Nano Lett. 2011", 100, 0.1, 2.4, 4.71e3, 19.8, 0.015, Operation(0.7, 6e-6))


def epiram() -> MemoryCell:
    """EpiRAM (Ag in epitaxial SiGe), Choi 2018: 64 pulses, NL 0.5/-0.5, 81 kOhm, on/off 50.2, 5 V 5 us, noise 2 %."""
    return _cell("Choi et al., Nat. Mater. 2018", 64, 0.5, -0.5, 81e3, 50.2, 0.02, Operation(5.0, 5e-6))


def hzo_fefet() -> MemoryCell:
    """HZO FeFET, Jerry 2017: 32 pulses, NL 1.75/1.46, 559.28 kOhm, on/off 45, 3.65 V 75 ns, noise 0.5 %.

    The table has noise < 0.5 %. Its pulses grow in amplitude on the way; the voltage is their mean.
    """
    return _cell("Jerry et al., IEDM 2017", 32, 1.75, 1.46, 559.28e3, 45, 0.005, Operation(3.65, 75e-9))


def _cell(
    source: str,
    pulses: int | tuple[int, int],
    label_up: float,
    label_down: float,
    ohms: float,
    on_off: float,
    sigma: float,
    operation: Operation,
) -> MemoryCell:
    up, down = pulses if isinstance(pulses, tuple) else (pulses, pulses)
    model = LinearPulses.nonlinear(up, _curvature(label_up), _curvature(-label_down), down, c2c_of="nominal")
    return MemoryCell(
        1 / ohms / on_off,
        1 / ohms,
        pulses=replace(model, sigma_c2c=sigma * model.steps),
        operation=operation,
        source=f"{source}, as in the manual of MLP+NeuroSim V3.0",
    )


def _curvature(label: float) -> float:
    """A over the number of pulses, with the sign of the label: y(x) = b (1 - exp(-x / a)), b = 1 / (1 - exp(-1 / a)),
    exceeds x by b - a + a ln(a / b) at most, which is 0.07 sqrt(2) |label| and falls as a grows."""
    low, high = 0.01, 1e4
    for _ in range(80):
        a = math.sqrt(low * high)
        b = -1 / math.expm1(-1 / a)
        low, high = (a, high) if b - a + a * math.log(a / b) > 0.07 * math.sqrt(2) * abs(label) else (low, a)
    return math.copysign(a, label)


PRESETS = (ag_asi, taox_tio2, taox_hfox, pcmo, alox_hfo2, gst_pcm, epiram, hzo_fefet)
