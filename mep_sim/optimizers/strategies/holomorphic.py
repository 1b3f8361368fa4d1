"""Holomorphic Equilibrium Propagation: the nudge goes round a circle in the complex plane."""

from __future__ import annotations

import cmath
import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from circuits import EnergyCircuit, FeedforwardCircuit
from mep_sim.optimizers.strategies.ep import EPGradient


@dataclass(frozen=True)
class HolomorphicGradient(EPGradient):
    """The contrast at beta = 0 as its mean over a circle around it: error O(beta^points).

    On an analytic energy the contrast is analytic in beta, and by Cauchy's formula its value at 0 is its mean
    over beta_k = beta exp(2 pi i k / points) (Laborieux & Zenke 2022). As contrast(conj beta) = conj
    contrast(beta) for real weights and inputs, the upper half of the circle is settled, its real points as
    `EPGradient` does: two points are its centred estimate. The others cost complex arithmetic, and are
    settled to the solver's tolerance over the state: tighten it to see the order.

    beta: the radius. points: >= 2. Feedforward circuits without kinks (ReLU) only.
    """

    known_phases: ClassVar[tuple[str, ...]] = ("contour",)

    phases: str = dataclasses.field(default="contour", init=False)
    points: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auto_zero or self.errors != "held":
            raise ValueError("auto_zero and errors other than held are for real nudges only; use EPGradient")
        if self.points < 2:
            raise ValueError(f"points = {self.points}; a circle takes at least 2, such as 4")

    def check_circuit(self, circuit: EnergyCircuit) -> None:
        if not isinstance(circuit, FeedforwardCircuit):
            raise ValueError(
                f"holomorphic EP is for feedforward energies; {type(circuit).__name__} holds its states in a box; "
                "use EPGradient(phases='centred')"
            )
        if kinks := circuit.not_analytic():
            raise ValueError(
                "holomorphic EP continues the energy into complex numbers, which is not possible, or not here, for "
                f"{', '.join(kinks)}; use tanh, sigmoid or softplus, or EPGradient(phases='centred')"
            )

    def nudges(self, beta: float, memory: dict) -> tuple[float | complex, ...]:
        above = (cmath.rect(beta, 2 * math.pi * k / self.points) for k in range(1, (self.points + 1) // 2))
        return beta, *above, *((-beta,) if self.points % 2 == 0 else ())

    def average(self, values: list[Tensor]) -> Tensor:
        # a point off the real axis stands for its mirror image too: twice its real part
        return sum(v if not v.is_complex() else 2 * v.real for v in values) / self.points
