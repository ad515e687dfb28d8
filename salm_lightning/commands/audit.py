"""``salm-cli audit``: does the protection hold, whoever trains on the release and whatever they try?"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from salm_lightning.audit.battery import FAILED, Battery, parse_budget, plan
from salm_lightning.audit.choices import PRESETS, check_archs, check_seeds, effective, read_countermeasures
from salm_lightning.audit.pictures import draw_audit
from salm_lightning.audit.quality import assess
from salm_lightning.audit.results import AuditResult, TrainedOn, audit_folder
from salm_lightning.audit.segmentation import open_segmenter
from salm_lightning.audit.summary import Summary
from salm_lightning.audit.tables import console_table
from salm_lightning.audit.trials import Length, Store, Trial, name_of
from salm_lightning.callbacks import RunProgressBar, progress_bar
from salm_lightning.console import progress, say
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import Original
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import cache_root, locked
from salm_lightning.interruption import Interrupted
from salm_lightning.release import PoisonedDataModule
from salm_lightning.runs.effort import Precision
from salm_lightning.runs.quiet import notices_off
from salm_lightning.runs.trainers import check_accelerator

_LOGS = "tensorboard"
_SEGMENTER = "otsu"
_STOPPED = 128
"""Exit code from which on a signal has ended an audit, whose number it holds, as shells have it."""


def audit(
    release: Path,
    source: str | None = None,
    preset: Literal["quick", "paper", "full"] | None = None,
    quick: bool = False,
    countermeasures: list | str | None = None,  # type: ignore[type-arg]  # classes are built later, with names for them
    archs: list[str] | str | None = None,
    seeds: list[int] | int | None = None,
    width: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    budget: str | None = None,
    quality: bool = True,
    segmenter: str = _SEGMENTER,
    out: Path | None = None,
    root: Path | None = None,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> int:
    """Train models on a release, under what a determined user would try, and say whether the protection holds.

    Finished victims are kept and not trained again; clean twins are shared by all audits of releases of the same images.

    Args:
        release: Folder of the protected dataset.
        source: What it was made from, for clean twins: a MedMNIST name, an ``.npz`` file, or ``synthetic``.
        preset: ``quick`` (minutes on a CPU; the default), ``paper`` (its Tables 2 to 4) or ``full``; the options below override it.
        quick: Short for ``--preset quick``.
        countermeasures: What is tried against the noise, such as ``[none, jpeg, {class_path: JPEG, init_args: {quality: 50}}]``.
        archs: Architectures of the victims; the first one is the main one.
        seeds: Seeds of the victims.
        width: Width factor of the victims.
        steps: Training steps of each victim.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        budget: Time, such as ``30m`` or ``2h``; victims that would end later are left out and listed.
        quality: Measure whether the images are still useful, if the source is known.
        segmenter: What segments them for that: ``otsu``, ``vessels``, a TorchScript file, or ``ARCH:PATH`` for a network of torchvision's.
        out: Folder of the results; ``audit`` beside the release by default.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.

    Returns:
        Exit code: 0 if no victim failed, 1 if one did, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SalmError: An argument is wrong, the release is damaged, or ``source`` is not what it was made from.
    """
    name = _preset_name(preset, quick)
    chosen = PRESETS[name]
    choices = read_countermeasures(chosen.countermeasures if countermeasures is None else _as_list(countermeasures))
    networks = check_archs(chosen.archs if archs is None else _as_list(archs))
    draws = check_seeds(chosen.seeds if seeds is None else _as_list(seeds))
    limit = None if budget is None else parse_budget(budget)
    segments = open_segmenter(segmenter) if quality and source is not None else None
    folder = audit_folder(release, out)

    protected = PoisonedDataModule(release, batch_size=batch_size)
    size = protected.batch_size
    length = Length(chosen.width if width is None else width, chosen.steps if steps is None else steps, size, precision)
    protected.setup("fit")
    images: dict[TrainedOn, ImageDataModule] = {"protected": protected}
    identities: dict[TrainedOn, dict[str, Any]] = {"protected": Original(protected).identity()}
    if source is not None:
        original = protected.open_original(source, root, batch_size=batch_size)
        images["clean"], identities["clean"] = original.images, original.identity()

    choices = effective(choices, protected.info)
    if segments is not None:
        segments(np.asarray(protected.split("train").images[:1]))  # refuses what it cannot take
    with notices_off():
        check_accelerator(accelerator)
    with locked(folder, "audit"), notices_off():
        stores: dict[TrainedOn, Store] = {
            "protected": Store(folder / "cells"),
            "clean": Store(cache_root() / "twins", keeps_weights=True),
        }
        cells = plan(identities, [choice.countermeasure for choice in choices], networks, draws, length, chosen.cross)
        battery = Battery(cells, images, stores, folder / _LOGS, accelerator)
        repeated = {
            **{"source": source, "root": root, "out": folder, "accelerator": accelerator, "preset": name},
            **{"segmenter": None if segmenter == _SEGMENTER else segmenter, "quality": None if quality else "false"},
        }
        summary = Summary(protected, battery, choices, length, name, folder, _words(release, repeated))
        code = _train(battery, summary, limit)
        audit = summary.write()
        if code < _STOPPED:
            board = folder / _LOGS / "pictures"
            shutil.rmtree(board, ignore_errors=True)  # of an earlier audit
            if segments is not None:
                say("Comparing the protected images with their originals")
                first = next(cell for cell in cells if cell.trained_on == "clean")  # without countermeasure
                twin = stores["clean"].network(first.identity, images["clean"])
                compared = PRESETS["quick"].compared if limit is not None else chosen.compared
                with progress("comparing images") as on_progress:
                    assess(release, images["clean"], folder, twin, segments, compared, board=board, on_progress=on_progress)
            draw_audit(audit, folder, board)
    _show(audit, folder)
    return code


def _train(battery: Battery, summary: Summary, limit: float | None) -> int:
    """Train what is pending, keeping all files up to date, and return the exit code."""
    total, done = len(battery.trials), len(battery.records)
    say(f"{total} victims, of which {done} are done.")

    def ended(cell: Trial) -> None:
        summary.write()
        left = len(battery.pending)
        rest = f"; about {timedelta(seconds=round(battery.remaining()))} left" if left else ""
        say(f"[{total - left}/{total}] {cell.title}: {_outcome(battery, cell)}{rest}")

    summary.write()
    try:
        battery.run(limit, ended, _live_bar)
    except Interrupted as interruption:
        say("Stopped; finished victims are kept. The same command goes on from there.")
        return interruption.code
    return 1 if any(battery.status(cell)[0] == FAILED for cell in battery.trials) else 0


def _outcome(battery: Battery, cell: Trial) -> str:
    record = battery.records.get(name_of(cell.identity))
    if record is not None:
        return f"accuracy {record.results['test']['acc']:.1%}, {timedelta(seconds=round(record.seconds))}"
    status, reason = battery.status(cell)
    return f"{status.upper()}: {reason}"


def _show(audit: AuditResult, folder: Path) -> None:
    console = Console()
    console.print(console_table(audit, console.width))
    verdict = audit.verdict
    say(f"Verdict: {verdict.word}. {verdict.text}")
    say("\n".join(["What this does not cover:", *(f"  - {limit}" for limit in verdict.not_covered)]))
    if audit.skipped:
        say(f"{len(audit.skipped)} victims have not finished; {folder / 'audit.md'} lists each with the command that trains it.")
    say(f"Results: {folder / 'audit.md'}, audit.csv and audit.json beside it\nCurves:  tensorboard --logdir {folder / _LOGS}")


def _live_bar() -> list[ProgressBar]:
    """Return a bar for a terminal; elsewhere the line of each finished victim is enough."""
    bar = progress_bar()
    return [bar] if isinstance(bar, RunProgressBar) else []


def _preset_name(preset: str | None, quick: bool) -> str:
    if quick and preset not in (None, "quick"):
        raise ConfigurationError(f"preset={preset} and quick=true contradict each other; give one of them.")
    return preset or "quick"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(release: Path, options: dict[str, Any]) -> list[str]:
    """Return arguments of the command that was given, those with a default left out."""
    given = [(name, value) for name, value in options.items() if value not in (None, "auto")]
    return [str(release), *(word for name, value in given for word in (f"--{name}", str(value)))]
