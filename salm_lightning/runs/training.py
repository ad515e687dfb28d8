"""What the commands that protect have in common: training a noise generator, making its release, training victims as proof."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint, latest_checkpoint
from salm_lightning.console import say
from salm_lightning.data import ImageDataModule
from salm_lightning.files import write_json
from salm_lightning.models import Architecture
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.modules.schedule import default_optimizer
from salm_lightning.noise.methods import Method
from salm_lightning.release import PoisonedDataModule
from salm_lightning.release.manifest import Publish
from salm_lightning.runs.effort import Training
from salm_lightning.runs.generation import generate
from salm_lightning.runs.result_folder import PROTECTED, VICTIMS, results_file
from salm_lightning.runs.trainers import facts_of, single_device_trainer
from salm_lightning.runs.victims import VictimSettings, train_victim

GENERATOR = "generator"
"""Folder of the noise generator's run in that of a result."""


def make_release(
    training: Training, method: Method, images: ImageDataModule, folder: Path, overwrite: bool, publish: Publish = "all"
) -> Path:
    """Train a noise generator in ``folder/generator`` and write the protected dataset to ``folder/protected``.

    A training that was interrupted there goes on.

    Returns:
        The folder of the release.
    """
    source, width, steps, _ = training.lengths
    architecture = Architecture.parse(source)
    module = NoiseGeneratorModule(
        method,
        **facts_of(images),
        source=architecture,
        width=width,
        loop=training.loop,
        updates_per_visit=training.updates_per_visit,
        optimizer=default_optimizer(architecture, learning_rate=training.source_learning_rate),
        seed=training.seed,
    )
    callbacks = [Throughput(), progress_bar(), RunCheckpoint(max(1, steps // 10)), NoisePictures()]
    trainer = single_device_trainer(folder, GENERATOR, steps, callbacks, training.accelerator, training.precision)
    saved = folder / GENERATOR / "checkpoints"
    if method.trains_source_on is not None:
        trainer.fit(module, datamodule=images, ckpt_path=latest_checkpoint(saved), weights_only=True)
    return generate(trainer, module, images, folder / PROTECTED, latest_checkpoint(saved), overwrite, publish)


def train_victims(
    training: Training, images: ImageDataModule, folder: Path, prefixes: Sequence[str] = ("", "")
) -> dict[str, dict[str, Any]]:
    """Train a victim on the clean images and one on the release in ``folder/protected``, each in ``folder/victim-<name>``.

    A victim whose results are there is not trained again.

    Args:
        training: How.
        images: The clean images.
        folder: Folder of the result.
        prefixes: What stands before the line that announces each training.

    Returns:
        Results on the clean test split under ``clean`` and ``protected``.
    """
    _, width, _, steps = training.lengths
    architecture = Architecture.parse(training.victim)
    settings = VictimSettings(
        architecture, width, steps, training.precision, learning_rate=training.learning_rate, seed=training.seed
    )
    poisoned = PoisonedDataModule(folder / PROTECTED, batch_size=images.batch_size, seed=images.seed)
    poisoned.measure_on(images)
    results = {}
    for prefix, (name, data) in zip(prefixes, zip(VICTIMS, (images, poisoned), strict=True), strict=True):
        path = results_file(folder, name)
        if path.is_file():
            say(f"{prefix}a victim on the {name} images: done before")
            results[name] = json.loads(path.read_text(encoding="utf-8"))
            continue
        say(f"{prefix}training a victim on the {name} images: {Architecture.parse(training.victim).name}, {steps} steps")
        callbacks = [Throughput(), progress_bar()]
        results[name] = train_victim(settings, data, folder, f"victim-{name}", callbacks, training.accelerator).results
        write_json(path, results[name])
    return results


def identity_of(method: Method, training: Training, images: ImageDataModule, publish: Publish) -> dict[str, Any]:
    """Return all that a result depends on, as JSON values: an unfinished one only goes on with the same."""
    file = images.source_file
    data = {"dataset": images.describe(), "source": None if file is None else file.sha256, "batch_size": images.batch_size}
    return {"method": method.settings(), **training.settings(), **data, "publish": publish}
