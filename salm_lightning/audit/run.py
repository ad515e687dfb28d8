"""An audit from release to verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback

from salm_lightning.audit.choices import PRESETS, choose, choose_countermeasures
from salm_lightning.audit.pictures import BOARD, draw_audit
from salm_lightning.audit.quality import assess
from salm_lightning.audit.releases import View, open_release
from salm_lightning.audit.results import AuditResult, TrainedOn, audit_folder
from salm_lightning.audit.segmentation import open_segmenter
from salm_lightning.audit.summary import Summary
from salm_lightning.audit.trials import Battery, Store, Trial, parse_budget, plan
from salm_lightning.callbacks import RunProgressBar
from salm_lightning.console import duration, is_live, progress
from salm_lightning.countermeasures import Countermeasure
from salm_lightning.data import SPLITS, ImageDataModule
from salm_lightning.files import cache_root, locked
from salm_lightning.interruption import interruptible
from salm_lightning.models import Architecture
from salm_lightning.runs.effort import Precision
from salm_lightning.runs.estimate import Estimator, Network
from salm_lightning.runs.plan import proof_work
from salm_lightning.runs.trainers import check_accelerator, check_interval
from salm_lightning.runs.victims import VictimSettings

OTSU = "otsu"


def audit(
    release: Path | str,
    source: str | None = None,
    preset: str = "quick",
    countermeasures: Sequence[Countermeasure | str] | None = None,
    archs: Sequence[Architecture | Mapping[str, Any] | str] | None = None,
    seeds: Sequence[int] | None = None,
    width: float | None = None,
    victim_steps: int | None = None,
    batch_size: int | None = None,
    budget: str | None = None,
    sizes: Sequence[int] | None = None,
    quality: bool = True,
    segmenter: str = OTSU,
    out: Path | None = None,
    root: Path | None = None,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    tell: Callable[[str], None] | None = None,
) -> AuditResult:
    """Train models on a release, under what a determined user would try, and judge whether the protection holds.

    Finished victims are kept and not trained again; clean twins are shared by all audits of releases of the same images.

    The arguments are those of ``salm-cli audit``, as its help describes them. Countermeasures may be objects, and architectures
    :class:`~salm_lightning.models.Architecture`; ``tell`` takes lines on how the audit gets on, which are shown with bars on terminals.

    Returns:
        What was found, which ``audit.json`` in ``out`` holds as well; victims that failed are among ``skipped``.

    Raises:
        SalmError: An argument is wrong, the release is damaged, or ``source`` is not what it was made from.
        Interrupted: SIGTERM or Ctrl-C; finished victims are kept, and the same call goes on from there.
    """
    opened, say = open_release(Path(release)), tell or (lambda text: None)
    chosen = choose(preset, countermeasures=countermeasures, archs=archs, seeds=seeds, width=width, steps=victim_steps)
    limit = None if budget is None else parse_budget(budget)
    segments = open_segmenter(segmenter) if quality and source is not None else None
    folder = audit_folder(opened.path, out)
    victim = VictimSettings(width=chosen.width, steps=chosen.steps, precision=precision)
    tried = choose_countermeasures(chosen.countermeasures, opened.manifest.info)
    check_accelerator(accelerator)
    views = opened.views(source, root, batch_size, sizes)
    protected = views[0].images["protected"]
    if segments is not None:
        segments(np.asarray(protected.split("train").images[:1]))  # refuses what it cannot take
    first, *further = [_identities(view) for view in views]
    trials = plan(first, victim, protected.batch_size, tried, chosen.archs, chosen.seeds, chosen.cross, further)
    options = {
        **{"source": source, "root": root, "out": folder, "accelerator": None if accelerator == "auto" else accelerator},
        **{"segmenter": None if segmenter == OTSU else segmenter, "quality": None if quality else "false", "preset": preset},
    }
    stores: dict[TrainedOn, Store] = {
        "protected": Store(folder / "cells"),
        "clean": Store(cache_root() / "twins", keeps_weights=True),
    }
    with locked(folder, f"out={folder}"):
        images = {(view.words, name): each for view in views for name, each in view.images.items()}
        estimate = _estimate(images, accelerator, precision)
        battery = Battery(trials, images, stores, folder / BOARD, estimate, accelerator)
        # A bar moves on terminals only; elsewhere the line of each victim is enough.
        bars: Callable[[], list[Callback]] = (lambda: [RunProgressBar()]) if tell and is_live(sys.stdout) else list
        result = _train(battery, Summary(opened, protected, battery, folder, options), limit, say, bars)
        if segments is not None:
            say("Comparing the protected images with their originals")
            originals = views[0].images["clean"]
            plain = next(trial for trial in trials if trial.trained_on == "clean")
            twin = stores["clean"].network(plain, originals)
            compared = opened.most_compared or (PRESETS["quick"].compared if limit is not None else chosen.compared)
            with progress("comparing images") if tell else nullcontext(lambda done, total: None) as on_progress:
                assess(opened.path, originals, folder, twin, segments, compared, on_progress=on_progress)
        draw_audit(result, folder)
    return result


def _identities(view: View) -> dict[TrainedOn, dict[str, Any]]:
    """Return what identifies the images of a view."""
    words = {"view": view.words} if view.words else {}
    return {name: {**images.identity(), **words} for name, images in view.images.items()}


def _train(
    battery: Battery, summary: Summary, limit: float | None, say: Callable[[str], None], bars: Callable[[], list[Callback]]
) -> AuditResult:
    """Train what is pending, keeping all files up to date, and return what they hold."""
    total, done = len(battery.trials), len(battery.records)
    rest = f"; the others take about {duration(battery.remaining())}" if done < total else ""
    say(f"{total} victims, of which {done} are done{rest}.")
    summary.write()
    try:
        with interruptible():
            for trial in battery.run(limit, bars):
                summary.write()
                left, record, (status, reason) = len(battery.pending), battery.records.get(trial.name), battery.status(trial)
                outcome = f"{status.upper()}: {reason}"
                if record is not None:
                    outcome = f"accuracy {record.results['test']['acc']:.1%}, {duration(record.seconds)}"
                rest = f"; about {duration(battery.remaining())} left" if left else ""
                say(f"[{total - left}/{total}] {trial.title}: {outcome}{rest}")
    finally:
        result = summary.write()
    return result


def _estimate(
    images: Mapping[tuple[str, TrainedOn], ImageDataModule], accelerator: str, precision: Precision
) -> Callable[[Trial], float]:
    """Return what estimates the seconds of a victim: its steps, those of its attacks, and its looks at the clean images."""
    estimator = Estimator(accelerator, precision)

    def seconds(trial: Trial) -> float:
        if trial.is_shallow:
            return 0.0  # seconds, beside minutes
        victim, steps, seen = trial.victim, trial.victim.steps, images[trial.view, trial.trained_on]
        network = Network(victim.architecture, victim.width, seen.channels, seen.image_size, trial.batch_size)
        sizes = {name: len(seen.split(name)) for name in SPLITS}
        work = proof_work(network, sizes, steps, math.ceil(steps / check_interval(steps)))
        return estimator.seconds([work._replace(gradient=steps * int(getattr(victim.countermeasure, "pgd_steps", 0)))])

    return seconds
