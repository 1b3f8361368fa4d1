"""Energy circuits: what is wired, and the energy it minimises."""

from circuits.base import EnergyCircuit, Equilibrium, Layout, Nudge, Params, System, Transient
from circuits.costs import Cost, CrossEntropy, SquaredError, cost
from circuits.feedforward import FeedforwardCircuit
from circuits.feedforward_system import FeedforwardSystem
from circuits.hopfield import HopfieldCircuit, HopfieldSystem
from circuits.masked_cost import MaskedCrossEntropy
from circuits.residual import Residual

__all__ = [
    "Cost",
    "CrossEntropy",
    "EnergyCircuit",
    "Equilibrium",
    "FeedforwardCircuit",
    "FeedforwardSystem",
    "HopfieldCircuit",
    "HopfieldSystem",
    "Layout",
    "MaskedCrossEntropy",
    "Nudge",
    "Params",
    "Residual",
    "SquaredError",
    "System",
    "Transient",
    "cost",
]
