"""Where a run keeps its files: ``<run>/{config.yaml, events, checkpoints/, protected/}``."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, the same on every rank (all ranks have to call it together)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return where checkpoints and noise snapshots go."""
    return run_folder(trainer) / "checkpoints"
