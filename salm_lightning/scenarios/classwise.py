"""Owners who each know one class: its noise is trained among support classes from elsewhere (paper: Section 7.1, Appendix D.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from salm_lightning.console import cell, say
from salm_lightning.data import MEDMNIST, ImageDataModule, Task
from salm_lightning.data.base import Split
from salm_lightning.data.catalogue import SIZES
from salm_lightning.data.combined import ClassWithSupport, support_of, support_of_folder
from salm_lightning.data.mapped import Scratch
from salm_lightning.data.npz import NpzReader
from salm_lightning.data.original import named_images
from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.selection import class_number
from salm_lightning.release import Manifest, write_release
from salm_lightning.release.parts import clear_chunks
from salm_lightning.runs.estimate import Work
from salm_lightning.runs.plan import generator_work
from salm_lightning.runs.protection import PROTECTED, Protection
from salm_lightning.runs.stored_generator import GENERATOR

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

        ``images`` are to be protected; so many classes are drawn with the seed, all for ``None``.

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


@dataclass
class ClassWise(Protection):
    """Classes, by their numbers, protected one after another, each among support classes, and put into one release."""

    record: ClassVar[str] = "classwise.json"
    keeps_parts: ClassVar[bool] = True
    numbering: ClassVar[tuple[str, str]] = ("", "")

    numbers: Sequence[int] = field(kw_only=True)
    support: Support = field(kw_only=True)

    def _scenario(self) -> dict[str, Any]:
        classes = {"classes": list(self.numbers), "support": self.support.name}
        return {"scenario": "class-wise", **classes, "support_classes": list(self.support.class_names)}

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON values."""
        return {**super().identity(), **self._scenario(), "origin": self.support.origin}

    def parts(self) -> list[Path]:
        """Return the folders of classes that were protected before."""
        return [part for folder in sorted(self.folder.glob("class-*")) for part in (folder / GENERATOR, folder)]

    def _part(self, number: int) -> Path:
        return self.folder / f"class-{number}"

    def noise_works(self) -> list[Work]:
        """Return the works of the classes that are not protected yet."""
        left = [number for number in self.numbers if not self._is_protected(number)]
        return [generator_work(self.training, self.method, self.images, self._sizes(number)) for number in left]

    def _is_protected(self, number: int) -> bool:
        return self.goes_on and (self._part(number) / PROTECTED).exists()

    def _sizes(self, number: int) -> dict[str, int]:
        """Return the number of images of a class and its support, by split."""
        labels = {name: self.images.split(name).labels[:, 0] for name in self.support.splits}
        return {name: int((labels[name] == number).sum()) + len(split) for name, split in self.support.splits.items()}

    def make_noise(self) -> None:
        """Protect the classes that are left, then put the noisy images of all into one release."""
        images, support = self.images, self.support
        for position, number in enumerate(self.numbers, start=1):
            head = f"[{position}/{len(self.numbers)}] {images.info.class_names[number]}"
            if self._is_protected(number):
                say(f"{head}: done before")
                clear_chunks(self._part(number) / PROTECTED)
                continue
            say(f"{head} among {len(support.class_names)} support classes")
            options = {"batch_size": images.batch_size, "seed": self.training.seed}
            self.make_release(
                ClassWithSupport(images, number, support.splits, support.class_names, **options), self._part(number)
            )
        if not self.is_released:
            self._merge()
            self.note_release()

    def _merge(self) -> None:
        """Write the release; images of other classes stay as they are."""
        parts = {number: self._part(number) / PROTECTED for number in self.numbers}
        manifests = {number: Manifest.read(part) for number, part in parts.items()}
        train = self.images.split("train")
        settings = {"method": self.method.settings(), **self._scenario(), **self.training.settings()}
        with ExitStack() as stack:
            archives = {number: part / manifests[number].archive.name for number, part in parts.items()}
            readers = {number: stack.enter_context(NpzReader(path)) for number, path in archives.items()}
            # Image by image; those of the class come first, in the dataset's order.
            rows = {number: chain.from_iterable(reader.chunks("train_images", _ROWS)) for number, reader in readers.items()}
            bound, selected = manifests[self.numbers[0]].bound.to_dict(), np.isin(train.labels[:, 0], list(self.numbers))
            blocks = _merged(train, rows)
            write_release(self.release, self.images, blocks, settings, bound, True, selected, publish=self.publish)

    def tables(self, found: Mapping[str, Mapping[str, Any]]) -> Iterable[Table]:
        """Yield tables of what the victims have shown, also of each protected class."""
        yield from super().tables(found)
        table = Table(title="Share of the test images of a protected class that are recognised (recall)")
        table.add_column("class")
        for name in found:
            table.add_column(name, justify="right")
        for number in self.numbers:
            shares = (f"{results['test']['recall'][number]:.1%}" for results in found.values())
            table.add_row(cell(self.images.info.class_names[number]), *shares)
        yield table


def _merged(train: Split, rows: Mapping[int, Iterator[NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(train), _ROWS):
        block = np.array(train.images[start : start + _ROWS])
        for position, label in enumerate(train.labels[start : start + _ROWS, 0]):
            if int(label) in rows:
                block[position] = next(rows[int(label)])
        yield block
