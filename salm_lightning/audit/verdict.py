"""What an audit comes to, in words, by stated thresholds; what the figures do not show is said beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from salm_lightning.metrics.learned import KEPT_LIMIT, LEARNED, MEASURES, Scale
from salm_lightning.runs.victims import VictimSettings

_FEW_IMAGES = 2500
"""Test images below which the accuracy's 95 % interval is wider than two points to each side."""


def scale_of(rows: Sequence[Attempt], floors: Mapping[str, float]) -> Scale:
    """Return the scale that attempts are measured by: up to the best victim without countermeasure on the originals."""
    clean = [row.clean for row in rows if row.countermeasure == NONE and row.clean is not None]
    return Scale.of(
        floors, {name: max((mean(getattr(figures, name)) or 0.0 for figures in clean), default=0.0) for name in floors}
    )


def kept(scale: Scale, figures: Figures | None) -> float | None:
    """Return the share of what there is to learn that victims have, seeds averaged."""
    return scale.kept({name: mean(getattr(figures, name)) for name in scale.reached}) if figures else None


def worst_of(scale: Scale, rows: Sequence[Attempt]) -> int | None:
    """Return the number of the row that is worst for the data's owner: most is kept or, without a clean twin, most is right."""
    first = next(iter(scale.floors))
    scores = [kept(scale, row.protected) if scale.reached else mean(getattr(row.protected, first)) for row in rows]
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
    scale = scale_of(rows, floors)
    twins = [(row, share) for row in rows if (share := kept(scale, row.clean)) is not None]
    shares = [(row, share) for row in rows if (share := kept(scale, row.protected)) is not None]
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
    figures = [
        f"{MEASURES[name]} {mean(getattr(row.protected, name)) or 0.0:.1%} "
        f"(the best of those on the originals {clean:.1%}, knowing nothing {scale.floors[name]:.1%})"
        for name, clean in scale.reached.items()
    ]
    ordinary = (
        f"Trained without any countermeasure, {row.arch} reaches {' and '.join(figures)} and keeps {_percent(share)} of what there is "
        "to learn"
    )
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


def limits(
    untried: Sequence[str], archs: Sequence[str], seeds: int, victim: VictimSettings, skipped: int, test_images: int
) -> list[str]:
    """Return what a battery does not show, in plain words.

    Args:
        untried: Names of the countermeasures that were not tried.
        archs: Architectures that were not tried.
        seeds: Seeds per victim.
        victim: How long and wide the victims are.
        skipped: Number of victims that were planned and did not finish.
        test_images: Number of images in the clean test split.
    """
    told = {
        f"Countermeasures that were not tried: {', '.join(untried)}.": untried,
        f"Architectures that were not tried: {', '.join(archs)}.": archs,
        f"{skipped} planned victims have not finished; they are listed with the commands that train them.": skipped,
        "One seed: how much chance changes is not known.": seeds == 1,
        f"The test split has {test_images} images: an accuracy is only known to about ±{100 / test_images**0.5:.0f} points.": (
            test_images < _FEW_IMAGES
        ),
        f"Every victim had {victim.steps} steps at width {victim.width:g}; longer training and wider networks may learn more.": True,
        "Countermeasures were tried one at a time; someone may combine them, or think of others.": True,
        "Whoever has other images of the same kind can train on those.": True,
    }
    return [text for text, applies in told.items() if applies]


def _named(row: Attempt) -> str:
    return f"{row.title} ({row.arch})"


def _percent(share: float) -> str:
    return f"{max(0.0, share):.0%}"


def _why_not(rows: Sequence[Attempt], floors: Mapping[str, float]) -> str:
    plain = [row for row in rows if row.countermeasure == NONE]
    if not plain:
        return "No victim without countermeasure has finished; run the audit again."
    if all(row.clean is None for row in plain):
        return "No model trained on the originals has finished to compare with: run the audit again, with --source if it did not name them."
    names = " and ".join(MEASURES[name] for name in floors)
    return (
        f"The models trained on the originals are less than {100 * LEARNED:.0f} points above knowing nothing in {names}: at these settings "
        "there is nothing to protect. Train longer (--victim_steps) or wider (--width)."
    )
