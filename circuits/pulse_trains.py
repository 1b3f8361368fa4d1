"""Outer products by coincidence: rows and columns of an array fire random trains, a cell is pulsed where both do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.base import Pairs
from devices.indices import nonzero

ROWS = 256  # samples at a time, so that memory stays bounded
CERTAIN = 1 - 2**-24  # where a line always fires: the largest probability below 1 in single precision
CROWDED = (
    0.25  # lines fire that often in the mean: drawing every slot takes less time than drawing what fires
)
DENSE = (
    0.004  # share of all slots of all cells with a coincidence: beyond, a matrix product counts them faster
)


@dataclass(frozen=True)
class Coincidences:
    """up, down: pulses (out, in) int32 of each direction; saturated: of all lines with a signal, the share that was to
    fire with a probability above 1."""

    up: Tensor
    down: Tensor
    saturated: float


@dataclass(frozen=True)
class PulseTrains:
    """Stochastic trains of `length` slots per sample (Gokmen & Vlasov, Front. Neurosci. 10:333, 2016).

    In each slot the line of input i fires with probability a |x_i| and that of output j with b |d_j|, and a cell is
    pulsed where both of its lines do, up or down by the signs; all cells of a line share its train. With
    a b = scale / (step length) a weight moves by -scale d_j x_i in the mean, as long as no probability exceeds 1:
    beyond that a line fires in every slot, and the weight moves less.

    length: 1 to 1000 slots. balance: choose a / b for each sample such that the likeliest row and the likeliest column
    fire equally often ("update management"); else a = b.
    """

    length: int = 31
    balance: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 1000:
            raise ValueError(f"length = {self.length} of a pulse train; choose 1 to 1000 slots, such as 31")

    def coincide(self, pairs: Pairs, scale: float, step: float, rng: torch.Generator) -> Coincidences:
        """The pulses of size `step` > 0 that move a weight (out, in) by -scale post' pre, summed over pairs, in the
        mean. pairs: (post (R, out), pre (R, in)), a train for each of the R rows; scale > 0."""
        post, pre = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        p_post, p_pre = self._probabilities(post, pre, scale / (step * self.length))
        driven, beyond = (
            sum(int(torch.count_nonzero(x)) for x in lines)
            for lines in ((p_post, p_pre), (p_post > 1, p_pre > 1))
        )
        size = post.shape[1] * pre.shape[1]
        counts = torch.zeros(2 * size, dtype=torch.int32, device=post.device)
        for d, x, p_d, p_x in zip(*(t.split(ROWS) for t in (post, pre, p_post, p_pre)), strict=True):
            counts += self._count(d, x, self._fire(p_d, rng), self._fire(p_x, rng))
        down, up = counts.view(2, post.shape[1], pre.shape[1])
        return Coincidences(up, down, beyond / max(driven, 1))

    def _probabilities(self, post: Tensor, pre: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Of firing in a slot, by line, not yet cut off at 1: (R, out), (R, in) with products rate |d_j x_i|."""
        post, pre = post.abs(), pre.abs()
        tilt = torch.ones_like(post[:, :1])
        if self.balance:
            tilt = (pre.amax(1, keepdim=True) / post.amax(1, keepdim=True)).sqrt_()
            tilt = torch.where(
                tilt.isfinite() & (tilt > 0), tilt, torch.ones_like(tilt)
            )  # no signal, no trains
        return post * (tilt * rate**0.5), pre * (rate**0.5 / tilt)

    def _fire(self, p: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which lines fire when: (slot, line), each (n,) int64, in order; slots 0 to R length - 1. p (R, lines).

        A line fires with probability p where a Poisson process of rate -log(1 - p) per slot has at least one event.
        One process runs through all slots of all rows, each slot as long as the sum of its lines' rates: so the work
        is in proportion to what fires.
        """
        rows, lines = p.shape
        rate = torch.log1p(-p.clamp(max=CERTAIN)).neg_()
        ends = rate.view(-1).cumsum(
            0, dtype=torch.float64
        )  # of the lines, one slot of every row after another
        row_ends = ends[lines - 1 :: lines]
        total = self.length * float(row_ends[-1])
        if total > CROWDED * self.length * p.numel():
            u = torch.rand(rows, self.length, lines, generator=rng, dtype=p.dtype, device=p.device)
            key = nonzero(u < p.unsqueeze(1))
        else:
            t = _arrivals(total, rng)
            edges = torch.searchsorted(t, row_ends * self.length)
            edges[-1] = len(t)
            row = torch.repeat_interleave(edges.diff(prepend=edges.new_zeros(1)), output_size=len(t))
            start = torch.cat([row_ends.new_zeros(1), row_ends[:-1]])
            width, start = (row_ends - start).index_select(0, row), start.index_select(0, row)
            since = t.sub_(start, alpha=self.length)
            slot = (since / width).long().clamp_(max=self.length - 1)
            line = torch.searchsorted(ends, since.sub_(slot * width).add_(start), right=True)
            slot += row * self.length
            key = slot * lines + (line - row * lines).clamp_(0, lines - 1)  # ends may be hit by a rounding
            key = torch.unique_consecutive(key)  # twice in a slot is once
        slot = key.div(lines, rounding_mode="floor")
        return slot, key - slot * lines

    def _count(self, post: Tensor, pre: Tensor, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
        """Coincidences by cell, (2 out in,) int32: those that pulse down, then those that pulse up."""
        n_out, n_in = post.shape[1], pre.shape[1]
        slots = self.length * len(post)
        falls_post, falls_pre = (
            (signal < 0).view(-1).index_select(0, slot.div(self.length, rounding_mode="floor") * n + line)
            for signal, n, (slot, line) in ((post, n_out, rows), (pre, n_in, columns))
        )
        per_slot = torch.bincount(rows[0], minlength=slots)
        partners = per_slot.index_select(0, columns[0])  # rows that fire with each firing of a column
        total = int(partners.sum())
        if total > DENSE * slots * n_out * n_in:
            return _products(slots, (n_out, n_in), (*rows, falls_post), (*columns, falls_pre))
        # Row cells in order of slots, as they count where the column's signal is positive, and where it is negative
        cells, up = rows[1] * n_in, n_out * n_in
        cells = torch.cat([cells + up * falls_post, cells + up * falls_post.logical_not()])
        first = (per_slot.cumsum(0) - per_slot).index_select(0, columns[0]) + len(rows[0]) * falls_pre
        first -= partners.cumsum(0) - partners
        who = torch.repeat_interleave(partners, output_size=total)  # the column's firing, by coincidence
        partner = first.index_select(0, who).add_(torch.arange(total, device=post.device))
        cell = cells.index_select(0, partner).add_(columns[1].index_select(0, who))
        return torch.bincount(cell, minlength=2 * n_out * n_in).to(torch.int32)


def _arrivals(end: float, rng: torch.Generator) -> Tensor:
    """Events (n,) float64 of a Poisson process of rate 1 on [0, end), in order."""
    times, reached = [], 0.0
    while reached < end:
        n = int((left := end - reached) + 6 * left**0.5) + 20
        gaps = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device).neg_().log1p_().neg_()
        times.append(gaps.cumsum_(0).add_(reached))
        reached = float(gaps[-1])
    t = torch.cat(times) if times else torch.empty(0, dtype=torch.float64, device=rng.device)
    return t[: int(torch.searchsorted(t, end))]


def _products(
    slots: int, shape: tuple[int, int], rows: Sequence[Tensor], columns: Sequence[Tensor]
) -> Tensor:
    """As `PulseTrains._count`, by products of the trains (slots, lines) as matrices."""
    signed, fired = [], []
    for n, (slot, line, falls) in zip(shape, (rows, columns), strict=True):
        train = torch.zeros(slots, n, device=slot.device)
        fired.append(train.index_put((slot, line), torch.ones((), device=slot.device)))
        signed.append(train.index_put((slot, line), 1.0 - 2.0 * falls))
    net, both = signed[0].T @ signed[1], fired[0].T @ fired[1]
    return torch.stack([both + net, both - net]).mul_(0.5).round_().view(-1).to(torch.int32)
