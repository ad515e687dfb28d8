"""From finished victims to what an audit found: attempts over the seeds, learning curves, confusion matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from salm_lightning.audit.results import (
    EARLY_STOPPING,
    NONE,
    Attempt,
    Confusion,
    Figures,
    Matrix,
    TrainedOn,
    VictimCurve,
    mean,
)
from salm_lightning.audit.trials import Trial
from salm_lightning.audit.verdict import kept, scale_of, worst_of
from salm_lightning.data import Task
from salm_lightning.runs.record import Run

_SCALARS = ("acc", "auc", "balanced_acc")
_Victims = Mapping[tuple[TrainedOn, int], Run]


def attempts_of(records: Sequence[Run], floors: Mapping[str, float]) -> list[Attempt]:
    """Return a row for each countermeasure and architecture, in the order of their first protected victims.

    After the victims without countermeasure follow the same ones under early stopping. What a seed lacks is None.

    Args:
        records: Finished victims, protected ones and clean twins.
        floors: Measures that are judged; they settle which row is the worst.
    """
    groups: dict[str, dict[tuple[TrainedOn, int], Run]] = {}
    for record in sorted(records, key=lambda record: record.identity["trained_on"] == "clean"):
        identity = record.identity
        kind = json.dumps([identity["countermeasure"], identity["network"]], sort_keys=True)
        groups.setdefault(kind, {})[identity["trained_on"], identity["seed"]] = record
    rows: list[Attempt] = []
    for victims in groups.values():
        seeds = sorted(seed for trained_on, seed in victims if trained_on == "protected")
        if seeds:
            rows.append(_attempt(victims, seeds))
            if rows[-1].countermeasure == NONE:
                rows.append(_attempt(victims, seeds, stopped=True))
    scale = scale_of(rows, floors)
    worst = worst_of(scale, rows)
    return [replace(row, kept=kept(scale, row.protected), worst=number == worst) for number, row in enumerate(rows)]


def _attempt(victims: _Victims, seeds: Sequence[int], stopped: bool = False) -> Attempt:
    first = victims["protected", seeds[0]]
    protected = _figures([victims["protected", seed] for seed in seeds], stopped)
    twins = [victims.get(("clean", seed)) for seed in seeds]
    clean = _figures(twins, stopped) if any(twins) else None
    pairs = zip(clean.acc, protected.acc, strict=True) if clean else ()
    settings = {"name": EARLY_STOPPING} if stopped else first.identity["countermeasure"]
    return Attempt(
        countermeasure=settings["name"],
        title=EARLY_STOPPING if stopped else first.results["title"],
        settings=settings,
        arch=first.identity["arch"],
        seeds=tuple(seeds),
        protected=protected,
        clean=clean,
        drop=mean([before - after for before, after in pairs if before is not None and after is not None]),
    )


def _figures(records: Sequence[Run | None], stopped: bool) -> Figures:
    values = [{} if record is None else scalars_of(record, stopped) for record in records]
    names = (*_SCALARS, "peak_acc", "best_on_val_acc")
    return Figures(**{name: tuple(value.get(name) for value in values) for name in names})


def scalars_of(record: Run, stopped: bool = False) -> dict[str, float | None]:
    """Return a victim's single numbers on the clean test split, after the last step or at the best validation."""
    history = record.results["history"]
    values = history["best_on_val"] if stopped else record.results["test"]
    best = history["best_on_val"]["acc"]
    return {
        **{name: values[name] for name in (*_SCALARS, "kappa") if name in values},
        "peak_acc": best if stopped else history["peak"]["acc"],
        "best_on_val_acc": best,
    }


def curve_of(record: Run) -> VictimCurve:
    """Return a victim's learning curve."""
    curve = {name: tuple(values) for name, values in record.results["curve"].items()}
    identity = {name: record.identity[name] for name in ("trained_on", "arch", "seed")}
    return VictimCurve(**identity, **curve, countermeasure=record.results["title"])  # type: ignore[arg-type]


def confusion_of(records: Sequence[Run], first: Trial) -> Confusion | None:
    """Return the confusion matrices of the victims without countermeasure, of the architecture and seed of the first one.

    None without one, or for several labels per image.
    """
    wanted = (NONE, first.kind[0], first.victim.seed)
    chosen = {
        record.identity["trained_on"]: record.results
        for record in records
        if (record.identity["countermeasure"]["name"], record.identity["arch"], record.identity["seed"]) == wanted
    }
    if "protected" not in chosen or chosen["protected"]["data"]["task"] == Task.MULTI_LABEL:
        return None
    matrices: dict[str, Matrix] = {name: tuple(map(tuple, results["test"]["confusion"])) for name, results in chosen.items()}
    return Confusion(matrices["protected"], matrices.get("clean"), tuple(chosen["protected"]["data"]["class_names"]))
