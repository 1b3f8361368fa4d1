"""mep-sim: energy circuits that learn by Equilibrium Propagation, on simulated analog hardware."""

from mep_sim.monitor import EPMonitor
from mep_sim.presets import eqprop, local_ep, muon_backprop, natural_ep, sdmep, smep
from mep_sim.settling import ODE, EPWarning, Implicit, SettlingError, Sweep, settle

__all__ = [
    "ODE",
    "EPMonitor",
    "EPWarning",
    "Implicit",
    "SettlingError",
    "Sweep",
    "eqprop",
    "local_ep",
    "muon_backprop",
    "natural_ep",
    "sdmep",
    "settle",
    "smep",
]
