"""How many equilibria and transients of resistive networks a second, over ngspice's and over small batches.

Networks of Shockley diodes, fresh conductances, inputs of up to 1 V. Timed in turn, all per sample:
- rest, the operating point: sweeps of a batch, over ngspice's. That replays many inputs in one run, each found from
  the one before; of a network too large for this it reads and finds a single one. `rival us` is all that ngspice
  takes, reading the netlist included, `solve us` its analysis alone, `over solve` that over ours. That we
  have to write a netlist first counts in replays only, where it is little.
- rest, over the same sweeps of a small batch.
- transients from 0 V: TR-BDF2 for a batch, until all is at rest, over ngspice. Both with the cheapest settings that
  keep within the error, judged by Radau's method (scipy) at 1e-10: ngspice at its points in time, ours also between.

`dV` is the largest difference from ngspice at its tightest, or from Radau, `rival dV` that of the rival's transient,
`tight dV` what is left when sweeps go on to 1e-12. ngspice is no dependency: where it is missing its rows say so.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from circuits import ngspice
from circuits.diodes import ShockleyDiode
from circuits.netlist import TransientAnalysis, write
from circuits.rawfiles import Solution, read_raw
from circuits.resistive import ResistiveCircuit
from circuits.resistive_system import ResistiveSystem
from circuits.spice import netlist_of, node_names
from experiments.benchmarks.timing import Timing, alternately
from experiments.common import Options, console, generator, launch, print_table
from mep_sim.checkpoint import RunFolder
from mep_sim.settling import Equilibrium, Implicit, Sweep, settle

NETWORKS = {"8-16-4": 300, "64-32-10": 300, "784-128-10": 1}  # and operating points of a replay
TRANSIENT = "64-32-10"
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
RTOLS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # of TR-BDF2
RELTOLS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)  # of ngspice's transients
TIME_CONSTANTS = 12.0  # of the slowest node, that a transient is followed for
REPEATS = 5  # of a settle in one time


@dataclass(frozen=True)
class Config(Options):
    """Time resistive networks over ngspice and over small batches."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Layer sizes."""
    batch: int = 1024
    """Samples that settle together."""
    small_batch: int = 4
    """Samples of a small batch, as much code trains with."""
    tolerance: float = 1e-6
    """Of the sweeps, over the largest voltage."""
    errors: tuple[float, ...] = (5e-4, 1e-5)
    """Largest errors of transients, V."""
    ngspice: bool = True
    """Time ngspice too, which takes most of the minutes."""
    rounds: int = 3
    """Times that all are timed in turn, fewer where that takes over 20 seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for network in self.networks:
            if network not in NETWORKS:
                raise ValueError(f"networks = {self.networks}; choose of {', '.join(NETWORKS)}")
        for name in ("batch", "small_batch", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if not min(self.errors, default=1.0) >= 1e-6:
            raise ValueError(f"errors = {self.errors}; choose errors of at least 1e-6 V")


CASE = {"network": "", "find": "", "type": ""}
TIMES = {
    "us": ".1f",
    "rival": "",
    "rival us": ".0f",
    "solve us": ".0f",
    "times": ".0f",
    "quartiles": "",
    "over solve": ".0f",
}
ERRORS = {"setting": ".0e", "sweeps": "d", "dV": ".0e", "tight dV": ".0e", "rival dV": ".0e"}
COLUMNS = CASE | TIMES | ERRORS


def run(config: Config) -> list[dict[str, object]]:
    """Time every network against every rival; writes the run folder."""
    folder = RunFolder.open(config.folder("benchmark_resistive"), config.identity(), config.resume)
    rows = []
    for row in chain(_operating_points(config), _batches(config), _transients(config)):
        rows.append({column: row.get(column) for column in COLUMNS})
        console.print(f"{row['network']}, {row['find']}, {row['type']}: timed")
    folder.finish({"rows": rows})
    print_table(f"Resistive networks, {config.threads} thread(s), per sample", rows, CASE | TIMES)
    print_table("What was asked for, and largest differences from ngspice", rows, CASE | ERRORS)
    return rows


# -- networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """A circuit and inputs for it."""

    circuit: ResistiveCircuit
    x: Tensor

    @classmethod
    def of(cls, config: Config, name: str, batch: int, paired: bool = False) -> _Network:
        sizes = [int(size) for size in name.split("-")]
        rng = generator(config.seed)
        circuit = ResistiveCircuit(sizes, ShockleyDiode(), paired_output=paired, rng=rng).to(config.device)
        return cls(circuit, torch.rand(batch, sizes[0], generator=rng).to(config.device))

    def system(self, precision: str = "float64", samples: int | None = None) -> ResistiveSystem:
        dtype = PRECISIONS[precision]
        params = {name: value.detach().to(dtype) for name, value in self.circuit.params().items()}
        return self.circuit.bind(params, self.x[:samples].to(dtype))

    @torch.no_grad()
    def settle(self, precision: str, tolerance: float, samples: int | None = None) -> Equilibrium:
        """From conductances and inputs to voltages."""
        return settle(self.system(precision, samples), solver=Sweep(tolerance))


def _repeated(function: Callable[[], object], times: int = REPEATS) -> Callable[[], None]:
    """As many calls in one, where one is short beside what interrupts it."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def _row(ours: Timing, rival: Timing, samples: int, rival_samples: int) -> dict[str, object]:
    """Times per sample, of so many in each time; the rival was the reference of the timing."""
    scale = samples / rival_samples
    return {
        "us": 1e6 * ours.seconds / samples,
        "rival us": 1e6 * rival.seconds / rival_samples,
        "times": scale / ours.ratio,
        "quartiles": f"{scale / ours.high:.0f}-{scale / ours.low:.0f}",
    }


