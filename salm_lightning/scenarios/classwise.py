"""``salm-cli classwise``: classes protected one after another, each known to its owner alone (paper: Section 7.1, Appendix D.2)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import seed_everything
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from salm_lightning.console import say
from salm_lightning.data import MEDMNIST, ImageDataModule, Task
from salm_lightning.data.base import Split
from salm_lightning.data.catalogue import SIZES
from salm_lightning.data.combined import ClassWithSupport, support_of, support_of_folder
from salm_lightning.data.npz import NpzReader
from salm_lightning.data.original import Original
from salm_lightning.data.scratch import Scratch
from salm_lightning.errors import ConfigurationError, OutputExistsError
from salm_lightning.files import write_json
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.noise.selection import class_number
from salm_lightning.release import Manifest, write_release
from salm_lightning.runs.summary import measured_table
from salm_lightning.runs.trainers import check_accelerator
from salm_lightning.runs.training import (
    PROTECTED,
    VICTIMS,
    Training,
    check_result,
    proof_table,
    results_file,
    settings_of,
)

SETTINGS = "classwise.json"
_ROWS = 128


def classwise(
    data: str,
    support: str,
    classes: list[int | str] | None = None,
    num_support: int | None = None,
    out: Path | None = None,
    size: int | None = None,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    training: Training = Training(),  # noqa: B008 (frozen)
    proof: bool = True,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> int:
    """Protect a dataset class by class, each among support classes from another dataset (paper: Section 7.1).

    For every class a noise generator is trained on that class's images and the support classes; only the noise of the class is kept.
    Finished classes are not made again when the command is repeated.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic``; with one class per image.
        support: Where the support classes come from: the same, or a folder with one subfolder of images per class.
        classes: Names or numbers of the classes to protect; all by default.
        num_support: Number of support classes, drawn with the seed; all by default.
        out: Folder of the result; ``lightning_logs/<name>-<method>-classwise`` by default. The release is in ``protected``.
        size: Height and width for a name, 28 by default; MedMNIST has 28, 64, 128 and 224.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made; SALM with K = 10 by default.
        training: How noise generators and victims are trained.
        proof: Train a clean and a protected victim and compare them.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        overwrite: Replace a release that stands at ``out``; finished classes that were made with the same settings are used again.

    Returns:
        Exit code 0.

    Raises:
        SalmError: An argument is wrong, or another result stands at ``out``.
    """
    check_accelerator(training.accelerator)
    seed_everything(training.seed, verbose=False)
    begin = time.perf_counter()
    images = Original.named(data, size, root, batch_size=batch_size, seed=training.seed).load()
    if images.task is Task.MULTI_LABEL:
        raise ConfigurationError(f"data={data} has several labels per image; class-wise noise needs one class each.")
    if classes == []:
        raise ConfigurationError("classes is empty; name one or more, or leave it out for all.")
    numbers = list(range(images.num_classes)) if classes is None else [class_number(name, images.info) for name in classes]
    scratch = Scratch()  # its files go with it
    splits, names, origin = _support(support, images, root, num_support, training.seed, scratch)
    folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}-classwise"
    check_result(folder, overwrite)
    scenario = {"scenario": "class-wise", "classes": numbers, "support": Path(support).name, "support_classes": list(names)}
    settings = {"method": method.settings(), **scenario, **asdict(training)}
    _claim(folder, {**settings_of(method, training, images), **scenario, "origin": origin})
    for position, number in enumerate(numbers, start=1):
        part = folder / f"class-{number}"
        if (part / PROTECTED).exists():
            say(f"[{position}/{len(numbers)}] {images.info.class_names[number]}: done before")
            continue
        say(f"[{position}/{len(numbers)}] {images.info.class_names[number]} among {len(names)} support classes")
        combined = ClassWithSupport(images, number, splits, names, batch_size=images.batch_size, seed=training.seed)
        training.release(method, combined, part, overwrite=False)
    release = _merge(folder, images, numbers, settings, overwrite)
    Console().print(measured_table(Manifest.read(release)))
    if proof:
        _prove(training, images, release, folder, numbers)
    say(f"Protected dataset: {release}\nTime taken:        {timedelta(seconds=round(time.perf_counter() - begin))}")
    return 0


def _support(
    support: str, images: ImageDataModule, root: Path | None, number: int | None, seed: int, scratch: Scratch
) -> tuple[dict[str, Split], tuple[str, ...], str]:
    """Return splits and names of the support classes, and what tells their origin from another."""
    if Path(support).is_dir():
        return *support_of_folder(Path(support), images.image_size, number, seed, scratch), str(Path(support).resolve())
    # MedMNIST has few sizes: the smallest one that loses nothing
    size = min((size for size in SIZES if size >= images.image_size), default=max(SIZES)) if support.lower() in MEDMNIST else None
    original = Original.named(support, size, root, "support", seed=seed)
    return *support_of(original.load(), number, seed), original.sha256


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the folder is for; finished classes in it are only good for the same settings.

    Raises:
        OutputExistsError: It holds classes made with other settings.
    """
    path = folder / SETTINGS
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        if any(folder.glob("class-*")):
            raise OutputExistsError(f"out={folder} holds classes made with other settings; name another folder, or remove it.")
        for name in VICTIMS:
            results_file(folder, name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _merge(folder: Path, images: ImageDataModule, numbers: list[int], settings: dict[str, Any], overwrite: bool) -> Path:
    """Put the noisy images of all classes into one release; images of other classes stay as they are."""
    release = folder / PROTECTED
    parts = {number: folder / f"class-{number}" / PROTECTED for number in numbers}
    manifests = {number: Manifest.read(part) for number, part in parts.items()}
    selected = np.isin(images.split("train").labels[:, 0], numbers)
    with ExitStack() as stack:
        rows = {
            number: _rows(stack.enter_context(NpzReader(part / manifests[number].archive.name))) for number, part in parts.items()
        }
        bound = next(iter(manifests.values())).bound.to_dict()
        write_release(release, images, _merged(images.split("train"), rows), settings, bound, overwrite, selected)
    return release


def _rows(archive: NpzReader) -> Iterator[NDArray[np.uint8]]:
    """Yield the training images of a class's release one by one; those of the class come first, in the dataset's order."""
    for block in archive.chunks("train_images", _ROWS):
        yield from block


def _merged(train: Split, rows: dict[int, Iterator[NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(train), _ROWS):
        block = np.array(train.images[start : start + _ROWS])
        for position, label in enumerate(train.labels[start : start + _ROWS, 0]):
            if int(label) in rows:
                block[position] = next(rows[int(label)])
        yield block


def _prove(training: Training, images: ImageDataModule, release: Path, folder: Path, numbers: list[int]) -> None:
    results = training.compare(images, release, folder)
    Console().print(proof_table(results, images))
    table = Table(title="Share of the test images of a protected class that are recognised (recall)")
    for heading in ("class", *results):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for number in numbers:
        table.add_row(
            images.info.class_names[number], *(f"{result['test']['recall'][number]:.1%}" for result in results.values())
        )
    Console().print(table)
