"""``salm-cli protect``: the data owner's one command, from images to a protected copy with a first proof."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch.optim import SGD

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.data import MEDMNIST, ImageDataModule, MedMNISTDataModule, NpzDataModule, SyntheticDataModule
from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError, did_you_mean, look_up
from salm_lightning.generation import generate
from salm_lightning.models import ARCHITECTURES
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release import Manifest, PoisonedDataModule, check_destination
from salm_lightning.summary import RESULTS, measured_table, victim_results, write_json

SYNTHETIC = "synthetic"
"""Name of the embedded data."""
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def protect(
    data: str,
    out: Path | None = None,
    size: int = 28,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    source: str = "resnet18",
    width: float = 1.0,
    steps: int = 5000,
    updates_per_visit: int | Literal["auto"] = "auto",
    proof: bool = True,
    victim: str = "resnet18",
    victim_steps: int = 20000,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    accelerator: str = "auto",
    devices: int = 1,
    precision: Precision = "32-true",
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Protect a dataset: train the noise, write the protected copy, and prove it on a victim.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic`` for the embedded data.
        out: Folder of the result; ``lightning_logs/<name>-<method>`` by default. The release is in its subfolder ``protected``.
        size: Height and width for a MedMNIST name: 28, 64, 128 or 224.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made, such as ``SALM``, ``EM``, ``TAP``, ``SP`` or ``Random``; SALM with K = 10 by default.
        source: Architecture of the source model.
        width: Width factor of the source model and the victims.
        steps: Training steps of the noise generator, M.
        updates_per_visit: PGD steps per visit of an image, or ``auto``.
        proof: Train a clean and a protected victim and compare them.
        victim: Architecture of the victims.
        victim_steps: Training steps of each victim.
        batch_size: Images per step.
        learning_rate: First learning rate of the source model and the victims.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: Number of devices.
        precision: Numerical precision.
        seed: Settles everything random.
        overwrite: Replace a result that stands at ``out``.

    Returns:
        Exit code 0.

    Raises:
        SalmError: An argument is wrong, or a result stands at ``out``.
    """
    if learning_rate <= 0:
        raise ConfigurationError(f"learning_rate={learning_rate} is out of range; give more than 0, such as 0.1.")
    for name, value in (("steps", steps), ("victim_steps", victim_steps), ("devices", devices)):
        if value < 1:
            raise ConfigurationError(f"{name}={value} is out of range; give 1 or more.")
    for name, arch in (("source", source), ("victim", victim)):
        look_up(name, arch, ARCHITECTURES)
    seed_everything(seed, verbose=False)
    begin = time.perf_counter()
    images = open_data(data, size, root, batch_size=batch_size, seed=seed)
    images.prepare_data()
    images.setup("fit")
    folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}"
    release = folder / "protected"
    try:
        check_destination(release, overwrite)
    except OutputExistsError as error:
        raise OutputExistsError(f"out={folder}: {error}") from error
    shared: dict[str, Any] = {
        "accelerator": accelerator, "devices": devices, "precision": precision, "use_distributed_sampler": False,
        "max_epochs": -1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "enable_model_summary": False,
    }  # fmt: skip
    facts: dict[str, Any] = {
        "num_classes": images.num_classes,
        "channels": images.channels,
        "image_size": images.image_size,
        "task": images.task,
    }

    sgd = partial(SGD, lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    module = NoiseGeneratorModule(
        method, **facts, source=source, width=width, updates_per_visit=updates_per_visit, optimizer=sgd, seed=seed
    )
    trainer = _trainer(folder, "generator", steps, [RunCheckpoint(max(1, steps // 10)), NoisePictures()], shared)
    if method.trains_source_on is not None:
        _say(f"[1/{3 if proof else 1}] training the noise generator: {method.name}, {steps} steps")
        trainer.fit(module, datamodule=images)
    generate(trainer, module, images, release, overwrite=overwrite)
    results = {}
    if proof:
        poisoned = PoisonedDataModule(release, batch_size=batch_size, seed=seed)
        for number, (name, victim_data) in enumerate((("clean", images), ("protected", poisoned)), start=2):
            _say(f"[{number}/3] training a victim on the {name} images: {victim}, {victim_steps} steps")
            model = VictimModule(**facts, arch=victim, width=width, optimizer=sgd, seed=seed)
            results[name] = _train_victim(model, victim_data, _trainer(folder, f"victim-{name}", victim_steps, [], shared))
    _summary(release, results, time.perf_counter() - begin, images)
    return 0


def open_data(data: str, size: int, root: Path | None, **options: Any) -> ImageDataModule:
    """Return the DataModule for what a user names as data.

    Raises:
        SalmError: It is neither a MedMNIST name, nor an ``.npz`` file, nor ``synthetic``.
    """
    if data == SYNTHETIC:
        return SyntheticDataModule(**options)
    if data in MEDMNIST:
        return MedMNISTDataModule(data, size=size, root=root, **options)
    if Path(data).exists() or data.endswith(".npz"):
        return NpzDataModule(data, **options)
    raise DataError(
        f"data={data!r} is neither a MedMNIST name, nor an .npz file in MedMNIST's layout, nor {SYNTHETIC!r}"
        f"{did_you_mean(data, [*MEDMNIST, SYNTHETIC]) or '.'} Names: {', '.join(MEDMNIST)}."
    )


def _trainer(folder: Path, name: str, steps: int, callbacks: list[Any], shared: dict[str, Any]) -> Trainer:
    try:
        return Trainer(
            max_steps=steps,
            val_check_interval=min(250, max(1, steps // 5)),
            logger=TensorBoardLogger(folder, name="", version=name),
            callbacks=[Throughput(), progress_bar(), *callbacks],
            enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
            **shared,
        )
    except ValueError as error:  # such as an accelerator that is not known
        raise ConfigurationError(str(error)) from error


def _train_victim(model: VictimModule, data: ImageDataModule, trainer: Trainer) -> dict[str, Any]:
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    results = victim_results(model, data)
    write_json(Path(str(trainer.log_dir)) / RESULTS, results)
    return results


def _summary(release: Path, results: dict[str, dict[str, Any]], seconds: float, data: ImageDataModule) -> None:
    console = Console()
    console.print(measured_table(Manifest.read(release)))
    if results:
        table = Table(title=f"A model trained on it, measured on the clean test split of {data.info.name}")
        for heading in ("trained on", "accuracy", "AUC", "balanced accuracy"):
            table.add_column(heading, justify="left" if heading == "trained on" else "right")
        for name, result in results.items():
            test = result["test"]
            table.add_row(f"{name} images", f"{test['acc']:.1%}", f"{test['auc']:.3f}", f"{test['balanced_acc']:.1%}")
        majority = next(iter(results.values()))["majority"]
        table.add_row("majority class (no model)", f"{majority:.1%}", "0.500", f"{1 / data.num_classes:.1%}")
        console.print(table)
    original = f" --source {data.source_path}" if data.source_path else ""
    _say(f"Protected dataset: {release}\nCheck it:          salm-cli verify {release}{original}")
    _say(f"Curves, pictures:  tensorboard --logdir {release.parent}\nTime taken:        {timedelta(seconds=round(seconds))}")


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True, markup=False)
