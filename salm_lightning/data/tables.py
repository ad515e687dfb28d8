"""Tables of labels: a CSV as owners have it, its columns recognised by their names, its rows checked one by one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from salm_lightning.errors import DataError, did_you_mean

TABLES = ("metadata.csv", "labels.csv")
"""Names under which a table is found in a folder."""
NONE, FOLDERS = "none", "folders"
"""Words for no column and for no table."""
_NAMES = {
    "file": ("file_name", "filename", "file", "image", "image_path", "path", "image_index", "image_id", "image_name"),
    "label": ("label", "labels", "finding", "findings", "finding_labels", "target", "class", "dx", "diagnosis"),
    "split": ("split", "fold", "subset", "set", "is_valid"),
    "group": ("patient_id", "patient", "subject", "subject_id", "group"),
}
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_NOTHING = ("", "no finding", "none")
"""What stands for no label beside others, in lower case."""
_LARGEST = 2**28  # bytes; a table of a million images has some dozen million
_SHOWN = 12


@dataclass(frozen=True)
class Reading:
    """How a folder is read where it does not speak for itself.

    Args:
        labels: Table of the labels, a CSV with a line per image. By default metadata.csv or labels.csv in the folder; where there is none
            the folders that the images lie in are the classes, which ``folders`` says even if there is a table.
        file_column: Column of the file names, beside the table or below the folder; their endings may be missing.
        label_column: Column of the labels, or several of 0 and 1, with commas between.
        label_delimiter: What stands between several labels of an image; a vertical bar by default.
        split_column: Column that says train, val or test; ``none`` passes over one that is there.
        group_column: Column of patients or other groups, whose images stay in one split; ``none`` passes over one that is there.
        unlabelled: What becomes of images without a label: ``copy`` publishes them as they are, ``skip`` leaves them out. Rows without an
            image are passed over then, too.
        allow_leak: Take splits that share a group, or identical images.
        masks: Names of masks that lie beside the images, as in ``*_mask.png`` where ``*`` is the image's name without ending: pixels that
            are not black in one keep their values, and masks are no images.
        keep_out: Regions that keep their values: a folder of masks with the images' names, or a table of boxes (file, x, y, width, height).
    """

    labels: str | None = None
    file_column: str | None = None
    label_column: str | None = None
    label_delimiter: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    unlabelled: Literal["copy", "skip"] | None = None
    allow_leak: bool = False
    masks: str | None = None
    keep_out: str | None = None


@dataclass(frozen=True)
class FolderOptions(Reading):
    """How a folder of images is read and measured, where it does not say so itself.

    Args:
        range: What black and white are in images above 8 bits: ``window``, what DICOM files show by default; ``data``, the 0.5 and 99.5
            percentiles of the training images' values; or as in ``30000:34000``, in units. By default the window where there is one.
        holdout: Share of the images that is drawn to measure on where the folder has no splits.
        holdout_seed: Settles which ones.
    """

    range: str | None = None
    holdout: float = 0.2
    holdout_seed: int = 0


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used, by what they are for; without ``labels`` the folders say these."""

    file: str
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table: the file as it is written there, its labels (``None`` if there are none to know), split and group."""

    line: int
    file: str
    labels: tuple[str, ...] | None
    split: str
    group: str


@dataclass(frozen=True)
class Table:
    """A table, read.

    Attributes:
        path: Where it is.
        headings: Names of all its columns.
        columns: What was recognised.
        rows: Its lines, in order.
        class_names: All labels by name; several for an image if ``multi_label``.
        multi_label: Whether an image may have several labels, or none.
        detail: How its labels are to be understood, in words.
    """

    path: Path
    headings: tuple[str, ...]
    columns: Columns
    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    detail: str


def split_of(word: str) -> str | None:
    """Return which split a word means, ``train``, ``val`` or ``test``, if any."""
    return next((split for split, words in _SPLITS.items() if word.strip().lower() in words), None)


def read_table(path: Path, reading: Reading) -> Table:
    """Read a table and find its columns.

    Raises:
        DataError: It cannot be read, or has not the columns that are needed.
    """
    head, lines = read_lines(path)
    columns, multi_label, detail = _columns(path, head, lines, reading)
    place = {name: number for number, name in enumerate(head)}
    delimiter = reading.label_delimiter or "|"
    rows = []
    for line, cells in lines:
        given = [cells[place[name]] for name in columns.labels]
        labels = _labels(given, columns.labels, multi_label, delimiter)
        split = "" if columns.split is None else _split(path, line, columns.split, cells[place[columns.split]])
        group = "" if columns.group is None else cells[place[columns.group]]
        rows.append(Row(line, cells[place[columns.file]], labels, split, group))
    names = columns.labels if len(columns.labels) > 1 else {label for row in rows for label in row.labels or ()}
    return Table(path, tuple(head), columns, tuple(rows), tuple(sorted(names)), multi_label, detail)


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the headings of a table, and the cells of each line that is not empty, with its number.

    Raises:
        DataError: It cannot be read.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path} is a spreadsheet; save it as CSV (UTF-8), and name that with --labels.")
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(
                f"{path} is larger than {_LARGEST >> 20} MiB, which no table of labels is; name another with --labels."
            )
        text = path.read_bytes().decode("utf-8-sig")
        delimiter = _delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [normalize("NFC", cell.strip()) for cell in cells]) for cells in reader if any(cells)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as CSV (UTF-8).") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); save it as CSV (UTF-8).") from error
    if len(lines) < 2:
        raise DataError(
            f"{path} has {'no' if not lines else 'only one'} line; a table has a line of headings, and one for each image."
        )
    head, rows = lines[0][1], lines[1:]
    while head and not head[-1]:  # a comma at the end of each line
        head.pop()
    for number, name in enumerate(head):
        if head.index(name) != number:
            raise DataError(f"{path} has two columns {name!r}; give each its own name.")
    for line, cells in rows:
        if len(cells) < len(head) or any(cells[len(head) :]):
            count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
            raise DataError(
                f"{path}, line {line} has {count} and the headings are {len(head)}; put quotes around what holds {delimiter!r}."
            )
    return head, rows


def _delimiter(text: str) -> str:
    """Return what stands between the headings most often."""
    head = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return max(",;\t", key=head.count)


def _columns(
    path: Path, head: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], reading: Reading
) -> tuple[Columns, bool, str]:
    """Return the columns that are used, whether an image has several labels, and how its labels are to be understood."""
    file = column_of(path, head, "file", reading.file_column)
    if file is None:
        raise DataError(
            f"{path} has no column of file names that is known ({listed(head)}); name it with --file_column, or pass the table over "
            f"with --labels {FOLDERS}."
        )
    split, group = (column_of(path, head, role, getattr(reading, f"{role}_column")) for role in ("split", "group"))
    if reading.label_column is not None:
        words = [normalize("NFC", word.strip()) for word in reading.label_column.split(",")]
        whole = normalize("NFC", reading.label_column.strip())
        labels = [whole] if whole in head else [_given(path, head, "label", word) for word in words]
    else:
        named = column_of(path, head, "label", None)
        labels = [named] if named is not None else _binary(head, lines, {file, split, group})
    if len(labels) > 1:
        numbers = [head.index(name) for name in labels]
        marked = {name: sum(_is(cells[number], _YES) for _, cells in lines) for name, number in zip(labels, numbers, strict=True)}
        for name, number in zip(labels, numbers, strict=True):
            wrong = next((line for line, cells in lines if not _is(cells[number], (*_YES, *_NO))), None)
            if wrong is not None:
                raise DataError(
                    f"{path}, line {wrong}: column {name!r} holds something else than 0 and 1, which several columns of labels do; name "
                    "one column with --label_column."
                )
        absent = [name for name, count in marked.items() if not count]
        if absent:
            raise DataError(f"{path}: no image has the label of column {absent[0]!r}; name the others with --label_column.")
        single = all(sum(_is(cells[number], _YES) for number in numbers) == 1 for _, cells in lines)
        detail = f"{len(labels)} columns of 0 and 1, " + ("one 1 in each line" if single else "any number of 1 in a line")
        return Columns(file, tuple(labels), split, group), not single, detail
    if not labels:
        return Columns(file, (), split, group), False, "the folders that images lie in"
    cells_of = head.index(labels[0])
    delimiter = reading.label_delimiter or "|"
    several = reading.label_delimiter is not None or any(delimiter in cells[cells_of] for _, cells in lines)
    return Columns(file, (labels[0],), split, group), several, f"column {labels[0]!r}"


def column_of(path: Path, head: Sequence[str], role: str, given: str | None) -> str | None:
    """Return the column for something: the one that is given, or the first whose name is known."""
    if given is not None:
        return None if given == NONE and role in ("split", "group") else _given(path, head, role, normalize("NFC", given))
    plain = {_plain(name): name for name in reversed(head)}
    return next((plain[_plain(name)] for name in _NAMES[role] if _plain(name) in plain), None)


def _given(path: Path, head: Sequence[str], role: str, name: str) -> str:
    if name not in head:
        raise DataError(
            f"--{role}_column={name!r} is no column of {path}{did_you_mean(name, head) or '.'} It has {listed(head)}."
        )
    return name


def _binary(head: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], taken: set[str | None]) -> list[str]:
    """Return the columns that hold 0 and 1 alone, if there are several."""
    found = [
        name
        for number, name in enumerate(head)
        if name not in taken and all(_is(cells[number], (*_YES[:2], *_NO[:2])) for _, cells in lines)
    ]
    return found if len(found) > 1 else []


def _labels(given: Sequence[str], columns: Sequence[str], multi_label: bool, delimiter: str) -> tuple[str, ...] | None:
    if len(columns) > 1:
        return tuple(name for name, cell in zip(columns, given, strict=True) if _is(cell, _YES))
    if not columns:
        return None
    if not multi_label:
        return (given[0],) if given[0] else None
    words = (word.strip() for word in given[0].split(delimiter))
    return tuple(dict.fromkeys(word for word in words if word.lower() not in _NOTHING))


def _split(path: Path, line: int, column: str, cell: str) -> str:
    if _plain(column) == "isvalid" and _is(cell, (*_YES, *_NO)):
        return "val" if _is(cell, _YES) else "train"
    split = split_of(cell)
    if split is None:
        raise DataError(
            f"{path}, line {line}: column {column!r} says {cell!r}, which is neither train, val nor test; name another with "
            f"--split_column, or pass it over with --split_column {NONE}."
        )
    return split


def _is(cell: str, words: Iterable[str]) -> bool:
    return cell.lower() in words


def _plain(name: str) -> str:
    """Return a column's name as it is compared: ``Image Index``, ``image_index`` and ``ImageIndex`` are one."""
    return re.sub(r"[\W_]+", "", name.lower())


def listed(head: Sequence[str]) -> str:
    """Return the names of columns, the first ones of many."""
    return ", ".join(map(repr, head[:_SHOWN])) + (f" and {len(head) - _SHOWN} more" if len(head) > _SHOWN else "")
