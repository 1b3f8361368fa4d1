"""What settling costs in heat: the power of every layer, integrated over a recorded transient."""

from __future__ import annotations

import torch
from torch import Tensor

from circuits import Transient
from circuits.resistive_system import ResistiveSystem


@torch.no_grad()
def dissipated(system: ResistiveSystem, transient: Transient) -> Tensor:
    """The heat of each layer's crossbar and diodes over a transient of `system`, (B, layers) J.

    `transient`: as `settle(.., Implicit(..), save_at=times)` records it, times in s. The integral is the trapezoid's
    over its T points, with an error that falls as their distance squared: space them as the state moves, closest at
    the start. What the nodes' capacitors store is not heat; what a nudge drives through the network is.
    """
    power = heat(system, transient)
    return torch.trapezoid(power, transient.time.to(power), dim=0)


@torch.no_grad()
def heat(system: ResistiveSystem, transient: Transient) -> Tensor:
    """The power that each layer dissipates at every time of a transient of `system`, (T, B, layers) W."""
    states = transient.state
    if states.shape[1:] != (len(system.x), system.layout.n):
        raise ValueError(
            f"a transient of {states.shape[1]} samples and {states.shape[2]} nodes for a system of {len(system.x)} and "
            f"{system.layout.n}; give the system that it was recorded of"
        )
    origin = 0.0 if system.origin is None else system.origin
    return torch.stack([system.heat(state - origin) for state in states])
