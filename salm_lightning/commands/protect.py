"""``salm-cli protect``: the data owner's one command, from images to a protected copy with a first proof."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import seed_everything
from rich.console import Console

from salm_lightning.data import ImageDataModule
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release import Manifest
from salm_lightning.summary import command, measured_table, say, verify_command
from salm_lightning.trainers import Precision, check_accelerator
from salm_lightning.training import Training, open_data, proof_table, result_folder


def protect(
    data: str,
    out: Path | None = None,
    size: int | None = None,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    source: str = "resnet18",
    width: float = 1.0,
    steps: int = 5000,
    updates_per_visit: int | Literal["auto"] = "auto",
    proof: bool = True,
    victim: str = "resnet18",
    victim_steps: int = 20000,
    batch_size: int | None = None,
    source_learning_rate: float = 0.1,
    learning_rate: float = 0.1,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Protect a dataset: train the noise, write the protected copy, and prove it on a victim.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic`` for the embedded data.
        out: Folder of the result; ``lightning_logs/<name>-<method>`` by default. The release is in its subfolder ``protected``.
        size: Height and width for a name, 28 by default; MedMNIST has 28, 64, 128 and 224.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made, such as ``SALM``, ``EM``, ``TAP``, ``SP`` or ``Random``; SALM with K = 10 by default.
        source: Architecture of the source model.
        width: Width factor of the source model and the victims.
        steps: Training steps of the noise generator, M.
        updates_per_visit: PGD steps per visit of an image, or ``auto``.
        proof: Train a clean and a protected victim and compare them.
        victim: Architecture of the victims.
        victim_steps: Training steps of each victim.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        source_learning_rate: First learning rate of the source model.
        learning_rate: First learning rate of the victims.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.
        seed: Settles everything random.
        overwrite: Replace a result that stands at ``out``.

    Returns:
        Exit code 0.

    Raises:
        SalmError: An argument is wrong, or a result stands at ``out``.
    """
    training = Training(
        source=source,
        width=width,
        steps=steps,
        updates_per_visit=updates_per_visit,
        victim=victim,
        victim_steps=victim_steps,
        source_learning_rate=source_learning_rate,
        learning_rate=learning_rate,
        accelerator=accelerator,
        precision=precision,
        seed=seed,
    )
    check_accelerator(accelerator)
    seed_everything(seed, verbose=False)
    begin = time.perf_counter()
    images = open_data(data, size, root, batch_size=batch_size, seed=seed)
    folder = result_folder(out, f"{images.info.name}-{method.name}", overwrite)
    training_of = f", {steps} steps" if method.trains_source_on else ", which needs no training"
    say(f"[1/{3 if proof else 1}] making the noise: {method.name}{training_of}")
    release = training.release(method, images, folder, overwrite)
    results = training.compare(images, release, folder, ("[2/3] ", "[3/3] ")) if proof else {}
    _summary(release, results, time.perf_counter() - begin, images)
    return 0


def _summary(release: Path, results: dict[str, dict[str, Any]], seconds: float, images: ImageDataModule) -> None:
    console = Console()
    console.print(measured_table(Manifest.read(release)))
    if results:
        console.print(proof_table(results, images))
    say(f"Protected dataset: {release}\nCheck it:          {verify_command(release, images)}")
    say(f"Curves, pictures:  {command('tensorboard', '--logdir', release.parent)}")
    say(f"Time taken:        {timedelta(seconds=round(seconds))}")
