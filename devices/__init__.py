"""What a weight is made of: memory cells with spread, pulses, noise and drift. In siemens and seconds.

rng = torch.Generator().manual_seed(0)
cell = devices.preset("soft-bounds-6bit")                                    # frozen settings
quiet = dataclasses.replace(cell, read_noise=None)                           # parts are swapped, not flagged
cells = cell.fabricate((784, 256), rng)                                      # draws device-to-device spread
cell.pulse(cells, torch.ones(784, 256, dtype=torch.int64), rng)              # or cell.program(cells, g, rng)
g = cell.read(cells, rng, t_seconds=3600.0)                                  # (784, 256) siemens
"""

from devices.base import Cells, Device
from devices.bits import with_bits
from devices.cell import MemoryCell
from devices.constant_step import ConstantStepPulses
from devices.drift import Drift, Leak, PCMDrift, PowerLawDrift
from devices.exponential_step import ExponentialPulses
from devices.faults import Endurance, StuckCells
from devices.files import load, resolve, save
from devices.ideal import Ideal
from devices.level_pulses import LevelPulses
from devices.linear_step import LinearPulses
from devices.operation import Operation
from devices.power_step import PowerPulses
from devices.presets import describe, preset, preset_names
from devices.programming import PolynomialProgrammingNoise, ProgrammingNoise, WindowProgrammingNoise
from devices.pulses import PulseModel
from devices.read_noise import FlickerReadNoise, PCMReadNoise, ReadNoise, WhiteReadNoise
from devices.soft_bounds import SoftBoundsPulses
from devices.step_pulses import StepPulses
from devices.table_step import TablePulses
from devices.verify import ProgramVerify
from devices.window import Window
from devices.write_noise import HiddenStateNoise

__all__ = [
    "Cells",
    "ConstantStepPulses",
    "Device",
    "Drift",
    "Endurance",
    "ExponentialPulses",
    "FlickerReadNoise",
    "HiddenStateNoise",
    "Ideal",
    "Leak",
    "LevelPulses",
    "LinearPulses",
    "MemoryCell",
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
    "SoftBoundsPulses",
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
