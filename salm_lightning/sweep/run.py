"""Running a planned sweep: progress while it runs, its table at the end, and stopping in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from salm_lightning.console import duration, say
from salm_lightning.files import locked
from salm_lightning.interruption import Interrupted, interruptible
from salm_lightning.runs.record import DONE
from salm_lightning.sweep.cost import PlannedRun, expect, show_runs
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.plan import PlannedVictim
from salm_lightning.sweep.results import CURVES, name_curves, record, results_table, title, write_hparams, write_results
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

    def write() -> None:
        for victim in victims:
            write_hparams(victim)
        name_curves(victims, out)
        write_results(victims, out / RESULTS)

    if stopped := run_all(victims, all_jobs(victims), runner, out, write):
        return stopped
    say(results_table(victims))
    undone = sum(record(victim)["status"] != DONE for victim in victims)
    say(f"One line per victim: {out / RESULTS}\nCurves:              tensorboard --logdir {out / CURVES}")
    if undone:
        say(f"{undone} of {len(victims)} victims are not done; {RESULTS} says why. The same command tries them again.")
    return int(undone > 0)


def show_plan(victims: Sequence[PlannedVictim], jobs: Sequence[Job], workers: int) -> None:
    """Print jobs of the victims, what has become of each, and an estimate of the time and the disk that are left."""
    show_runs(_planned(victims, jobs), workers, f"{_count(jobs)}; ")


def all_jobs(victims: Sequence[PlannedVictim]) -> list[Job]:
    """Return each job of the victims once, a release before the victims that train on it."""
    return list({job.name: job for victim in victims for job in (victim.job.needs, victim.job) if job is not None}.values())


def run_all(
    victims: Sequence[PlannedVictim], jobs: Sequence[Job], runner: Runner, out: Path, write: Callable[[], None] = lambda: None
) -> int:
    """Run jobs of the victims, say what became of each and how long the others may take, and call ``write`` before and after each.

    Returns:
        0, or the exit code after a stop: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        OutputExistsError: Another sweep is running in ``out``.
    """
    left: list[Job] = []
    seconds: dict[bool, list[float]] = {True: [], False: []}
    of_job = {victim.job: victim for victim in victims}

    def ended(job: Job) -> None:
        left.remove(job)
        state = job.state()
        seconds[job.makes_release].append(state.seconds)
        found = {"status": state.status, "error": state.why} if job.makes_release else record(of_job[job])
        line = f"[{len(jobs) - len(left)}/{len(jobs)}] {_describe(job, victims)}: {_outcome(found)}, {duration(state.seconds)}"
        # Those of the same kind say most.
        expected = sum(fmean(seconds[other.makes_release] or seconds[True] + seconds[False]) for other in left)
        say(f"{line}; about {duration(expected / min(runner.limit, len(jobs)))} left" if left else line)
        write()

    with locked(out, "sweep"), interruptible():
        left += [job for job in jobs if not job.state().is_done]
        say(f"{_count(jobs)}: {len(jobs)} runs, of which {len(jobs) - len(left)} are done.")
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


def _count(jobs: Sequence[Job]) -> str:
    releases = sum(job.makes_release for job in jobs)
    return f"{len(jobs) - releases} victims, {releases} releases"


def _planned(victims: Sequence[PlannedVictim], jobs: Sequence[Job]) -> list[PlannedRun]:
    return [PlannedRun(job.name, job.state().status, job.cost, _describe(job, victims)) for job in jobs]


def _describe(job: Job, victims: Sequence[PlannedVictim]) -> str:
    return next((title(victim) for victim in victims if victim.job is job), f"release {job.name}")


def _outcome(found: Mapping[str, Any]) -> str:
    if found["error"]:
        return f"{found['status'].upper()}: {found['error']}"
    return f"accuracy {found['accuracy']:.1%}" if "accuracy" in found else str(found["status"])
