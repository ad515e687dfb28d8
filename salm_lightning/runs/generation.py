"""From a trained noise generator to a protected dataset on disk: its checkpoint, the chunks of the last pass, and the release."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salm_lightning.callbacks.checkpoint import run_folder, save_run
from salm_lightning.callbacks.saved import read_checkpoint
from salm_lightning.console import tracked
from salm_lightning.data import Batch, ImageDataModule
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import SalmError, require
from salm_lightning.files import locked
from salm_lightning.interruption import Interruption, let_others_wait
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.release.manifest import MANIFEST, Bound, Manifest, Publish
from salm_lightning.release.parts import Parts, is_announced, parts_folder
from salm_lightning.release.writer import check_destination, recover, write_release


class ProtectedWriter(Callback):
    """Store what the last pass returns, chunk by chunk, at once: an interrupted pass goes on from there.

    Lightning's ``BasePredictionWriter`` asks the loader for the indices of a batch, which only its own loaders know; here every
    batch carries them.

    Args:
        parts: Where the chunks go; shared by all ranks, each of which writes the chunks that it made.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._interruption = Interruption()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM and Ctrl-C wait until the chunk at hand is stored."""
        self._interruption.listen(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store one chunk, and stop after it if the run was asked to.

        Ranks share nothing in the last pass, so each stops by itself.
        """
        chunk = int(outputs.indices[0]) // self.parts.chunk_size
        self.parts.save(chunk, outputs.images)
        if self._interruption.noted:
            self._interruption.stop(trainer)


def generate(
    trainer: Trainer,
    module: NoiseGeneratorModule,
    data: ImageDataModule,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
    overwrite: bool = False,
    publish: Publish = "all",
) -> Path:
    """Run the last pass over every training image and write the protected dataset; all ranks call it together.

    Finished chunks are kept next to the release until it stands: a call that was interrupted goes on where it stopped, and one that
    has ended changes nothing.

    Args:
        trainer: Any Trainer; its devices share the chunks.
        module: The noise generator.
        data: The images to protect.
        folder: Where the release goes, and what is returned; ``None`` is ``<run>/protected``.
        ckpt_path: Checkpoint to load; ``None`` saves the module as it is and loads that, except for a method without a source
            model.
        overwrite: Replace a release that stands there.
        publish: Which splits go into the release: ``all``, or ``train`` alone, since val and test images are the clean ones.

    Raises:
        OutputExistsError: Another release stands there, and ``overwrite`` is false, or another process is at work on one.
        ConfigurationError: The source model has not been trained.
    """
    # All ranks have to be there before anything is written, which a late one would take for another run's. The Trainer starts them when
    # it trains; a method without a source model has not trained.
    start, launcher = trainer.strategy.setup_environment, trainer.strategy.launcher
    if launcher is None:
        start()
    else:
        launcher.launch(start, trainer=trainer)
    if module.method.trains_source_on is not None:
        steps = trainer.global_step if ckpt_path is None else read_checkpoint(ckpt_path)["global_step"]
        require(
            "training steps of the source model",
            steps,
            steps > 0,
            "train it first: noise against an untrained one protects nothing",
        )
    folder = folder or run_folder(trainer) / "protected"
    with ExitStack() as held:
        _on_rank_zero(trainer, lambda: held.enter_context(locked(parts_folder(folder), f"release={folder}")))
        _generate(trainer, module, data, folder, ckpt_path, overwrite, publish)
    return folder


def _generate(
    trainer: Trainer,
    module: NoiseGeneratorModule,
    data: ImageDataModule,
    folder: Path,
    ckpt_path: Path | None,
    overwrite: bool,
    publish: Publish,
) -> None:
    if ckpt_path is None or not is_published(module, data, folder, ckpt_path):
        check_destination(folder, overwrite)
    if ckpt_path is None and module.method.trains_source_on is not None:
        ckpt_path = save_run(trainer)
    published = ckpt_path is not None and is_published(module, data, folder, ckpt_path)
    data.prepare_data()
    data.setup("predict")
    images = data.split("train").images
    fingerprint = fingerprint_of(module, data, ckpt_path)
    parts = Parts(parts_folder(folder), fingerprint, len(images), data.chunk_size, images.shape[1:])
    if not published:
        _fill(trainer, module, data, parts, ckpt_path)
    trainer.strategy.barrier("last pass")

    def write() -> None:
        if published:
            recover(folder)
        else:
            blocks = tracked(parts, parts.num_chunks, "Measuring and writing", trainer.progress_bar_callback is not None)
            selected = module.selected_samples(data)
            write_release(folder, data, blocks, *promise(module), overwrite, selected, parts.announce, publish)
        parts.remove()

    _on_rank_zero(trainer, write)


def last_pass(
    trainer: Trainer, module: NoiseGeneratorModule, data: ImageDataModule, folder: Path, ckpt_path: Path | None, fingerprint: str
) -> Parts:
    """Run the last pass over every training image on one device, or go on with one, and return its chunks, which are kept in a folder."""
    data.setup("predict")
    images = data.split("train").images
    parts = Parts(folder, fingerprint, len(images), data.chunk_size, images.shape[1:])
    _fill(trainer, module, data, parts, ckpt_path)
    return parts


def _fill(trainer: Trainer, module: NoiseGeneratorModule, data: ImageDataModule, parts: Parts, ckpt_path: Path | None) -> None:
    """Make the chunks that are missing."""
    pending = parts.pending()
    writer = ProtectedWriter(parts)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        if pending:
            chunks = data.variant(predicted=pending)
            trainer.predict(module, datamodule=chunks, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]


def _on_rank_zero(trainer: Trainer, work: Callable[[], None]) -> None:
    """Do something on rank 0 alone; an error there is one of every rank, which would otherwise wait for it."""
    error: SalmError | OSError | None = None

    def attempt() -> None:
        nonlocal error
        try:
            work()
        except (SalmError, OSError) as failure:
            error = failure

    let_others_wait(attempt, trainer)
    error = trainer.strategy.broadcast(error)
    if error is not None:
        raise error


def promise(module: NoiseGeneratorModule) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how the noise is made and what its method promises of every image, as a manifest has them."""
    method, more = module.method, {"training": module.trained, "generator": module.made_by}
    settings = module.settings() | {name: value for name, value in more.items() if value}
    pixels = method.max_changed_pixels(math.prod(module.image_shape[1:]), module.last_pass_steps)
    return settings, Bound(method.norm, method.radius, pixels).to_dict()


def is_published(module: NoiseGeneratorModule, data: ImageDataModule, folder: Path, ckpt_path: Path) -> bool:
    """Return whether a release stands, undamaged, that :func:`generate` made of this checkpoint.

    It only looks, so all ranks may call it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    text = manifest.read_text(encoding="utf-8", errors="replace")
    if not is_announced(parts_folder(folder), fingerprint_of(module, data, ckpt_path), text):
        return False
    archive = Manifest.read(folder).archive
    return (folder / archive.name).is_file() and file_sums(folder / archive.name).sha256 == archive.sha256


def fingerprint_of(module: NoiseGeneratorModule, data: ImageDataModule, ckpt_path: Path | None) -> str:
    """Return a SHA-256 of all that the released images depend on."""
    digest = hashlib.sha256(json.dumps([module.settings(), data.describe(), data.chunk_size], sort_keys=True).encode())
    for file in (None if ckpt_path is None else file_sums(ckpt_path), data.source_file):
        if file is not None:
            digest.update(file.sha256.encode())
    return digest.hexdigest()
