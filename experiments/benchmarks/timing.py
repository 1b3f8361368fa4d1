"""Times of several callables as ratios, which a busy machine disturbs less than the times themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """`seconds`: median. `ratio`: median over the rounds of this callable's time over the reference's in the
    same round, `low` and `high` its quartiles."""

    seconds: float
    ratio: float
    low: float
    high: float


def alternately(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    seconds: float = 60.0,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Time the callables in turn, A B C A B C ..., after a round untimed; the first is the reference.

    Stops after `rounds` rounds, or after the first that ends more than `seconds` from the start. On a GPU
    a time ends when its queue is empty.
    """
    started = time.perf_counter()
    if warm_up:
        for function in callables.values():
            function()
    table = []
    while not table or (len(table) < rounds and time.perf_counter() - started < seconds):
        table.append([_time(function) for function in callables.values()])
    times = torch.tensor(table, dtype=torch.float64)  # (rounds, callables)
    ratios = times / times[:, :1]
    quartiles = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0).T.tolist()
    return {
        name: Timing(median, ratio, low, high)
        for name, median, (low, ratio, high) in zip(
            callables, times.quantile(0.5, dim=0).tolist(), quartiles, strict=True
        )
    }


def _time(function: Callable[[], object]) -> float:
    _synchronise()
    started = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - started


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
