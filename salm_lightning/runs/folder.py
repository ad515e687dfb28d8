"""The folder of a run: all that it keeps is there, whatever its loggers are, and of what lies there only that is ever deleted."""

from __future__ import annotations

import re
from pathlib import Path

from lightning.pytorch import Trainer

from salm_lightning.callbacks.saved import clear_checkpoints, remove_empty
from salm_lightning.release.writer import remove_release
from salm_lightning.runs.victims import RESULTS

CONFIG, PREDICTIONS = "config.yaml", "predictions.npz"
"""File names of a run's settings, and of a victim's predictions."""
_FILES = re.compile("|".join([*map(re.escape, (CONFIG, PREDICTIONS, RESULTS, "hparams.yaml")), r"events\.out\.tfevents\..*"]))


class RunTrainer(Trainer):
    """Lightning's Trainer, whose files go into the run's folder.

    That is its ``default_root_dir``.
    """

    @property
    def log_dir(self) -> str:
        """The run's folder, the same on every rank; Lightning's is that of the first logger, which runs may share."""
        folder: str = self.strategy.broadcast(self.default_root_dir)
        return folder


def clear_run(folder: Path) -> None:
    """Delete what a run leaves in its folder, file by file; whatever else lies there stays."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _FILES.fullmatch(path.name):
            path.unlink()
    saved = folder / "checkpoints"
    clear_checkpoints(saved)
    for emptied in (saved / "noise", saved):
        remove_empty(emptied)
    remove_release(folder / "protected")
    remove_empty(folder)
