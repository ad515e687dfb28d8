"""What an audit comes to, in words, by stated thresholds; what the figures do not show is said beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from salm_lightning.audit.trials import NONE, Length, TrainedOn
from salm_lightning.data import Task

KEPT_LIMIT = 0.5
"""Share that a victim may keep of what a clean one learns, and still count as kept from learning.

0 is knowing nothing, 1 an ordinary victim on the originals. Half is where a model becomes more of a tool than of a guess: of 95 % on eight
balanced classes a victim must not get beyond 54 %."""
LEARNED = 0.1
"""How far above knowing nothing the clean twin has to be for a measure to be judged; below, chance decides what is kept."""

PROTECTS = "protects"
UNTRIED = "holds against careless training, more was not tried"
CARELESS = "protects only against careless training"
FAILS = "does not protect"
NOT_JUDGED = "not judged"

EARLY_STOPPING = "early stopping"
"""Row of the victims without countermeasure as they were at their best on the clean validation split."""
_MEASURES = {"acc": "accuracy", "balanced_acc": "balanced accuracy", "auc": "AUC"}
_FEW_IMAGES = 2500
"""Test images below which the accuracy's 95 % interval is wider than two points to each side."""


def floors_of(task: Task, num_classes: int, majority: float) -> dict[str, float]:
    """Return the measures that are judged and what knowing nothing brings.

    Accuracy alone would let imbalanced data pass: a model can stay below the most common class's share and yet tell classes apart,
    so balanced accuracy counts too, and the larger share of the two is what a victim keeps. Of several labels per image both say
    next to nothing, as most labels are absent; the AUC stands for them.

    Args:
        task: What is predicted.
        num_classes: Number of classes or labels.
        majority: Accuracy of always giving the most common answer.
    """
    if task is Task.MULTI_LABEL:
        return {"auc": 0.5}
    return {"acc": majority, "balanced_acc": 1 / num_classes}


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known, or None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def reference_of(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float]) -> dict[str, float]:
    """Return what the best ordinary victim on the originals reaches, for each measure in which it has learned something."""
    clean = [row["clean"] for row in rows if row["countermeasure"] == NONE and row["clean"] is not None]
    reached = {name: max((mean(values[name]) or 0.0 for values in clean), default=0.0) for name in floors}
    return {name: value for name, value in reached.items() if value - floors[name] >= LEARNED}


def kept(
    row: Mapping[str, Any], floors: Mapping[str, float], reference: Mapping[str, float], trained_on: TrainedOn = "protected"
) -> float | None:
    """Return the share of the way from knowing nothing to the clean reference: of the measures the largest; None without any."""
    means = {name: mean(row[trained_on][name]) for name in reference}
    shares = [(value - floors[name]) / (reference[name] - floors[name]) for name, value in means.items() if value is not None]
    return max(shares, default=None)


def worst_of(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float]) -> int | None:
    """Return the number of the row that is worst for the data's owner: most is kept or, without a clean twin, most is right."""
    reference = reference_of(rows, floors)
    first = next(iter(floors))
    scores = [kept(row, floors, reference) if reference else mean(row["protected"][first]) for row in rows]
    known = {number: score for number, score in enumerate(scores) if score is not None}
    return max(known, key=lambda number: known[number]) if known else None


def judge(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float], not_covered: Sequence[str]) -> dict[str, Any]:
    """Return the verdict on a battery.

    - *does not protect*: an ordinary victim, without any countermeasure, keeps more than :data:`KEPT_LIMIT` in one of the architectures.
    - *protects only against careless training*: none does, but some countermeasure lets a victim keep more than that.
    - *protects*: nothing that was tried does, and something was tried that leaves a clean twin more than that.
    - *holds against careless training, more was not tried*: nothing does, but no such countermeasure has finished.
    - *not judged*: no ordinary victim has finished, or there is no clean twin that has learned something.

    Args:
        rows: Rows of ``audit.json``; seeds are averaged.
        floors: See :func:`floors_of`.
        not_covered: What the battery leaves open.

    Returns:
        ``word``, ``text``, ``broken_by`` (titles with architectures), ``not_covered`` and ``thresholds``.
    """
    reference = reference_of(rows, floors)
    shares = [(row, share) for row in rows if (share := kept(row, floors, reference)) is not None]
    plain = [pair for pair in shares if pair[0]["countermeasure"] == NONE]
    broken = [pair for pair in _strongest_first(shares) if pair[1] > KEPT_LIMIT]
    if not plain:
        word, text = NOT_JUDGED, _why_not(rows, floors)
    else:
        row, share = _strongest_first(plain)[0]
        figures = _figures(row, floors, reference)
        ordinary = f"Trained without any countermeasure, {figures} and keeps {_percent(share)} of what there is to learn"
        limit = f"more than {KEPT_LIMIT:.0%} counts as learned"
        if share > KEPT_LIMIT:
            word, text = FAILS, f"{ordinary}; {limit}."
        elif broken:
            named = "; ".join(f"{_named(row)} keeps {_percent(share)}" for row, share in broken)
            word, text = CARELESS, f"{ordinary}, but someone who knows of the noise gets around it ({limit}): {named}."
        elif not _telling(rows, floors, reference):
            word = UNTRIED
            text = f"{ordinary}; {limit}. No countermeasure that could have got around the noise has finished."
        else:
            strongest, most = _strongest_first(shares)[0]
            word = PROTECTS
            text = f"{ordinary}. Of all that was tried, most is kept by {_named(strongest)}: {_percent(most)}; {limit}."
    return {
        "word": word,
        "text": text,
        "broken_by": [_named(row) for row, _ in broken],
        "not_covered": [*_blunt(rows, floors, reference), *not_covered],
        "thresholds": {"kept_limit": KEPT_LIMIT, "clean_margin": LEARNED},
    }