# -- operating points ---------------------------------------------------------------------------------


@dataclass
class _Ngspice:
    """ngspice at work on one netlist, called again and again."""

    find: Callable[[], Solution]
    solving: list[float] = field(default_factory=list)  # seconds of its analyses
    solution: Solution | None = None

    def __call__(self) -> None:
        self.solution = self.find()
        self.solving.append(self.solution.analysis_seconds)


def _operating_points(config: Config) -> Iterator[dict[str, object]]:
    for name in config.networks:
        batch, replayed = (8, min(3, NETWORKS[name])) if config.smoke else (config.batch, NETWORKS[name])
        network = _Network.of(config, name, max(batch, replayed))
        callables: dict[str, Callable[[], object]] = {}
        rival = _rival(config, network, replayed)
        if isinstance(rival, _Ngspice):
            callables["ngspice"] = rival
        for precision in PRECISIONS:
            network.settle(precision, config.tolerance, batch)  # warm
            callables[precision] = _repeated(partial(network.settle, precision, config.tolerance, batch))
        rounds = 1 if config.smoke else config.rounds
        timings = alternately(callables, rounds, seconds=20, warm_up=False)
        tight = None
        if isinstance(rival, _Ngspice):
            volts = torch.from_numpy(rival.solution.volts(node_names(network.system(samples=1))))
            tight = _apart(network.settle("float64", 1e-12, replayed).state, volts)
        for precision in PRECISIONS:
            found = network.settle(precision, config.tolerance, batch)
            row = {
                "network": name,
                "find": "rest",
                "type": precision,
                "setting": config.tolerance,
                "sweeps": found.evaluations,
                "us": 1e6 * timings[precision].seconds / (batch * REPEATS),
                "rival": rival if isinstance(rival, str) else f"ngspice, {replayed}",
            }
            if tight is not None:
                row |= _row(timings[precision], timings["ngspice"], batch * REPEATS, replayed)
                row["solve us"] = 1e6 * median(rival.solving) / replayed
                row["over solve"] = row["solve us"] / row["us"]
                row["dV"] = _apart(found.state[:replayed], volts)
                row["tight dV"] = tight
            yield row


def _rival(config: Config, network: _Network, samples: int) -> _Ngspice | str:
    """ngspice on the first samples of a network, or why not."""
    if not config.ngspice:
        return "ngspice: not asked for"
    if not ngspice.available():
        return "ngspice: not installed"
    system = network.system(samples=samples)
    netlist = netlist_of(system)
    if samples == 1:
        deck = write(netlist)
        return _Ngspice(partial(_read_and_find, deck))
    sources = [f"vx{k}" for k in range(system.circuit.features)]
    return _Ngspice(lambda: ngspice.replay(netlist, sources, system.source))


