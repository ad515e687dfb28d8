"""What two victims prove, as a table and in words: one trained on the clean images, one on the protected ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from salm_lightning.console import metrics_table
from salm_lightning.data import ImageDataModule, Task
from salm_lightning.metrics.learned import KEPT_LIMIT, LEARNED, MEASURES, Scale, floors_of


def proof_table(results: Mapping[str, Mapping[str, Any]], images: ImageDataModule) -> Table:
    """Return a table of victims' results by what they were trained on, with the majority-class line."""
    rows = {f"{name} images": result["test"] for name, result in results.items()}
    blind = 0.5 if images.task is Task.MULTI_LABEL else 1 / images.num_classes
    rows["majority class (no model)"] = {"acc": results["clean"]["majority"], "auc": 0.5, "balanced_acc": blind, "kappa": 0.0}
    title = f"A model trained on it, measured on the clean test split of {images.info.name}"
    return metrics_table(title, "trained on", rows, digits=1)


def verdict(results: Mapping[str, Mapping[str, Any]], images: ImageDataModule) -> str:
    """Return in words whether the clean victim has learned anything, and how much of it the protected one keeps."""
    clean, protected = (results[name]["test"] for name in ("clean", "protected"))
    scale = Scale.of(floors_of(images.task, images.num_classes, results["clean"]["majority"]), clean)
    share = scale.kept(protected)
    if share is None:
        reached = " and ".join(f"{MEASURES[name]} {clean[name]:.1%} ({floor:.1%})" for name, floor in scale.floors.items())
        return (
            f"Nothing is shown: the model trained on the clean images learned next to nothing. It reaches {reached}; in brackets what "
            f"knowing nothing does, and {100 * LEARNED:.0f} points above it would count. Train the victims longer: more victim_steps, a "
            "larger width or effort."
        )
    kept = f"the model trained on the protected images keeps {max(0.0, share):.0%} of what the one trained on the clean images learned"
    limit = f"more than {KEPT_LIMIT:.0%} counts as learned"
    if share > KEPT_LIMIT:
        return f"Not protected: {kept}; {limit}. Train the noise longer: more steps, a larger width or effort."
    return f"Protected, as far as one model trained without any countermeasure shows: {kept}; {limit}. An audit tries more."
