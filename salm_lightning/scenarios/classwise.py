"""Owners who each know one class: its noise is trained among support classes from elsewhere (paper: Section 7.1, Appendix D.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from salm_lightning.console import say
from salm_lightning.data import MEDMNIST, ImageDataModule, Task
from salm_lightning.data.base import Split
from salm_lightning.data.catalogue import SIZES
from salm_lightning.data.combined import ClassWithSupport, support_of, support_of_folder
from salm_lightning.data.mapped import Scratch
from salm_lightning.data.npz import NpzReader
from salm_lightning.data.original import named_images
from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.methods import Method
from salm_lightning.noise.selection import class_number
from salm_lightning.release import Manifest, write_release
from salm_lightning.release.manifest import Publish
from salm_lightning.runs.effort import Training
from salm_lightning.runs.plan import announce, generator_work, victim_work
from salm_lightning.runs.proof import proof_table, verdict
from salm_lightning.runs.result_folder import PROTECTED, ResultFolder
from salm_lightning.runs.summary import print_release
from salm_lightning.runs.training import identity_of, make_release, train_victims

RECORD = "classwise.json"
"""File name of the record of a result, in its folder."""
_ROWS = 128


@dataclass(frozen=True)
class Support:
    """Support classes: what a source model is to tell the class from.

    Attributes:
        name: What they are called.
        splits: Their images and labels.
        class_names: Their names.
        origin: What tells them from others.
        scratch: Holds files of the images, which go with it.
    """

    name: str
    splits: dict[str, Split]
    class_names: tuple[str, ...]
    origin: str
    scratch: Scratch

    @classmethod
    def named(cls, word: str, images: ImageDataModule, root: Path | None, number: int | None, seed: int) -> Support:
        """Return the support classes that a user names: data, or a folder with one subfolder of images per class.

        Args:
            word: The name or the folder.
            images: What is to be protected.
            root: Folder of MedMNIST's files.
            number: How many classes, drawn with the seed; ``None`` is all.
            seed: Settles which.

        Raises:
            SalmError: There is nothing of that name, or it has no such classes.
        """
        path, scratch = Path(word), Scratch()
        if path.is_dir():
            return cls(
                path.name, *support_of_folder(path, images.image_size, number, seed, scratch), str(path.resolve()), scratch
            )
        # MedMNIST has few sizes: the smallest one that loses nothing
        size = (
            min((size for size in SIZES if size >= images.image_size), default=max(SIZES)) if word.lower() in MEDMNIST else None
        )
        data = named_images(word, size, root, "support", seed=seed).load()
        return cls(path.name, *support_of(data, number, seed), data.checksum(), scratch)


def numbers_of(classes: Sequence[int | str] | None, images: ImageDataModule) -> list[int]:
    """Return the numbers of the classes that a user names; all for ``None``.

    Raises:
        ConfigurationError: There is no such class, or none is named, or an image may have several.
    """
    if images.task is Task.MULTI_LABEL:
        raise ConfigurationError(f"data={images.info.name} has several labels per image; class-wise noise needs one class each.")
    if classes is not None and not classes:
        raise ConfigurationError("classes is empty; name one or more, or leave it out for all.")
    return list(range(images.num_classes)) if classes is None else [class_number(name, images.info) for name in classes]


def protect_classes(
    images: ImageDataModule,
    numbers: Sequence[int],
    support: Support,
    folder: Path,
    method: Method,
    training: Training,
    proof: bool = True,
    publish: Publish = "all",
    yes: bool = False,
    overwrite: bool = False,
) -> None:
    """Protect classes one after another, each among support classes, put all into one release, and prove it on a victim.

    Args:
        images: The dataset, loaded.
        numbers: The classes.
        support: The support classes.
        folder: Where the result goes.
        method: How the noise is made.
        training: How noise generators and victims are trained.
        proof: Train a clean and a protected victim and compare them.
        publish: Which splits go into the release.
        yes: Begin what takes more than a day without asking.
        overwrite: Replace a result that stands there; finished classes that were made with the same settings are used again.

    Raises:
        SalmError: Another result stands there, or a training has diverged.
    """
    scenario = {
        "scenario": "class-wise", "classes": list(numbers), "support": support.name, "support_classes": list(support.class_names)
    }  # fmt: skip
    identity = {**identity_of(method, training, images, publish), **scenario, "origin": support.origin}
    result = ResultFolder(folder / RECORD, identity, sorted(folder.glob("class-*")), proof)
    result.check(overwrite, keep_parts=True)
    left = [number for number in numbers if not (result.goes_on and (folder / f"class-{number}" / PROTECTED).exists())]
    noise = [generator_work(training, method, images, _sizes(images, number, support)) for number in left]
    announce(training, proof, [*noise, *(victim_work(training, images) for _ in result.victims_left)], yes)
    with result.taken():
        for position, number in enumerate(numbers, start=1):
            head = f"[{position}/{len(numbers)}] {images.info.class_names[number]}"
            if number not in left:
                say(f"{head}: done before")
                continue
            say(f"{head} among {len(support.class_names)} support classes")
            combined = ClassWithSupport(
                images, number, support.splits, support.class_names, batch_size=images.batch_size, seed=training.seed
            )
            make_release(training, method, combined, folder / f"class-{number}", overwrite=False)
        if not result.is_released:
            settings = {"method": method.settings(), **scenario, **training.settings()}
            _merge(folder, images, numbers, settings, overwrite, publish)
            result.note_release()
        found = train_victims(training, images, folder) if proof else {}
    if found:
        Console().print(proof_table(found, images))
        Console().print(_recall_table(found, images, numbers))
    print_release(result.release, folder, images, verdict(found, images) if found else "")


def _sizes(images: ImageDataModule, number: int, support: Support) -> dict[str, int]:
    """Return the number of images of a class and its support, by split."""
    own = {name: int((images.split(name).labels[:, 0] == number).sum()) for name in support.splits}
    return {name: count + len(support.splits[name]) for name, count in own.items()}


def _merge(
    folder: Path, images: ImageDataModule, numbers: Sequence[int], settings: dict[str, Any], overwrite: bool, publish: Publish
) -> None:
    """Put the noisy images of all classes into one release; images of other classes stay as they are."""
    parts = {number: folder / f"class-{number}" / PROTECTED for number in numbers}
    manifests = {number: Manifest.read(part) for number, part in parts.items()}
    selected = np.isin(images.split("train").labels[:, 0], list(numbers))
    with ExitStack() as stack:
        readers = {
            number: stack.enter_context(NpzReader(part / manifests[number].archive.name)) for number, part in parts.items()
        }
        rows = {number: _rows(reader) for number, reader in readers.items()}
        bound = manifests[numbers[0]].bound.to_dict()
        blocks = _merged(images.split("train"), rows)
        write_release(folder / PROTECTED, images, blocks, settings, bound, overwrite, selected, publish=publish)


def _rows(archive: NpzReader) -> Iterator[NDArray[np.uint8]]:
    """Yield the training images of a class's release one by one; those of the class come first, in the dataset's order."""
    for block in archive.chunks("train_images", _ROWS):
        yield from block


def _merged(train: Split, rows: Mapping[int, Iterator[NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(train), _ROWS):
        block = np.array(train.images[start : start + _ROWS])
        for position, label in enumerate(train.labels[start : start + _ROWS, 0]):
            if int(label) in rows:
                block[position] = next(rows[int(label)])
        yield block


def _recall_table(found: Mapping[str, Mapping[str, Any]], images: ImageDataModule, numbers: Sequence[int]) -> Table:
    table = Table(title="Share of the test images of a protected class that are recognised (recall)")
    table.add_column("class")
    for name in found:
        table.add_column(name, justify="right")
    for number in numbers:
        shares = (f"{results['test']['recall'][number]:.1%}" for results in found.values())
        table.add_row(images.info.class_names[number], *shares)
    return table
