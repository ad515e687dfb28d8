"""A fit's settings beside its last values, in TensorBoard's HPARAMS tab."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

LEFT_TO_SWEEP = "SALM_SWEEP"
"""Environment variable of a sweep's fits: the sweep writes what tells them apart, and TensorBoard takes one table of a run."""


def show_settings(trainer: Trainer, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Write the settings of a fit into its TensorBoard log, if it has one.

    Args:
        trainer: The Trainer, at the beginning of the fit.
        settings: JSON values, which may be nested.
        metrics: Tags of scalars whose last values stand beside them.
    """
    from torch.utils.tensorboard.summary import hparams  # which Lightning's own method also uses, but logs zeros for the metrics

    if not trainer.is_global_zero or os.environ.get(LEFT_TO_SWEEP):
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment._get_file_writer()
            for summary in hparams(dict(_flat(settings)), dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield every value under its dotted name; TensorBoard knows numbers, truth values and text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
