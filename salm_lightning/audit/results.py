"""What an audit found: ``audit.json``, one line per victim as CSV, and the table for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from rich.table import Table
from rich.text import Text

from salm_lightning.audit.trials import NONE, Record
from salm_lightning.audit.verdict import EARLY_STOPPING, kept, mean, reference_of, worst_of
from salm_lightning.data import Task
from salm_lightning.files import replacing

_SCALARS = ("acc", "auc", "balanced_acc")
_COLUMNS = {
    **{"acc": "accuracy", "auc": "auc", "balanced_acc": "balanced_accuracy", "kappa": "kappa"},
    **{"best_on_val_acc": "best_on_val_accuracy", "peak_acc": "peak_accuracy"},
}
CSV_COLUMNS = (
    *("countermeasure", "settings", "arch", "seed", "trained_on", "status", *_COLUMNS.values(), "majority"),
    *("width", "steps", "batch_size", "seconds", "reason"),
)
"""Columns of ``audit.csv``; accuracies are shares, kappa is empty unless the task is ordinal."""

Row = dict[str, Any]


def make_rows(records: Sequence[Record], floors: Mapping[str, float]) -> list[Row]:
    """Return a row for each countermeasure and architecture, in the order of their first protected victims.

    After the victims without countermeasure follow the same ones under early stopping. What a seed lacks is None.

    Args:
        records: Finished victims, protected ones and clean twins.
        floors: Measures that are judged; they settle which row is the worst.
    """
    groups: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
    for record in sorted(records, key=lambda record: record.identity["trained_on"] == "clean"):
        identity = record.identity
        group = groups.setdefault((json.dumps(identity["countermeasure"], sort_keys=True), identity["arch"]), {})
        group[identity["trained_on"], identity["seed"]] = record
    rows: list[Row] = []
    for victims in groups.values():
        seeds = sorted(seed for trained_on, seed in victims if trained_on == "protected")
        if seeds:
            rows.append(_row(victims, seeds))
            if rows[-1]["countermeasure"] == NONE:
                rows.append(_row(victims, seeds, stopped=True))
    worst, reference = worst_of(rows, floors), reference_of(rows, floors)
    return [{**row, "kept": kept(row, floors, reference), "worst": number == worst} for number, row in enumerate(rows)]


def _row(victims: Mapping[tuple[str, int], Record], seeds: Sequence[int], stopped: bool = False) -> Row:
    first = victims["protected", seeds[0]]
    protected, clean = (_figures([victims.get((name, seed)) for seed in seeds], stopped) for name in ("protected", "clean"))
    settings = {"name": EARLY_STOPPING} if stopped else first.identity["countermeasure"]
    return {
        "countermeasure": settings["name"],
        "title": EARLY_STOPPING if stopped else first.title,
        "settings": settings,
        "arch": first.identity["arch"],
        "seeds": list(seeds),
        "protected": protected,
        "clean": clean,
        "drop": _drop(protected, clean),
    }


def _drop(protected: Mapping[str, Any] | None, clean: Mapping[str, Any] | None) -> float | None:
    """Return how much accuracy the protection takes away, over the seeds that both have."""
    if protected is None or clean is None:
        return None
    pairs = zip(clean["acc"], protected["acc"], strict=True)
    return mean([before - after for before, after in pairs if before is not None and after is not None])


def _figures(records: Sequence[Record | None], stopped: bool) -> dict[str, list[float | None]] | None:
    """Return each metric for every seed; None if no seed has any."""
    if not any(records):
        return None
    values = [{} if record is None else scalars_of(record, stopped) for record in records]
    return {name: [value.get(name) for value in values] for name in (*_SCALARS, "peak_acc", "best_on_val_acc")}


def scalars_of(record: Record, stopped: bool = False) -> dict[str, float | None]:
    """Return a victim's single numbers on the clean test split, after the last step or at the best validation."""
    history = record.results["history"]
    values = history["best_on_val"] if stopped else record.results["test"]
    best = history["best_on_val"]["acc"]
    return {
        **{name: values[name] for name in (*_SCALARS, "kappa") if name in values},
        "peak_acc": best if stopped else history["peak"]["acc"],
        "best_on_val_acc": best,
    }


