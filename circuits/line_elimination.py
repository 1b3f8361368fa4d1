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

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from scipy.linalg.blas import dsymm
from scipy.linalg.lapack import dpotrf, dpotri


class LineElimination:
    """The factorisation, made at construction: S P^2 numbers of 8 bytes, about S P^3 multiply-adds.

    g: cells (S, P) in siemens, >= 0. inner_ohm, outer_ohm: a wire segment, > 0. inner_end, outer_end: from a terminal
    to the first node of its line, segment included, > 0.

    Of symmetric matrices there are lower triangles only: the upper ones of their transposes, which LAPACK reads.
    Off the diagonals of what it gives everything adds up with one sign, so that no digits are lost; the diagonals
    follow from the sums of rows, which are 0.
    """

    def __init__(self, g: np.ndarray, inner_ohm: float, outer_ohm: float, inner_end: float, outer_end: float):
        self.g = np.ascontiguousarray(g, dtype=np.float64)
        self._link, self._end = 1 / outer_ohm, 1 / outer_end
        self._chain = _Chain(self.g, 1 / inner_ohm, 1 / inner_end)
        self._inverses = self._chain.eliminated()  # M_s, to become D_s^-1
        ones = np.ones((*self.g.shape[::-1], 1))
        self._drives = self._chain.currents(ones)[:, :, 0].T  # M_s 1: what 1 V at a_s drives, (S, P)
        self._factorise()

    def _factorise(self) -> None:
        last, diagonal = len(self.g) - 1, np.arange(self.g.shape[1])
        for s, d in enumerate(self._inverses):
            d[diagonal, diagonal] += self._end if s == last else self._link
            if s:
                d[diagonal, diagonal] += self._link
                d -= self._link**2 * self._inverses[s - 1]
            _invert(d)

    @cached_property
    def mutual(self) -> np.ndarray:
        """(P, S): currents into the terminals b of the voltages at a, <= 0. About S^2 P^2 / 2 multiply-adds."""
        *_, lifted = self._forward()
        return -self._end * lifted

    @cached_property
    def admittance(self) -> np.ndarray:
        """(S + P, S + P): currents into all terminals [a, b] of the voltages at them. Twice the work of `mutual`."""
        s_count, p_count = self.g.shape
        y = np.zeros((s_count + p_count, s_count + p_count))
        lifted = list(self._forward())
        y[s_count:, :s_count] = -self._end * lifted[-1]
        found = 0.0
        for s in reversed(range(s_count)):  # the drops at block s, of 1 V at each of a_0..a_s
            found = found + lifted.pop()
            y[s, : s + 1] = -self._drives[s] @ found
            if s:
                found = dsymm(self._link, self._inverses[s - 1].T, found[:, :s])
        y[s_count:, s_count:] = -(self._end**2) * self._inverses[-1]
        y = np.tril(y, -1)
        y += y.T
        np.fill_diagonal(y, -y.sum(1))
        return y

    def _forward(self) -> Iterator[np.ndarray]:
        """Block after block: the drops there (P, s + 1) of 1 V at each of a_0..a_s, if block s was the last."""
        arriving = np.zeros(self.g.shape[::-1], order="F")
        for s, d in enumerate(self._inverses):
            arriving[:, s] = self._drives[s]
            lifted = dsymm(1.0, d.T, arriving[:, : s + 1])
            yield lifted
            np.multiply(lifted, self._link, out=arriving[:, : s + 1])

    def cell_volts(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """u (B, S, P) across the cells, for terminals held at a (B, S) and b (B, P)."""
        volts = a.T - np.ascontiguousarray(b.T)[:, None]  # (P, S, B)
        drop = self._chain.currents(volts)
        arriving = 0.0
        for s, d in enumerate(self._inverses):
            drop[:, s] = dsymm(1.0, d.T, (drop[:, s] + arriving).T, side=1).T
            arriving = self._link * drop[:, s]
        for s in range(len(self.g) - 2, -1, -1):
            drop[:, s] += dsymm(self._link, self._inverses[s].T, drop[:, s + 1].T, side=1).T
        volts -= drop
        return self._chain.cell_volts(volts).transpose(2, 1, 0)


class _Chain:
    """Every inner line alone, a chain of nodes with the other ends of its cells held: tridiagonal matrices
    T_s = chain + diag(g_s) of all s at once."""

    def __init__(self, g: np.ndarray, link: float, end: float):
        self.g, self._link = g, link
        self._cells = np.ascontiguousarray(g.T)[:, :, None]  # (P, S, 1): the chain leads
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
        # T^-1 over its diagonal is a product of ratios, from one node to the other
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
        """volts (P, S, B) less the drop along the lines, T_s^-1 g_s volts."""
        drop = self._cells * volts
        ratios = (self._link / self._pivots)[:, :, None]
        for p in range(1, len(drop)):
            drop[p] += ratios[p - 1] * drop[p - 1]
        drop /= self._pivots[:, :, None]
        for p in range(len(drop) - 2, -1, -1):
            drop[p] += ratios[p] * drop[p + 1]
        return np.subtract(volts, drop, out=drop)

    def currents(self, volts: np.ndarray) -> np.ndarray:
        """M_s volts, (P, S, B)."""
        across = self.cell_volts(volts)
        across *= self._cells
        return across


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
