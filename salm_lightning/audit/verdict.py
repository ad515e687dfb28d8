"""From finished victims to what an audit found: attempts over the seeds, learning curves, and a verdict by stated thresholds."""

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
    Verdict,
    VictimCurve,
    Word,
    mean,
    viewed,
)
from salm_lightning.audit.trials import Trial, view_of
from salm_lightning.data import Task
from salm_lightning.metrics.learned import KEPT_LIMIT, LEARNED, MEASURES, Scale
from salm_lightning.runs.record import Run

_SCALARS = ("acc", "auc", "balanced_acc")
_Victims = Mapping[tuple[TrainedOn, int], Run]


def attempts_of(records: Sequence[Run], floors: Mapping[str, float]) -> list[Attempt]:
    """Return a row for each countermeasure and architecture, in the order of their first protected victims.

    After the victims without countermeasure follow the same ones under early stopping. What a seed lacks is None. By the measures that
    are judged, the row is the worst for the data's owner in which most is kept or, without a clean twin, most is right.
    """
    groups: dict[str, dict[tuple[TrainedOn, int], Run]] = {}
    for record in sorted(records, key=lambda record: record.identity["trained_on"] == "clean"):
        identity = record.identity
        kind = json.dumps([identity["countermeasure"], identity["network"], view_of(identity)], sort_keys=True)
        groups.setdefault(kind, {})[identity["trained_on"], identity["seed"]] = record
    rows: list[Attempt] = []
    for victims in groups.values():
        seeds = sorted(seed for trained_on, seed in victims if trained_on == "protected")
        if seeds:
            rows.append(_attempt(victims, seeds))
            if rows[-1].countermeasure == NONE:
                rows.append(_attempt(victims, seeds, stopped=True))
    scale = _scale_of(rows, floors)
    shares = [_kept(scale, row.protected) for row in rows]
    scores = shares if scale.reached else [row.protected.means()[next(iter(floors))] for row in rows]
    highest = max((score for score in scores if score is not None), default=None)
    worst = None if highest is None else scores.index(highest)
    return [replace(row, kept=share, worst=number == worst) for number, (row, share) in enumerate(zip(rows, shares, strict=True))]


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
        view=view_of(first.identity),
        drop=mean([before - after for before, after in pairs if before is not None and after is not None]),
    )


def _figures(records: Sequence[Run | None], stopped: bool) -> Figures:
    values = [{} if record is None else scalars_of(record, stopped) for record in records]
    return Figures(**{name: tuple(value.get(name) for value in values) for name in (*_SCALARS, "peak_acc", "best_on_val_acc")})


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
    return VictimCurve(**identity, **curve, countermeasure=viewed(record.results["title"], view_of(record.identity)))  # type: ignore[arg-type]


def confusion_of(records: Sequence[Run], first: Trial) -> Confusion | None:
    """Return the confusion matrices of the victims without countermeasure, of the architecture and seed of the first one.

    None without one, or for several labels per image.
    """
    names = ("arch", "seed", "countermeasure")
    wanted = {**{name: first.identity[name] for name in names}, "countermeasure": {"name": NONE}}
    chosen = {
        record.identity["trained_on"]: record.results
        for record in records
        if wanted.items() <= record.identity.items() and view_of(record.identity) == first.view
    }
    if "protected" not in chosen or chosen["protected"]["data"]["task"] == Task.MULTI_LABEL:
        return None
    matrices: dict[str, Matrix] = {name: tuple(map(tuple, results["test"]["confusion"])) for name, results in chosen.items()}
    return Confusion(matrices["protected"], matrices.get("clean"), tuple(chosen["protected"]["data"]["class_names"]))


