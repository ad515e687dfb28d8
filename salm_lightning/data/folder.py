"""What a folder of images is taken for: a table, or class folders with or without splits above, becomes a list of labelled images."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

from salm_lightning.checked import parse
from salm_lightning.data.base import SPLITS
from salm_lightning.data.keep_out import KEPT_OUT, KeptOut, find_kept_out, masked_by
from salm_lightning.data.tables import FOLDERS, TABLES, FolderOptions, Reading, Row, Table, listed, read_table, split_of
from salm_lightning.data.walk import CONTAINER, IMAGE, OTHER, Kind, Problem, kind_of_file, walk
from salm_lightning.errors import DataError
from salm_lightning.files import address

_UNLABELLED = "--unlabelled copy publishes them as they are, --unlabelled skip leaves them out."
_NO_LABEL = Kind("images without a label", _UNLABELLED)
_NO_FILE = Kind("lines without an image", "Put the images there; --unlabelled skip passes over such lines.")
_TWICE = Kind("lines for an image that has one before", "Leave one line for each image.")
_SEVERAL = Kind("lines that may mean several images", "Write their paths below the folder.")
_OUTSIDE = Kind("lines that lead out of the folder", "Write paths below the folder.")
_ALONE = Kind("classes with a single image", "A class is learned from some and measured on others: give it more, or take it out.")
GROUP_LEAK = Kind(
    "groups in several splits",
    "A model would be measured on patients that it knows: move them, or --allow_leak true takes it so.",
)


class FolderImage(NamedTuple):
    """An image of a folder: its path below it with ``/``, the numbers of its classes, its split and group, empty if it has none."""

    path: str
    labels: tuple[int, ...]
    split: str
    group: str


class _Known(NamedTuple):
    """What is known of an image: its labels (``None`` if there are none to know), split and group."""

    labels: tuple[str, ...] | None
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """What a folder is taken for.

    Attributes:
        root: The folder.
        layout: How images have got their labels, in words.
        table: The table, if there is one.
        class_names: Names of the classes or labels, sorted.
        multi_label: Whether an image may have several labels, or none.
        images: The labelled images, sorted by path.
        unlabelled: Images without a label, which are published as they are.
        others: Files that are no images, which are copied as they are.
        problems: What keeps it from being protected.
        notes: What people should know.
        kept_out: Regions of images that keep their values.
    """

    root: Path
    layout: str
    table: Table | None
    class_names: tuple[str, ...]
    multi_label: bool
    images: tuple[FolderImage, ...]
    unlabelled: tuple[str, ...]
    others: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    kept_out: KeptOut

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that the folder gives its images, in the usual order; none where it gives none."""
        found = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in found)

    @cached_property
    def groups(self) -> dict[str, set[str]]:
        """The splits of each group."""
        found: dict[str, set[str]] = defaultdict(set)
        for image in self.images:
            if image.group:
                found[image.group].add(image.split)
        return dict(found)


