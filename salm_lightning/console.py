"""What is said to people: lines, tables, progress bars, and commands that they can copy."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, BinaryIO, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track, wrap_file
from rich.table import Table

_T = TypeVar("_T")
_LONG = 2**29
"""Bytes of which reading takes seconds."""
_HEADINGS = {"acc": "accuracy", "auc": "AUC", "balanced_acc": "balanced accuracy", "kappa": "weighted kappa"}


def is_live(stream: TextIO) -> bool:
    """Return whether a bar that moves can be shown: the stream is a terminal that can, and this is not CI."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def say(text: str, stderr: bool = False) -> None:
    """Print lines as they are."""
    Console(stderr=stderr).print(
        "\n".join(map(visible, text.split("\n"))), highlight=False, soft_wrap=True, markup=False, emoji=False
    )


def visible(text: str) -> str:
    """Return a text whose control characters are shown instead of obeyed: names in files can hold commands for a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def cell(text: str) -> str:
    """Return a text as a table shows it: nothing in it is obeyed, neither as markup nor by a terminal."""
    return escape(visible(text))


def command(*words: str | Path) -> str:
    """Return a command that a shell takes as it is."""
    return shlex.join(map(str, words))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, on terminals only; what is yielded takes how many are done, and of how many."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not is_live(sys.stderr)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tracked(blocks: Iterable[_T], total: int, what: str, wanted: bool = True) -> Iterable[_T]:
    """Yield ``total`` blocks under a bar with the remaining time, if that is wanted and standard output is a terminal."""
    return track(blocks, what, total, console=Console()) if wanted and is_live(sys.stdout) else blocks


@contextmanager
def watched(file: BinaryIO, num_bytes: int, what: str) -> Iterator[BinaryIO]:
    """Yield a file that shows, with the time that remains, how much of it has been read, if that takes long."""
    if num_bytes < _LONG or not is_live(sys.stderr):
        yield file
        return
    with wrap_file(file, num_bytes, description=what, console=Console(stderr=True), transient=True) as reader:
        yield reader


def spread(values: Iterable[float | None], factor: float = 100, digits: int = 1) -> str:
    """Return the mean over the seeds, ``±`` the sample standard deviation where there are several; empty for no value.

    What is not known is ``None`` and left out. A factor of 100 makes percent of shares.
    """
    known = [factor * value for value in values if value is not None]
    beside = deviation(known)
    return f"{fmean(known):.{digits}f}{'' if beside is None else f' ± {beside:.{digits}f}'}" if known else ""


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation over the seeds, where there are several."""
    return stdev(values) if len(values) > 1 else None


def duration(seconds: float) -> str:
    """Return a time as ``H:MM:SS``, after days where there are any."""
    return str(timedelta(seconds=round(seconds)))


def metrics_table(title: str, heading: str, rows: Mapping[str, Mapping[str, Any]], digits: int) -> Table:
    """Return a table with a line of metrics under each name; the first line's metrics are the columns, what another lacks stays empty.

    Percentages have so many digits after the point, other numbers two more.
    """
    table = Table(title=cell(title))
    table.add_column(heading)
    names = [name for name in _HEADINGS if name in next(iter(rows.values()))]
    for name in names:
        table.add_column(_HEADINGS[name], justify="right")
    for row_name, row in rows.items():
        table.add_row(cell(row_name), *("" if row.get(name) is None else _figure(name, row[name], digits) for name in names))
    return table


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table whose columns are also straight as plain text; ``left`` of them, from the first on, are no numbers."""
    lines = [tuple(headings), *map(tuple, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if place < left else ">" for place in range(len(widths))]
    shown = [" | ".join(f"{text:{side}{width}}" for text, side, width in zip(line, sides, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 1) + ("-" if side == "<" else ":") for side, width in zip(sides, widths, strict=True))
    return "\n".join([f"| {shown[0]} |", f"|{rule}|", *(f"| {line} |" for line in shown[1:])])


def _figure(name: str, value: float, digits: int) -> str:
    return f"{value:.{digits}%}" if name.endswith("acc") else f"{value:.{digits + 2}f}"
