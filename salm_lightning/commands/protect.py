"""``salm-cli protect``: the data owner's one command, from images to a protected copy with a first proof."""

from __future__ import annotations

import json
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import seed_everything
from rich.console import Console

from salm_lightning.console import command, say
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import Original
from salm_lightning.errors import OutputExistsError
from salm_lightning.files import file_sha256, write_json
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release import Manifest
from salm_lightning.release.manifest import MANIFEST
from salm_lightning.runs.summary import measured_table, verify_command
from salm_lightning.runs.trainers import Precision, check_accelerator
from salm_lightning.runs.training import (
    GENERATOR,
    PROTECTED,
    VICTIMS,
    Training,
    check_result,
    proof_table,
    results_file,
    settings_of,
)

SETTINGS = "protect.json"
"""File name of what a result depends on, in its folder."""


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

    The same command goes on with what was interrupted.

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
    images = Original.named(data, size, root, batch_size=batch_size, seed=seed).load()
    folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}"
    released = _begin(folder, settings_of(method, training, images), proof, overwrite)
    training_of = f", {steps} steps" if method.trains_source_on else ", which needs no training"
    first, release = f"[1/{3 if proof else 1}]", folder / PROTECTED
    if released:
        say(f"{first} the noise: done before")
    else:
        say(f"{first} making the noise: {method.name}{training_of}")
        training.release(method, images, folder, overwrite=True)
    results = training.compare(images, release, folder, ("[2/3] ", "[3/3] ")) if proof else {}
    _summary(release, results, time.perf_counter() - begin, images)
    return 0


def _begin(folder: Path, settings: dict[str, Any], proof: bool, overwrite: bool) -> bool:
    """Take the folder of a result: what the same command has left unfinished there goes on, anything else is in the way.

    Returns:
        Whether its release stands; another one that is there may be replaced, now or since the command began.

    Raises:
        OutputExistsError: A result stands there, or an unfinished one with other settings, and ``overwrite`` is off.
    """
    path, manifest = folder / SETTINGS, folder / PROTECTED / MANIFEST
    found = file_sha256(manifest) if manifest.is_file() else None
    begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mine = begun == {**settings, "replaces": begun.get("replaces")}
    released = mine and found not in (None, begun["replaces"])
    victims = [results_file(folder, name) for name in VICTIMS]
    proven = not proof or all(results.is_file() for results in victims)
    if mine and not overwrite and not (released and proven):
        return released
    check_result(folder, overwrite)
    made = [folder / GENERATOR, *(results.parent for results in victims)]
    if not overwrite and any(part.exists() for part in made):
        raise OutputExistsError(
            f"out={folder} holds an unfinished result with other settings; repeat its command, name another folder, or begin anew with "
            "--overwrite true."
        )
    for part in made:
        shutil.rmtree(part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {**settings, "replaces": found})
    return False


def _summary(release: Path, results: dict[str, dict[str, Any]], seconds: float, images: ImageDataModule) -> None:
    console = Console()
    console.print(measured_table(Manifest.read(release)))
    if results:
        console.print(proof_table(results, images))
    say(f"Protected dataset: {release}\nCheck it:          {verify_command(release, images)}")
    say(f"Curves, pictures:  {command('tensorboard', '--logdir', release.parent)}")
    say(f"Time taken:        {timedelta(seconds=round(seconds))}")