def limits(untried: Sequence[str], archs: Sequence[str], seeds: int, length: Length, skipped: int, test_images: int) -> list[str]:
    """Return what a battery does not show, in plain words.

    Args:
        untried: Names of the countermeasures that were not tried.
        archs: Architectures that were not tried.
        seeds: Seeds per victim.
        length: How long and wide the victims are.
        skipped: Victims that were planned and did not finish.
        test_images: Images of the clean test split.
    """
    found = []
    if untried:
        found.append(f"Countermeasures that were not tried: {', '.join(untried)}.")
    if archs:
        found.append(f"Architectures that were not tried: {', '.join(archs)}.")
    if skipped:
        found.append(f"{skipped} planned victims have not finished; they are listed with the commands that train them.")
    if seeds == 1:
        found.append("One seed: how much chance changes is not known.")
    if test_images < _FEW_IMAGES:
        found.append(
            f"The test split has {test_images} images: an accuracy is only known to about ±{100 / test_images**0.5:.0f} points."
        )
    found.append(
        f"Every victim had {length.steps} steps at width {length.width:g}; longer training and wider networks may learn more."
    )
    found.append("Countermeasures were tried one at a time; someone may combine them, or think of others.")
    found.append("Whoever has other images of the same kind can train on those.")
    return found


def _blunt(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float], reference: Mapping[str, float]) -> list[str]:
    """Say which countermeasures could not have broken the protection, because at this length they leave a clean twin too little as well."""
    named = [_named(row) for row, share in _of_twins(rows, floors, reference) if share <= KEPT_LIMIT]
    return (
        [f"Countermeasures that left too little of the originals, too, to tell anything at this length: {', '.join(named)}."]
        if named
        else []
    )


def _telling(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float], reference: Mapping[str, float]) -> bool:
    """Say whether a countermeasure has been tried that could have broken the protection, as its clean twin shows."""
    twins = _of_twins(rows, floors, reference)
    return any(share > KEPT_LIMIT for row, share in twins if row["countermeasure"] not in (NONE, EARLY_STOPPING))


def _of_twins(
    rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float], reference: Mapping[str, float]
) -> list[tuple[Mapping[str, Any], float]]:
    """Return what the clean twins of rows keep, where that is known."""
    shares = [(row, kept(row, floors, reference, "clean")) for row in rows if row["clean"] is not None]
    return [(row, share) for row, share in shares if share is not None]


def _strongest_first(shares: Sequence[tuple[Mapping[str, Any], float]]) -> list[tuple[Mapping[str, Any], float]]:
    return sorted(shares, key=lambda pair: pair[1], reverse=True)


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['title']} ({row['arch']})"


def _percent(share: float) -> str:
    return f"{max(0.0, share):.0%}"


def _figures(row: Mapping[str, Any], floors: Mapping[str, float], reference: Mapping[str, float]) -> str:
    parts = [
        f"{_MEASURES[name]} {mean(row['protected'][name]) or 0.0:.1%} "
        f"(the best of those on the originals {clean:.1%}, knowing nothing {floors[name]:.1%})"
        for name, clean in reference.items()
    ]
    return f"{row['arch']} reaches {' and '.join(parts)}"


def _why_not(rows: Sequence[Mapping[str, Any]], floors: Mapping[str, float]) -> str:
    plain = [row for row in rows if row["countermeasure"] == NONE]
    if not plain:
        return "No victim without countermeasure has finished; run the audit again."
    if all(row["clean"] is None for row in plain):
        return "No model trained on the originals has finished to compare with: run the audit again, with --source if it did not name them."
    names = " and ".join(_MEASURES[name] for name in floors)
    return (
        f"The models trained on the originals are less than {100 * LEARNED:.0f} points above knowing nothing in {names}: at these settings "
        "there is nothing to protect. Train longer (--steps) or wider (--width)."
    )
