"""From a trained noise generator to a protected dataset on disk: which checkpoint the last pass takes, and where its release goes."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from salm_lightning.callbacks.checkpoint import run_folder, save_run
from salm_lightning.data import ImageDataModule
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.release.last_pass import is_published, last_pass
from salm_lightning.release.manifest import Publish
from salm_lightning.release.writer import check_destination


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

    Finished chunks are kept next to the release until it stands: a call that was interrupted goes on where it stopped, also if only
    they are left to be removed.

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
        OutputExistsError: Another release stands there, and ``overwrite`` is false.
    """
    # All ranks have to be there before anything is written, which a late one would take for another run's. The Trainer starts them when
    # it trains; a method without a source model has not trained.
    start, launcher = trainer.strategy.setup_environment, trainer.strategy.launcher
    if launcher is None:
        start()
    else:
        launcher.launch(start, trainer=trainer)
    folder = folder or run_folder(trainer) / "protected"
    if ckpt_path is None or not is_published(module, data, folder, ckpt_path):
        check_destination(folder, overwrite)
    if ckpt_path is None and module.method.trains_source_on is not None:
        ckpt_path = save_run(trainer)
    last_pass(trainer, module, data, folder, ckpt_path, overwrite, publish)
    return folder
