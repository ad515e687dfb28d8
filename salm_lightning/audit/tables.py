"""What an audit found, for people: the table of a terminal, ``audit.md``, and ``audit.csv`` with a line per victim."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from salm_lightning.audit.findings import scalars_of
from salm_lightning.audit.results import AuditResult, Unfinished
from salm_lightning.console import markdown_table, spread
from salm_lightning.files import write_csv
from salm_lightning.runs.record import Run

_MEASURES = {
    **{"acc": "accuracy", "auc": "auc", "balanced_acc": "balanced_accuracy", "kappa": "kappa"},
    **{"best_on_val_acc": "best_on_val_accuracy", "peak_acc": "peak_accuracy"},
}
CSV_COLUMNS = (
    *("countermeasure", "settings", "arch", "seed", "trained_on", "status", *_MEASURES.values(), "majority"),
    *("width", "steps", "batch_size", "seconds", "reason"),
)
"""Columns of ``audit.csv``; accuracies are shares, kappa is empty unless the task is ordinal."""
_HEADINGS = ("countermeasure", "model", "accuracy", "balanced", "AUC", "peak", "clean", "drop", "kept")
_LEFT = 2
"""Columns of words."""
_FIRST_TO_GO = ("peak", "AUC", "balanced")
"""Columns that a narrow terminal does without."""
_NARROWEST = 20
"""Columns of a terminal that the names of countermeasures are left at least; longer ones are wrapped."""


def table_lines(result: AuditResult) -> list[tuple[str, ...]]:
    """Return the cells of the table in percent (AUC as it is): a line per row, then the majority-class line."""
    lines = []
    for row in result.rows:
        protected, clean = row.protected, row.clean
        lines.append(
            (
                *(row.title, row.arch, spread(protected.acc), spread(protected.balanced_acc), spread(protected.auc, 1, 3)),
                *(spread(protected.peak_acc), spread(clean.acc) if clean else "", spread([row.drop])),
                "" if row.kept is None else f"{max(0.0, row.kept):.0%}",
            )
        )
    line = ("majority class (no model)", "", spread([result.majority]), spread([result.chance_balanced]), "0.500")
    return [*lines, (*line, *[""] * (len(_HEADINGS) - len(line)))]


def console_table(result: AuditResult, width: int) -> Table:
    """Return the table for a terminal of some columns, the worst case in bold; what does not fit is left out."""
    lines = table_lines(result)
    columns = {heading: [heading, *(line[number] for line in lines)] for number, heading in enumerate(_HEADINGS)}
    for heading in _FIRST_TO_GO:
        needed = sum(max(map(len, cells)) + 3 for cells in list(columns.values())[1:]) + _NARROWEST + 4
        if needed > width:
            del columns[heading]
    release = result.release
    table = Table(title=f"Models trained on {release.name} ({release.method}), on clean test images, in percent")
    for heading in columns:
        words = heading in _HEADINGS[:_LEFT]
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != _HEADINGS[0])
    for number, line in enumerate(zip(*columns.values(), strict=True)):
        bold = 0 < number <= len(result.rows) and result.rows[number - 1].worst
        if number:
            table.add_row(*(Text(cell, style="bold" if bold else "") for cell in line))
    return table


def markdown(result: AuditResult) -> str:
    """Return the table, the verdict and what was not run as Markdown, the worst case in bold."""
    release, settings, verdict = result.release, result.settings, result.verdict
    bold = [*(row.worst for row in result.rows), False]
    lines = [
        tuple(f"**{cell}**" if worst and cell else cell for cell in line)
        for line, worst in zip(table_lines(result), bold, strict=True)
    ]
    parts = [
        f"# Audit of {release.name} ({release.method}): {verdict.word}",
        verdict.text,
        markdown_table(_HEADINGS, lines, _LEFT),
        f"Accuracies on the clean test split in percent; {settings['steps']} steps of {settings['batch_size']} images, width "
        f"{settings['width']:g}, seeds {', '.join(map(str, settings['seeds']))}. *Clean*: accuracy of the same victim trained on the "
        "originals. *Drop*: that minus this one's. *Kept*: share of what an ordinary victim on the originals learns.",
        "## What this does not cover",
        "\n".join(f"- {limit}" for limit in verdict.not_covered),
    ]
    if result.skipped:
        described = (
            f"- {each.trained_on}, {each.countermeasure}, {each.arch}, seed {each.seed}: {each.reason}\n  `{each.command}`"
            for each in result.skipped
        )
        parts += ["## Not run", "\n".join(described)]
    return "\n\n".join(parts) + "\n"


def write_victims(records: Sequence[Run], skipped: Sequence[Unfinished], path: Path) -> None:
    """Write a line per victim as CSV, also for those that did not finish."""
    names = ("countermeasure", "arch", "seed", "trained_on", "status", "reason")
    unfinished = [{name: getattr(victim, name) for name in names} for victim in skipped]
    write_csv(path, CSV_COLUMNS, [*map(_line, records), *unfinished])


def _line(record: Run) -> dict[str, Any]:
    identity = record.identity
    return {
        "countermeasure": record.results["title"],
        "settings": json.dumps(identity["countermeasure"]),
        "status": "done",
        "majority": record.results["majority"],
        "seconds": round(record.seconds, 1),
        **{name: identity[name] for name in ("arch", "seed", "trained_on", "width", "steps", "batch_size")},
        **{_MEASURES[name]: value for name, value in scalars_of(record).items()},
    }
