"""Where the jobs of a sweep run: as processes of this machine, or as jobs of a SLURM cluster through ``submitit``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from salm_lightning.console import say
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.interruption import Interrupted
from salm_lightning.runs.record import INTERRUPTED, OPEN
from salm_lightning.sweep.job import Job, work
from salm_lightning.sweep.slurm import Queue, SlurmRun, cancel, check_slurm, queue_again, refusal

_MOST_TIMEOUTS = 100
"""Times that a job may be ended by its time limit and go on; submitit's own three are few for a long training."""


_ALL_CPUS = '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
"""Since SLURM 22.05 the ``srun`` of a batch script has one CPU unless it is told."""


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

    def take_over(self, jobs: Sequence[Job]) -> dict[Job, Future[None]]:
        """Return nothing: processes that a killed sweep has left keep its lock, and this one would not have begun."""
        return {}

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

    On SLURM a job is named after sweep and run. Those that a killed sweep has left are found by that, and taken over.

    Args:
        parameters: Parameters of ``submitit.AutoExecutor.update_parameters``, such as ``slurm_partition``, ``gpus_per_node`` and
            ``timeout_min``, which has to be given; ``executor`` is ``slurm`` by default, or ``local``; ``max_num_timeout`` is how often a
            job may be ended by that time and go on.
        folder: Where ``submitit`` keeps its files; all nodes have to share it.
        workers: Jobs at a time; ``None`` leaves that to the cluster.

    Raises:
        ConfigurationError: ``submitit`` is not installed, there is no SLURM here, or a parameter is missing, not known or cannot work.
    """

    is_here, pause = False, 1.0

    def __init__(self, parameters: Mapping[str, Any], folder: Path, workers: int | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigurationError("cluster needs submitit: pip install 'salm-lightning[cluster]'.") from error
        self.limit = workers or 2**31
        self._folder, self._handles = folder, []  # type: tuple[Path, list[Any]]
        options = dict(parameters)
        kind = options.pop("executor", "slurm")
        self._queue = Queue() if kind == "slurm" else None
        self._name = options.pop("name", folder.parent.name)
        timeouts = {f"{kind}_max_num_timeout": options.pop("max_num_timeout", _MOST_TIMEOUTS)}
        own = {
            "slurm_additional_parameters": {"requeue": True} | options.pop("slurm_additional_parameters", {}),
            "slurm_setup": [*options.pop("slurm_setup", []), _ALL_CPUS],
        }
        try:
            if self._queue:
                check_slurm()
            self._executor = submitit.AutoExecutor(folder, cluster=kind, **timeouts)
            self._executor.update_parameters(**(options | own))
            _check_parameters(options)
        except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
            raise ConfigurationError(f"cluster={dict(parameters)}: {error}") from error

    def take_over(self, jobs: Sequence[Job]) -> dict[Job, Any]:
        """Return what submitting those would, of those for which a job is in the cluster's queue already."""
        if self._queue is None:
            return {}
        found = self._queue.find(self._folder, jobs)
        return {job: self._watch(self._queue, number, job, "is there already") for job, number in found.items()}

    def submit(self, job: Job) -> Any:
        """Submit a job.

        Raises:
            ConfigurationError: SLURM does not take it. Those that are there already are left at work.
        """
        if self._queue is None:
            self._handles.append(self._executor.submit(_ClusterFit(), job))
            return self._handles[-1]
        self._executor.update_parameters(name=f"{self._name}-{job.name}")
        try:
            with redirect_stderr(StringIO()):  # where submitit says it as well
                number = str(self._executor.submit(_ClusterFit(), job).job_id)
        except RuntimeError as error:
            raise ConfigurationError(f"SLURM did not take {job.name}: {refusal(str(error))}.{self._left_at_work()}") from error
        return self._watch(self._queue, number, job, "is submitted")

    def _watch(self, queue: Queue, number: str, job: Job, how: str) -> SlurmRun:
        say(f"SLURM job {number} {how}: {job.name}")
        queue.add(number)
        handle = SlurmRun(queue, number, job, self._folder / f"{number}_0_log.err")
        self._handles.append(handle)
        return handle

    def _left_at_work(self) -> str:
        numbers = self._at_work()
        return (
            f" Jobs {' '.join(numbers)} are left at work; the same command takes them over, scancel ends them." if numbers else ""
        )

    def _at_work(self) -> list[str]:
        return [handle.number for handle in self._handles if not handle.done()]

    def stop(self) -> None:
        """Cancel the jobs; started again, they go on from their last checkpoint."""
        if self._queue is not None:
            cancel(self._at_work())
            return
        for handle in self._handles:
            if not handle.done():
                handle.cancel()


def _check_parameters(options: Mapping[str, Any]) -> None:
    """Refuse parameters that submitit takes and that are not meant."""
    if not {"timeout_min", "slurm_timeout_min", "slurm_time", "local_timeout_min"} & options.keys():
        raise ValueError(
            "timeout_min is missing; give the minutes after which a job is ended, saves its state and is queued again."
        )
    for name in ("nodes", "tasks_per_node", "slurm_nodes", "slurm_tasks_per_node", "slurm_ntasks_per_node"):
        if options.get(name, 1) != 1:
            raise ValueError(
                f"{name}={options[name]}: a run of a sweep is one task with a process per device; give gpus_per_node."
            )


class _ClusterFit:
    """What runs on a node; ``submitit`` calls ``checkpoint`` before a preempted or timed-out job is queued again."""

    _process: subprocess.Popen[bytes] | None = None

    def __call__(self, job: Job) -> None:
        work(job, started=self._started)
        state = job.state()
        if state.status == INTERRUPTED and not state.why:  # it has saved its state on SIGTERM
            queue_again()

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
        running |= runner.take_over(waiting)
        waiting = [job for job in waiting if job not in running]
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
        kind = "" if isinstance(error, SalmError) else f"{type(error).__name__}: "
        why = "the job ended without a result" if error is None else f"{kind}{error}"
        job.note(INTERRUPTED, state.seconds, why)


def _stop(runner: Runner, running: Collection[Future[None]]) -> None:
    """Let the running jobs save their state; another Ctrl-C ends them at once."""
    while running:
        with suppress(Interrupted):
            runner.stop()
            while any(not handle.done() for handle in running):
                time.sleep(runner.pause)
            return
