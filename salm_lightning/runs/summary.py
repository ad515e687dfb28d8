"""What a run prints and writes at its end: where the artefacts are, what was measured and proven, and the next command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from salm_lightning.console import command, metrics_table, say
from salm_lightning.data import ImageDataModule, Task
from salm_lightning.data.catalogue import INFO
from salm_lightning.files import write_json
from salm_lightning.metrics.learned import KEPT_LIMIT, LEARNED, MEASURES, Scale, floors_of
from salm_lightning.modules import VictimModule
from salm_lightning.release import Manifest
from salm_lightning.release.manifest import DATAMODULE
from salm_lightning.runs.victims import RESULTS, part_of, victim_results

_FIT_VICTIM = ("salm-cli", "fit", "--config", "victim.yaml", "--config")
_TITLES = {"last": "after the last step", "best_on_val": "at the best validation", "peak": "peak over training"}


def print_victim(module: VictimModule, data: ImageDataModule, folder: Path) -> None:
    """Write ``results.json`` into the run's folder and show the results."""
    results = victim_results(module, data)
    write_json(folder / RESULTS, results)
    rows = {"after the last step": results["test"]}
    rows |= {_TITLES[name]: results["history"][name] for name in ("best_on_val", "peak") if name in results["history"]}
    rows["majority class"] = {"acc": results["majority"], "auc": 0.5}
    images = len(data.split("test"))
    part = part_of(results.get("tested", images), images)
    title = f"{module.arch.name} (width {module.width:g}) on {part}the clean test split of {data.info.name}"
    Console().print(metrics_table(title, "", rows, digits=2))
    say(
        f"Run folder: {folder} (curves and confusion matrix: {command('tensorboard', '--logdir', folder)})\n"
        f"Predictions: {command('salm-cli', 'predict', '--config', folder / 'config.yaml', '--ckpt_path', folder)}"
    )


def print_release(folder: Path, run: Path, data: ImageDataModule, verdict: str | None = None) -> None:
    """Show what was measured on a release's bytes, where it is, what it publishes, and the next commands.

    ``run`` has curves and pictures, ``data`` are the originals, and ``verdict`` is what victims have shown, if any were asked for; else the
    summary says how to train one.
    """
    manifest, console = Manifest.read(folder), Console()
    console.print(measured_table(manifest))
    if verdict:
        console.print(verdict, highlight=False, markup=False)
    source = data.word
    medmnist = _medmnist_call(manifest, folder)
    for line in (
        f"Protected dataset: {folder}",
        f"Its noise:         {_noise(manifest.settings.get('method', {}))}",
        *_published(manifest),
        *([f"Read it:           {medmnist}; download=True puts the clean file in its place"] if medmnist else []),
        f"Curves, pictures:  {command('tensorboard', '--logdir', run)}",
        f"Check it:          {command('salm-cli', 'verify', folder, '--source', source)}",
        f"Attack it:         {command('salm-cli', 'audit', folder, '--source', source)}",
        f"Report on it:      {command('salm-cli', 'report', folder)}",
        *([] if verdict is not None else [f"Train on it:       {command(*_FIT_VICTIM, folder / DATAMODULE)}"]),
    ):
        say(line)


def _noise(method: Mapping[str, Any]) -> str:
    """Return in words which method made the noise, and what to expect of it where images share one."""
    if method.get("noise_per") != "class":
        return str(method.get("name"))
    return (
        f"{method['name']}, one pattern for each class: few steps make it strong, and an average over a class shows it; salm makes one for "
        "each image and needs longer runs"
    )


def _published(manifest: Manifest) -> list[str]:
    """Say what of the originals a release publishes beside the protected images and the labels."""
    sizes = {name: manifest.arrays[f"{name}_images"].shape[0] for name in manifest.published}
    clean, extras = sum(sizes.values()) - sizes["train"], manifest.extras
    given = f"the clean validation and test images, too, {clean} of {sum(sizes.values())}; --publish train leaves them out"
    lines = [f"It publishes:      {given if clean else 'the training images alone'}"]
    return [*lines, f"Unchanged in it:   {', '.join(extras)}, arrays of the original file"] if extras else lines


def _medmnist_call(manifest: Manifest, folder: Path) -> str:
    """Return how MedMNIST's package reads a release; empty for data that it does not know."""
    info = manifest.info
    if info.name not in INFO:
        return ""
    size = "" if info.size == 28 else f"size={info.size}, "
    return f'medmnist.{INFO[info.name]["python_class"]}("train", root="{folder}", {size}download=False)'


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


def proof_table(results: Mapping[str, Mapping[str, Any]], images: ImageDataModule) -> Table:
    """Return a table of victims' results by what they were trained on, with the majority-class line."""
    rows = {f"{name} images": result["test"] for name, result in results.items()}
    blind = 0.5 if images.task is Task.MULTI_LABEL else 1 / images.num_classes
    rows["majority class (no model)"] = {"acc": results["clean"]["majority"], "auc": 0.5, "balanced_acc": blind, "kappa": 0.0}
    title = f"A model trained on it, measured on the clean test split of {images.info.name}"
    return metrics_table(title, "trained on", rows, digits=1)


def verdict(results: Mapping[str, Mapping[str, Any]], images: ImageDataModule) -> str:
    """Return in words whether the clean victim has learned anything, and how much of it the protected one keeps."""
    clean, protected = (results[name]["test"] for name in ("clean", "protected"))
    scale = Scale.of(floors_of(images.task, images.num_classes, results["clean"]["majority"]), clean)
    share = scale.kept(protected)
    if share is None:
        reached = " and ".join(f"{MEASURES[name]} {clean[name]:.1%} ({floor:.1%})" for name, floor in scale.floors.items())
        return (
            f"Nothing is shown: the model trained on the clean images learned next to nothing. It reaches {reached}; in brackets what "
            f"knowing nothing does, and {100 * LEARNED:.0f} points above it would count. Train the victims longer: more victim_steps, a "
            "larger width or effort."
        )
    kept = f"the model trained on the protected images keeps {max(0.0, share):.0%} of what the one trained on the clean images learned"
    limit = f"more than {KEPT_LIMIT:.0%} counts as learned"
    if share > KEPT_LIMIT:
        return f"Not protected: {kept}; {limit}. Train the noise longer: more steps, a larger width or effort."
    return f"Protected, as far as one model trained without any countermeasure shows: {kept}; {limit}. An audit tries more."
