"""Jobs on processes and on a Dask cluster: all results come, lost workers cost nothing else, errors stay their own."""

import builtins
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import device_study, executors
from experiments.device_study import OnCell, Point, StudyConfig
from experiments.executors import ATTEMPTS, WorkerLost, WorkerOptions, computed
from tests.jobs import die, square, threads_or_refuse


def collected(function, jobs, **options) -> dict:
    return {k: future.result() for k, future in computed(function, jobs, WorkerOptions(**options))}


def numbers(n: int, *before) -> dict[int, tuple]:
    return {x: (*before, x) for x in range(n)}


@pytest.fixture(scope="module")
def cluster():
    """Address of a scheduler with two workers, which gives a job up with the first worker that it loses."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    settings = {"distributed.scheduler.allowed-failures": 0}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
    ):
        yield local.scheduler_address


def pooled(function, jobs) -> dict[int, Future]:
    """On two processes, without the import of torch that comes with `computed`."""
    make = partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn"))
    return dict(executors._as_finished(function, jobs, make, BrokenProcessPool, 2))


def test_nothing_to_do_starts_nothing():
    assert collected(square, {}, scheduler="tcp://nowhere:1") == {}


def test_this_process_is_the_one_worker():
    assert collected(os.getpid, {0: ()}, workers=1) == {0: os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_under_their_keys_and_errors_stay_with_their_job(workers):
    options = WorkerOptions(workers=workers, threads=workers)
    futures = dict(computed(threads_or_refuse, numbers(4), options))
    torch.set_num_threads(1)  # as conftest wants it
    assert {x: futures[x].result() for x in (0, 1, 3)} == dict.fromkeys((0, 1, 3), workers)
    with pytest.raises(ValueError, match="two is too many"):
        futures[2].result()


def test_jobs_of_a_lost_worker_are_done_again(tmp_path):
    futures = pooled(die, numbers(5, tmp_path, 1))
    assert {x: future.result() for x, future in futures.items()} == {x: x for x in range(5)}
    attempts = [len(list(tmp_path.glob(f"{x}-*"))) for x in range(5)]
    assert attempts[0] == 2
    assert sum(attempts) <= 7  # the one beside it may have been lost with it; those that waited were not


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path):
    futures = pooled(die, numbers(3, tmp_path, 99))
    with pytest.raises(WorkerLost, match=f"lost its worker {ATTEMPTS} times"):
        futures[0].result()
    assert (futures[1].result(), futures[2].result()) == (1, 2)
    assert len(list(tmp_path.glob("0-*"))) == ATTEMPTS


@dataclass
class Script:
    """An executor whose jobs end as written down: an error, or None for success."""

    ends: dict[int, list[Exception | None]]

    def submit(self, _call, x: int) -> Future:
        future, error = Future(), self.ends[x].pop(0)
        if error is None:
            future.set_result(x)
        else:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


class Lost(Exception):
    """Stands for an executor's own word for a lost worker."""


def test_a_job_is_attempted_a_bounded_number_of_times():
    script = Script({0: [Lost(), Lost(), None], 1: [Lost(), Lost(), Lost()], 2: [None]})
    done = dict(executors._as_finished(square, numbers(3), lambda: script, Lost, None))
    assert [done[0].exception(), done[2].exception()] == [None, None]
    assert isinstance(done[1].exception(), WorkerLost)
    assert script.ends == {0: [], 1: [], 2: []}


def test_a_cancelled_job_means_that_the_scheduler_is_gone():
    class Gone(Script):
        def submit(self, _call, x):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(ConnectionError, match="scheduler is gone; --resume"):
        dict(executors._as_finished(square, numbers(1), lambda: Gone({}), Lost, None))


# -- Dask ---------------------------------------------------------------------------------------------


def mortal(point: Point, config: OnCell, marker: Path) -> dict:
    """Stands for training: kills its worker once, and cannot do a spread of 2."""
    if point.bits == 4 and point.spread is None and not marker.exists():
        marker.touch()
        os._exit(1)
    if point.spread == 2:
        raise ValueError("too wide")
    return {"accuracy": 0.9 + 0.01 * point.seed, "pulses/device": 1.0, "data": config.dataset}


def test_study_on_a_cluster_survives_a_lost_worker_and_a_failing_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(device_study.study_figures, "draw", lambda *_: None)
    marker = tmp_path / "killed"
    config = StudyConfig(
        devices=("rpu",),
        bits=(None, 4),
        spread=(None, 2.0),
        seeds=2,
        dataset="digits",
        scheduler=cluster,
        out=tmp_path / "study",
    )
    rows = device_study.run(config, partial(mortal, marker=marker))
    assert marker.exists()
    assert len(rows) == 10  # 2 x 2 points and the digital one, each over 2 seeds
    for row in rows:
        assert row["status"] == ("failed" if row["spread"] == 2 else "done")
        assert row.get("error") == ("ValueError: too wide" if row["spread"] == 2 else None)
        assert row.get("accuracy") == (None if row["spread"] == 2 else 0.9 + 0.01 * row["seed"])


def test_no_scheduler_and_no_workers_say_what_to_start(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127.0.0.1:1; start one"):
        collected(square, numbers(1), scheduler="tcp://127.0.0.1:1")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as local,
        pytest.raises(ConnectionError, match="has no workers; start some with `dask worker"),
    ):
        collected(square, numbers(1), scheduler=local.scheduler_address)


def test_a_scheduler_without_dask_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name == "distributed":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'mep-sim\[cluster\]'"):
        collected(square, numbers(1), scheduler="tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers = 0; choose at least 1"),
        ({"scheduler": "node"}, "an address such as tcp://"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WorkerOptions(**options)
