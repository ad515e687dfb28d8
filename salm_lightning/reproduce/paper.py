"""The paper's own numbers, as it prints them: ``numbers/*.csv``, whose first line names the source."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from importlib.resources import files


@functools.cache
def table(name: str) -> tuple[Mapping[str, str], ...]:
    """Return the lines of ``numbers/<name>.csv`` by column; a table that names no dataset is about PathMNIST."""
    text = files("salm_lightning.reproduce").joinpath("numbers", f"{name}.csv").read_text(encoding="utf-8")
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple({"dataset": "PathMNIST", **line} for line in lines)


def figure(name: str, column: str, **where: object) -> float | None:
    """Return the number in a column of a table, in the line that has ``where`` in others; ``None`` where the paper has none.

    Case is ignored, as the paper spells names in several ways.
    """
    lines = (line for line in table(name) if all(line[key].lower() == str(value).lower() for key, value in where.items()))
    number = next(lines, {column: ""})[column]
    return float(number) if number else None
