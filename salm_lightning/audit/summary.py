"""The state of an audit as its files tell it, valid at any moment: ``audit.json``, ``audit.csv`` with a line per victim, ``audit.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from salm_lightning.audit.choices import does_something, text_of
from salm_lightning.audit.releases import Release
from salm_lightning.audit.results import AuditedRelease, AuditResult, Unfinished
from salm_lightning.audit.trials import Battery, Trial, view_of
from salm_lightning.audit.verdict import attempts_of, confusion_of, curve_of, judge, scalars_of
from salm_lightning.console import cell, command, markdown_table, spread, visible
from salm_lightning.countermeasures import COUNTERMEASURES, SHALLOW
from salm_lightning.data import ImageDataModule
from salm_lightning.files import write_csv, write_text
from salm_lightning.metrics import majority_baseline
from salm_lightning.metrics.learned import floors_of
from salm_lightning.models import ARCHITECTURES
from salm_lightning.runs.record import DONE, Run

_FEW_IMAGES = 2500
"""Test images below which the accuracy's 95 % interval is wider than two points to each side."""
_MEASURES = {
    **{"acc": "accuracy", "auc": "auc", "balanced_acc": "balanced_accuracy", "kappa": "kappa"},
    **{"best_on_val_acc": "best_on_val_accuracy", "peak_acc": "peak_accuracy"},
}
CSV_COLUMNS = (
    *("countermeasure", "settings", "view", "arch", "seed", "trained_on", "status", *_MEASURES.values(), "majority"),
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


@dataclass(frozen=True)
class Summary:
    """Puts together in a folder what is known of a release by the victims of this audit.

    ``images`` are the release as the first of them see it, ``options`` those of ``salm-cli audit`` beside what differs between the victims;
    None stands for the default.
    """

    release: Release
    images: ImageDataModule
    battery: Battery
    out: Path
    options: Mapping[str, Any]

    def write(self) -> AuditResult:
        """Write the files, and return what ``audit.json`` holds."""
        records, skipped = self._records(), self._skipped()
        result = self._result(records, skipped)
        result.write(self.out)
        names = ("countermeasure", "arch", "seed", "trained_on", "status", "reason")
        unfinished = [{name: getattr(victim, name) for name in names} for victim in skipped]
        write_csv(self.out / "audit.csv", CSV_COLUMNS, [*map(_csv_line, records), *unfinished])
        write_text(self.out / "audit.md", _markdown(result))
        return result

    def _result(self, records: Sequence[Run], skipped: Sequence[Unfinished]) -> AuditResult:
        data, manifest, main = self.images, self.release.manifest, self.battery.trials[0]
        majority = majority_baseline(data.split("test").labels, data.task, data.num_classes)
        floors = floors_of(data.task, data.num_classes, majority)
        rows, views = attempts_of(records, floors), _views(records)
        settings = {
            **main.length,
            "preset": self.options["preset"],
            "seeds": sorted({record.identity["seed"] for record in records}),
            "countermeasures": list({run.results["title"]: run.identity["countermeasure"] for run in records}.values()),
            **({"views": views} if main.view else {}),
            "archs": list({run.identity["arch"]: run.identity["network"] for run in records}.values()),
        }
        source = manifest.source.sha256 if manifest.source else None
        return AuditResult(
            release=AuditedRelease(data.info.name, manifest.method_name, self.release.sha256, source),
            settings=settings,
            majority=majority,
            chance_balanced=floors.get("balanced_acc", 0.5),
            rows=tuple(rows),
            skipped=tuple(skipped),
            verdict=judge(rows, floors, self._not_covered(records, len(skipped))),
            confusion=confusion_of(records, main),
            curves=tuple(curve_of(record) for record in records if record.results["curve"]["steps"]),
            seconds=round(sum(record.seconds for record in records), 1),
        )

    def _not_covered(self, records: Sequence[Run], skipped: int) -> list[str]:
        """Return what the battery does not show, in plain words."""
        victim, info, images = self.battery.trials[0].victim, self.images.info, len(self.images.split("test").labels)
        tried = {name: {run.identity[name] for run in records} for name in ("arch", "seed")}
        names = {run.identity["countermeasure"]["name"] for run in records}
        untried = [
            name for name, kind in {**COUNTERMEASURES, **SHALLOW}.items() if name not in names and does_something(kind, info)
        ]
        archs = [arch for arch in ARCHITECTURES if arch not in tried["arch"]]
        views = _views(records)
        told = {
            f"Countermeasures that were not tried: {', '.join(untried)}.": untried,
            f"Architectures that were not tried: {', '.join(archs)}.": archs,
            f"{skipped} planned victims have not finished; they are listed with the commands that train them.": skipped,
            "One seed: how much chance changes is not known.": len(tried["seed"]) == 1,
            f"The test split has {images} images: an accuracy is only known to about ±{100 / images**0.5:.0f} points.": (
                images < _FEW_IMAGES
            ),
            f"Every victim had {victim.steps} steps at width {victim.width:g}; longer training and wider networks may learn more.": True,
            f"Victims saw the images at {' and '.join(views)}; others may scale or cut them otherwise, or see other values.": (
                self.battery.trials[0].view
            ),
            "Countermeasures were tried one at a time; someone may combine them, or think of others.": True,
            "Whoever has other images of the same kind can train on those.": True,
        }
        return [text for text, applies in told.items() if applies]

    def _records(self) -> list[Run]:
        """Return the finished victims of this audit, then those of earlier ones of the same release, length and width."""
        stores, trials, done = self.battery.stores, self.battery.trials, self.battery.records
        own = [done[trial.name] for trial in trials if trial.name in done]
        first = trials[0].identity
        alike = {name: first[name] for name in ("version", "trained_on", *trials[0].length)}
        others = [
            run
            for run in stores["protected"].all()
            if alike.items() <= run.identity.items() and run.identity["images"]["sha256"] == first["images"]["sha256"]
        ]
        clean = next((trial.identity["images"] for trial in trials if trial.trained_on == "clean"), None)
        twins = [stores["clean"].read(_twin(run.identity, clean)) for run in others if clean]
        return list({run.key: run for run in (*own, *others, *twins) if run is not None}.values())

    def _skipped(self) -> list[Unfinished]:
        """Return the victims of this audit that have not finished, with status, reason, and the command that trains them."""
        states = [(trial, *self.battery.status(trial)) for trial in self.battery.trials]
        return [
            Unfinished(trial.kind[1], trial.kind[0], trial.victim.seed, trial.trained_on, reason, self._command(trial), status)
            for trial, status, reason in states
            if status != DONE
        ]

    def _command(self, trial: Trial) -> str:
        victim, length, network = trial.victim, trial.length, trial.victim.architecture.settings()
        options = {
            **self.options,
            **{"victim_steps" if name == "steps" else name: value for name, value in length.items()},
            "countermeasures": f"[{text_of(victim.countermeasure)}]",
            "archs": f"[{network if isinstance(network, str) else json.dumps(network)}]",
            "seeds": f"[{victim.seed}]",
            "sizes": trial.identity["images"]["size"] if trial.view else None,
        }
        words = (word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))
        return command("salm-cli", "audit", self.release.path, *words)


