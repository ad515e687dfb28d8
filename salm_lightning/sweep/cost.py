"""What planned runs cost: steps of their networks, and from a few timed ones the time and the disk that they take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from salm_lightning.console import duration, say
from salm_lightning.data import SPLITS, ImageDataModule, MedMNISTDataModule
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.datamodule import default_batch_size
from salm_lightning.errors import SalmError
from salm_lightning.models import Architecture
from salm_lightning.noise.methods import Method
from salm_lightning.runs.estimate import Estimator, Network, Work
from salm_lightning.runs.plan import noise_work, proof_work
from salm_lightning.runs.record import DONE
from salm_lightning.runs.trainers import check_accelerator

_WIDTH = 200
"""Columns of a plan, which is to be copied whole."""


class Cost(NamedTuple):
    """What a run does, one work after the other on one device."""

    works: tuple[Work, ...]
    accelerator: str
    precision: str


class PlannedRun(NamedTuple):
    """A line of a plan: name, status, what it does, and what it is in words."""

    name: str
    status: str
    cost: Cost | None
    what: str = ""


def cost_of(settings: Mapping[str, Any], data: ImageDataModule, method: Method | None = None) -> Cost:
    """Return the cost of a fit from all its options; what a countermeasure adds is not counted.

    Args:
        settings: Options of ``fit``, with their defaults.
        data: The generator's data; those of MedMNIST need not be there.
        method: Of a noise generator, which also makes a release; ``None`` for a victim.
    """
    model, trainer = settings["model"]["init_args"], settings["trainer"]
    batch_size = settings["data"]["init_args"]["batch_size"] or default_batch_size(data.image_size)
    arch = model["arch" if method is None else "source"]
    named = arch if isinstance(arch, str) else Architecture.parse(arch)
    network = Network(named, model["width"], data.channels, data.image_size, batch_size)
    official = INFO[data.info.name]["n_samples"] if isinstance(data, MedMNISTDataModule) else None
    sizes = official or {name: len(data.split(name)) for name in SPLITS}
    steps, interval = trainer["max_steps"], trainer["val_check_interval"]
    if steps < 1:  # one epoch where only a time is given
        steps = max(1, trainer["max_epochs"] or 1) * math.ceil(sizes["train"] / batch_size)
    looks = math.ceil(steps / interval) if isinstance(interval, int) else 1
    if method is None:
        work = proof_work(network, sizes, steps, looks)._replace(keeps_weights=True)
    else:
        updates = model["pgd_steps"] if model["loop"] == "fresh" else model["updates_per_visit"]
        work = noise_work(network, sizes, steps, looks, method, model["loop"], updates, model["last_pass_steps"])
    return Cost((work,), str(trainer["accelerator"]), trainer["precision"] or "32-true")


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
