"""Energy circuits: what is wired, and the energy it minimises."""

from circuits.base import EnergyCircuit, Equilibrium, Layout, Nudge, Params, System, Transient
from circuits.costs import Cost, CrossEntropy, SquaredError, cost
from circuits.diodes import Diode, IdealDiode, PiecewiseLinearDiode, ShockleyDiode
from circuits.feedforward import FeedforwardCircuit
from circuits.feedforward_system import FeedforwardSystem
from circuits.hopfield import HopfieldCircuit, HopfieldSystem
from circuits.masked_cost import MaskedCrossEntropy
from circuits.residual import Residual
from circuits.resistive import ResistiveCircuit
from circuits.resistive_system import ResistiveSystem

__all__ = [
    "Cost",
    "CrossEntropy",
    "Diode",
    "EnergyCircuit",
    "Equilibrium",
    "FeedforwardCircuit",
    "FeedforwardSystem",
    "HopfieldCircuit",
    "HopfieldSystem",
    "IdealDiode",
    "Layout",
    "MaskedCrossEntropy",
    "Nudge",
    "Params",
    "PiecewiseLinearDiode",
    "Residual",
    "ResistiveCircuit",
    "ResistiveSystem",
    "ShockleyDiode",
    "SquaredError",
    "System",
    "Transient",
    "cost",
]
