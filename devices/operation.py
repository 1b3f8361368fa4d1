"""Voltages and times of a cell's operation, for what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from devices.checks import check_number


@dataclass(frozen=True)
class Operation:
    """Pulses for writing and reading; the energy of one is V^2 G t, Joule heat in the cell alone.

    write_volts, write_seconds  amplitude (either sign) and length of one write pulse, 1e-12 to 1e3 s
    read_volts, read_seconds    the same of a read
    """

    write_volts: float
    write_seconds: float
    read_volts: float = 0.1
    read_seconds: float = 1e-8

    def __post_init__(self) -> None:
        for kind in ("write", "read"):
            volts, seconds = getattr(self, f"{kind}_volts"), getattr(self, f"{kind}_seconds")
            check_number(f"Operation.{kind}_volts", volts, -100, 100, "It is in volts.")
            check_number(
                f"Operation.{kind}_seconds", seconds, 1e-12, 1e3, "It is in seconds: 100 ns is 1e-7."
            )

    @property
    def joules_per_write_siemens(self) -> float:
        """Energy of a write pulse over the conductance of the cell, J/S."""
        return self.write_volts**2 * self.write_seconds

    @property
    def joules_per_read_siemens(self) -> float:
        """Energy of a read over the conductance of the cell, J/S."""
        return self.read_volts**2 * self.read_seconds
