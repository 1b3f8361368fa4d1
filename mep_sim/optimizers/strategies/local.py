"""Equilibrium Propagation whose every layer learns from what its own synapses see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circuits import EnergyCircuit, Equilibrium, Params
from mep_sim.optimizers.strategies.ep import EPGradient, Phase


@dataclass(frozen=True)
class LocalEPGradient(EPGradient):
    """`EPGradient` layer by layer, as hardware would: each layer is handed its own parameters, its own states
    and those that feed it, free and how far they moved, and nothing else.

    The same numbers to rounding, as the energy is a sum over layers (Scellier & Bengio 2017, eq. 17): what
    `EPGradient` shares between layers, such as a slope that the error from above passed through, is computed
    anew from the two ends.
    """

    known_phases: ClassVar[tuple[str, ...]] = ("one_sided", "centred", "random_sign")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.independent_reads:
            raise ValueError(
                "independent_reads is not local: a layer compares states of one read of its weights; use EPGradient"
            )
        if self.errors != "held":
            raise ValueError(f"errors = {self.errors} are not a layer's own deviations; use EPGradient")

    def contrast(self, circuit: EnergyCircuit, free: Equilibrium, phase: Phase) -> Params:
        moved, x = phase.at.deviation, phase.system.x
        ends = map(circuit.layout.split, (phase.at.state - moved, moved))
        states = {-1: (x, torch.zeros_like(x)), **dict(enumerate(zip(*ends, strict=True)))}
        gradient: dict[str, Tensor] = {}
        for layer in range(len(circuit.layout.sizes)):
            own = {n: phase.params[n] for n in circuit.layer_parameters(layer) if n in phase.params}
            inputs = [states[i] for i in circuit.inputs_of(layer)]
            gradient |= circuit.local_contrast(layer, own, inputs, states[layer], phase.beta)
        return gradient
