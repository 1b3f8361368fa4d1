"""The optimizer and its strategies; each is a frozen dataclass of settings."""

from mep_sim.optimizers.composite import CompositeOptimizer
from mep_sim.optimizers.strategies.constraint import ConstraintStrategy, NoConstraint, SpectralConstraint
from mep_sim.optimizers.strategies.feedback import (
    ErrorFeedback,
    FeedbackStrategy,
    NoFeedback,
    NoWriteFeedback,
    WriteFeedback,
    WriteResidual,
)
from mep_sim.optimizers.strategies.gradient import (
    BackpropGradient,
    EPGradient,
    Estimate,
    GradientStrategy,
    ImplicitGradient,
)
from mep_sim.optimizers.strategies.update import (
    AdamUpdate,
    DionUpdate,
    MuonUpdate,
    PlainUpdate,
    UpdateStrategy,
    orthogonalise,
)

__all__ = [
    "AdamUpdate",
    "BackpropGradient",
    "CompositeOptimizer",
    "ConstraintStrategy",
    "DionUpdate",
    "EPGradient",
    "ErrorFeedback",
    "Estimate",
    "FeedbackStrategy",
    "GradientStrategy",
    "ImplicitGradient",
    "MuonUpdate",
    "NoConstraint",
    "NoFeedback",
    "NoWriteFeedback",
    "PlainUpdate",
    "SpectralConstraint",
    "UpdateStrategy",
    "WriteFeedback",
    "WriteResidual",
    "orthogonalise",
]
