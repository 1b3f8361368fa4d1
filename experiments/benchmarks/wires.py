"""How long an exact solve of a crossbar array with wires takes, and how far it is from what others find.

Square arrays of cells spread evenly in log from `low` to `high`, every segment of the same resistance, outputs at
virtual ground. Timed in turn, for one input:
- exact: `WiredArray` from conductances to output currents, its elimination included;
- further: the currents of one more input, the elimination at hand;
- the rival: the same from conductances to output currents by sparse LU (scipy's SuperLU, symmetric minimum degree;
  also timed for a further input, a solve with its factors), by badcrossbar, which makes a sparse LU of its own, and by
  ngspice, started on a netlist that is written before.

badcrossbar and ngspice are no dependencies: where one is missing its rows say so. `difference` is the largest relative
one of output currents, exact against the rival's. `error` is the ladder approximation's, of matrices.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csc_array
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from circuits.wired_array import WiredArray
from circuits.wires import Wires
from experiments.benchmarks.timing import alternately
from experiments.common import Options, console, generator, launch, print_table
from mep_sim.checkpoint import RunFolder

Solve = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Config(Options):
    """Time exact solves of wired arrays over other programs'."""

    sizes: tuple[int, ...] = (32, 64, 128)
    """Lines of each kind."""
    ohms: tuple[float, ...] = (1.0, 10.0)
    """Resistances of a wire segment; times are compared with the first's."""
    low: float = 1e-6
    """Smallest conductance of a cell, S."""
    high: float = 1e-4
    """Largest conductance of a cell, S."""
    ngspice_size: int = 64
    """Largest array for ngspice, which takes minutes for 128."""
    rounds: int = 9
    """Times that all are timed in turn, fewer where that takes over half a minute."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes = {self.sizes}; give numbers of at least 1")
        if not self.ohms or not min(self.ohms) > 0:
            raise ValueError(f"ohms = {self.ohms}; give resistances > 0")
        if not 0 < self.low <= self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}; choose 0 < low <= high")
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}; choose at least 1")


COLUMNS = {
    "array": "",
    "ohm": "g",
    "rival": "",
    "exact ms": ".2f",
    "over 1st ohm": ".2f",
    "further us": ".1f",
    "rival ms": ".2f",
    "rival further us": ".0f",
    "exact / rival": ".3f",
    "quartiles": "",
    "further / rival": ".1e",
    "difference": ".0e",
    "error": ".1e",
}


def run(config: Config) -> list[dict[str, object]]:
    """Time every size and resistance against every rival; writes the run folder."""
    folder = RunFolder.open(config.folder("benchmark_wires"), config.identity(), config.resume)
    rounds = 2 if config.smoke else config.rounds
    rows = []
    for n in (6,) if config.smoke else config.sizes:
        rng = generator(config.seed)
        spread = torch.rand(n, n, generator=rng, dtype=torch.float64)
        conductance = config.low * (config.high / config.low) ** spread
        volts = torch.rand(1, n, generator=rng, dtype=torch.float64)

        def exact(ohm: float, g: Tensor = conductance, v: Tensor = volts) -> Callable[[], Tensor]:
            return lambda: WiredArray(g, Wires(ohm, ohm)).matvec(v)

        by_ohm = alternately({str(ohm): exact(ohm) for ohm in config.ohms}, rounds, seconds=30)
        for ohm in config.ohms:
            array = WiredArray(conductance, Wires(ohm, ohm))
            found = array.matvec(volts)[0].numpy()
            error = array.approximation_error()
            for name, rival, further in _rivals(config, conductance, volts, ohm):
                row = {"array": f"{n} x {n}", "ohm": ohm, "rival": name, "error": error}
                row["over 1st ohm"] = by_ohm[str(ohm)].ratio
                callables = {"exact": exact(ohm), "further": lambda a=array, v=volts: a.matvec(v)}
                if rival is not None:
                    callables = {"rival": rival, **callables}
                    row["difference"] = float(np.max(np.abs(found / rival() - 1)))
                if further is not None:
                    callables["rival further"] = further
                times = alternately(callables, rounds, seconds=30)
                row["exact ms"] = 1e3 * times["exact"].seconds
                row["further us"] = 1e6 * times["further"].seconds
                if rival is not None:
                    row["rival ms"] = 1e3 * times["rival"].seconds
                    row["exact / rival"] = times["exact"].ratio
                    row["quartiles"] = f"{times['exact'].low:.3f}-{times['exact'].high:.3f}"
                    row["further / rival"] = times["further"].ratio
                if further is not None:
                    row["rival further us"] = 1e6 * times["rival further"].seconds
                rows.append({column: row.get(column) for column in COLUMNS})
                console.print(f"{row['array']}, {ohm:g} Ohm, {name}: timed")
    folder.finish({"rows": rows})
    print_table(f"Exact solves of wired arrays, {config.threads} thread(s)", rows, COLUMNS)
    return rows


def _rivals(
    config: Config, conductance: Tensor, volts: Tensor, ohm: float
) -> Iterator[tuple[str, Solve | None, Solve | None]]:
    """(name or why not, output currents from scratch, those of a further input)."""
    g, v = conductance.numpy(), volts[0].numpy()
    factors = sparse_lu(g, ohm)
    yield (
        "sparse LU",
        lambda: solve(sparse_lu(g, ohm), v, ohm, len(g)),
        lambda: solve(factors, v, ohm, len(g)),
    )
    try:
        import badcrossbar
    except ImportError as error:
        yield f"badcrossbar: {error}", None, None
    else:
        logging.getLogger("badcrossbar").setLevel(logging.WARNING)

        def by_badcrossbar() -> np.ndarray:
            found = badcrossbar.compute(v[:, None], 1 / g.T, r_i=ohm, node_voltages=False, all_currents=False)
            return found.currents.output[0]

        yield "badcrossbar", by_badcrossbar, None
    if shutil.which("ngspice") is None:
        yield "ngspice: not installed", None, None
    elif len(g) <= config.ngspice_size:
        with tempfile.TemporaryDirectory() as where:
            path = Path(where, "array.cir")
            path.write_text(netlist(g, v, ohm))
            yield "ngspice", lambda: by_ngspice(path), None


def sparse_lu(g: np.ndarray, ohm: float) -> SuperLU:
    """Factors of the nodal matrix of cells g (out, in): word line nodes first, then bit line nodes, row-major."""
    word = np.arange(g.size).reshape(g.shape)
    bit, wire = word + g.size, 1 / ohm
    diagonal = np.stack([g, g]) + 2 * wire
    diagonal[0, -1] -= wire
    diagonal[1, :, 0] -= wire
    pairs = [(word, bit, -g), (word[1:], word[:-1], -wire), (bit[:, 1:], bit[:, :-1], -wire)]
    a = np.concatenate(
        [np.arange(2 * g.size), *(p[0].ravel() for p in pairs), *(p[1].ravel() for p in pairs)]
    )
    b = np.concatenate(
        [np.arange(2 * g.size), *(p[1].ravel() for p in pairs), *(p[0].ravel() for p in pairs)]
    )
    off = [np.broadcast_to(value, first.shape).ravel() for first, _, value in pairs]
    matrix = csc_array((np.concatenate([diagonal.ravel(), *off, *off]), (a, b)))
    symmetric = {"SymmetricMode": True}
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=symmetric)


def solve(factors: SuperLU, v: np.ndarray, ohm: float, n_out: int) -> np.ndarray:
    """Output currents for v (in,): what drives the first nodes of the word lines, and reaches the last of bit lines."""
    drive = np.zeros(factors.shape[0])
    drive[: len(v)] = v / ohm
    return factors.solve(drive)[n_out * len(v) :].reshape(n_out, -1)[:, -1] / ohm


def netlist(g: np.ndarray, v: np.ndarray, ohm: float) -> str:
    """A resistor a segment and a cell; a voltage source at every terminal."""
    n_out, n_in = g.shape
    lines = [f"crossbar {n_out} x {n_in}"]
    for j in range(n_in):
        lines += [f"Vin{j} w{j}_0 0 {v[j]}"]
        lines += [f"Rw{i}_{j} w{j}_{i} w{j}_{i + 1} {ohm}" for i in range(n_out)]
    for i in range(n_out):
        lines += [f"Vout{i} b{i}_{n_in} 0 0"]
        lines += [f"Rb{i}_{j} b{i}_{j} b{i}_{j + 1} {ohm}" for j in range(n_in)]
        lines += [f"Rc{i}_{j} w{j}_{i + 1} b{i}_{j} {1 / g[i, j]!s}" for j in range(n_in)]
    prints = [f"print i(vout{i})" for i in range(n_out)]
    return "\n".join([*lines, ".control", "set numdgt=12", "op", *prints, ".endc", ".end", ""])


def by_ngspice(path: Path) -> np.ndarray:
    """Output currents, as ngspice prints them, in order."""
    output = subprocess.run(["ngspice", "-b", path], capture_output=True, text=True).stdout
    return np.array([float(line.split("=")[1]) for line in output.splitlines() if line.startswith("i(vout")])


if __name__ == "__main__":
    launch(Config, run)
