"""What a run prints and writes at its end: where the artefacts are, what was measured, and the next command."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from salm_lightning.console import command, metrics_table, say
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import Original
from salm_lightning.files import write_json
from salm_lightning.modules import VictimModule
from salm_lightning.release import Manifest
from salm_lightning.release.manifest import DATAMODULE
from salm_lightning.runs.results import RESULTS, victim_results

_TITLES = {"last": "after the last step", "best_on_val": "at the best validation", "peak": "peak over training"}


def print_victim(module: VictimModule, data: ImageDataModule, folder: Path) -> None:
    """Write ``results.json`` into the run's folder and show the results."""
    results = victim_results(module, data)
    write_json(folder / RESULTS, results)
    rows = {"after the last step": results["test"]}
    rows |= {_TITLES[name]: results["history"][name] for name in ("best_on_val", "peak") if name in results["history"]}
    rows["majority class"] = {"acc": results["majority"], "auc": 0.5}
    title = f"{module.arch.name} (width {module.width:g}) on the clean test split of {data.info.name}"
    Console().print(metrics_table(title, "", rows, digits=2))
    say(
        f"Run folder: {folder} (curves and confusion matrix: {command('tensorboard', '--logdir', folder)})\n"
        f"Predictions: {command('salm-cli', 'predict', '--config', folder / 'config.yaml', '--ckpt_path', folder)}"
    )


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
    return command("salm-cli", "verify", folder, "--source", Original(data).word)


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
