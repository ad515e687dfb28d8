"""Where the jobs of a sweep run: as processes of this machine, or as jobs of a SLURM cluster through ``submitit``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from salm_lightning.errors import ConfigurationError
from salm_lightning.interruption import Interrupted
from salm_lightning.runs.record import INTERRUPTED, OPEN
from salm_lightning.sweep.job import Job, work


class Local:
    """Runs so many jobs at a time as processes of this machine.

    They share the cores, unless ``OMP_NUM_THREADS`` is set, and each has a GPU of its own where there are several.
    """

    is_here = True
    """Whether jobs run on this machine."""
    pause = 0.2
    """Seconds between two looks at the running jobs."""

    def __init__(self, workers: int = 1) -> None:
        self.limit = workers
        self._pool = ThreadPoolExecutor(workers)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._slots = list(range(workers))

    def submit(self, job: Job) -> Future[None]:
        """Start a job."""
        return self._pool.submit(self._work, job)

    def _work(self, job: Job) -> None:
        slot = self._slots.pop(0)  # there is one for each thread
        try:
            work(job, _share(slot, self.limit), self._started)
        finally:
            self._slots.append(slot)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.add(process)
        if self._stopping:  # it was submitted before, and started after that
            process.terminate()

    def stop(self) -> None:
        """Send SIGTERM, on which a fit saves its state; the second time SIGKILL."""
        number = signal.SIGKILL if self._stopping else signal.SIGTERM
        self._stopping = True
        for process in list(self._processes):
            process.send_signal(number)  # does nothing to those that have ended


def _share(slot: int, workers: int) -> dict[str, str]:
    """Return the environment of one of several processes that share a machine."""
    if workers == 1:
        return {}
    import torch  # not with this module: all that is needed of it is the number of GPUs

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    return {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {})


class Cluster:
    """Runs jobs through ``submitit``.

    Args:
        parameters: Parameters of ``submitit.AutoExecutor.update_parameters``, such as ``slurm_partition``, ``gpus_per_node`` and
            ``timeout_min``; ``executor`` is ``slurm`` by default, or ``local``.
        folder: Where ``submitit`` keeps its files; all nodes have to share it.
        workers: Jobs at a time; ``None`` leaves that to the cluster.

    Raises:
        ConfigurationError: ``submitit`` is not installed, there is no SLURM here, or a parameter is not known.
    """

    is_here, pause = False, 1.0

    def __init__(self, parameters: Mapping[str, Any], folder: Path, workers: int | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigurationError("cluster needs submitit: pip install 'salm-lightning[cluster]'.") from error
        self.limit = workers or 2**31
        self._jobs: list[Any] = []
        options = dict(parameters)
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=options.pop("executor", "slurm"))
            self._executor.update_parameters(**({"name": "salm"} | options))
        except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
            raise ConfigurationError(f"cluster={dict(parameters)}: {error}") from error

    def submit(self, job: Job) -> Any:
        """Submit a job."""
        handle = self._executor.submit(_ClusterFit(), job)
        self._jobs.append(handle)
        return handle

    def stop(self) -> None:
        """Cancel the jobs; started again, they go on from their last checkpoint."""
        for handle in self._jobs:
            if not handle.done():
                handle.cancel()


class _ClusterFit:
    """What runs on a node; ``submitit`` calls ``checkpoint`` before a preempted or timed-out job is queued again."""

    _process: subprocess.Popen[bytes] | None = None

    def __call__(self, job: Job) -> None:
        work(job, started=self._started)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # Not wait(), which the signal may have interrupted and whose lock it holds.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(_ClusterFit(), job)


Runner = Local | Cluster
"""Starts jobs, up to ``limit`` at a time; what it returns for one says when that is ``done()`` and what went wrong outside of the fit."""


def run_jobs(jobs: Sequence[Job], runner: Runner, ended: Callable[[Job], None]) -> None:
    """Run all jobs that are not done, each once what it needs is done, and call ``ended`` after each; what needs a failed one is left out.

    Raises:
        Interrupted: The sweep was asked to stop; by then all jobs have ended.
    """
    done = {job.name for job in jobs if job.state().is_done}
    waiting = [job for job in jobs if job.name not in done]
    running: dict[Job, Future[None]] = {}
    for job in waiting:
        job.prepare()
    try:
        while True:
            ready = [job for job in waiting if job.needs is None or job.needs.name in done]
            for job in ready[: max(0, runner.limit - len(running))]:
                waiting.remove(job)
                running[job] = runner.submit(job)
            if not running:
                return
            for job in [job for job, handle in running.items() if handle.done()]:
                _settle(job, running.pop(job))
                if job.state().is_done:
                    done.add(job.name)
                ended(job)
            time.sleep(runner.pause)
    except Interrupted:
        _stop(runner, running.values())
        raise


def _settle(job: Job, handle: Future[None]) -> None:
    """Note an end that the job could not note itself; it says nothing against what the fit had saved by then."""
    error, state = handle.exception(), job.state()
    if error is not None or state.status == OPEN:
        why = "the job ended without a result" if error is None else f"{type(error).__name__}: {error}"
        job.note(INTERRUPTED, state.seconds, why)


def _stop(runner: Runner, running: Collection[Future[None]]) -> None:
    """Let the running jobs save their state; another Ctrl-C ends them at once."""
    while running:
        with suppress(Interrupted):
            runner.stop()
            while any(not handle.done() for handle in running):
                time.sleep(runner.pause)
            return
