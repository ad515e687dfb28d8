"""The folder of a run: of all that lies there only what a run makes is ever deleted."""

from __future__ import annotations

import re
from pathlib import Path

from salm_lightning.callbacks.saved import clear_checkpoints, remove_empty
from salm_lightning.files import LOCK, remove_leftovers
from salm_lightning.release.writer import remove_release
from salm_lightning.runs.victims import RESULTS

CONFIG, PREDICTIONS = "config.yaml", "predictions.npz"
"""File names of a run's settings, and of a victim's predictions."""
_FILES = re.compile("|".join([*map(re.escape, (CONFIG, PREDICTIONS, RESULTS, "hparams.yaml")), r"events\.out\.tfevents\..*"]))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's: it has its settings, or nothing else than what a run writes before them."""
    return (folder / CONFIG).is_file() or all(path.name == LOCK or _FILES.fullmatch(path.name) for path in folder.iterdir())


def clear_run(folder: Path) -> None:
    """Delete what a run leaves in its folder, file by file; whatever else lies there stays."""
    remove_leftovers(folder.glob("*"))
    for path in folder.iterdir() if folder.is_dir() else ():
        if _FILES.fullmatch(path.name):
            path.unlink()
    clear_checkpoints(folder / "checkpoints")
    remove_release(folder / "protected")
    remove_empty(folder)
