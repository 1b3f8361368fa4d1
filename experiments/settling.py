"""How physical circuits come to rest: resistive networks with diodes in volts and nanoseconds, judged by ngspice.

Four parts, each with its picture. transients.png: one sample of a network from 0 V, by each integration and by ngspice.
energy.png: co-content and heat of a batch, free and then nudged. settling_times.png: when outputs have settled, against
depth, nudging strength, and spread of the conductances. solvers.png: what each solver takes to the same equilibrium
and how close it gets; its table says which of them are refused because the circuit is stiff.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch

from circuits import ngspice
from experiments import settling_figures as figures
from experiments import settling_transients as transients
from experiments.common import Options, console, generator, launch, print_table
from experiments.settling_networks import bound, inputs, network
from experiments.settling_solvers import DIODES, race
from experiments.settling_times import Point, Sampling, against_beta, against_depth, against_spread
from mep_sim.checkpoint import RunFolder

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Config(Options):
    """Follow resistive networks to rest, and time every solver."""

    sizes: tuple[int, ...] = (64, 32, 10)
    """Layers of the network of transients, energies and solvers, input first."""
    volts: float = 1.0
    """Of a source at x = 1; inputs are uniform in [-1, 1]."""
    solver_volts: float = 10.0
    """The same where solvers are timed: diodes conduct more, and the circuit is stiffer."""
    samples: int = 16
    """Inputs of every network."""
    nanoseconds: float = 20.0
    """Length of the transients."""
    points: int = 80
    """Times at which transients are looked at."""
    beta_share: float = 0.5
    """Nudge of the energy's picture, over the beta at which -beta leaves no minimum."""
    tolerance: float = 1e-3
    """Distance of the outputs from rest, over their way, at which they count as settled."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Hidden layers."""
    gain: float = 4.0
    """Of the amplifiers behind hidden layers, where there are any."""
    beta_shares: tuple[float, ...] = (-0.95, -0.8, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0, 4.0)
    """Nudges, over the beta at which -beta leaves no minimum."""
    spreads: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Of conductances: standard deviation of the logarithm."""
    networks: int = 3
    """Drawn for every settling time, of `samples` inputs each."""
    diodes: tuple[str, ...] = tuple(DIODES)
    """Of the networks that solvers are timed on: ideal, piecewise linear, Shockley."""
    batches: tuple[int, ...] = (1, 256)
    """Batch sizes that solvers are timed at."""
    rounds: int = 3
    """Times that solvers are timed in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device != "cpu":
            raise ValueError("device = 'cuda'; ngspice and scipy are timed beside the solvers: choose cpu")
        if len(self.sizes) < 3:
            raise ValueError(f"sizes = {self.sizes}; give an input, a hidden and an output layer at least")
        for name in ("samples", "networks", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.points < 2:
            raise ValueError(f"points = {self.points}; choose at least 2")
        for name in ("volts", "solver_volts", "nanoseconds", "gain"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}; choose a finite value > 0")
        for name in ("depths", "batches"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give numbers of at least 1")
        if min((self.beta_share, *self.beta_shares)) <= -1 or 0 in (self.beta_share, *self.beta_shares):
            raise ValueError(
                f"beta shares {self.beta_share}, {self.beta_shares}; choose any above -1 other than 0"
            )
        if unknown := set(self.diodes) - set(DIODES):
            raise ValueError(f"unknown diodes {', '.join(sorted(unknown))}; choose of {', '.join(DIODES)}")
        if not 0 < self.tolerance < 0.1:
            raise ValueError(f"tolerance = {self.tolerance}; choose 0 < tolerance < 0.1, such as 1e-3")
        if min(self.spreads, default=-1) < 0:
            raise ValueError(f"spreads = {self.spreads}; give standard deviations >= 0")

    def shrunk(self) -> Config:
        """What a smoke run does instead."""
        if not self.smoke:
            return self
        few = {"sizes": (8, 6, 3), "samples": 2, "points": 8, "depths": (1, 2), "beta_shares": (-0.5, 1.0)}
        few |= {"diodes": ("ideal", "Shockley")}
        return dataclasses.replace(
            self, **few, spreads=(0.0, 1.0), networks=1, batches=(1,), rounds=1, nanoseconds=5.0
        )

    def sampling(self) -> Sampling:
        seeds = range(self.seed, self.seed + self.networks)
        features, width, *_, outputs = self.sizes
        return Sampling(seeds, self.samples, self.tolerance, self.volts, (features, width, outputs))


def follow(config: Config) -> tuple[transients.Overlay, transients.Descent]:
    """One network's transients, and a batch's energies."""
    rng = generator(config.seed)
    circuit = network(config.sizes, rng=rng, volts=config.volts)
    system = bound(circuit, inputs(circuit, config.samples, rng))
    seconds = transients.save_times(1e-9 * config.nanoseconds, config.points)
    target = config.volts * (torch.rand(config.samples, circuit.outputs, generator=rng) - 0.5).double()
    return (
        transients.overlay(system, seconds),
        transients.descent(system, target, config.beta_share, seconds),
    )


DEPTH, BETA, SPREAD = "hidden layers", "beta / largest beta", "spread of conductances"
TRANSIENTS = {"solver": "", "rtol": ".0e", "evaluations": "d", "ms/sample": ".2f", "max |dV| (V)": ".1e"}
TIMES = {"against": "", "series": "", "at": "g", "median (ns)": ".2f", "10 %": ".2f", "90 %": ".2f"}


def solver_columns(batches: tuple[int, ...]) -> dict[str, str]:
    times = {f"ms/sample, batch {n}": ".3f" for n in batches}
    ratios = {f"times sweeps, batch {n}": ".1f" for n in batches}
    return {
        "diodes": "",
        "solver": "",
        "evaluations": "d",
        **times,
        **ratios,
        "max error (V)": ".1e",
        "note": "",
    }


def run(config: Config) -> dict[str, object]:
    """All four parts; writes the run folder, returns what results.json holds."""
    config = config.shrunk()
    folder = RunFolder.open(config.folder("settling"), config.identity(), config.resume)
    started = time.perf_counter()

    def tell(what: str) -> None:
        console.print(f"{what} ({time.perf_counter() - started:.0f} s)")

    overlay, descent = follow(config)
    figures.overlay(folder.path / "transients.png", overlay)
    figures.descent(folder.path / "energy.png", descent)
    tell("transients and energies")
    sampling = config.sampling()
    panels: dict[str, list[Point]] = {
        DEPTH: against_depth(sampling, config.depths, (1.0, config.gain)),
        BETA: against_beta(sampling, config.beta_shares),
        SPREAD: against_spread(sampling, config.spreads),
    }
    figures.times(folder.path / "settling_times.png", panels, config.tolerance)
    tell("settling times")
    solvers: Rows = []
    for diodes in config.diodes:
        solvers += race(diodes, config.sizes, config.solver_volts, config.batches, config.rounds, config.seed)
        tell(f"solvers, {diodes} diodes")
    figures.race(folder.path / "solvers.png", solvers, f"ms/sample, batch {max(config.batches)}")
    results = {
        "judge": overlay.judge,
        "transients": overlay.rows,
        "energy": {"rise": descent.rise, "beta (S)": descent.beta, "heat (J)": descent.joules()},
        "settling times": [
            {"against": label, **point.row()} for label, points in panels.items() for point in points
        ],
        "solvers": solvers,
        "seconds": time.perf_counter() - started,
    }
    folder.finish(results)
    report(config, results)
    return results


def report(config: Config, results: dict[str, object]) -> None:
    """The tables."""
    sizes = "-".join(map(str, config.sizes))
    print_table(
        f"Transients of {sizes} at {config.volts:g} V, to {config.nanoseconds:g} ns, against {results['judge']}",
        results["transients"],
        TRANSIENTS,
    )
    if not ngspice.available():
        console.print("ngspice is not installed: differences are to dopri5, and it is in no table")
    energy = results["energy"]
    console.print(
        f"the co-content rises by {energy['rise']:.1e} of its fall at most; heat of the layers, free: "
        f"{', '.join(f'{1e15 * joules:.3g} fJ' for joules in energy['heat (J)'][0])}"
    )
    print_table(
        f"Settling times of outputs to {config.tolerance:g} of their way", results["settling times"], TIMES
    )
    print_table(
        f"To the equilibrium of {sizes} at {config.solver_volts:g} V, float64, {config.threads} thread(s)",
        results["solvers"],
        solver_columns(config.batches),
    )


if __name__ == "__main__":
    launch(Config, run)
