"""The last pass: from a trained noise generator to the chunks of protected images, and to the release that they make up."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from salm_lightning.console import tracked
from salm_lightning.data.base import Batch
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import SalmError
from salm_lightning.interruption import Interruption
from salm_lightning.noise.methods import Method
from salm_lightning.release.manifest import MANIFEST, Bound, Publish
from salm_lightning.release.parts import Parts, is_announced, parts_folder
from salm_lightning.release.writer import recover, write_release


class NoiseGenerator(Protocol):
    """What the last pass asks of a LightningModule, beside a ``predict_step`` that returns a batch with the released images, uint8."""

    method: Method
    image_shape: tuple[int, int, int]
    last_pass_steps: int
    trained: dict[str, Any] | None

    def settings(self) -> dict[str, Any]:
        """Return every setting that shapes the noise, as JSON values."""

    def selected_samples(self, data: ImageDataModule) -> NDArray[np.bool_] | None:
        """Say of each training sample whether it is protected; ``None`` when all are."""


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


def last_pass(
    trainer: Trainer,
    module: NoiseGenerator,
    data: ImageDataModule,
    folder: Path,
    ckpt_path: Path | None,
    overwrite: bool = False,
    publish: Publish = "all",
) -> None:
    """Run the last pass as :func:`~salm_lightning.runs.generation.generate` does, which says what the arguments are.

    ``module`` is a LightningModule; ``ckpt_path`` is ``None`` for a method without a source model.
    """
    published = ckpt_path is not None and is_published(module, data, folder, ckpt_path)
    data.prepare_data()
    data.setup("predict")
    images = data.split("train").images
    fingerprint = _fingerprint(module, data, ckpt_path)
    parts = Parts(parts_folder(folder), fingerprint, len(images), data.chunk_size, images.shape[1:])
    pending = [] if published else parts.pending()
    writer = ProtectedWriter(parts)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        if pending:
            chunks = data.variant(predicted=pending)
            trainer.predict(module, datamodule=chunks, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)  # type: ignore[arg-type]
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]
    trainer.strategy.barrier("last pass")
    error: SalmError | None = None
    if trainer.is_global_zero:
        try:
            if published:
                recover(folder)
            else:
                blocks = tracked(parts, parts.num_chunks, "Measuring and writing", trainer.progress_bar_callback is not None)
                method, settings = module.method, module.settings() | ({"training": module.trained} if module.trained else {})
                pixels = method.max_changed_pixels(math.prod(module.image_shape[1:]), module.last_pass_steps)
                bound = Bound(method.norm, method.radius, pixels).to_dict()
                selected = module.selected_samples(data)
                write_release(folder, data, blocks, settings, bound, overwrite, selected, parts.announce, publish)
            parts.remove()
        except SalmError as failure:
            error = failure
    # Asked of rank 0, which would otherwise leave the others waiting for it.
    error = trainer.strategy.broadcast(error)
    if error is not None:
        raise error


def is_published(module: NoiseGenerator, data: ImageDataModule, folder: Path, ckpt_path: Path) -> bool:
    """Return whether a release stands that :func:`last_pass` made of this checkpoint and was killed before it could clean up.

    It only looks, so all ranks may call it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    text = manifest.read_text(encoding="utf-8", errors="replace")
    return is_announced(parts_folder(folder), _fingerprint(module, data, ckpt_path), text)


def _fingerprint(module: NoiseGenerator, data: ImageDataModule, ckpt_path: Path | None) -> str:
    """Return a SHA-256 of all that the released images depend on."""
    digest = hashlib.sha256(json.dumps([module.settings(), data.describe(), data.chunk_size], sort_keys=True).encode())
    for file in (None if ckpt_path is None else file_sums(ckpt_path), data.source_file):
        if file is not None:
            digest.update(file.sha256.encode())
    return digest.hexdigest()
