"""What a sweep found: one line per victim as CSV, means over the seeds as a table, names and hyper-parameters for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from salm_lightning.console import markdown_table, spread
from salm_lightning.errors import ReleaseError
from salm_lightning.files import read_csv, write_csv
from salm_lightning.release import Manifest
from salm_lightning.runs.record import DONE, FAILED, Run
from salm_lightning.sweep.job import FIXED, Job
from salm_lightning.sweep.plan import short_names

_NAMES = {"acc": "accuracy", "auc": "auc", "balanced_acc": "balanced_accuracy", "kappa": "kappa"}
MEASURED = (
    *(f"{prefix}{name}" for prefix in ("", "best_on_val_", "peak_") for name in _NAMES.values()),
    *("majority", "generator_seconds", "victim_seconds", "linf", "changed_share", "ssim", "psnr"),
)
"""Columns of what was measured; kappa is empty unless the task is ordinal, PSNR in dB is ``inf`` where nothing was changed."""
STATUS = ("status", "error", "run", "release")
_SHOWN = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced acc.", "auc": "AUC x 100", "kappa": "kappa x 100",
    "best_on_val_accuracy": "best on val", "peak_accuracy": "peak",
}  # fmt: skip
"""Columns of the table by what they are in the CSV."""
CURVES = "curves"
"""Folder of links to the runs of the last grid, under names that people can read."""
_LONGEST = 200
"""Characters of such a name; file systems end at 255 bytes."""
_EVENTS = ".sweep"
"""Suffix of the event file with the hyper-parameters."""


def record(victim: Job) -> dict[str, Any]:
    """Return a victim's line of the CSV by column; what is not known yet is left out."""
    release, state = victim.needs, victim.state()
    states = {"victim": state} | ({"generator": release.state()} if release else {})
    values: dict[str, Any] = {**victim.values, "status": state.status, "error": state.why, "run": victim.folder}
    values |= {f"{name}_seconds": round(state.seconds, 1) for name, state in states.items()}
    if release is not None:
        values |= {"release": release.release, **_of_release(release, states["generator"])}
    if values["status"] == DONE:
        results = json.loads(victim.product.read_text(encoding="utf-8"))
        stages = {"": results["test"]} | {f"{name}_": results["history"].get(name, {}) for name in ("best_on_val", "peak")}
        values |= {f"{stage}{_NAMES[name]}": found.get(name) for stage, found in stages.items() for name in _NAMES}
        values["majority"] = results["majority"]
    return values


def write_results(victims: Sequence[Job], path: Path) -> None:
    """Write one line per victim; lines of other grids stay if their runs still stand in the folder."""
    names = {victim.name for victim in victims}
    others = [line for line in read_csv(path) if (run := Path(line["run"]).name) not in names and (path.parent / run).is_dir()]
    settings = [name for line in (victims[0].values, *others) for name in line if name not in (*MEASURED, *STATUS)]
    write_csv(path, [*dict.fromkeys(settings), *MEASURED, *STATUS], [*map(record, victims), *others])


def results_table(victims: Sequence[Job]) -> str:
    """Return means over the seeds, with the spread where there are several, in percent; as Markdown, for a page of results."""
    columns = {column: name for column, name in short_names(victims[0].values).items() if column != "seed"}
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for victim in victims:
        groups.setdefault(tuple(victim.values[name] for name in columns), []).append(record(victim))
    lines, majority = [], {}
    for names, records in groups.items():
        done = [values for values in records if values["status"] == DONE]
        count = str(len(done)) if len(done) == len(records) else f"{len(done)} of {len(records)}"
        minutes = [values["generator_seconds"] / 60 for values in done if "generator_seconds" in values]
        shown = [spread(values[name] for values in done) for name in _SHOWN]
        lines.append([*names, count, *shown, f"{fmean(minutes):.0f}" if minutes else ""])
        majority.update({values["dataset"]: values["majority"] for values in done})
    for dataset, share in majority.items():
        blank = [""] * (len(columns) - 2)
        lines.append([dataset, "majority class (no model)", *blank, "", f"{100 * share:.1f}", "", "50.0", *[""] * 4])
    return markdown_table([*columns.values(), "seeds", *_SHOWN.values(), "generator min"], lines, len(columns))


def name_curves(victims: Sequence[Job], out: Path) -> None:
    """Link ``curves/<title>`` to each run that has begun, so that TensorBoard shows the title instead of an address."""
    folder = out / CURVES
    folder.mkdir(exist_ok=True)
    begun = [victim for victim in victims if victim.folder.is_dir()]
    links = {title(victim).replace("/", "_")[:_LONGEST]: Path("..", victim.name) for victim in begun}
    for link in folder.iterdir():
        if link.is_symlink() and links.get(link.name) != link.readlink():
            link.unlink()  # of an earlier grid
    for name, run in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(run, target_is_directory=True)


def write_hparams(victim: Job) -> None:
    """Add a finished victim's hyper-parameters, and which of its curves they led to, to its run folder; once."""
    results = record(victim)
    if results["status"] != DONE or any(victim.folder.glob(f"*{_EVENTS}")):
        return
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    values = {name: value or "-" for name, value in victim.values.items()}
    with SummaryWriter(victim.folder, filename_suffix=_EVENTS) as writer:
        # The metrics are scalars that the test has logged; writer.add_hparams would start a run of its own for them.
        metrics = {f"test/{name}": results[column] for name, column in _NAMES.items() if results[column] is not None}
        for summary in hparams(values, metrics):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)


def title(job: Job) -> str:
    """Return what a job is, in a few words: of a victim what tells it from the others of its grid."""
    if job.makes_release:
        return f"release {job.name}"
    values, names = job.values, short_names(job.values)
    known = ("", values["trained_on"])  # the method's name says enough of its column
    told = {name: value for name, value in values.items() if name not in FIXED and value.lower() not in known}
    details = [f"{names[name]}={value}" for name, value in told.items()]
    return " ".join([*(values[name] for name in FIXED[:3]), *details, f"seed={values['seed']}"])


def _of_release(release: Job, state: Run) -> dict[str, Any]:
    """Return what a release adds to the line of a victim on it; without one that can be read, the victim has failed."""
    if not state.is_done:
        return {"status": state.status, "error": f"its release {state.status}: {state.why}"} if state.why else {}
    try:
        measured = Manifest.read(release.release).measured
    except ReleaseError as error:
        way_out = f"Delete {release.folder} to have it made again."
        return {"status": FAILED, "error": f"its release cannot be read: {error} {way_out}"}
    found = {name: getattr(measured, name) for name in ("linf", "changed_share", "ssim", "psnr")}
    return found if measured.psnr is not None else found | {"psnr": float("inf")}