def curves_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the learning curves for ``audit.json``."""
    return [
        {
            **{name: record.identity[name] for name in ("trained_on", "arch", "seed")},
            "countermeasure": record.title,
            **record.curve,
        }
        for record in records
    ]


def confusion_of(records: Sequence[Record], arch: str, seed: int) -> dict[str, Any] | None:
    """Return the confusion matrices of the victims without countermeasure; None without one, or for several labels per image."""
    chosen = {
        record.identity["trained_on"]: record.results
        for record in records
        if (record.identity["countermeasure"]["name"], record.identity["arch"], record.identity["seed"]) == (NONE, arch, seed)
    }
    if "protected" not in chosen or chosen["protected"]["data"]["task"] == Task.MULTI_LABEL:
        return None
    return {
        "protected": chosen["protected"]["test"]["confusion"],
        "clean": chosen["clean"]["test"]["confusion"] if "clean" in chosen else None,
        "class_names": chosen["protected"]["data"]["class_names"],
    }


def write_csv(records: Sequence[Record], skipped: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a line per victim, also for those that did not finish; to a temporary name first."""
    lines = [_line(record) for record in records]
    lines += [
        {name: victim[name] for name in ("countermeasure", "arch", "seed", "trained_on", "status", "reason")}
        for victim in skipped
    ]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def _line(record: Record) -> dict[str, Any]:
    identity = record.identity
    return {
        "countermeasure": record.title,
        "settings": json.dumps(identity["countermeasure"]),
        "status": "done",
        "majority": record.results["majority"],
        "seconds": round(record.seconds, 1),
        **{name: identity[name] for name in ("arch", "seed", "trained_on", "width", "steps", "batch_size")},
        **{_COLUMNS[name]: value for name, value in scalars_of(record).items()},
    }


_HEADINGS = ("countermeasure", "model", "accuracy", "balanced acc.", "AUC", "peak", "clean accuracy", "drop", "kept")


def table_lines(audit: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table in percent (AUC as it is): a line per row, then the majority-class line."""
    lines = []
    for row in audit["rows"]:
        protected, clean = row["protected"], row["clean"]
        lines.append(
            (
                row["title"],
                row["arch"],
                *(_spread(protected[name]) for name in ("acc", "balanced_acc")),
                _spread(protected["auc"], 1, 3),
                _spread(protected["peak_acc"]),
                _spread(clean["acc"]) if clean else "",
                "" if row["drop"] is None else f"{100 * row['drop']:.1f}",
                "" if row["kept"] is None else f"{max(0.0, row['kept']):.0%}",
            )
        )
    line = ("majority class (no model)", "", f"{100 * audit['majority']:.1f}", f"{100 * audit['chance_balanced']:.1f}", "0.500")
    return [*lines, (*line, *[""] * (len(_HEADINGS) - len(line)))]


def console_table(audit: Mapping[str, Any]) -> Table:
    """Return the table for a terminal, the worst case in bold."""
    table = Table(
        title=f"Models trained on {audit['release']['name']} ({audit['release']['method']}), on clean test images, in percent"
    )
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line, bold in zip(table_lines(audit), _bold(audit), strict=True):
        table.add_row(*(Text(cell, style="bold" if bold else "") for cell in line))
    return table


def markdown(audit: Mapping[str, Any]) -> str:
    """Return the table, the verdict and what was not run as Markdown, the worst case in bold."""
    release, settings, verdict = audit["release"], audit["settings"], audit["verdict"]
    cells = [_HEADINGS, ("---", "---", *["---:"] * (len(_HEADINGS) - 2))]
    for line, bold in zip(table_lines(audit), _bold(audit), strict=True):
        cells.append(tuple(f"**{cell}**" if bold and cell else cell for cell in line))
    seeds = ", ".join(map(str, settings["seeds"]))
    parts = [
        f"# Audit of {release['name']} ({release['method']}): {verdict['word']}",
        verdict["text"],
        "\n".join(f"| {' | '.join(line)} |" for line in cells),
        f"Accuracies on the clean test split in percent; {settings['steps']} steps of {settings['batch_size']} images, width "
        f"{settings['width']:g}, seeds {seeds}. *Drop*: accuracy of the same victim on the originals minus this one. *Kept*: share "
        "of what an ordinary victim on the originals learns.",
        "## What this does not cover",
        "\n".join(f"- {limit}" for limit in verdict["not_covered"]),
    ]
    if audit["skipped"]:
        parts.append("## Not run")
        parts.append(
            "\n".join(f"- {_described(victim)}: {victim['reason']}\n  `{victim['command']}`" for victim in audit["skipped"])
        )
    return "\n\n".join(parts) + "\n"


def _described(victim: Mapping[str, Any]) -> str:
    return f"{victim['trained_on']}, {victim['countermeasure']}, {victim['arch']}, seed {victim['seed']}"


def _bold(audit: Mapping[str, Any]) -> list[bool]:
    return [*(row["worst"] for row in audit["rows"]), False]


def _spread(values: Sequence[float | None], factor: int = 100, digits: int = 1) -> str:
    known = [factor * value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{spread}"
