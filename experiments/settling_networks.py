"""The resistive networks whose settling is measured, and how they are driven."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.diodes import Diode, ShockleyDiode
from circuits.resistive import ResistiveCircuit
from circuits.resistive_system import ResistiveSystem

WINDOW = (1e-7, 1e-4)  # S
FARADS = 1e-12  # of every node
DIODE = ShockleyDiode(saturation_amperes=1e-6)  # a Schottky diode for small signals: it conducts at 0.1 V


def network(
    sizes: Sequence[int],
    diode: Diode = DIODE,
    *,
    rng: torch.Generator,
    volts: float = 1.0,
    spread: float = 0.0,
    amplification: float = 1.0,
) -> ResistiveCircuit:
    """In float64, of conductances uniform in the lower half of `WINDOW`, each times its cell's own log-normal factor.

    spread: of the logarithms of these factors, >= 0; their mean is 1, so that it leaves the mean conductance as it is.
    Cells far out may lie beyond the window.
    """
    if not spread >= 0:
        raise ValueError(f"spread = {spread}; choose a standard deviation >= 0 of the logarithm, such as 0.3")
    circuit = ResistiveCircuit(
        sizes,
        diode,
        window=WINDOW,
        capacitance_farads=FARADS,
        input_volts=volts,
        amplification=amplification,
        rng=rng,
    ).double()
    with torch.no_grad():
        for weight in circuit.parameters():
            draw = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
            weight.mul_(torch.exp(spread * draw - spread**2 / 2))
    return circuit


def inputs(circuit: ResistiveCircuit, samples: int, rng: torch.Generator) -> Tensor:
    """Uniform in [-1, 1], (samples, features)."""
    return 2 * torch.rand(samples, circuit.features, generator=rng, dtype=torch.float64) - 1


def bound(circuit: ResistiveCircuit, x: Tensor) -> ResistiveSystem:
    return circuit.bind({name: p.detach() for name, p in circuit.params().items()}, x)
