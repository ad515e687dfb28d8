"""Running a planned sweep: progress while it runs, its table at the end, and stopping in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from salm_lightning.console import say
from salm_lightning.files import locked
from salm_lightning.interruption import Interrupted, interruptible
from salm_lightning.runs.record import DONE
from salm_lightning.sweep.cost import PlannedRun, expect, show_runs
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.plan import PlannedVictim
from salm_lightning.sweep.results import (
    CURVES,
    name_curves,
    record,
    results_table,
    title,
    write_hparams,
    write_results,
)
from salm_lightning.sweep.runners import Runner, run_jobs

RESULTS = "results.csv"
"""File name of a sweep's results in its folder."""


def run_sweep(victims: Sequence[PlannedVictim], runner: Runner, out: Path) -> int:
    """Run what is not done yet, and show and write what came out.

    Returns:
        Exit code: 0 if all runs are done, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    stopped = run_all(victims, all_jobs(victims), runner, out, lambda: _write(victims, out))
    if stopped:
        return stopped
    say(results_table(victims))
    undone = sum(record(victim)["status"] != DONE for victim in victims)
    say(f"One line per victim: {out / RESULTS}\nCurves:              tensorboard --logdir {out / CURVES}")
    if undone:
        say(f"{undone} of {len(victims)} victims are not done; {RESULTS} says why. The same command tries them again.")
    return int(undone > 0)


def show_plan(victims: Sequence[PlannedVictim], jobs: Sequence[Job], workers: int) -> None:
    """Print jobs of the victims, what has become of each, and an estimate of the time and the disk that are left."""
    releases = sum(job.makes_release for job in jobs)
    show_runs(_planned(victims, jobs), workers, f"{len(jobs) - releases} victims, {releases} releases; ")


def all_jobs(victims: Sequence[PlannedVictim]) -> list[Job]:
    """Return each job of the victims once, a release before the victims that train on it."""
    return list({job.name: job for victim in victims for job in (victim.job.needs, victim.job) if job is not None}.values())


def run_all(
    victims: Sequence[PlannedVictim], jobs: Sequence[Job], runner: Runner, out: Path, write: Callable[[], None] = lambda: None
) -> int:
    """Run jobs of the victims, and call ``write`` before and after each.

    Returns:
        0, or the exit code after a stop: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    with locked(out, "sweep"), interruptible():
        progress = _Progress(victims, jobs, min(runner.limit, len(jobs)))

        def ended(job: Job) -> None:
            progress.show(job)
            write()

        if runner.is_here and (sentence := expect(_planned(victims, jobs), runner.limit)[1]):
            say(sentence)
        write()
        try:
            run_jobs(jobs, runner, ended)
        except Interrupted as interruption:
            write()
            say("Stopped; runs that were at work have kept their last state. The same command goes on from there.")
            return interruption.code
    return 0


def _write(victims: Sequence[PlannedVictim], out: Path) -> None:
    for victim in victims:
        write_hparams(victim)
    name_curves(victims, out)
    write_results(victims, out / RESULTS)


def _planned(victims: Sequence[PlannedVictim], jobs: Sequence[Job]) -> list[PlannedRun]:
    return [PlannedRun(job.name, job.state().status, job.cost, _describe(job, victims)) for job in jobs]


def _describe(job: Job, victims: Sequence[PlannedVictim]) -> str:
    if job.makes_release:
        return f"release {job.name}"
    return title(next(victim for victim in victims if victim.job is job))


class _Progress:
    """Prints a line for each run that ends, with an estimate of the time that remains."""

    def __init__(self, victims: Sequence[PlannedVictim], jobs: Sequence[Job], workers: int) -> None:
        self._victims, self._jobs, self._workers = victims, jobs, workers
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._left = [job for job in jobs if not job.state().is_done]
        releases, done = sum(job.makes_release for job in jobs), len(jobs) - len(self._left)
        say(f"{len(jobs) - releases} victims, {releases} releases: {len(jobs)} runs, of which {done} are done.")

    def show(self, job: Job) -> None:
        seconds = job.state().seconds
        self._left.remove(job)
        self._seconds[job.makes_release].append(seconds)
        position, took = f"{len(self._jobs) - len(self._left)}/{len(self._jobs)}", timedelta(seconds=round(seconds))
        line = f"[{position}] {_describe(job, self._victims)}: {self._outcome(job)}, {took}"
        say(f"{line}; about {self._remaining()} left" if self._left else line)

    def _outcome(self, job: Job) -> str:
        if job.makes_release:
            state = job.state()
            return f"{state.status.upper()}: {state.why}" if state.why else state.status
        values = record(next(victim for victim in self._victims if victim.job is job))
        if values["error"]:
            return f"{values['status'].upper()}: {values['error']}"
        return f"accuracy {values['accuracy']:.1%}" if "accuracy" in values else str(values["status"])

    def _remaining(self) -> timedelta:
        """Return an estimate from the runs that have ended: those of the same kind, or else all of them."""
        known = self._seconds[True] + self._seconds[False]
        expected = [fmean(self._seconds[job.makes_release] or known) for job in self._left]
        return timedelta(seconds=round(sum(expected) / self._workers))