def read_folder(root: Path | str, reading: Reading = Reading(), argument: str = "data") -> ImageFolder:  # noqa: B008 (frozen)
    """Find out what a folder holds, from names and tables alone; hardly a file is opened.

    Args:
        root: The folder.
        reading: What it does not say itself.
        argument: What the user calls it.

    Raises:
        DataError: It is no folder, or nothing in it can be taken for labelled images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{argument}={root} {'is no folder' if root.exists() else 'is not there'}; name a folder of images.")
    files, problems = walk(root)
    kinds = _kinds(root, files, reading)
    images = [path for path in files if kinds[path] != OTHER]
    if not images:
        raise DataError(
            f"{argument}={root} holds no image; " + (f"it has {len(files)} other files." if files else "it is empty.")
        )
    if IMAGE not in kinds.values():
        raise DataError(
            f"{argument}={root} holds no image that is taken, but {len(images)} files such as {images[0]}; store images as PNG, JPEG, "
            "TIFF or DICOM; an .npz archive in MedMNIST's layout is taken by its own path."
        )
    table, notes = _table(root, reading, files), []
    kept_out = find_kept_out(root, files, images, reading.masks, reading.keep_out, _Names(images).find)
    problems += kept_out.problems
    by_folder, layout = _by_folders(images)
    known = by_folder
    if table is not None:
        known, lines = _by_table(root, table, images, by_folder)
        problems += lines if reading.unlabelled is None else [line for line in lines if line.kind is not _NO_FILE]
        layout = f"{table.path.name}, a line for each image" + ("" if table.columns.labels else f"; labels from {layout}")
        notes += _moved(known)
    labelled = {path: found for path, found in known.items() if found.labels is not None}
    names = sorted({label for found in labelled.values() for label in found.labels or ()})
    _refuse_unlearnable(root, argument, table, images, labelled, names)
    stray = [path for path in images if path not in labelled and (kinds[path] == IMAGE or path in known)]
    if reading.unlabelled is None:
        problems += [Problem(_NO_LABEL, path) for path in stray]
    others = sorted(set(files) - labelled.keys() - set(stray))
    numbers = {name: number for number, name in enumerate(names)}
    folder = ImageFolder(
        root=root,
        layout=layout,
        table=table,
        class_names=tuple(names),
        multi_label=table is not None and table.multi_label,
        images=tuple(
            FolderImage(path, tuple(sorted(numbers[label] for label in found.labels or ())), found.split, found.group)
            for path, found in sorted(labelled.items())
        ),
        unlabelled=tuple(stray) if reading.unlabelled == "copy" else (),
        others=tuple(others),
        problems=tuple(problems),
        notes=tuple(notes),
        kept_out=kept_out,
    )
    more, remarks = _look_over(folder, argument, reading)
    remarks += _hidden_images(path for path in others if kinds[path] == CONTAINER)
    if stray and reading.unlabelled is not None:
        remarks.append(
            f"{len(stray)} images without a label are " + ("published as they are" if folder.unlabelled else "left out")
        )
    return replace(folder, problems=(*problems, *more), notes=(*notes, *remarks))


def _table(root: Path, reading: Reading, files: Sequence[str]) -> Table | None:
    """Return the table that is named, or found in the folder, or in those of its splits."""
    if reading.labels == FOLDERS:
        return None
    if reading.labels is not None:
        path = next((path for path in (Path(reading.labels), root / reading.labels) if path.is_file()), None)
        if path is None:
            raise DataError(f"labels={reading.labels} is not there; name a CSV file, or {FOLDERS} for class folders.")
        return read_table(path, reading)
    for name in TABLES:
        if name in files:
            return read_table(root / name, reading)
    return None


def _by_folders(images: Iterable[str]) -> tuple[dict[str, _Known], str]:
    """Return what folders say of the images in them, and that layout in words."""
    parts = {path: path.split("/") for path in images}
    splits = {of[0] for of in parts.values() if len(of) > 1 and split_of(of[0])}
    if splits:
        found = {
            path: _Known((normalize("NFC", of[1]),) if len(of) > 2 else None, split_of(of[0]) or "")
            for path, of in parts.items()
            if of[0] in splits and len(of) > 1
        }
        return found, "folders, split / class / image"
    return {path: _Known((normalize("NFC", of[0]),)) for path, of in parts.items() if len(of) > 1}, "folders, class / image"


def _by_table(
    root: Path, table: Table, images: Sequence[str], by_folder: Mapping[str, _Known]
) -> tuple[dict[str, _Known], list[Problem]]:
    """Return what a table says of images, what it does not say being as the folders have it, and the lines that fit none."""
    names, found, problems = _Names(images), {}, []
    beside = os.path.relpath(table.path.parent, root) if table.path.is_relative_to(root) else "."
    for row in table.rows:
        where = f"line {row.line}: {row.file}"
        path = _relative(root, row.file)
        if path is None:
            problems.append(Problem(_OUTSIDE, where))
            continue
        matches = names.find(os.path.normpath(f"{beside}/{path}")) or names.find(path)
        if len(matches) != 1:
            problems.append(Problem(_SEVERAL if matches else _NO_FILE, where, ", ".join(matches[:3])))
        elif matches[0] in found:
            problems.append(Problem(_TWICE, where))
        else:
            found[matches[0]] = _merged(row, table, by_folder.get(matches[0], _Known(None)))
    return found, problems


def _merged(row: Row, table: Table, folder: _Known) -> _Known:
    labels = row.labels if table.columns.labels else folder.labels
    return _Known(labels, folder.split if table.columns.split is None else row.split, row.group)


def as_read(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a folder was read, from values of a manifest that anybody may have written: ``folder``, and where it says so ``protects``.

    Raises:
        DataError: They are of another kind, or none.
    """
    how: dict[str, Any] = parse(dict, dataset.get("folder", {}), "dataset.folder")
    kinds = {field.name: (float if field.name == "holdout" else type(field.default)) for field in fields(FolderOptions)}
    wrong = [name for name in how if name not in kinds and name not in ("protects", KEPT_OUT)]
    if wrong:
        raise DataError(f"dataset.folder.{wrong[0]} is no option of a folder; get the release again from where it came.")
    known = {name: value for name, value in how.items() if name in kinds}
    options = parse(FolderOptions, known, "dataset.folder")
    return {"folder": options, **({"protects": how["protects"]} if how.get("protects") in ("train", "all") else {})}


def sum_of(folder: ImageFolder, sums: Iterable[str], changed: Sequence[str] = ()) -> str:
    """Return the sum of a folder's images, whose files have these sums, with their labels, and of what was changed since."""
    known = [[*image, total] for image, total in zip(folder.images, sums, strict=True)]
    return address(known, folder.class_names, list(changed))


def _kinds(root: Path, files: Iterable[str], reading: Reading) -> dict[str, str]:
    return {path: OTHER if masked_by(path, reading.masks) else kind_of_file(root, path) for path in files}


