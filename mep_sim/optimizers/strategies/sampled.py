"""EP from equilibria as converters measure them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from circuits import EnergyCircuit, Equilibrium, Params
from circuits.periphery import Converter
from mep_sim.optimizers.strategies.ep import EPGradient, Phase
from mep_sim.optimizers.strategies.gradient import remembered


@dataclass(frozen=True)
class SampledEPGradient(EPGradient):
    """Equilibrium Propagation whose contrast is made of sampled states: settling is analog, measuring is not.

    adc: resolution, range and noise of what samples the states (B, n). amplified: a difference amplifier holds the free
    state and hands the deviation from it to the converter, in its own range; else both states are converted and then
    subtracted, which divides the converter's error by beta. The converter's noise follows `adc_seed` and the caller's
    memory. Other settings as in `EPGradient`; one_sweep, which settles no second state, is refused.
    """

    adc: Converter = dataclasses.field(default_factory=Converter)
    amplified: bool = True
    adc_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.adc, Converter):
            raise ValueError(f"adc = {self.adc!r}; give a Converter, such as Converter(bits=8)")
        if self.phases == "one_sweep" or self.errors != "held":
            raise ValueError(
                f"phases = {self.phases} with errors = {self.errors} cannot be sampled; choose settled phases, and "
                "errors = held, which a converter measures itself"
            )

    def combine(self, circuit: EnergyCircuit, free: Equilibrium, phases: list[Phase], memory: dict) -> Params:
        with remembered(memory, "adc", self.adc_seed, free.state.device) as rng:
            seen = dataclasses.replace(free, state=self.adc.convert(free.state, rng))
            sampled = [self._sampled(phase, free, seen, rng) for phase in phases]
        return super().combine(circuit, seen, sampled, memory)

    def _sampled(self, phase: Phase, free: Equilibrium, seen: Equilibrium, rng: torch.Generator) -> Phase:
        """The phase as measured; `seen` is what was measured of the free one."""
        at = phase.at
        moved = at.state - free.state if at.deviation is None else at.deviation
        if self.amplified:
            moved = self.adc.convert(moved, rng)
        else:
            moved = self.adc.convert(free.state + moved, rng) - seen.state
        nudge = phase.system.nudge
        system = phase.system.rebind(phase.params).around(seen)
        at = dataclasses.replace(at, state=seen.state + moved, deviation=moved)
        return Phase(phase.beta, phase.params, system.nudged(nudge.cost, nudge.target, phase.beta), at)