def _views(records: Sequence[Run]) -> list[str]:
    """Return how victims saw the images, in words, each way once."""
    return list(dict.fromkeys(view_of(run.identity) for run in records))


def _twin(identity: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a victim's clean twin, which sees the originals as it sees the protected images."""
    seen = {name: value for name, value in identity["images"].items() if name in ("size", "values", "view")}
    return {**identity, "trained_on": "clean", "images": {**clean, **seen}}


def console_table(result: AuditResult, width: int) -> Table:
    """Return the table for a terminal of some columns, the worst case in bold; what does not fit is left out."""
    lines = _table_lines(result)
    columns = {heading: [heading, *(line[number] for line in lines)] for number, heading in enumerate(_HEADINGS)}
    for heading in _FIRST_TO_GO:
        needed = sum(max(map(len, cells)) + 3 for cells in list(columns.values())[1:]) + _NARROWEST + 4
        if needed > width:
            del columns[heading]
    release = result.release
    table = Table(title=cell(f"Models trained on {release.name} ({release.method}), on clean test images, in percent"))
    for heading in columns:
        words = heading in _HEADINGS[:_LEFT]
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != _HEADINGS[0])
    _, *shown = zip(*columns.values(), strict=True)
    for line, worst in zip(shown, _worst(result), strict=True):
        table.add_row(*(Text(visible(value), style="bold" if worst else "") for value in line))
    return table


def _markdown(result: AuditResult) -> str:
    """Return the table, the verdict and what was not run as Markdown, the worst case in bold."""
    release, settings, verdict = result.release, result.settings, result.verdict
    lines = [
        [f"**{value}**" if worst and value else value for value in line]
        for line, worst in zip(_table_lines(result), _worst(result), strict=True)
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


def _table_lines(result: AuditResult) -> list[tuple[str, ...]]:
    """Return the cells of the table in percent (AUC as it is): a line per row, then the majority-class line."""
    lines = []
    for row in result.rows:
        protected, clean = row.protected, row.clean
        lines.append(
            (
                *(row.label, row.arch, spread(protected.acc), spread(protected.balanced_acc), spread(protected.auc, 1, 3)),
                *(spread(protected.peak_acc), spread(clean.acc) if clean else "", spread([row.drop])),
                "" if row.kept is None else f"{max(0.0, row.kept):.0%}",
            )
        )
    line = ("majority class (no model)", "", spread([result.majority]), spread([result.chance_balanced]), "0.500")
    return [*lines, (*line, *[""] * (len(_HEADINGS) - len(line)))]


def _worst(result: AuditResult) -> list[bool]:
    """Return of each line of the table whether it is the worst case."""
    return [*(row.worst for row in result.rows), False]


def _csv_line(record: Run) -> dict[str, Any]:
    identity = record.identity
    return {
        "countermeasure": record.results["title"],
        "settings": json.dumps(identity["countermeasure"]),
        "view": view_of(identity),
        "status": DONE,
        "majority": record.results["majority"],
        "seconds": round(record.seconds, 1),
        **{name: identity[name] for name in ("arch", "seed", "trained_on", "width", "steps", "batch_size")},
        **{_MEASURES[name]: value for name, value in scalars_of(record).items()},
    }
