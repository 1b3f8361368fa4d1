"""The optimizer and its strategies; each is a frozen dataclass of settings."""

from mep_sim.optimizers.composite import CompositeOptimizer
from mep_sim.optimizers.strategies.auto_beta import AutoBeta
from mep_sim.optimizers.strategies.certified import CertifiedConstraint
from mep_sim.optimizers.strategies.consolidation import (
    ConsolidationStrategy,
    NoConsolidation,
    PrecisionConsolidation,
)
from mep_sim.optimizers.strategies.constraint import (
    ConstraintStrategy,
    NoConstraint,
    SpectralConstraint,
    WindowConstraint,
)
from mep_sim.optimizers.strategies.dion import DionUpdate
from mep_sim.optimizers.strategies.ep import EPGradient
from mep_sim.optimizers.strategies.exact import BackpropGradient, ImplicitGradient
from mep_sim.optimizers.strategies.feedback import (
    ErrorFeedback,
    FeedbackStrategy,
    MixedPrecision,
    NoFeedback,
    NoWriteFeedback,
    WriteFeedback,
    WriteResidual,
)
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy
from mep_sim.optimizers.strategies.hardware_aware import DeviceWeights, NoisyWeights, PerturbedWeights
from mep_sim.optimizers.strategies.holomorphic import HolomorphicGradient
from mep_sim.optimizers.strategies.kronecker import KroneckerConsolidation
from mep_sim.optimizers.strategies.local import LocalEPGradient
from mep_sim.optimizers.strategies.muon import MuonUpdate, orthogonalise
from mep_sim.optimizers.strategies.natural import NaturalGradient
from mep_sim.optimizers.strategies.parts import InParts
from mep_sim.optimizers.strategies.sampled import SampledEPGradient
from mep_sim.optimizers.strategies.surprise import AutoEWC, Surprise, SurpriseGated
from mep_sim.optimizers.strategies.update import AdamUpdate, FisherUpdate, PlainUpdate, UpdateStrategy

__all__ = [
    "AdamUpdate",
    "AutoBeta",
    "AutoEWC",
    "BackpropGradient",
    "CertifiedConstraint",
    "CompositeOptimizer",
    "ConsolidationStrategy",
    "ConstraintStrategy",
    "DeviceWeights",
    "DionUpdate",
    "EPGradient",
    "ErrorFeedback",
    "Estimate",
    "FeedbackStrategy",
    "FisherUpdate",
    "GradientStrategy",
    "HolomorphicGradient",
    "ImplicitGradient",
    "InParts",
    "KroneckerConsolidation",
    "LocalEPGradient",
    "MixedPrecision",
    "MuonUpdate",
    "NaturalGradient",
    "NoConsolidation",
    "NoConstraint",
    "NoFeedback",
    "NoWriteFeedback",
    "NoisyWeights",
    "PerturbedWeights",
    "PlainUpdate",
    "PrecisionConsolidation",
    "SampledEPGradient",
    "SpectralConstraint",
    "Surprise",
    "SurpriseGated",
    "UpdateStrategy",
    "WindowConstraint",
    "WriteFeedback",
    "WriteResidual",
    "orthogonalise",
]
