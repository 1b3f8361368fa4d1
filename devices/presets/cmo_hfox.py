"""Analog filamentary memory of conductive metal oxide on hafnium oxide."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.log_relaxation import LogarithmicDrift, LogarithmicReadNoise
from devices.micro_noise import MicrosiemensProgrammingNoise


def cmo_hfox(acceptance_percent: float = 2.0) -> MemoryCell:
    """CMO/HfOx cell, 9 to 88.2 uS: programmed within an acceptance range, relaxing with the logarithm of time.

    Source: Falcone et al., as aihwkit states it, G in uS and t in s since programming, from 1 s on:

        programming  sigma = 0.0112185391 + 0.01129027418 G (accepted within 2 %)
                             0.00081107 + 0.00106879 G (within 0.2 %)
        relaxation   mean -0.08900206 ln t, spread 0.41183342 + 0.04201137 ln t, at every G
        read         sigma = 0.0277316483 log10(G) sqrt(ln((t + 1e-6) / 2e-6))

    t = 1 s is the time of the write here: it is the first the source speaks of, and its relaxation has happened.

    acceptance_percent  2 or 0.2
    """
    fits = {2.0: (0.0112185391, 0.01129027418), 0.2: (8.1107e-4, 1.06879e-3)}
    if acceptance_percent not in fits:
        raise ValueError(
            f"cmo_hfox.acceptance_percent = {acceptance_percent!r} is not allowed: the source has 2 and 0.2. For "
            "another programming noise use dataclasses.replace."
        )
    return MemoryCell(
        9e-6,
        88.2e-6,
        programming=MicrosiemensProgrammingNoise(fits[acceptance_percent], 9.0, 88.2),
        drift=LogarithmicDrift(
            slope_siemens=-0.08900206e-6, sigma_siemens=0.41183342e-6, sigma_slope_siemens=0.04201137e-6
        ),
        read_noise=LogarithmicReadNoise(0.0277316483e-6),
        source="Falcone et al., values from aihwkit",
    )


PRESETS = (cmo_hfox,)
