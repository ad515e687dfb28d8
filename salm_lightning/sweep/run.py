"""Running a planned sweep: what it will cost, progress while it runs, its table at the end, and stopping in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from salm_lightning.console import duration, say
from salm_lightning.errors import SalmError
from salm_lightning.files import locked
from salm_lightning.interruption import Interrupted, interruptible
from salm_lightning.release.parts import clear_chunks
from salm_lightning.runs.estimate import Estimator
from salm_lightning.runs.record import DONE
from salm_lightning.runs.trainers import check_accelerator
from salm_lightning.sweep.job import Cost, Job
from salm_lightning.sweep.results import CURVES, name_curves, record, results_table, title, write_hparams, write_results
from salm_lightning.sweep.runners import Runner, run_jobs

RESULTS = "results.csv"
"""File name of a sweep's results in its folder."""
_WIDTH = 200
"""Columns of a plan, which is to be copied whole."""


class PlannedRun(NamedTuple):
    """A line of a plan: name, status, what it does, and what it is in words."""

    name: str
    status: str
    cost: Cost | None
    what: str = ""


def run_sweep(victims: Sequence[Job], runner: Runner, out: Path) -> int:
    """Run what is not done yet, and show and write what came out.

    Returns:
        Exit code: 0 if all runs are done, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """

    def write() -> None:
        for victim in victims:
            write_hparams(victim)
        name_curves(victims, out)
        write_results(victims, out / RESULTS)

    if stopped := run_all(all_jobs(victims), runner, out, write):
        return stopped
    say(results_table(victims))
    undone = sum(record(victim)["status"] != DONE for victim in victims)
    say(f"One line per victim: {out / RESULTS}\nCurves:              tensorboard --logdir {out / CURVES}")
    if undone:
        say(f"{undone} of {len(victims)} victims are not done; {RESULTS} says why. The same command tries them again.")
    return int(undone > 0)


def show_plan(jobs: Sequence[Job], workers: int) -> None:
    """Print jobs, what has become of each, and an estimate of the time and the disk that are left."""
    show_runs(_planned(jobs), workers, f"{_count(jobs)}; ")


def all_jobs(victims: Sequence[Job]) -> list[Job]:
    """Return each job of the victims once, a release before the victims that train on it."""
    return list({job.name: job for victim in victims for job in (victim.needs, victim) if job is not None}.values())


def run_all(jobs: Sequence[Job], runner: Runner, out: Path, write: Callable[[], None] = lambda: None) -> int:
    """Run jobs, say what became of each and how long the others may take, and call ``write`` before and after each.

    Returns:
        0, or the exit code after a stop: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    left: list[Job] = []
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def ended(job: Job) -> None:
        left.remove(job)
        state = job.state()
        seconds[job.makes_release].append(state.seconds)
        found = {"status": state.status, "error": state.why} if job.makes_release else record(job)
        outcome = f"accuracy {found['accuracy']:.1%}" if "accuracy" in found else str(found["status"])
        if found["error"]:
            outcome = f"{found['status'].upper()}: {found['error']}"
        line = f"[{len(jobs) - len(left)}/{len(jobs)}] {title(job)}: {outcome}, {duration(state.seconds)}"
        # Those of the same kind say most.
        expected = sum(fmean(seconds[other.makes_release] or seconds[True] + seconds[False]) for other in left)
        say(f"{line}; about {duration(expected / min(runner.limit, len(jobs)))} left" if left else line)
        write()

    with locked(out, f"out={out}"), interruptible():
        left += [job for job in jobs if not job.state().is_done]
        say(f"{_count(jobs)}: {len(jobs)} runs, of which {len(jobs) - len(left)} are done.")
        if runner.is_here and (sentence := expect(_planned(jobs), runner.limit)[1]):
            say(sentence)
        write()
        try:
            run_jobs(jobs, runner, ended)
            for job in jobs:
                if job.makes_release and job.state().is_done:  # by a fit that was killed at its very end, perhaps
                    clear_chunks(job.release)
        except Interrupted as interruption:
            write()
            say("Stopped; runs that were at work have kept their last state. The same command goes on from there.")
            return interruption.code
    return 0


def _count(jobs: Sequence[Job]) -> str:
    releases = sum(job.makes_release for job in jobs)
    return f"{len(jobs) - releases} victims, {releases} releases"


def _planned(jobs: Sequence[Job]) -> list[PlannedRun]:
    return [PlannedRun(job.name, job.state().status, job.cost, title(job)) for job in jobs]


def expect(runs: Iterable[PlannedRun], workers: int) -> tuple[dict[str, tuple[float, int]], str]:
    """Return the seconds and bytes of runs that are not done, by name, and a sentence with their sum, or why it is not known."""
    left = [(run.name, run.cost) for run in runs if run.cost is not None and run.status != DONE]
    estimators: dict[tuple[str, str], Estimator] = {}
    found = {}
    try:
        for name, (works, accelerator, precision) in left:
            if (accelerator, precision) not in estimators:
                check_accelerator(accelerator)
                estimators[accelerator, precision] = Estimator(accelerator, precision)
            estimator = estimators[accelerator, precision]
            found[name] = estimator.seconds(works), estimator.bytes(works)
    except (SalmError, RuntimeError, ValueError) as error:  # each run has its own chance; several devices share a batch
        return {}, f"Time and disk are not known: {error}"
    if not found:
        return {}, ""
    seconds, size = (sum(figures) for figures in zip(*found.values(), strict=True))
    takes = f"about {duration(seconds / workers)} with {workers} at a time, and {_megabytes(size)}"
    return found, (
        f"What is left takes {takes}. Estimated from a few steps on this machine, without the start of each run, its files and pictures, "
        "and what several at a time take from each other."
    )


def show_runs(runs: Sequence[PlannedRun], workers: int, summary: str = "") -> None:
    """Print every run with its time and disk, and the sum of what is left."""
    found, sentence = expect(runs, workers)
    table = Table(box=None)
    for heading in ("", "run", "status", "time", "disk", "what"):
        table.add_column(heading, justify="right" if heading in ("time", "disk") else "left", overflow="fold")
    for number, run in enumerate(runs, start=1):
        shown = (duration(found[run.name][0]), _megabytes(found[run.name][1])) if run.name in found else ("", "")
        table.add_row(str(number), run.name, run.status, *shown, run.what)
    Console(width=_WIDTH).print(table, highlight=False, markup=False)
    say(f"{summary}{sum(run.status == DONE for run in runs)} of {len(runs)} runs are done.")
    if sentence:
        say(sentence)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
