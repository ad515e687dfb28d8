"""What an audit comes to, in words, by stated thresholds; what the figures do not show is said beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from salm_lightning.audit.results import (
    CARELESS,
    EARLY_STOPPING,
    FAILS,
    NONE,
    NOT_JUDGED,
    PROTECTS,
    UNTRIED,
    Attempt,
    Figures,
    Verdict,
    Word,
    mean,
)
from salm_lightning.audit.trials import Length
from salm_lightning.data import Task

KEPT_LIMIT = 0.5
"""Share that a victim may keep of what a clean one learns, and still count as kept from learning.

0 is knowing nothing, 1 an ordinary victim on the originals. Half is where a model becomes more of a tool than of a guess: of 95 % on eight
balanced classes a victim must not get beyond 54 %."""
LEARNED = 0.1
"""How far above knowing nothing the clean twin has to be for a measure to be judged; below, chance decides what is kept."""

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


@dataclass(frozen=True)
class Scale:
    """From knowing nothing to what the best ordinary victim on the originals knows.

    Attributes:
        floors: Measures that are judged, and what knowing nothing brings; see :func:`floors_of`.
        reached: What the best clean victim without countermeasure reaches, for each measure in which it has learned something.
    """

    floors: Mapping[str, float]
    reached: Mapping[str, float]

    @classmethod
    def of(cls, rows: Sequence[Attempt], floors: Mapping[str, float]) -> Scale:
        """Return the scale that some attempts are measured by."""
        clean = [row.clean for row in rows if row.countermeasure == NONE and row.clean is not None]
        reached = {name: max((mean(getattr(figures, name)) or 0.0 for figures in clean), default=0.0) for name in floors}
        return cls(floors, {name: value for name, value in reached.items() if value - floors[name] >= LEARNED})

    def kept(self, figures: Figures | None) -> float | None:
        """Return the share of the way from knowing nothing to the clean reference: of the measures the largest; None without any."""
        means = {name: mean(getattr(figures, name)) for name in self.reached} if figures else {}
        shares = [
            (value - self.floors[name]) / (self.reached[name] - self.floors[name])
            for name, value in means.items()
            if value is not None
        ]
        return max(shares, default=None)

    def worst(self, rows: Sequence[Attempt]) -> int | None:
        """Return the number of the row that is worst for the data's owner: most is kept or, without a clean twin, most is right."""
        first = next(iter(self.floors))
        scores = [self.kept(row.protected) if self.reached else mean(getattr(row.protected, first)) for row in rows]
        known = {number: score for number, score in enumerate(scores) if score is not None}
        return max(known, key=lambda number: known[number]) if known else None


def judge(rows: Sequence[Attempt], floors: Mapping[str, float], not_covered: Sequence[str]) -> Verdict:
    """Return the verdict on a battery.

    - *does not protect*: an ordinary victim, without any countermeasure, keeps more than :data:`KEPT_LIMIT` in one of the architectures.
    - *protects only against careless training*: none does, but some countermeasure lets a victim keep more than that.
    - *protects*: nothing that was tried does, and something was tried that leaves a clean twin more than that.
    - *holds against careless training, more was not tried*: nothing does, but no such countermeasure has finished.
    - *not judged*: no ordinary victim has finished, or there is no clean twin that has learned something.

    Args:
        rows: What was tried; seeds are averaged.
        floors: See :func:`floors_of`.
        not_covered: What the battery leaves open.
    """
    scale = Scale.of(rows, floors)
    twins = [(row, share) for row in rows if (share := scale.kept(row.clean)) is not None]
    shares = [(row, share) for row in rows if (share := scale.kept(row.protected)) is not None]
    shares.sort(key=lambda pair: pair[1], reverse=True)
    broken = [_named(row) for row, share in shares if share > KEPT_LIMIT]
    blunt = [_named(row) for row, share in twins if share <= KEPT_LIMIT]
    if blunt:
        tell = "Countermeasures that left too little of the originals, too, to tell anything at this length"
        not_covered = [f"{tell}: {', '.join(blunt)}.", *not_covered]
    telling = any(share > KEPT_LIMIT for row, share in twins if row.countermeasure not in (NONE, EARLY_STOPPING))
    word, text = _sentence(shares, scale, telling) or (NOT_JUDGED, _why_not(rows, floors))
    return Verdict(word, text, tuple(broken), tuple(not_covered), {"kept_limit": KEPT_LIMIT, "clean_margin": LEARNED})


def _sentence(shares: Sequence[tuple[Attempt, float]], scale: Scale, telling: bool) -> tuple[Word, str] | None:
    """Return the verdict in a word and in a sentence; None where there is nothing to judge by.

    Args:
        shares: What attempts keep, the largest share first.
        scale: What they are measured by.
        telling: Whether a countermeasure has been tried that could have broken the protection, as its clean twin shows.
    """
    row, share = next((pair for pair in shares if pair[0].countermeasure == NONE), (None, 0.0))
    if row is None:
        return None
    ordinary = f"Trained without any countermeasure, {_figures(row, scale)} and keeps {_percent(share)} of what there is to learn"
    limit = f"more than {KEPT_LIMIT:.0%} counts as learned"
    strongest, most = shares[0]
    if share > KEPT_LIMIT:
        return FAILS, f"{ordinary}; {limit}."
    if most > KEPT_LIMIT:
        named = "; ".join(f"{_named(row)} keeps {_percent(share)}" for row, share in shares if share > KEPT_LIMIT)
        return CARELESS, f"{ordinary}, but someone who knows of the noise gets around it ({limit}): {named}."
    if not telling:
        return UNTRIED, f"{ordinary}; {limit}. No countermeasure that could have got around the noise has finished."
    return PROTECTS, f"{ordinary}. Of all that was tried, most is kept by {_named(strongest)}: {_percent(most)}; {limit}."


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
    return [
        *found,
        f"Every victim had {length.steps} steps at width {length.width:g}; longer training and wider networks may learn more.",
        "Countermeasures were tried one at a time; someone may combine them, or think of others.",
        "Whoever has other images of the same kind can train on those.",
    ]


def _named(row: Attempt) -> str:
    return f"{row.title} ({row.arch})"


def _percent(share: float) -> str:
    return f"{max(0.0, share):.0%}"


def _figures(row: Attempt, scale: Scale) -> str:
    parts = [
        f"{_MEASURES[name]} {mean(getattr(row.protected, name)) or 0.0:.1%} "
        f"(the best of those on the originals {clean:.1%}, knowing nothing {scale.floors[name]:.1%})"
        for name, clean in scale.reached.items()
    ]
    return f"{row.arch} reaches {' and '.join(parts)}"


def _why_not(rows: Sequence[Attempt], floors: Mapping[str, float]) -> str:
    plain = [row for row in rows if row.countermeasure == NONE]
    if not plain:
        return "No victim without countermeasure has finished; run the audit again."
    if all(row.clean is None for row in plain):
        return "No model trained on the originals has finished to compare with: run the audit again, with --source if it did not name them."
    names = " and ".join(_MEASURES[name] for name in floors)
    return (
        f"The models trained on the originals are less than {100 * LEARNED:.0f} points above knowing nothing in {names}: at these settings "
        "there is nothing to protect. Train longer (--victim_steps) or wider (--width)."
    )
