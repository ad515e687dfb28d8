"""Running a planned sweep: progress while it runs, its table at the end, and stopping in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from salm_lightning.console import say
from salm_lightning.files import locked
from salm_lightning.interruption import Interrupted, interruptible
from salm_lightning.sweep.job import DONE, Job
from salm_lightning.sweep.plan import Row
from salm_lightning.sweep.results import record, results_table, title, write_csv, write_hparams
from salm_lightning.sweep.runners import Runner, run_jobs

RESULTS = "results.csv"
"""File name of a sweep's results in its folder."""
_WIDTH = 200
"""Columns of the tables, which are to be copied whole."""


def run_sweep(rows: Sequence[Row], runner: Runner, out: Path) -> int:
    """Run what is not done yet, and show and write what came out.

    Returns:
        Exit code: 0 if all runs are done, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    stopped = _run(rows, all_jobs(rows), runner, out, lambda: _write(rows, out))
    if stopped:
        return stopped
    table = results_table(rows)
    Console(width=_WIDTH).print(table)
    failed = [row for row in rows if record(row)["status"] != DONE]
    say(f"One line per victim: {out / RESULTS}\nCurves:              tensorboard --logdir {out}")
    if failed:
        say(f"{len(failed)} of {len(rows)} victims are not done; {RESULTS} says why. The same command tries them again.")
    return 1 if failed else 0


def make_releases(rows: Sequence[Row], runner: Runner, out: Path) -> int:
    """Make the releases that the rows' victims would be trained on, and train none.

    Returns:
        Exit code: 0 if all releases stand, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    jobs = [job for job in all_jobs(rows) if job.makes_release]
    return _run(rows, jobs, runner, out, lambda: None) or int(any(job.state().status != DONE for job in jobs))


def show_plan(rows: Sequence[Row]) -> None:
    """Print every run and what has become of it."""
    jobs = all_jobs(rows)
    table = Table(box=None)
    for heading in ("", "run", "status", "what"):
        table.add_column(heading, overflow="fold")
    for number, job in enumerate(jobs, start=1):
        table.add_row(str(number), job.name, job.state().status, _describe(job, rows))
    Console(width=_WIDTH).print(table, highlight=False, markup=False)
    done = sum(job.state().status == DONE for job in jobs)
    say(f"{len(rows)} victims, {len(jobs) - len(rows)} releases; {done} of {len(jobs)} runs are done.")


def all_jobs(rows: Sequence[Row]) -> list[Job]:
    """Return each job of the rows once, a release before the victims that train on it."""
    return list({job.name: job for row in rows for job in (row.job.needs, row.job) if job is not None}.values())


def _run(rows: Sequence[Row], jobs: Sequence[Job], runner: Runner, out: Path, write: Callable[[], None]) -> int:
    """Run jobs of the rows, and write what is known before and after each; return 0, or the exit code after a stop."""
    with locked(out, "sweep"), interruptible():
        progress = _Progress(rows, jobs, min(runner.limit, len(jobs)))

        def ended(job: Job) -> None:
            progress.show(job)
            write()

        write()
        try:
            run_jobs(jobs, runner, ended)
        except Interrupted as interruption:
            write()
            say("Stopped; runs that were at work have kept their last state. The same command goes on from there.")
            return interruption.code
    return 0


def _write(rows: Sequence[Row], out: Path) -> None:
    for row in rows:
        write_hparams(row)
    write_csv(rows, out / RESULTS)


def _describe(job: Job, rows: Sequence[Row]) -> str:
    if job.makes_release:
        return f"release {job.name}"
    return title(next(row for row in rows if row.job is job))


class _Progress:
    """Prints a line for each run that ends, with an estimate of the time that remains."""

    def __init__(self, rows: Sequence[Row], jobs: Sequence[Job], workers: int) -> None:
        self._rows, self._jobs, self._workers = rows, jobs, workers
        self._ended = sum(job.state().status == DONE for job in jobs)
        self._begin = time.monotonic()
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._left = [job for job in jobs if job.state().status != DONE]
        releases = sum(job.makes_release for job in jobs)
        say(f"{len(jobs) - releases} victims, {releases} releases: {len(jobs)} runs, of which {self._ended} are done.")

    def show(self, job: Job) -> None:
        state = job.state()
        self._ended += 1
        self._left.remove(job)
        self._seconds[job.makes_release].append(state.seconds)
        took = timedelta(seconds=round(state.seconds))
        line = f"[{self._ended}/{len(self._jobs)}] {_describe(job, self._rows)}: {self._outcome(job)}, {took}"
        say(f"{line}; about {self._remaining()} left" if self._left else line)

    def _outcome(self, job: Job) -> str:
        values = vars(job.state()) if job.makes_release else record(next(row for row in self._rows if row.job is job))
        if values["error"]:
            return f"{values['status'].upper()}: {values['error']}"
        return f"accuracy {values['accuracy']:.1%}" if "accuracy" in values else str(values["status"])

    def _remaining(self) -> timedelta:
        """Return an estimate from the runs that have ended: those of the same kind, or else all of them."""
        known = self._seconds[True] + self._seconds[False]
        expected = [mean(self._seconds[job.makes_release] or known) for job in self._left]
        return timedelta(seconds=round(sum(expected) / self._workers))
