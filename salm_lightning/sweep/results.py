"""What a sweep found: one row per victim as CSV, means over the seeds as a table, hyper-parameters for TensorBoard."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from salm_lightning.errors import ReleaseError
from salm_lightning.files import replacing
from salm_lightning.release import Manifest
from salm_lightning.sweep.job import DONE, FAILED, Job, State
from salm_lightning.sweep.plan import FIXED, Row, short_names

_NAMES = {"acc": "accuracy", "auc": "auc", "balanced_acc": "balanced_accuracy", "kappa": "kappa"}
MEASURED = (
    *(f"{prefix}{name}" for prefix in ("", "best_on_val_", "peak_") for name in _NAMES.values()),
    *("majority", "generator_seconds", "victim_seconds", "linf", "changed_share", "ssim", "psnr"),
)
"""Columns of what was measured; kappa is empty unless the task is ordinal, PSNR in dB is ``inf`` where nothing was changed."""
STATUS = ("status", "error", "run", "release")
_EVENTS = ".sweep"
"""Suffix of the event file with the hyper-parameters."""


def record(row: Row) -> dict[str, Any]:
    """Return a row of the CSV by column; what is not known yet is left out."""
    job, release = row.job, row.job.needs
    states = {"victim": job.state()} | ({"generator": release.state()} if release else {})
    values: dict[str, Any] = {**row.values, "status": states["victim"].status, "error": states["victim"].error, "run": job.folder}
    for name, state in states.items():
        values[f"{name}_seconds"] = round(state.seconds, 1)
    if release is not None:
        values |= {"release": release.release, **_of_release(release, states["generator"])}
    return values | (_results(job) if values["status"] == DONE else {})


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per victim, to a temporary name first; lines of other grids stay if their runs still stand in the folder."""
    own, others = [record(row) for row in rows], _others(rows, path)
    settings = [name for line in (rows[0].values, *others) for name in line if name not in (*MEASURED, *STATUS)]
    columns = [*dict.fromkeys(settings), *MEASURED, *STATUS]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows([*own, *others])


def _others(rows: Sequence[Row], path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    names = {row.job.name for row in rows}
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            line
            for line in csv.DictReader(stream)
            if (run := Path(line["run"]).name) not in names and (path.parent / run).is_dir()
        ]


def results_table(rows: Sequence[Row]) -> Table:
    """Return means over the seeds, with the spread where there are several, in percent; as Markdown, for a page of results."""
    columns = {column: name for column, name in short_names(rows[0].values).items() if column != "seed"}
    figures = ("accuracy", "balanced_accuracy", "auc", "kappa", "best_on_val_accuracy", "peak_accuracy")
    table = Table(box=box.MARKDOWN)
    for heading in (
        *columns.values(),
        "seeds",
        "accuracy",
        "balanced acc.",
        "AUC x 100",
        "kappa x 100",
        "best on val",
        "peak",
        "generator min",
    ):
        table.add_column(heading, justify="left" if heading in columns.values() else "right", overflow="fold")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.values[name] for name in columns), []).append(record(row))
    majority = {}
    for names, records in groups.items():
        done = [values for values in records if values["status"] == DONE]
        count = str(len(done)) if len(done) == len(records) else f"{len(done)} of {len(records)}"
        minutes = [values["generator_seconds"] / 60 for values in done if "generator_seconds" in values]
        shown = [_spread([100 * values[name] for values in done if values[name] is not None]) for name in figures]
        table.add_row(*names, count, *shown, f"{mean(minutes):.0f}" if minutes else "")
        majority.update({values["dataset"]: values["majority"] for values in done})
    for dataset, share in majority.items():
        blank = [""] * (len(columns) - 2)
        table.add_row(dataset, "majority class (no model)", *blank, "", f"{100 * share:.1f}", "", "50.0", *[""] * 4)
    return table


def write_hparams(row: Row) -> None:
    """Add a finished victim's hyper-parameters, and which of its curves they led to, to its run folder; once."""
    results = record(row)
    if results["status"] != DONE or any(row.job.folder.glob(f"*{_EVENTS}")):
        return
    values = {name: value or "-" for name, value in row.values.items()}
    with SummaryWriter(row.job.folder, filename_suffix=_EVENTS) as writer:
        # The metrics are scalars that the test has logged; writer.add_hparams would start a run of its own for them.
        metrics = {f"test/{name}": results[column] for name, column in _NAMES.items() if results[column] is not None}
        for summary in hparams(values, metrics):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)


def title(row: Row) -> str:
    """Return what a row is about, in a few words."""
    return " ".join([*(row.values[name] for name in FIXED[:3]), *_details(row), f"seed={row.values['seed']}"])


def _details(row: Row) -> list[str]:
    names = short_names(row.values)
    return [f"{names[column]}={value}" for column, value in row.values.items() if column not in FIXED and value]


def _results(job: Job) -> dict[str, Any]:
    results = json.loads(job.product.read_text(encoding="utf-8"))
    stages = {"": results["test"]} | {f"{name}_": results["history"].get(name, {}) for name in ("best_on_val", "peak")}
    figures = {f"{stage}{_NAMES[name]}": values.get(name) for stage, values in stages.items() for name in _NAMES}
    return {**figures, "majority": results["majority"]}


def _of_release(release: Job, state: State) -> dict[str, Any]:
    """Return what a release adds to the line of a victim on it; without one that can be read, the victim has failed."""
    if state.status != DONE:
        return {"status": state.status, "error": f"its release {state.status}: {state.error}"} if state.error else {}
    try:
        measured = Manifest.read(release.release).measured
    except ReleaseError as error:
        way_out = f"Delete {release.folder} to have it made again."
        return {"status": FAILED, "error": f"its release cannot be read: {error} {way_out}"}
    psnr = float("inf") if measured.psnr is None else measured.psnr
    return {"linf": measured.linf, "changed_share": measured.changed_share, "ssim": measured.ssim, "psnr": psnr}


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