def judge(rows: Sequence[Attempt], floors: Mapping[str, float], not_covered: Sequence[str]) -> Verdict:
    """Return the verdict on a battery.

    - *does not protect*: an ordinary victim, without any countermeasure or by a common recipe, keeps more than :data:`KEPT_LIMIT` in one
      of the architectures.
    - *protects only against careless training*: none does, but some countermeasure lets a victim keep more than that, or a model that is
      no network does.
    - *protects*: nothing that was tried does, and something was tried that leaves a clean twin more than that.
    - *holds against careless training, more was not tried*: nothing does, but no such countermeasure has finished.
    - *not judged*: no ordinary victim has finished, or there is no clean twin that has learned something.

    Seeds are averaged; ``floors`` are those of :func:`floors_of`, ``not_covered`` is what the battery leaves open.
    """
    scale = _scale_of(rows, floors)
    twins = [(row, share) for row in rows if (share := _kept(scale, row.clean)) is not None]
    shares = [(row, share) for row in rows if (share := _kept(scale, row.protected)) is not None]
    shares.sort(key=lambda pair: pair[1], reverse=True)
    broken = [_named(row) for row, share in shares if share > KEPT_LIMIT]
    blunt = [_named(row) for row, share in twins if share <= KEPT_LIMIT]
    if blunt:
        tell = "Countermeasures that left too little of the originals, too, to tell anything at this length"
        not_covered = [f"{tell}: {', '.join(blunt)}.", *not_covered]
    telling = any(share > KEPT_LIMIT for row, share in twins if not row.is_ordinary and row.countermeasure != EARLY_STOPPING)
    word, text = _sentence(shares, scale, telling) or ("not judged", _why_not(rows, floors))
    return Verdict(word, text, tuple(broken), tuple(not_covered), {"kept_limit": KEPT_LIMIT, "clean_margin": LEARNED})


def _sentence(shares: Sequence[tuple[Attempt, float]], scale: Scale, telling: bool) -> tuple[Word, str] | None:
    """Return the verdict in a word and in a sentence by what attempts keep, most first; None where there is nothing to judge by."""
    row, share = next((pair for pair in shares if pair[0].is_ordinary), (None, 0.0))
    if row is None:
        return None
    figures = [
        f"{MEASURES[name]} {row.protected.means()[name] or 0.0:.1%} "
        f"(the best of those on the originals {clean:.1%}, knowing nothing {scale.floors[name]:.1%})"
        for name, clean in scale.reached.items()
    ]
    seen = f" at {row.view}" if row.view else ""
    ordinary = (
        f"Trained {'without any countermeasure' if row.countermeasure == NONE else f'in an ordinary way ({row.title})'}{seen}, {row.arch} "
        f"reaches {' and '.join(figures)} and keeps {_percent(share)} of what there is to learn"
    )
    limit = f"more than {KEPT_LIMIT:.0%} counts as learned"
    strongest, most = shares[0]
    if share > KEPT_LIMIT:
        return "does not protect", f"{ordinary}; {limit}."
    if most > KEPT_LIMIT:
        named = "; ".join(f"{_named(row)} keeps {_percent(share)}" for row, share in shares if share > KEPT_LIMIT)
        text = f"{ordinary}, but someone who knows of the noise, or takes no network, gets around it ({limit}): {named}."
        return "protects only against careless training", text
    if not telling:
        text = f"{ordinary}; {limit}. No countermeasure that could have got around the noise has finished."
        return "holds against careless training, more was not tried", text
    return "protects", f"{ordinary}. Of all that was tried, most is kept by {_named(strongest)}: {_percent(most)}; {limit}."


def _scale_of(rows: Sequence[Attempt], floors: Mapping[str, float]) -> Scale:
    """Return the scale that attempts are measured by: up to the best ordinary victim on the originals."""
    clean = [row.clean.means() for row in rows if row.is_ordinary and row.clean is not None]
    return Scale.of(floors, {name: max((means[name] or 0.0 for means in clean), default=0.0) for name in floors})


def _kept(scale: Scale, figures: Figures | None) -> float | None:
    """Return the share of what there is to learn that victims have, seeds averaged."""
    return scale.kept(figures.means()) if figures else None


def _named(row: Attempt) -> str:
    return f"{row.label} ({row.arch})"


def _percent(share: float) -> str:
    return f"{max(0.0, share):.0%}"


def _why_not(rows: Sequence[Attempt], floors: Mapping[str, float]) -> str:
    plain = [row for row in rows if row.is_ordinary]
    if not plain:
        return "No victim without countermeasure has finished; run the audit again."
    if all(row.clean is None for row in plain):
        return "No model trained on the originals has finished to compare with: run the audit again, with --source if it did not name them."
    names = " and ".join(MEASURES[name] for name in floors)
    return (
        f"The models trained on the originals are less than {100 * LEARNED:.0f} points above knowing nothing in {names}: at these settings "
        "there is nothing to protect. Train longer (--victim_steps) or wider (--width)."
    )