class _Names:
    """Files by what a table may call them: the path or the name, with or without the ending, in capitals or not."""

    def __init__(self, images: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._loose: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
        for path in images:
            plain = normalize("NFC", path)
            self._exact[plain] = path
            for index, key in zip(self._loose, _keys(plain), strict=True):
                index[key].append(path)

    def find(self, word: str) -> list[str]:
        """Return the images that a word means in the closest reading that fits any."""
        if word in self._exact:
            return [self._exact[word]]
        folded = word.lower()
        return next((index[folded] for index in self._loose if folded in index), [])


def _keys(path: str) -> tuple[str, str, str, str]:
    bare, name = str(PurePosixPath(path).with_suffix("")).lower(), PurePosixPath(path)
    return path.lower(), bare, name.name.lower(), name.stem.lower()


def _relative(root: Path, word: str) -> str | None:
    """Return the path below a folder that a table means; ``None`` if that leads out of it."""
    path = word.replace("\\", "/")
    if path.startswith("/"):
        full = Path(path)
        for start in (root, root.resolve()):
            if full.is_relative_to(start):
                path = str(full.relative_to(start))
                break
        else:
            return None
    path = os.path.normpath(path)
    return None if path == ".." or path.startswith("../") else path


def _moved(known: Mapping[str, _Known]) -> list[str]:
    """Say how many images lie in the folder of another split than their table names."""
    moved = [
        path for path, found in known.items() if found.split and (split_of(path.split("/")[0]) or found.split) != found.split
    ]
    if not moved:
        return []
    return [f"{len(moved)} images lie in the folder of another split than the table says, such as {moved[0]}; the table counts"]


def _refuse_unlearnable(
    root: Path, argument: str, table: Table | None, images: Sequence[str], labelled: Mapping[str, _Known], names: Sequence[str]
) -> None:
    """Refuse a folder in which there is nothing to tell apart."""
    where = f"{argument}={root}"
    if not labelled and table is not None and table.columns.labels:
        raise DataError(
            f"{where}: no line of {table.path} belongs to an image with a label; write file names as they are below {root}."
        )
    if not labelled and table is None:
        raise DataError(
            f"{where} holds {len(images)} images without labels; put them into a folder for each class, or name a table with --labels."
        )
    if len(names) < 2 and not (table is not None and table.multi_label and names):
        if table is not None and not table.columns.labels:
            raise DataError(
                f"{table.path} has no column of labels that is known ({listed(table.headings)}), and folders say no two classes; name it "
                "with --label_column."
            )
        only, way_out = names[0] if names else "", "give images of others, too"
        below = {path.split("/")[1] for path in images if path.count("/") > 1}
        if table is None and len(below) > 1:
            way_out = f"if the folders in it are the classes, give {root / only}"
        raise DataError(f"{where}: all images have the class {only!r}, and there is nothing to tell apart; {way_out}.")


def _look_over(folder: ImageFolder, argument: str, reading: Reading) -> tuple[list[Problem], list[str]]:
    """Return what is wrong with the splits, groups and classes, and what people should know."""
    problems: list[Problem] = []
    notes: list[str] = []
    if folder.splits and "train" not in folder.splits:
        raise DataError(
            f"{argument}={folder.root} has the splits {', '.join(folder.splits)} and no train; name one so, or leave splits out."
        )
    if folder.splits:
        astray = [image for image in folder.images if not image.split]
        kind = Kind("images with a label and no split", "Give each its split, or none.")
        problems += [Problem(kind, image.path) for image in astray]
    leaks, remarks = group_leaks(folder, reading.allow_leak)
    problems, notes = [*problems, *leaks], [*notes, *remarks]
    counts = Counter(label for image in folder.images for label in image.labels)
    if not folder.multi_label:
        problems += [Problem(_ALONE, folder.class_names[label]) for label, count in sorted(counts.items()) if count == 1]
    for split in folder.splits:
        present = {label for image in folder.images if image.split == split for label in image.labels}
        absent = [name for number, name in enumerate(folder.class_names) if number not in present]
        if absent:
            notes.append(f"no {split} image has the label {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}")
    return problems, notes


def group_leaks(folder: ImageFolder, allowed: bool) -> tuple[list[Problem], list[str]]:
    """Return the groups in several splits as problems, or where that is allowed a note of them."""
    leaks = {group: splits for group, splits in folder.groups.items() if len(splits) > 1}
    if allowed:
        return [], [f"{len(leaks)} groups are in several splits, which is allowed"] if leaks else []
    return [Problem(GROUP_LEAK, group, ", ".join(sorted(splits, key=_order))) for group, splits in sorted(leaks.items())], []


def _hidden_images(paths: Iterable[str]) -> list[str]:
    found = list(paths)
    if not found:
        return []
    return [f"{len(found)} files that may hold the images, such as {found[0]}, would be published as they are"]


def _order(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)
