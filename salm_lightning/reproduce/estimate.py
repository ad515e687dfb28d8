"""What a dry run shows: every run, what has become of it, and an estimate of time and disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from salm_lightning.console import say
from salm_lightning.reproduce.calibration import Calibration
from salm_lightning.reproduce.experiment import Run
from salm_lightning.sweep.job import DONE

_MEGABYTE = 1e6


def show_estimate(runs: Sequence[Run], calibration: Calibration, workers: int) -> None:
    """Print every run and the sum of what is left."""
    table = Table(box=None)
    for heading in ("", "run", "status", "time", "disk"):
        table.add_column(heading, justify="right" if heading in ("time", "disk") else "left", overflow="fold")
    seconds, size = 0.0, 0.0
    for number, run in enumerate(runs, start=1):
        if run.status == DONE:
            table.add_row(str(number), run.name, run.status, "", "")
            continue
        takes, leaves = sum(map(calibration.seconds, run.works)), sum(map(calibration.bytes, run.works))
        seconds, size = seconds + takes, size + leaves
        table.add_row(str(number), run.name, run.status, _time(takes), f"{leaves / _MEGABYTE:.0f} MB")
    Console(width=200).print(table, highlight=False, markup=False)
    done = sum(run.status == DONE for run in runs)
    say(
        f"{len(runs)} runs, of which {done} are done. The others take about {_time(seconds / workers)} with {workers} at a time, and "
        f"{size / _MEGABYTE:.0f} MB.\n"
        f"Estimated from a few steps on this machine ({calibration.device}), without the start of each run, its files and pictures, and "
        "what several runs at a time take from each other."
    )


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
