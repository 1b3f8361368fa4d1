"""Charge-trap memory."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.checks import check_number
from devices.saturating_noise import SaturatingProgrammingNoise, SaturatingReadNoise
from devices.sonos_drift import SonosDrift


def sonos(read_volts: float = 0.1) -> MemoryCell:
    """40 nm SONOS, up to 1600 nA: saturating noise, retention of days 0 to 5, on/off ratio 1e7; no pulses.

    Source: Agrawal et al., IEDM 2022, as CrossSim states it, in currents I: programming sigma = 19.88665 (1 -
    exp(-I / 176.3115)) nA, 18.7 nA at 500; read noise 12.58037 (1 - exp(-I / 215.36557)) nA, drawn by each read;
    retention: see SonosDrift. Reads later than 5 days after a write are refused.

    read_volts  the voltage of a read, 1e-3 to 10 V: conductances are currents over it. 0.1 V gives 16 uS. A choice
    """
    check_number("sonos.read_volts", read_volts, 1e-3, 10, "It is in volts.")
    siemens = 1e-9 / read_volts  # of a nanoampere
    return MemoryCell(
        1600e-7 * siemens,
        1600 * siemens,
        programming=SaturatingProgrammingNoise(19.88665 * siemens, 176.3115 * siemens),
        read_noise=SaturatingReadNoise(12.58037 * siemens, 215.36557 * siemens),
        drift=SonosDrift(read_volts),
        source="Agrawal et al., IEDM 2022, values from CrossSim; read voltage chosen",
    )


PRESETS = (sonos,)
