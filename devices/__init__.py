"""What a weight is made of: memory cells with spread, pulses, noise and drift. In siemens and seconds.

rng = torch.Generator().manual_seed(0)
cell = devices.preset("soft-bounds-6bit")                                    # frozen settings
quiet = dataclasses.replace(cell, read_noise=None)                           # parts are swapped, not flagged
cells = cell.fabricate((784, 256), rng)                                      # draws device-to-device spread
cell.pulse(cells, torch.ones(784, 256, dtype=torch.int64), rng)              # or cell.program(cells, g, rng)
g = cell.read(cells, rng, t_seconds=3600.0)                                  # (784, 256) siemens
"""

from devices.anchored_soft_bounds import AnchoredSoftBoundsPulses
from devices.base import Cells, Device
from devices.bits import with_bits
from devices.cell import MemoryCell
from devices.constant_step import ConstantStepPulses
from devices.drift import Drift, Leak, PCMDrift, PowerLawDrift
from devices.exponential_step import ExponentialPulses
from devices.faults import Endurance, StuckCells
from devices.files import load, resolve, save
from devices.hermes import HermesDrift, HermesReadNoise
from devices.ideal import Ideal
from devices.level_pulses import LevelPulses
from devices.linear_step import LinearPulses
from devices.log_relaxation import LogarithmicDrift, LogarithmicReadNoise
from devices.micro_noise import MicrosiemensProgrammingNoise
from devices.operation import Operation
from devices.power_step import PowerPulses
from devices.presets import describe, preset, preset_names
from devices.programming import PolynomialProgrammingNoise, ProgrammingNoise, WindowProgrammingNoise
from devices.pulses import PulseModel
from devices.read_noise import FlickerReadNoise, PCMReadNoise, ReadNoise, WhiteReadNoise
from devices.saturating_noise import SaturatingProgrammingNoise, SaturatingReadNoise
from devices.soft_bounds import SoftBoundsPulses
from devices.sonos_drift import SonosDrift
from devices.step_pulses import StepPulses
from devices.table_step import TablePulses
from devices.verify import ProgramVerify
from devices.window import Window
from devices.write_noise import HiddenStateNoise

__all__ = [
    "AnchoredSoftBoundsPulses",
    "Cells",
    "ConstantStepPulses",
    "Device",
    "Drift",
    "Endurance",
    "ExponentialPulses",
    "FlickerReadNoise",
    "HermesDrift",
    "HermesReadNoise",
    "HiddenStateNoise",
    "Ideal",
    "Leak",
    "LevelPulses",
    "LinearPulses",
    "LogarithmicDrift",
    "LogarithmicReadNoise",
    "MemoryCell",
    "MicrosiemensProgrammingNoise",
    "Operation",
    "PCMDrift",
    "PCMReadNoise",
    "PolynomialProgrammingNoise",
    "PowerLawDrift",
    "PowerPulses",
    "ProgramVerify",
    "ProgrammingNoise",
    "PulseModel",
    "ReadNoise",
    "SaturatingProgrammingNoise",
    "SaturatingReadNoise",
    "SoftBoundsPulses",
    "SonosDrift",
    "StepPulses",
    "StuckCells",
    "TablePulses",
    "WhiteReadNoise",
    "Window",
    "WindowProgrammingNoise",
    "describe",
    "load",
    "preset",
    "preset_names",
    "resolve",
    "save",
    "with_bits",
]
