"""The last pass and the release: from a trained noise generator to a protected dataset on disk."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from salm_lightning.callbacks.checkpoint import save_run
from salm_lightning.callbacks.progress import tracked
from salm_lightning.callbacks.protected_writer import ProtectedWriter
from salm_lightning.data.arrays import file_sha256
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.errors import SalmError
from salm_lightning.modules.noise_generator import NoiseGeneratorModule
from salm_lightning.modules.run_folder import run_folder
from salm_lightning.release.manifest import MANIFEST
from salm_lightning.release.parts import Parts, is_announced
from salm_lightning.release.writer import check_destination, recover, write_release


def generate(
    trainer: Trainer,
    module: NoiseGeneratorModule,
    data: ImageDataModule,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Run the last pass over every training image and write the protected dataset; all ranks call it together.

    Finished chunks are kept next to the release until it stands: a call that was interrupted goes on where it stopped, also if only
    they are left to be removed.

    Args:
        trainer: Any Trainer; its devices share the chunks.
        module: The noise generator.
        data: The images to protect.
        folder: Where the release goes; ``None`` is ``<run>/protected``.
        ckpt_path: Checkpoint to load; ``None`` saves the module as it is and loads that, except for a method without a source
            model.
        overwrite: Replace a release that stands there.

    Returns:
        The folder of the release.

    Raises:
        OutputExistsError: Another release stands there, and ``overwrite`` is false.
    """
    _gather_ranks(trainer)
    folder = folder or run_folder(trainer) / "protected"
    published = ckpt_path is not None and is_published(module, data, folder, ckpt_path)
    if not published:
        check_destination(folder, overwrite)
    if ckpt_path is None and module.method.trains_source_on is not None:
        ckpt_path = save_run(trainer)
    data.prepare_data()
    data.setup("predict")
    images = data.split("train").images
    parts = Parts(
        _parts_folder(folder),
        _fingerprint(module, data, ckpt_path),
        len(images),
        data.chunk_size,
        images.shape[1:],
    )
    data.pending_chunks = [] if published else parts.pending()
    writer = ProtectedWriter(parts)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    try:
        if data.pending_chunks:
            trainer.predict(module, datamodule=data, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)
    finally:
        trainer.callbacks.remove(writer)  # type: ignore[attr-defined]
        data.pending_chunks = None
    trainer.strategy.barrier("last pass")
    error: SalmError | None = None
    if trainer.is_global_zero:
        try:
            _publish(trainer, module, data, folder, parts, published, overwrite)
        except SalmError as failure:
            error = failure
    # Asked of rank 0, which would otherwise leave the others waiting for it.
    error = trainer.strategy.broadcast(error)
    if error is not None:
        raise error
    return folder


def _gather_ranks(trainer: Trainer) -> None:
    """Start all ranks and wait for them before anything is written, which a late one would take for another run's.

    The Trainer does so when it trains; a method without a source model has not trained.
    """
    start = trainer.strategy.setup_environment
    launcher = trainer.strategy.launcher
    if launcher is None:
        start()
    else:
        launcher.launch(start, trainer=trainer)


def _publish(
    trainer: Trainer,
    module: NoiseGeneratorModule,
    data: ImageDataModule,
    folder: Path,
    parts: Parts,
    published: bool,
    overwrite: bool,
) -> None:
    if published:
        recover(folder)
    else:
        selected = module.selected_samples(data)
        blocks = tracked(parts, parts.num_chunks, "Measuring and writing", trainer)
        settings = module.settings() | ({"training": module.trained} if module.trained else {})
        write_release(folder, data, blocks, settings, _bound(module), overwrite, selected, parts.announce)
    parts.remove()


def is_published(module: NoiseGeneratorModule, data: ImageDataModule, folder: Path, ckpt_path: Path) -> bool:
    """Return whether a release stands that :func:`generate` made of this checkpoint and was killed before it could clean up.

    It only looks, so all ranks may call it.

    Args:
        module: The noise generator.
        data: The images to protect.
        folder: Where the release goes.
        ckpt_path: Checkpoint that the last pass loads.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    text = manifest.read_text(encoding="utf-8", errors="replace")
    return is_announced(_parts_folder(folder), _fingerprint(module, data, ckpt_path), text)


def _parts_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.parts")


def _bound(module: NoiseGeneratorModule) -> dict[str, Any]:
    """Return what the method promises about every stored image."""
    bound: dict[str, Any] = {"norm": module.method.norm, "radius": module.method.radius}
    pixels = module.method.max_changed_pixels(math.prod(module.image_shape[1:]), module.last_pass_steps)
    if pixels is not None:
        bound["max_changed_pixels"] = pixels
    return bound


def _fingerprint(module: NoiseGeneratorModule, data: ImageDataModule, ckpt_path: Path | None) -> str:
    """Return a SHA-256 of all that the released images depend on."""
    digest = hashlib.sha256(json.dumps([module.settings(), data.describe(), data.chunk_size], sort_keys=True).encode())
    for path in (ckpt_path, data.source_path):
        if path is not None:
            digest.update(file_sha256(path).encode())
    return digest.hexdigest()