def _read_and_find(deck: str) -> Solution:
    """What ngspice finds, without the time that we take to write its netlist."""
    with tempfile.TemporaryDirectory() as folder:
        path, raw = Path(folder, "deck.cir"), Path(folder, "out.raw")
        path.write_text(deck)
        command = ["ngspice", "-n", "-b", "-r", str(raw), str(path)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds = float(re.search(r"Total analysis time \(seconds\) = (\S+)", log)[1])
        return replace(read_raw(raw)[0], analysis_seconds=seconds)


def _apart(state: Tensor, volts: Tensor) -> float:
    return (state.double().cpu() - volts).abs().max().item()


# -- small batches ------------------------------------------------------------------------------------


def _batches(config: Config) -> Iterator[dict[str, object]]:
    name = config.networks[-1]
    batch, small = (8, 2) if config.smoke else (config.batch, config.small_batch)
    for paired in (False, True):
        network = _Network.of(config, name, batch, paired)
        small_ones, large_ones = (
            _repeated(partial(network.settle, "float32", config.tolerance, samples))
            for samples in (small, batch)
        )
        rounds = 2 if config.smoke else 4 * config.rounds
        timings = alternately({"small": small_ones, "large": large_ones}, rounds, seconds=20)
        yield {
            "network": name + " paired" * paired,
            "find": "rest",
            "type": "float32",
            "setting": config.tolerance,
            "sweeps": network.settle("float32", config.tolerance, batch).evaluations,
            "rival": f"the same, batch {small}",
            **_row(timings["large"], timings["small"], batch * REPEATS, small * REPEATS),
        }


# -- transients ---------------------------------------------------------------------------------------


def _transients(config: Config) -> Iterator[dict[str, object]]:
    if not config.errors:
        return
    name = "8-16-4" if config.smoke else TRANSIENT
    network = _Network.of(config, name, 8 if config.smoke else config.batch)
    one = network.system(samples=1)
    end = TIME_CONSTANTS / one.slowest_rate()
    judge = _radau(one, end)
    for error in config.errors:
        ours = _within(error, RTOLS, lambda rtol: _by_tr_bdf2(network, rtol, end, judge))
        row = {"network": name, "find": f"transient, {error:.0e} V", "type": "float64"}
        if ours is None:
            yield row | {"rival": "TR-BDF2 came no closer"}
            continue
        rtol, row["dV"] = ours
        row["setting"] = rtol
        solver = Implicit(config.tolerance, rtol=rtol)

        @torch.no_grad()
        def settled(solver: Implicit = solver) -> Equilibrium:
            return settle(
                network.system(), solver=solver, save_at=torch.tensor([0.0, end], dtype=torch.float64)
            )

        row["sweeps"] = settled().evaluations
        callables: dict[str, Callable[[], object]] = {}
        if not config.ngspice or not ngspice.available():
            row["rival"] = "ngspice: not installed" if config.ngspice else "ngspice: not asked for"
        else:
            found = _within(
                error,
                RELTOLS,
                lambda reltol: _apart_in_time(
                    _read_and_find(_deck(one, reltol, end)), node_names(one), judge
                ),
            )
            if found is None:
                row["rival"] = "ngspice came no closer"
            else:
                reltol, row["rival dV"] = found
                row["rival"] = f"ngspice, reltol {reltol:g}"
                callables["ngspice"] = _Ngspice(partial(_read_and_find, _deck(one, reltol, end)))
        callables["ours"] = settled
        timings = alternately(callables, 1 if config.smoke else config.rounds, seconds=20, warm_up=False)
        samples = len(network.x)
        if "ngspice" in callables:
            row |= _row(timings["ours"], timings["ngspice"], samples, 1)
            row["solve us"] = 1e6 * median(callables["ngspice"].solving)
            row["over solve"] = row["solve us"] / row["us"]
        row["us"] = 1e6 * timings["ours"].seconds / samples
        yield row


def _within(
    error: float, settings: Sequence[float], off: Callable[[float], float]
) -> tuple[float, float] | None:
    """The first setting that is off by no more than `error`, and by how much."""
    for setting in settings:
        if (found := off(setting)) <= error:
            return setting, found
    return None


Trajectory = Callable[[np.ndarray], np.ndarray]
"""Times (T,) s -> node voltages (n, T)."""


def _radau(system: ResistiveSystem, end: float) -> Trajectory:
    """One sample from 0 V."""
    pace = (
        system.slowest_rate()
    )  # in units of its time constants: a solver's first steps are for numbers near 1

    @torch.no_grad()
    def flow(_: float, v: np.ndarray) -> np.ndarray:  # (n,), or (n, k) of k states
        rows = torch.from_numpy(np.ascontiguousarray(v.reshape(len(v), -1).T))
        return (system.flow(rows) / pace).numpy().T.reshape(v.shape)

    options = {"rtol": 1e-10, "atol": 1e-10, "dense_output": True, "vectorized": True}
    found = solve_ivp(flow, (0.0, end * pace), np.zeros(system.layout.n), "Radau", **options)
    return lambda seconds: found.sol(np.clip(seconds * pace, 0.0, end * pace))


@torch.no_grad()
def _by_tr_bdf2(network: _Network, rtol: float, end: float, judge: Trajectory) -> float:
    """How far the first sample of the batch is from its judge, at points in time and on the cubics between them."""
    times = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 200)]).double() * end
    found = settle(network.system(), solver=Implicit(1e-6, rtol=rtol), save_at=times)
    return float(np.abs(found.transient.state[:, 0].numpy().T - judge(times.numpy())).max())


def _deck(system: ResistiveSystem, reltol: float, end: float) -> str:
    """One sample's transient, whose steps ngspice chooses."""
    charge = (
        system.circuit.capacitance_farads
    )  # at 1 V; the default tolerance is many times what is on such nodes
    options = {**ngspice.TIGHT, "reltol": reltol, "vntol": 1e-3 * reltol, "chgtol": 0.1 * reltol * charge}
    start = torch.zeros(system.layout.n)
    return write(netlist_of(system, 0, TransientAnalysis(end / 1e4, end, end / 10), start, options))


def _apart_in_time(solution: Solution, names: Sequence[str], judge: Trajectory) -> float:
    # what ngspice says of 0 s are its guesses
    return float(np.abs(solution.volts(names)[1:].T - judge(solution.seconds[1:])).max())


if __name__ == "__main__":
    launch(Config, run)
