"""Exact solution of a grid of resistive lines joined by cells, by dense elimination of one line after another.

S inner lines cross P outer lines. Inner line s has the nodes (s, 0..P-1) with its terminal a_s before p = 0; outer
line p has the nodes (0..S-1, p) with its terminal b_p after s = S-1; the cell g[s, p] joins node (s, p) of inner line s
to that of outer line p:

    a_0 -end-o----o----o        inner line 0, P nodes `inner_ohm` apart
             |g   |g   |g
             o    o    o        outer lines 0 1 2: their nodes of s = 0 and 1 are `outer_ohm` apart
             :    :    :
    a_1 -end-o----o----o        inner line 1
             |g   |g   |g
             o    o    o
            end  end  end
             |    |    |
            b_0  b_1  b_2

Unknowns are what is lost along the lines, V = a_s - b_p = u + (drop along the inner line) + (drop along the outer
one), so that the voltage u across a cell keeps its digits however small the wires' resistance is. An inner line's
nodes are a chain: with the outer lines held, they are eliminated in closed form, which leaves M_s = (1/g + R)^-1, R the
chain's resistance matrix. What is left are S blocks of P nodes, each tied to the next by the outer lines' segments
alone, a multiple of the identity. Block s is then D_s = M_s + (link + next link) I - link^2 D_{s-1}^-1: one Cholesky
inverse of P x P a block, and no product of matrices. The work is S P^3, so P should be the smaller side.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dsymm
from scipy.linalg.lapack import dpotrf, dpotri


class LineElimination:
    """The factorisation, made at construction: S P^2 numbers of 8 bytes, about S P^3 multiply-adds.

    g: cells (S, P) in siemens, >= 0. inner_ohm, outer_ohm: a wire segment, > 0. inner_end, outer_end: from a terminal
    to the first node of its line, segment included, > 0.

    admittance: (S + P, S + P), currents into all terminals [a, b] of the voltages at them.
    """

    def __init__(self, g: np.ndarray, inner_ohm: float, outer_ohm: float, inner_end: float, outer_end: float):
        self.g = np.ascontiguousarray(g, dtype=np.float64)
        self._link, self._end = 1 / outer_ohm, 1 / outer_end
        self._chain = _Chain(self.g, 1 / inner_ohm, 1 / inner_end)
        self._inverses = self._chain.eliminated()  # M_s, overwritten by D_s^-1; one triangle of each
        self.admittance = self._eliminate()

    def _eliminate(self) -> np.ndarray:
        """Turns M_s into D_s^-1 and brings the terminals' admittance along.

        Off its diagonal everything adds up with one sign, so that no digits are lost; the diagonal follows from
        the rows' sums, which are 0.
        """
        s_count, p_count = self.g.shape
        link, diagonal = self._link, np.arange(p_count)
        drives = self._chain.currents(np.ones((1, s_count, p_count)))[0]  # M_s 1: what 1 V at a_s drives
        reaching = np.zeros((p_count, s_count), order="F")  # of a_0..a_s, what arrives at block s
        y = np.zeros((s_count + p_count, s_count + p_count))
        y_aa = np.zeros((s_count, s_count), order="F")
        for s in range(s_count):
            d = self._inverses[s]
            d[diagonal, diagonal] += self._end if s == s_count - 1 else link
            if s:
                d[diagonal, diagonal] += link
                d -= link**2 * self._inverses[s - 1]
            _invert(d)
            reaching[:, s] = drives[s]
            passed = reaching[:, : s + 1]
            lifted = dsymm(1.0, d.T, passed)
            y_aa[: s + 1, : s + 1] -= passed.T @ lifted
            passed[:] = link * lifted
        y[:s_count, :s_count] = y_aa
        y[s_count:, :s_count] = -self._end * lifted
        y[:s_count, s_count:] = y[s_count:, :s_count].T
        last = np.tril(self._inverses[-1])
        y[s_count:, s_count:] = -(self._end**2) * (last + last.T)
        np.fill_diagonal(y, 0)
        np.fill_diagonal(y, -y.sum(1))
        return y

    def cell_volts(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """u (B, S, P) across the cells, for terminals held at a (B, S) and b (B, P)."""
        volts = a[:, :, None] - b[:, None, :]
        pushed = self._chain.currents(volts).swapaxes(0, 1)  # (S, B, P), as the blocks are read
        drop = np.empty_like(pushed)
        arriving = 0.0
        for s, d in enumerate(self._inverses):  # dsymm reads the triangle that there is, and columns
            drop[s] = dsymm(1.0, d.T, (pushed[s] + arriving).T).T
            arriving = self._link * drop[s]
        for s in range(len(drop) - 2, -1, -1):
            drop[s] += dsymm(self._link, self._inverses[s].T, drop[s + 1].T).T
        return self._chain.cell_volts(volts - drop.swapaxes(0, 1))


class _Chain:
    """Every inner line alone, a chain of nodes with the other ends of its cells held: tridiagonal matrices
    T_s = chain + diag(g_s) of all s at once."""

    def __init__(self, g: np.ndarray, link: float, end: float):
        self.g, self._link = g, link
        diagonal = g + 2 * link
        diagonal[:, 0] += end - link
        diagonal[:, -1] -= link
        self._pivots = _pivots(diagonal.T, link)  # (P, S), from p = 0 on
        backwards = _pivots(diagonal.T[::-1], link)[::-1]
        self._inverse_diagonal = 1 / (self._pivots + backwards - diagonal.T)

    def eliminated(self) -> np.ndarray:
        """M_s = g - g T_s^-1 g, (S, P, P): the lower triangles; the upper ones are 0."""
        s_count, p_count = self.g.shape
        ratios = self._link / self._pivots
        inverse = np.zeros((s_count, p_count, p_count))
        inverse[:, 0, 0] = 1
        for p in range(1, p_count):
            inverse[:, p, :p] = inverse[:, p - 1, :p] * ratios[p - 1, :, None]
            inverse[:, p, p] = 1
        inverse *= (-self.g * self._inverse_diagonal.T)[:, :, None]
        inverse *= self.g[:, None, :]
        diagonal = np.arange(p_count)
        inverse[:, diagonal, diagonal] += self.g
        return inverse

    def cell_volts(self, volts: np.ndarray) -> np.ndarray:
        """volts (B, S, P) less the drop along the lines, T_s^-1 g_s volts."""
        drop = np.ascontiguousarray((self.g * volts).transpose(2, 1, 0))  # (P, S, B): the chain leads
        ratios = (self._link / self._pivots)[:, :, None]
        for p in range(1, len(drop)):
            drop[p] += ratios[p - 1] * drop[p - 1]
        drop /= self._pivots[:, :, None]
        for p in range(len(drop) - 2, -1, -1):
            drop[p] += ratios[p] * drop[p + 1]
        return volts - drop.transpose(2, 1, 0)

    def currents(self, volts: np.ndarray) -> np.ndarray:
        """M_s volts, (B, S, P)."""
        return self.g * self.cell_volts(volts)


def _pivots(diagonal: np.ndarray, link: float) -> np.ndarray:
    """Pivots (P, S) of tridiagonal matrices with `diagonal` (P, S) and -link beside it."""
    pivots = diagonal.copy()
    for p in range(1, len(pivots)):
        pivots[p] -= link**2 / pivots[p - 1]
    return pivots


def _invert(d: np.ndarray) -> None:
    """The lower triangle of a positive definite matrix (row-major) becomes that of its inverse, in place."""
    factor, info = dpotrf(d.T, lower=0, clean=0, overwrite_a=1)
    if info == 0:
        _, info = dpotri(factor, lower=0, overwrite_c=1)
    if info:
        raise ValueError(
            "a wired array could not be solved in float64: its conductances span too many orders of magnitude; "
            "raise the wires' resistance, or leave wires out"
        )
