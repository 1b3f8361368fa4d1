"""A nonlinear resistive network learns handwritten digits by Equilibrium Propagation: volts, siemens, joules.

These are the settings of `experiments.resistive_mnist`, and the presets that repeat what is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass

import torch

import devices
from circuits import IdealDiode, PiecewiseLinearDiode, ResistiveCircuit, ShockleyDiode, cost
from circuits.diodes import ARRANGEMENTS, Diode
from circuits.wires import Wires
from experiments.common import Options, generator
from mep_sim.data import Dataset, load
from mep_sim.optimizers import AdamUpdate, MuonUpdate, PlainUpdate
from mep_sim.optimizers.strategies.update import check_choice

DIODES = ("ideal", "linear", "shockley")
PHASES = ("one_sided", "centred")
LOSSES = ("cross_entropy", "mse")
UPDATES = {"adam": AdamUpdate(), "muon": MuonUpdate(), "plain": PlainUpdate()}
IDEAL_WINDOW = (1e-8, 1e-4)  # S
SHARE_OF_LARGEST_BETA = 0.1  # of what the outputs of the untrained network bear


@dataclass(frozen=True)
class Config(Options):
    """Train a resistive network by EP and its digital baseline by backprop."""

    preset: str = "none"
    """Settings to start from, which the other options override: shockley-100, ideal-1024, or none."""
    dataset: str = "auto"
    """mnist, digits, or auto: MNIST where it can be had, else scikit-learn's digits."""
    samples: int | None = None
    """Training samples; None takes all that are not held out."""
    validation: int | None = None
    """Training samples held out; None takes 5,000 of MNIST or a tenth of digits, 0 none."""
    epochs: int = 10
    """Passes over the training samples."""
    batch_size: int = 64
    """Samples per step."""

    hidden: tuple[int, ...] = (100,)
    """Sizes of the hidden layers; input and output follow from the data."""
    diode: str = "ideal"
    """At hidden nodes: ideal, linear (two straight lines) or shockley."""
    arrangement: str = "alternating"
    """alternating (one diode at every node, facing up and down in turns) or pair (both at every node)."""
    offset_volts: float = 0.0
    """Of the bias source in series with every diode."""
    on_siemens: float = 1e-2
    """Of linear diodes that conduct."""
    off_siemens: float = 1e-9
    """Of linear diodes that block."""
    saturation_amperes: float = 1e-9
    """I_s of Shockley diodes."""
    ideality: float = 1.0
    """n of Shockley diodes: n kT/q is 25.9 mV times it."""
    series_ohm: float = 0.0
    """Resistance in series with Shockley diodes."""
    window: tuple[float, float] | None = None
    """Range of every conductance in siemens; None takes that of the cells, or 1e-8 to 1e-4 without cells."""
    initial: float = 0.2
    """Conductances start uniform between the least and this share of the window."""
    input_volts: float = 1.0
    """Of a source at a pixel of one standard deviation; also of the bias lines."""
    amplification: float = 1.0
    """Voltage gain of the bidirectional amplifiers behind hidden nodes; 1 for none."""
    paired_output: bool = True
    """Two nodes per output, which is the voltage between them."""
    readout_gain: float = 500.0
    """Of the amplifiers that read the outputs, and that a nudge comes back through."""
    capacitance: float = 1e-12
    """Of every node to ground, in farads."""
    wire_ohm: float = 0.0
    """Of every segment of a word or bit line; 0 for ideal wires. Wide crossbars make it slow, and approximate."""
    cell: str = "none"
    """Memory cell of the conductances: a preset's name or a device file (.json); none for ideal ones."""

    loss: str = "cross_entropy"
    """cross_entropy or mse, of the amplified outputs."""
    phases: str = "one_sided"
    """one_sided or centred."""
    beta: float | None = None
    """Nudging strength: siemens for mse, watts for cross_entropy; None takes a tenth of what the outputs bear."""
    update: str = "adam"
    """adam, muon or plain."""
    lr: float = 1e-6
    """Learning rate, falling linearly to zero: siemens per step for adam and muon."""
    momentum: float = 0.9
    """Gradient carry of muon and plain; adam has its own."""
    baseline_lr: float = 2e-3
    """Learning rate of the backprop-Adam baseline."""
    free_tolerance: float = 1e-4
    """Distance to rest over the state at which the free phase counts as settled."""
    nudged_tolerance: float = 1e-3
    """Distance to rest over the nudge at which the nudged phase counts as settled."""
    max_sweeps: int = 500
    """Budget of sweeps per phase."""

    transients: int = 16
    """Test samples whose settling is recorded for time and heat."""
    replay: int = 16
    """Test samples replayed in ngspice, with the network as a netlist in the run folder; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("preset", self.preset, PRESETS)
        if PRESETS[self.preset] is not type(self):
            raise ValueError(
                f"preset = {self.preset!r} of a {type(self).__name__}; make a PRESETS[{self.preset!r}]()"
            )
        check_choice("diode", self.diode, DIODES)
        check_choice("arrangement", self.arrangement, ARRANGEMENTS)
        check_choice("phases", self.phases, PHASES)
        check_choice("loss", self.loss, LOSSES)
        check_choice("update", self.update, UPDATES)
        for name in ("samples", "epochs", "batch_size", "max_sweeps", "transients"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.replay < 0:
            raise ValueError(f"replay = {self.replay}; choose a number of test samples, or 0 for none")
        if self.validation is not None and self.validation < 0:
            raise ValueError(f"validation = {self.validation}; choose a number of samples, or 0 for none")
        for name in ("lr", "baseline_lr", "beta"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; choose a finite value > 0")
        if not 0 <= self.wire_ohm < math.inf:
            raise ValueError(f"wire_ohm = {self.wire_ohm}; choose a finite resistance >= 0")
        if not 0 < self.initial <= 1:
            raise ValueError(f"initial = {self.initial}; choose a share of the window, 0 < initial <= 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}; choose 0 <= momentum < 1, such as 0.9")
        if self.window is not None and self.cell != "none":
            raise ValueError(
                f"window = {self.window} beside cell = {self.cell}, which has its own; leave it out"
            )
        self.diodes()  # raises where a setting is out of range

    def shrunk(self) -> Config:
        """The --smoke size of this run."""
        small = {
            "samples": min(self.samples or 400, 400),
            "validation": 100 if self.validation is None else min(self.validation, 100),
            "epochs": min(self.epochs, 2),
            "hidden": (16,),
            "batch_size": 100,
            "transients": 2,
            "replay": min(self.replay, 2),
        }
        return dataclasses.replace(self, **small) if self.smoke else self

    def identity(self) -> dict:
        """The options, and the settings of the cell itself: a device file can change under its name."""
        cell = self.memory_cell()
        return {**super().identity(), "cell_settings": None if cell is None else dataclasses.asdict(cell)}

    def data(self) -> Dataset:
        return load(self.dataset, samples=self.samples, validation=self.validation, seed=self.seed).to(
            self.device
        )

    def memory_cell(self) -> devices.Device | None:
        return None if self.cell == "none" else devices.resolve(self.cell)

    def diodes(self) -> Diode:
        common = {"arrangement": self.arrangement, "offset_volts": self.offset_volts}
        if self.diode == "ideal":
            return IdealDiode(**common)
        if self.diode == "linear":
            return PiecewiseLinearDiode(**common, on_siemens=self.on_siemens, off_siemens=self.off_siemens)
        return ShockleyDiode(
            **common,
            saturation_amperes=self.saturation_amperes,
            ideality=self.ideality,
            series_ohm=self.series_ohm,
        )

    def circuit(self, data: Dataset) -> ResistiveCircuit:
        """A fresh network for these data."""
        cell = self.memory_cell()
        window = self.window or (IDEAL_WINDOW if cell is None else (cell.g_min_siemens, cell.g_max_siemens))
        circuit = ResistiveCircuit(
            (data.features, *self.hidden, data.classes),
            self.diodes(),
            window=window,
            capacitance_farads=self.capacitance,
            input_volts=self.input_volts,
            bias_volts=self.input_volts,
            amplification=self.amplification,
            paired_output=self.paired_output,
            readout_gain=self.readout_gain,
            wires=Wires(self.wire_ohm, self.wire_ohm) if self.wire_ohm else None,
            rng=generator(self.seed),
        ).to(self.device)
        with torch.no_grad():
            for conductances in circuit.parameters():  # which the circuit starts below the middle
                conductances.sub_(window[0]).mul_(2 * self.initial).add_(window[0])
        return circuit

    def strength(self, circuit: ResistiveCircuit, data: Dataset) -> float:
        """beta, or a share of what the outputs of this network bear, whose diodes do not matter."""
        if self.beta is not None:
            return self.beta
        system = circuit.bind({k: p.detach() for k, p in circuit.params().items()}, data.train_x[:1])
        return SHARE_OF_LARGEST_BETA * system.largest_beta(cost(self.loss))


@dataclass(frozen=True)
class Shockley100(Config):
    """100 hidden nodes with Shockley diodes."""

    preset: str = "shockley-100"
    validation: int | None = 0
    epochs: int = 20
    batch_size: int = 128
    diode: str = "shockley"
    saturation_amperes: float = 1e-6
    ideality: float = 1.933
    input_volts: float = 10.0
    readout_gain: float = 50.0
    update: str = "muon"
    lr: float = 6e-6


@dataclass(frozen=True)
class Ideal1024(Config):
    """1,024 hidden nodes with ideal diodes."""

    preset: str = "ideal-1024"
    validation: int | None = 0
    epochs: int = 10
    batch_size: int = 128
    hidden: tuple[int, ...] = (1024,)
    replay: int = 0


PRESETS: dict[str, type[Config]] = {"none": Config, "shockley-100": Shockley100, "ideal-1024": Ideal1024}


def preset_of(arguments: list[str]) -> type[Config]:
    """The settings that --preset asks for; `Config` refuses an unknown one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="none")
    return PRESETS.get(parser.parse_known_args(arguments)[0].preset, Config)
