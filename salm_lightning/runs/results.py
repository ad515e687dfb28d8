"""What a victim was measured to be: its results and its predictions, as values and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.console import say
from salm_lightning.data import ImageDataModule
from salm_lightning.files import replacing
from salm_lightning.metrics import majority_baseline
from salm_lightning.modules import VictimModule

RESULTS = "results.json"
"""File name of a victim's results in its run folder."""
_PREDICTED = ("indices", "labels", "probabilities")


def victim_results(module: VictimModule, data: ImageDataModule) -> dict[str, Any]:
    """Return a tested victim's results as JSON values.

    Returns:
        ``test`` (after the last step, with recall per class and the confusion matrix), ``history`` (``last``, ``best_on_val``,
        ``peak``), the test split's ``majority`` line, and the victim's settings.
    """
    majority = majority_baseline(data.split("test").labels, data.task, data.num_classes)
    return {
        "data": data.describe(),
        "victim": module.settings(),
        "steps": int(module.history.get("last", {}).get("step", 0)),
        "majority": majority,
        "test": module.result,
        "history": module.history,
    }


def gather_predictions(batches: list[dict[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Return the predictions of all ranks in the order of the sample indices; all ranks have to call it together.

    Args:
        batches: What ``VictimModule.predict_step`` returned on this rank.

    Returns:
        ``indices`` int64 ``[N]``, ``labels`` and ``probabilities``, on every rank.
    """
    parts = [{name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in _PREDICTED}] if batches else []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, parts)
        parts = [part for of_rank in found for part in of_rank]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _PREDICTED}
    order = np.argsort(joined["indices"])
    return {name: array[order] for name, array in joined.items()}


def save_predictions(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """Write a victim's predictions on the clean test split as ``.npz`` with probabilities, labels and indices."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    say(f"Predictions on the test split: {path}")
