"""Ours beside the paper's, as a table on the console, as CSV and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from salm_lightning.audit.results import FOLDER
from salm_lightning.files import replacing
from salm_lightning.reproduce.cells import Result
from salm_lightning.reproduce.settings import Settings
from salm_lightning.reproduce.targets import TARGETS
from salm_lightning.sweep.job import DONE, FAILED

CSV, MARKDOWN = "reproduce.csv", "reproduce.md"
_SETTINGS = tuple(Settings().labels)
_NAMES = ("target", "dataset", "method", "what", "measure", *_SETTINGS)
"""Columns that tell a line from others."""
COLUMNS = (*_NAMES, "paper", "ours", "spread", "done", "difference", "majority", "status", "reason")
_SHOWN = ("dataset", "method", "what", "measure", "paper", "ours", "spread", "done", "difference")
_NUMBERS = ("paper", "ours", "spread", "difference", "majority")

Line = Mapping[str, str]


def save(target: str, results: Sequence[Result], settings: Settings, out: Path) -> str:
    """Put results into ``reproduce.csv`` and ``reproduce.md``, beside those of other targets and settings.

    Returns:
        The part of ``reproduce.md`` that is about the target, with these settings.
    """
    own = [_line(target, result, settings) for result in results]
    lines = sorted([*_others(own, out / CSV), *own], key=lambda line: list(TARGETS).index(line["target"]))
    _write(out / CSV, _as_csv(lines))
    _write(out / MARKDOWN, _page(lines, out))
    return _section(target, [line for line in lines if _setup(line) == _setup(own[0]) and line["target"] == target], out)


def picture_folder(labels: Iterable[str]) -> str:
    """Return the name of the folder with the pictures of some settings, such as ``scale=0.1,width=1,precision=32-true,seeds=0+1``."""
    return ",".join(f"{name}={label}" for name, label in zip(_SETTINGS, labels, strict=True)).replace(" ", "+")


def show(section: str) -> None:
    """Print a part of the page."""
    Console(width=200, soft_wrap=True).print(section, markup=False, highlight=False)


def _line(target: str, result: Result, settings: Settings) -> Line:
    cell = result.cell
    numbers = (cell.paper, result.ours, result.spread, result.difference, result.majority)
    return {
        "target": target,
        "dataset": str(cell.dataset),
        "method": cell.method,
        "what": cell.what,
        "measure": cell.unit,
        **settings.labels,
        **{name: "" if number is None else f"{number:.6g}" for name, number in zip(_NUMBERS, numbers, strict=True)},
        "done": f"{len(result.values)} of {result.seeds}",
        "status": result.status,
        "reason": result.reason,
    }


def _others(own: Iterable[Line], path: Path) -> list[Line]:
    """Return the lines that stand in the file and are not made anew."""
    if not path.is_file():
        return []
    names = {_key(line) for line in own}
    with path.open(newline="", encoding="utf-8") as stream:
        return [line for line in csv.DictReader(stream) if _key(line) not in names]


def _key(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in _NAMES)


def _setup(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in _SETTINGS)


def _as_csv(lines: Iterable[Line]) -> str:
    stream = StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _page(lines: Sequence[Line], out: Path) -> str:
    parts = dict.fromkeys((line["target"], _setup(line)) for line in lines)
    sections = [
        _section(target, [line for line in lines if (line["target"], _setup(line)) == (target, setup)], out)
        for target, setup in parts
    ]
    return "# Ours beside the paper's\n\n" + "\n".join(sections)


def _section(target: str, lines: Sequence[Line], out: Path) -> str:
    """Return a table as Markdown, with the majority class, the notes, and what is missing."""
    scale, width, precision, seeds = _setup(lines[0])
    text = [f"## {TARGETS[target].title}", ""]
    text += [
        f"Training steps: {scale} of the paper's; width of the models: {width} of theirs; {precision}; seeds: {seeds}. In percent.",
        "",
    ]
    table: list[Sequence[str]] = [_SHOWN]
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        rows = [line for line in lines if line["dataset"] == dataset]
        table += [tuple(_shown(line, name) for name in _SHOWN) for line in rows]
        majority = next((line["majority"] for line in rows if line["majority"]), "")
        if majority:
            shown = {"dataset": dataset, "method": "majority class (no model)", "measure": "accuracy", "ours": _rounded(majority)}
            table.append(tuple(shown.get(name, "") for name in _SHOWN))
    text += _aligned(table)
    text += ["", *(f"- {note}" for note in TARGETS[target].notes)]
    for reason, rows in _undone(lines).items():
        text.append(f"- **{rows[0]['status']}**: {', '.join(dict.fromkeys(map(_title, rows)))}{f': {reason}' if reason else ''}")
    pictures = sorted((out / picture_folder(_setup(lines[0])) / FOLDER).glob(f"{target}-*.png"))
    text += ["", *(f"![{path.stem}]({path.relative_to(out).as_posix()})" for path in pictures)]
    return "\n".join(text).rstrip() + "\n"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, headings first, whose columns are also straight as plain text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = [name not in _NAMES for name in table[0]]
    lines = [
        "| "
        + " | ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in zip(row, widths, numeric, strict=True))
        + " |"
        for row in table
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)) + "|"
    return [lines[0], rule, *lines[1:]]


def _undone(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the lines that are not done by the reason."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line["status"] != DONE:
            found.setdefault(line["reason"], []).append(line)
    return found


def _title(line: Line) -> str:
    return " ".join(filter(None, (line["dataset"], line["method"], line["what"])))


def _shown(line: Line, name: str) -> str:
    if name == "ours" and line["status"] == FAILED and not line["ours"]:
        return "FAILED"
    if name == "difference" and line[name]:
        return f"{float(line[name]):+.1f}"
    return _rounded(line[name]) if name in _NUMBERS else line[name]


def _rounded(number: str) -> str:
    return f"{float(number):.1f}" if number else ""


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
