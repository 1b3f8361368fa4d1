"""Many jobs that know nothing of each other: on processes of this machine, or on a Dask cluster.

Coded to `concurrent.futures.Executor`, of which a process pool and Dask's `Client.get_executor()` are two. A job whose
worker is lost while it runs (killed for its memory, a machine switched off) is done again, a bounded number of times.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from experiments.common import Options

ATTEMPTS = 3  # of a job whose worker is lost every time
CONNECT_SECONDS = 20

K = TypeVar("K")


class WorkerLost(Exception):
    """A job lost its worker at each of `ATTEMPTS` attempts."""


@dataclass(frozen=True)
class WorkerOptions(Options):
    """Options of experiments made of many jobs."""

    workers: int = 2
    """Processes, `threads` threads each; 1 is this process."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://node:8786, whose workers compute instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers}; choose at least 1")
        if self.scheduler is not None and "://" not in self.scheduler:
            raise ValueError(f"scheduler = {self.scheduler!r}; give an address such as tcp://127.0.0.1:8786")


def computed(
    function: Callable, jobs: Mapping[K, tuple], options: WorkerOptions
) -> Iterator[tuple[K, Future]]:
    """`function(*arguments)` of all jobs, as they are finished: the key of each and its future, which is done.

    function: of a module, for other processes have to find it; what it takes and returns must pickle. Its errors are
    those of the futures, and WorkerLost is one; jobs that are still waiting when the iteration ends are cancelled.

    ValueError: a scheduler without the package `distributed`. OSError: no scheduler there, or none any more.
    """
    if not jobs:
        return
    call = partial(_call, function, options.threads)
    if options.scheduler is not None:
        yield from _on_cluster(call, jobs, options.scheduler)
    elif options.workers == 1:
        yield from ((key, _here(call, arguments)) for key, arguments in jobs.items())
    else:
        # fork would copy torch's thread pool in an unusable state
        spawn = multiprocessing.get_context("spawn")
        make = partial(ProcessPoolExecutor, options.workers, spawn)
        yield from _as_finished(call, jobs, make, BrokenProcessPool, options.workers)


def _call(function: Callable, threads: int, *arguments: object) -> object:
    torch.set_num_threads(threads)
    return function(*arguments)


def _here(call: Callable, arguments: tuple) -> Future:
    future: Future = Future()
    try:
        future.set_result(call(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def _on_cluster(call: Callable, jobs: Mapping[K, tuple], address: str) -> Iterator[tuple[K, Future]]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ValueError(
            f"scheduler = {address!r} needs Dask: pip install 'mep-sim[cluster]', or leave it out"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address}; start one with `dask scheduler`, or leave --scheduler out"
        ) from error
    with closing(client):
        if not client.scheduler_info()["workers"]:
            raise ConnectionError(
                f"the Dask scheduler at {address} has no workers; start some with `dask worker {address}`"
            )
        # impure: a job that is done again must not be answered with its old error
        make = partial(client.get_executor, pure=False)
        yield from _as_finished(call, jobs, make, KilledWorker, None)


def _as_finished(
    call: Callable,
    jobs: Mapping[K, tuple],
    make: Callable[[], Executor],
    lost: type[Exception],
    width: int | None,
) -> Iterator[tuple[K, Future]]:
    """See `computed`. lost: the error of a job whose worker was lost. width: how many jobs run at a time, None where
    the executor itself keeps track of which job was on the lost worker.

    A process pool does not say which of its jobs killed it. So it is never given more than it can run, and every job
    that ran then is run again alone: who kills twice is known, and the others lose nothing.
    """
    waiting, losses, running = deque(jobs), Counter(), {}
    executor = make()
    try:
        while waiting or running:
            while waiting and _may_start(waiting[0], running.values(), losses, width):
                key = waiting.popleft()
                running[executor.submit(call, *jobs[key])] = key
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if any(isinstance(_error(future), BrokenProcessPool) for future in done):
                done, _ = wait(running)  # all fail together
                executor.shutdown()
                executor = make()
            for future in done:
                key = running.pop(future)
                error = _error(future)
                if isinstance(error, lost):
                    losses[key] += 1
                    if losses[key] < ATTEMPTS:
                        waiting.append(key)
                        continue
                    future = Future()
                    future.set_exception(WorkerLost(f"lost its worker {ATTEMPTS} times; last: {error}"))
                yield key, future
    finally:
        for future in running:
            future.cancel()
        executor.shutdown()


def _may_start(key: K, running: Collection[K], losses: Counter, width: int | None) -> bool:
    if width is None:
        return True
    if losses[key] or any(losses[other] for other in running):
        return not running
    return len(running) < width


def _error(future: Future) -> BaseException | None:
    if future.cancelled():  # by nobody here: jobs are cancelled when their results are awaited no more
        raise ConnectionError("the Dask scheduler is gone; --resume goes on from what is finished")
    return future.exception()
