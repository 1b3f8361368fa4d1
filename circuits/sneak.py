"""Reading one cell of an array, and the currents that sneak past it through the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from circuits.wired_array import WiredArray

UNSELECTED = {"grounded": (0.0, 0.0), "half": (1 / 2, 1 / 2), "third": (1 / 3, 2 / 3)}
SCHEMES = (*UNSELECTED, "floating")


@dataclass(frozen=True)
class Reading:
    """What the sense amplifier of a bit line at virtual ground sees.

    amperes: current into it; siemens: that over the read voltage, the conductance that the cell seems to have;
    watts: dissipated in the whole array, its terminals' resistors included.
    """

    amperes: float
    siemens: float
    watts: float


def read_cell(array: WiredArray, i: int, j: int, scheme: str = "floating", volts: float = 0.1) -> Reading:
    """Read the cell of bit line i and word line j: the word line at `volts`, the bit line at virtual ground.

    scheme, of all other lines: "floating" carry no current; "grounded" are at 0 V; "half" at volts / 2; "third": word
    lines at volts / 3 and bit lines at 2 volts / 3, so that all other cells see a third. All reads of an array share
    its one elimination. In a 1T1R array the transistors are as `array.selected` says: for a read, on along the word
    line (a column of it) or at the cell alone.

    ValueError: no such cell; lines that float without a path of cells to the selected ones.
    """
    n_out, n_in = array.shape
    if not (0 <= i < n_out and 0 <= j < n_in):
        raise ValueError(
            f"no cell ({i}, {j}); this array has {n_out} bit lines and {n_in} word lines, from 0"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"scheme = {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if not (math.isfinite(volts) and volts != 0):
        raise ValueError(f"volts = {volts}; choose a finite read voltage other than 0 V, such as 0.1")
    y = array.admittance()
    selected = torch.tensor([j, n_in + i], device=y.device)
    v = y.new_zeros(n_in + n_out)
    if scheme in UNSELECTED:
        word, bit = UNSELECTED[scheme]
        v[:n_in], v[n_in:] = word * volts, bit * volts
    v[selected] = v.new_tensor([volts, 0.0])
    if scheme == "floating":
        _check_floating(array, i, j)
        free = torch.ones_like(v, dtype=torch.bool).index_fill(0, selected, False)
        v[free] = _floating_volts(y[free][:, free], -y[free] @ v)
    currents = y @ v
    amperes = -currents[n_in + i].item()
    return Reading(amperes, amperes / volts, (v @ currents).item())


def _floating_volts(y: Tensor, driven: Tensor) -> Tensor:
    """Voltages at which lines of admittance y take the currents that drive them. Scaled to a diagonal of 1, for lines
    may differ by orders of magnitude."""
    scale = y.diagonal().rsqrt()
    factor = torch.linalg.cholesky(scale[:, None] * y * scale)
    return scale * torch.cholesky_solve((scale * driven)[:, None], factor)[:, 0]


def _check_floating(array: WiredArray, i: int, j: int) -> None:
    """ValueError if cells join a line neither to word line j nor to bit line i."""
    n_out, n_in = array.shape
    rows, columns = array.series_siemens.cpu().numpy().nonzero()
    graph = coo_array((rows * 0 + 1, (columns, rows + n_in)), shape=(n_in + n_out,) * 2)
    _, piece = connected_components(graph, directed=False)
    for line, of in enumerate(piece):
        if of not in (piece[j], piece[n_in + i]):
            name = f"word line {line}" if line < n_in else f"bit line {line - n_in}"
            raise ValueError(
                f"{name} floats: no cells above 0 S join it to word line {j} or bit line {i}. Choose a scheme that "
                "holds it, or give the cells or transistors a leakage"
            )
