"""mep-sim: energy circuits that learn by Equilibrium Propagation, on simulated analog hardware."""

from mep_sim.monitor import EPMonitor
from mep_sim.presets import muon_backprop, sdmep, smep
from mep_sim.settling import ODE, SettlingError, Sweep, settle

__all__ = [
    "ODE",
    "EPMonitor",
    "SettlingError",
    "Sweep",
    "muon_backprop",
    "sdmep",
    "settle",
    "smep",
]
