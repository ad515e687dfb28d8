"""SLURM as a sweep sees it: which of its jobs wait or run, what became of one, and how a preempted one is queued again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from salm_lightning.console import say
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.runs.record import DONE, FAILED, OPEN
from salm_lightning.sweep.job import Job

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_MOST_RESTARTS = 200
"""Times that a job is queued again, should each of them be stopped at once."""
_SHORTEST, _LONGEST = 2.0, 30.0
"""Seconds between two questions to SLURM: few soon after a job was submitted, more for those that run for hours."""
_SETTLING = 10.0
"""Seconds after a job's end in which its last words may still be on their way through a shared file system."""


class JobGoneError(SalmError, RuntimeError):
    """A job has left the cluster's queue without a result."""


class _Queued(NamedTuple):
    name: str
    script: Path


def check_slurm() -> None:
    """Refuse a machine that has no SLURM with a ConfigurationError."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise ConfigurationError(
            f"there is no SLURM here: {', '.join(missing)} not found; start the sweep on a node that submits jobs."
        )


class Queue:
    """The user's jobs that wait or run.

    It asks ``squeue``, which every SLURM has; ``sacct`` knows nothing where a cluster keeps no accounts.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _Queued] = {}
        self._asked, self._newest = float("-inf"), time.monotonic()
        self._answers = True

    def find(self, folder: Path, jobs: Sequence[Job]) -> dict[Job, str]:
        """Return the numbers of living jobs that were submitted from a folder for runs, by run.

        Raises:
            ConfigurationError: SLURM does not say; jobs that it has might be submitted twice.
        """
        if error := self._ask():
            raise ConfigurationError(f"squeue does not answer ({error}), and jobs of this sweep may be at work; try again later.")
        here = folder.resolve()
        ours = {number: name for number, (name, script) in self._jobs.items() if script.parent.resolve() == here}
        return {job: number for job in jobs for number, name in ours.items() if name.endswith(job.name)}

    def add(self, number: str) -> None:
        """Note a job that was submitted."""
        self._jobs.setdefault(number, _Queued("", Path()))
        self._newest = time.monotonic()

    def has(self, number: str, soon: bool = False) -> bool:
        """Return whether a job waits or runs, as far as is known; ``soon`` where there is a reason to think that it has ended."""
        now = time.monotonic()
        patience = _SHORTEST if soon else min(_LONGEST, max(_SHORTEST, (now - self._newest) / 2))
        if now - self._asked >= patience:
            error = self._ask()
            if error and self._answers:
                say(f"squeue does not answer ({error}); the jobs are taken to be at work until it does.")
            self._answers = not error
        return number in self._jobs

    def _ask(self) -> str:
        """Ask SLURM, and return why it did not answer."""
        self._asked = time.monotonic()
        code, answer = _call("squeue", "--noheader", f"--user={os.getuid()}", "--format=%A|%j|%o")
        if code:
            return answer
        lines = (line.split("|", 2) for line in answer.splitlines())
        self._jobs = {number: _Queued(name, Path(script)) for number, name, script in lines}
        return ""


class SlurmRun:
    """A run's job: says when it has ended, and what went wrong outside of the fit."""

    def __init__(self, queue: Queue, number: str, job: Job, log: Path) -> None:
        self.number = number
        self._queue, self._job, self._log = queue, job, log
        self._before, self._gone = job.noted(), 0.0

    def done(self) -> bool:
        """Return whether the run has its result, or else whether the job has left the queue; one that is queued again has not."""
        noted = self._noted()
        if noted in (DONE, FAILED):
            return True
        if self._queue.has(self.number, soon=noted != OPEN):
            self._gone = 0.0
            return False
        self._gone = self._gone or time.monotonic()
        return noted != OPEN or time.monotonic() - self._gone > _SETTLING

    def exception(self) -> JobGoneError | None:
        """Return what to say of a job that ended without noting a result."""
        if self._noted() != OPEN:
            return None
        said = [line.strip() for line in _text(self._log).splitlines() if line.strip()]
        lines = [line for line in said if not line.startswith("srun: ")] or said  # which only has the exit code
        return JobGoneError(
            f"SLURM job {self.number} is gone without a result{': ' * bool(lines)}{''.join(lines[-1:])} (log: {self._log})"
        )

    def _noted(self) -> str:
        """Return what this job has noted of the run; what was noted before says nothing of it."""
        run = self._job.noted()
        return OPEN if run == self._before else run.status


def cancel(numbers: Collection[str]) -> None:
    """Cancel jobs; each has SIGTERM and a while in which it saves its state."""
    if numbers:
        say(f"scancel {' '.join(numbers)}")
        _call("scancel", *numbers)


def refusal(text: str) -> str:
    """Return what ``sbatch`` said last, in one line."""
    lines = [line.removeprefix("sbatch: error: ").strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "sbatch failed"


def queue_again() -> None:
    """Queue this job again if it is one that SLURM wants to preempt: it is still meant to run, unlike one that was cancelled.

    SLURM would do so itself only if the job had not used the time to save its state.
    """
    number, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if (
        number
        and restarts < _MOST_RESTARTS
        and _call("squeue", "--noheader", f"--jobs={number}", "--format=%T") == (0, "RUNNING\n")
    ):
        _call("scontrol", "requeue", number)


def _call(*command: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed, or else its error in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout if done.returncode == 0 else " ".join(done.stderr.split())


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
