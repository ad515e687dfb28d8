"""``salm-cli audit``: does the protection hold, whoever trains on the release and whatever they try?"""

from __future__ import annotations

import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from salm_lightning.audit.battery import FAILED, SKIPPED, Battery, Interrupted, parse_budget, plan
from salm_lightning.audit.cells import Cell, Length, Store, name_of, title_of
from salm_lightning.audit.choices import PRESETS, Choice, check_archs, check_seeds, read_treatments
from salm_lightning.audit.originals import checksum, identify, require_original
from salm_lightning.audit.results import console_table
from salm_lightning.audit.summary import Audit
from salm_lightning.callbacks import RunProgressBar, progress_bar
from salm_lightning.commands.training import SYNTHETIC, open_data
from salm_lightning.data import MEDMNIST, ImageDataModule
from salm_lightning.data.arrays import cache_root
from salm_lightning.data.base import ANY_FINDING
from salm_lightning.errors import ConfigurationError
from salm_lightning.folder_lock import alone
from salm_lightning.release import PoisonedDataModule
from salm_lightning.summary import say
from salm_lightning.trainers import Precision


def audit(
    release: Path,
    source: str | None = None,
    preset: Literal["quick", "paper", "full"] | None = None,
    quick: bool = False,
    treatments: list | str | None = None,  # type: ignore[type-arg]  # classes are built later, with names for them
    archs: list[str] | str | None = None,
    seeds: list[int] | int | None = None,
    width: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    budget: str | None = None,
    quality: bool = True,
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
        treatments: What is tried against the noise, such as ``[none, jpeg, {class_path: JPEG, init_args: {quality: 50}}]``.
        archs: Architectures of the victims; the first one is the main one.
        seeds: Seeds of the victims.
        width: Width factor of the victims.
        steps: Training steps of each victim.
        batch_size: Images per step.
        budget: Time, such as ``30m`` or ``2h``; victims that would end later are left out and listed.
        quality: Measure whether the images are still useful, if the source is known.
        out: Folder of the results; ``audit`` beside the release by default.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.

    Returns:
        Exit code: 0 if no victim failed, 1 if one did, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SalmError: An argument is wrong, the release is damaged, or ``source`` is not what it was made from.
    """
    chosen = PRESETS[_preset(preset, quick)]
    listed = read_treatments(chosen.treatments if treatments is None else _as_list(treatments))
    networks = check_archs(chosen.archs if archs is None else _as_list(archs))
    draws = check_seeds(chosen.seeds if seeds is None else _as_list(seeds))
    length = Length(width or chosen.width, steps or chosen.steps, batch_size, precision)
    limit = None if budget is None else parse_budget(budget)
    begin = time.monotonic()

    protected = PoisonedDataModule(release, batch_size=batch_size)
    protected.setup("fit")
    images: dict[TrainedOn, ImageDataModule] = {"protected": protected}
    identities = {"protected": identify(protected, protected.manifest.archive.sha256)}
    if source is not None:
        images["clean"] = _open_original(source, root, protected, batch_size)
        digest = checksum(images["clean"])
        require_original(images["clean"], protected, digest)
        identities["clean"] = identify(images["clean"], digest)

    folder = release.parent / "audit" if out is None else out
    with alone(folder, "audit"):
        stores = {"protected": Store(folder / "cells"), "clean": Store(cache_root() / "twins", keeps_weights=True)}
        cells = plan(identities, [choice.treatment for choice in listed], networks, draws, length, chosen.cross)
        battery = Battery(cells, images, stores, folder / "tensorboard", accelerator)
        command = _command(release, source, folder, root, accelerator)
        summary = Summary(protected, battery, listed, length, _preset(preset, quick), folder, command)
        return _run(battery, summary, limit, begin, images.get("clean") if quality else None)
