"""Running a target, and ours beside the paper's, as CSV and as Markdown; lines of other targets and settings stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from salm_lightning.audit.pictures import Album
from salm_lightning.audit.results import FOLDER
from salm_lightning.console import markdown_table, say
from salm_lightning.files import read_csv, write_csv, write_text
from salm_lightning.reproduce.cells import Experiment, Result
from salm_lightning.reproduce.settings import Settings
from salm_lightning.reproduce.targets import TARGETS
from salm_lightning.runs.record import DONE, FAILED

CSV, MARKDOWN = "reproduce.csv", "reproduce.md"
_SETTINGS = tuple(Settings().labels)
_PART = ("target", *_SETTINGS)
"""Columns whose values share a section."""
_SHOWN_NAMES = ("dataset", "method", "what", "measure")
_NAMES = ("target", *_SHOWN_NAMES, *_SETTINGS)
"""Columns that tell a line from others."""
_NUMBERS = ("paper", "ours", "spread", "difference", "majority")
_SHOWN = (*_SHOWN_NAMES, "paper", "ours", "spread", "done", "difference")
COLUMNS = (*_NAMES, "paper", "ours", "spread", "done", "difference", "majority", "status", "reason")

Line = Mapping[str, str]


def run(name: str, experiment: Experiment) -> int:
    """Run a target's experiment, draw its figure, and save and show ours beside the paper's.

    Returns:
        Exit code: 0 if there is a number for every cell, 1 if not, above 1 after a stop.
    """
    target, settings = TARGETS[name], experiment.settings
    code = experiment.run()
    results = target.derive([experiment.result(cell) for cell in experiment.cells])
    if target.draw is not None:
        album = Album(settings.out / _picture_folder(settings.labels.values()))
        target.draw(experiment, album)
        album.show()
    say(save(name, results, settings))
    say(f"Saved: {settings.out / CSV}, {settings.out / MARKDOWN}")
    undone = [result for result in results if result.status != DONE]
    if undone:
        say(f"{len(undone)} of {len(results)} cells have no number, or not of all seeds. The same command tries them again.")
    return code if code > 1 else int(bool(undone))


def save(target: str, results: Sequence[Result], settings: Settings) -> str:
    """Put results into ``reproduce.csv`` and ``reproduce.md``, beside others, and return the target's part of the latter."""
    out, own = settings.out, [_line(target, result, settings) for result in results]
    made = {_values(line, _NAMES) for line in own}
    others = [line for line in read_csv(out / CSV) if _values(line, _NAMES) not in made]
    lines = sorted([*others, *own], key=lambda line: list(TARGETS).index(line["target"]))
    write_csv(out / CSV, COLUMNS, lines)
    parts: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        parts.setdefault(_values(line, _PART), []).append(line)
    sections = {part: _section(of_part, out) for part, of_part in parts.items()}
    write_text(out / MARKDOWN, "# Ours beside the paper's\n\n" + "\n".join(sections.values()))
    return sections[_values(own[0], _PART)]


def _picture_folder(labels: Iterable[str]) -> str:
    """Return the name of the folder with the pictures of some settings, such as ``scale=0.1,width=1,precision=32-true,seeds=0+1``."""
    return ",".join(f"{name}={label}" for name, label in zip(_SETTINGS, labels, strict=True)).replace(" ", "+")


def _line(target: str, result: Result, settings: Settings) -> Line:
    cell = result.cell
    numbers = (cell.paper, result.ours, result.spread, result.difference, result.majority)
    shown = ("" if number is None else f"{number:.6g}" for number in numbers)
    told = (target, str(cell.dataset), cell.method, cell.what, cell.unit, *settings.labels.values())
    return {
        **dict(zip((*_NAMES, *_NUMBERS), (*told, *shown), strict=True)),
        "done": f"{len(result.values)} of {result.seeds}",
        "status": result.status,
        "reason": result.reason,
    }


def _values(line: Line, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(line[name] for name in names)


def _section(lines: Sequence[Line], out: Path) -> str:
    """Return a table of one target and settings as Markdown, with the majority class, the notes, and what is missing."""
    name, *labels = _values(lines[0], _PART)
    (scale, width, precision, seeds), target = labels, TARGETS[name]
    rows = []
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        of_dataset = [line for line in lines if line["dataset"] == dataset]
        rows += [[_shown(line, column) for column in _SHOWN] for line in of_dataset]
        if majority := next((_shown(line, "majority") for line in of_dataset if line["majority"]), ""):
            rows.append([dataset, "majority class (no model)", "", "accuracy", "", majority, "", "", ""])
    text = [
        *(f"## {target.title}", ""),
        f"Training steps: {scale} of the paper's; width of the models: {width} of theirs; {precision}; seeds: {seeds}. In percent.",
        *("", markdown_table(_SHOWN, rows, len(_SHOWN_NAMES)), ""),
        *(f"- {note}" for note in target.notes),
    ]
    undone = [line for line in lines if line["status"] != DONE]
    for reason in dict.fromkeys(line["reason"] for line in undone):
        concerned = [line for line in undone if line["reason"] == reason]
        names = dict.fromkeys(" ".join(filter(None, _values(line, ("dataset", "method", "what")))) for line in concerned)
        text.append(f"- **{concerned[0]['status']}**: {', '.join(names)}{f': {reason}' if reason else ''}")
    pictures = sorted((out / _picture_folder(labels) / FOLDER).glob(f"{name}-*.png"))
    text += ["", *(f"![{path.stem}]({path.relative_to(out).as_posix()})" for path in pictures)]
    return "\n".join(text).rstrip() + "\n"


def _shown(line: Line, name: str) -> str:
    if name == "ours" and line["status"] == FAILED and not line["ours"]:
        return "FAILED"
    sign = "+" if name == "difference" else ""
    return f"{float(line[name]):{sign}.1f}" if line[name] and name in _NUMBERS else line[name]
