"""Ours beside the paper's, as CSV and as Markdown; lines of other targets and settings stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from salm_lightning.audit.results import FOLDER
from salm_lightning.console import markdown_table
from salm_lightning.files import read_csv, write_csv, write_text
from salm_lightning.reproduce.cells import Result
from salm_lightning.reproduce.settings import Settings
from salm_lightning.reproduce.targets import TARGETS
from salm_lightning.runs.record import DONE, FAILED

CSV, MARKDOWN = "reproduce.csv", "reproduce.md"
_SETTINGS = tuple(Settings().labels)
_NAMES = ("target", "dataset", "method", "what", "measure", *_SETTINGS)
"""Columns that tell a line from others."""
COLUMNS = (*_NAMES, "paper", "ours", "spread", "done", "difference", "majority", "status", "reason")
_SHOWN_NAMES, _SHOWN_NUMBERS = ("dataset", "method", "what", "measure"), ("paper", "ours", "spread", "done", "difference")
_NUMBERS = ("paper", "ours", "spread", "difference", "majority")

Line = Mapping[str, str]


def save(target: str, results: Sequence[Result], settings: Settings, out: Path) -> str:
    """Put results into ``reproduce.csv`` and ``reproduce.md``, beside those of other targets and settings.

    Returns:
        The part of ``reproduce.md`` that is about the target, with these settings.
    """
    own = [_line(target, result, settings) for result in results]
    made = {_values(line, _NAMES) for line in own}
    others = [line for line in read_csv(out / CSV) if _values(line, _NAMES) not in made]
    lines = sorted([*others, *own], key=lambda line: list(TARGETS).index(line["target"]))
    write_csv(out / CSV, COLUMNS, lines)
    parts: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        parts.setdefault(_values(line, ("target", *_SETTINGS)), []).append(line)
    sections = {part: _section(of_part, out) for part, of_part in parts.items()}
    write_text(out / MARKDOWN, "# Ours beside the paper's\n\n" + "\n".join(sections.values()))
    return sections[_values(own[0], ("target", *_SETTINGS))]


def picture_folder(labels: Iterable[str]) -> str:
    """Return the name of the folder with the pictures of some settings, such as ``scale=0.1,width=1,precision=32-true,seeds=0+1``."""
    return ",".join(f"{name}={label}" for name, label in zip(_SETTINGS, labels, strict=True)).replace(" ", "+")


def _line(target: str, result: Result, settings: Settings) -> Line:
    cell = result.cell
    numbers = (cell.paper, result.ours, result.spread, result.difference, result.majority)
    shown = ("" if number is None else f"{number:.6g}" for number in numbers)
    told = (target, str(cell.dataset), cell.method, cell.what, cell.unit, *settings.labels.values())
    return {
        **dict(zip(_NAMES, told, strict=True)),
        **dict(zip(_NUMBERS, shown, strict=True)),
        "done": f"{len(result.values)} of {result.seeds}",
        "status": result.status,
        "reason": result.reason,
    }


def _values(line: Line, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(line[name] for name in names)


def _section(lines: Sequence[Line], out: Path) -> str:
    """Return a table of one target and settings as Markdown, with the majority class, the notes, and what is missing."""
    target, labels = lines[0]["target"], _values(lines[0], _SETTINGS)
    scale, width, precision, seeds = labels
    rows = []
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        of_dataset = [line for line in lines if line["dataset"] == dataset]
        rows += [[_shown(line, name) for name in (*_SHOWN_NAMES, *_SHOWN_NUMBERS)] for line in of_dataset]
        if majority := next((_shown(line, "majority") for line in of_dataset if line["majority"]), ""):
            rows.append([dataset, "majority class (no model)", "", "accuracy", "", majority, "", "", ""])
    text = [
        *(f"## {TARGETS[target].title}", ""),
        f"Training steps: {scale} of the paper's; width of the models: {width} of theirs; {precision}; seeds: {seeds}. In percent.",
        *("", markdown_table((*_SHOWN_NAMES, *_SHOWN_NUMBERS), rows, len(_SHOWN_NAMES)), ""),
        *(f"- {note}" for note in TARGETS[target].notes),
    ]
    undone = [line for line in lines if line["status"] != DONE]
    for reason in dict.fromkeys(line["reason"] for line in undone):
        concerned = [line for line in undone if line["reason"] == reason]
        names = dict.fromkeys(" ".join(filter(None, _values(line, ("dataset", "method", "what")))) for line in concerned)
        text.append(f"- **{concerned[0]['status']}**: {', '.join(names)}{f': {reason}' if reason else ''}")
    pictures = sorted((out / picture_folder(labels) / FOLDER).glob(f"{target}-*.png"))
    text += ["", *(f"![{path.stem}]({path.relative_to(out).as_posix()})" for path in pictures)]
    return "\n".join(text).rstrip() + "\n"


def _shown(line: Line, name: str) -> str:
    if name == "ours" and line["status"] == FAILED and not line["ours"]:
        return "FAILED"
    sign = "+" if name == "difference" else ""
    return f"{float(line[name]):{sign}.1f}" if line[name] and name in _NUMBERS else line[name]
