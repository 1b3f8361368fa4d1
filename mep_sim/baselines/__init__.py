"""Digital continual learning, to measure hardware against: methods that change a gradient or pull weights back.

All of them take their gradients from a `Gradients`, so that they work under backprop and under Equilibrium Propagation.
"""

from mep_sim.baselines.anchored import Anchored
from mep_sim.baselines.base import Baseline
from mep_sim.baselines.ewc import EWC, OnlineEWC
from mep_sim.baselines.fisher import FISHERS, diagonal_fisher
from mep_sim.baselines.gem import AGEM, GEM
from mep_sim.baselines.gradients import Autograd, ByOptimizer, Gradients
from mep_sim.baselines.rehearsal import Rehearsal
from mep_sim.baselines.replay import Replay
from mep_sim.baselines.si import SI

__all__ = [
    "AGEM",
    "EWC",
    "FISHERS",
    "GEM",
    "SI",
    "Anchored",
    "Autograd",
    "Baseline",
    "ByOptimizer",
    "Gradients",
    "OnlineEWC",
    "Rehearsal",
    "Replay",
    "diagonal_fisher",
]
