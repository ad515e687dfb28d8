"""What a run prints and writes at its end: where the artefacts are, what was measured, and the next command."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from salm_lightning.data import ImageDataModule
from salm_lightning.files import replacing
from salm_lightning.metrics import majority_baseline
from salm_lightning.modules import VictimModule
from salm_lightning.release import Manifest
from salm_lightning.release.manifest import DATAMODULE
from salm_lightning.terminal import is_live

RESULTS = "results.json"
"""File name of a victim's results in its run folder."""
_HEADINGS = {"acc": "accuracy", "auc": "AUC", "balanced_acc": "balanced accuracy", "kappa": "weighted kappa"}
_PREDICTED = ("indices", "labels", "probabilities")
_TITLES = {"last": "after the last step", "best_on_val": "at the best validation", "peak": "peak over training"}


def victim_results(module: VictimModule, data: ImageDataModule) -> dict[str, Any]:
    """Return a tested victim's results as JSON values.

    Returns:
        ``test`` (after the last step, with recall per class and the confusion matrix), ``history`` (``last``, ``best_on_val``,
        ``peak``), the test split's ``majority`` line, and the victim's settings.
    """
    majority = majority_baseline(data.split("test").labels, data.task, data.num_classes)
    return {
        "data": data.describe(),
        "victim": module.settings(),
        "steps": int(module.history.get("last", {}).get("step", 0)),
        "majority": majority,
        "test": module.result,
        "history": module.history,
    }


def print_victim(module: VictimModule, data: ImageDataModule, folder: Path) -> None:
    """Write ``results.json`` into the run's folder and show the results."""
    results = victim_results(module, data)
    write_json(folder / RESULTS, results)
    rows = {"after the last step": results["test"]}
    rows |= {_TITLES[name]: results["history"][name] for name in ("best_on_val", "peak") if name in results["history"]}
    rows["majority class"] = {"acc": results["majority"], "auc": 0.5}
    title = f"{module.arch} (width {module.width:g}) on the clean test split of {data.info.name}"
    Console().print(metrics_table(title, "", rows, digits=2))
    say(
        f"Run folder: {folder} (curves and confusion matrix: {command('tensorboard', '--logdir', folder)})\n"
        f"Predictions: {command('salm-cli', 'predict', '--config', folder / 'config.yaml', '--ckpt_path', folder)}"
    )


def metrics_table(title: str, heading: str, rows: Mapping[str, Mapping[str, Any]], digits: int) -> Table:
    """Return a table with a line of metrics under each name; the first line's metrics are the columns.

    Args:
        title: Title of the table.
        heading: Of the column of names.
        rows: Metrics by name; what a line lacks stays empty.
        digits: Decimals of percentages; other numbers get two more.
    """
    table = Table(title=escape(title))
    table.add_column(heading)
    names = [name for name in _HEADINGS if name in next(iter(rows.values()))]
    for name in names:
        table.add_column(_HEADINGS[name], justify="right")
    for row_name, row in rows.items():
        table.add_row(escape(row_name), *(_figure(name, row[name], digits) if name in row else "" for name in names))
    return table


def print_release(folder: Path, run: Path, data: ImageDataModule) -> None:
    """Show where a release is, what was measured on its bytes, and the next commands."""
    Console().print(measured_table(Manifest.read(folder)))
    train = command("salm-cli", "fit", "--config", "victim.yaml", "--config", folder / DATAMODULE)
    say(
        f"Protected dataset: {folder}\nRun folder: {run} (curves and pictures: {command('tensorboard', '--logdir', run)})\n"
        f"Check it:       {verify_command(folder, data)}\nTrain on it:    {train}"
    )


def verify_command(folder: Path, data: ImageDataModule) -> str:
    """Return the command that checks a release of some data."""
    source = ("--source", data.source_path) if data.source_path else ()
    return command("salm-cli", "verify", folder, *source)


def command(*words: str | Path) -> str:
    """Return a command that a shell takes as it is."""
    return shlex.join(map(str, words))


def measured_table(manifest: Manifest) -> Table:
    """Return a table of the bounds that were measured on the stored bytes."""
    table = Table(title="Measured on the stored bytes of the training images", show_header=False)
    measured, bound = manifest.measured, manifest.bound
    psnr = "identical" if measured.psnr is None else f"{measured.psnr:.1f} dB"
    limit = f" (bound {bound.radius:g})"
    table.add_row("largest change (l-inf)", f"{measured.linf} of 255{limit if bound.norm == 'linf' else ''}")
    if bound.norm == "l2":
        table.add_row("largest root mean square change (l2)", f"{measured.rms_max:.2f}{limit}")
    table.add_row("changed pixels per image (l0)", f"{measured.l0_mean:.1f}, {measured.changed_share:.1%} of all")
    table.add_row("SSIM / PSNR", f"{measured.ssim:.4f} / {psnr}")
    coverage = manifest.coverage
    chosen = "" if coverage.selection is None else f"; {coverage.selected} chosen to be protected"
    table.add_row("images covered", f"{coverage.written} of {coverage.samples}{chosen}")
    return table


def gather_predictions(batches: list[dict[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Return the predictions of all ranks in the order of the sample indices; all ranks have to call it together.

    Args:
        batches: What ``VictimModule.predict_step`` returned on this rank.

    Returns:
        ``indices`` int64 ``[N]``, ``labels`` and ``probabilities``, on every rank.
    """
    parts = [{name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in _PREDICTED}] if batches else []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, parts)
        parts = [part for of_rank in found for part in of_rank]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _PREDICTED}
    order = np.argsort(joined["indices"])
    return {name: array[order] for name, array in joined.items()}


def save_predictions(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """Write a victim's predictions on the clean test split as ``.npz`` with probabilities, labels and indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)
    say(f"Predictions on the test split: {path}")


def say(text: str) -> None:
    """Print a line as it is."""
    Console().print(text, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, on terminals only; what is yielded takes how many are done, and of how many."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not is_live(sys.stderr)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_json(path: Path, values: dict[str, Any] | list[Any]) -> None:
    """Write JSON to a temporary name and rename it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _figure(name: str, value: float, digits: int) -> str:
    return f"{value:.{digits}%}" if name.endswith("acc") else f"{value:.{digits + 2}f}"
