"""The first page of a report: the verdict, three figures, one picture, what it means and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from salm_lightning.audit.results import NONE, Attempt, AuditResult, Figures, mean
from salm_lightning.data.base import Task
from salm_lightning.release.manifest import Manifest
from salm_lightning.report import words
from salm_lightning.report.evidence import Evidence
from salm_lightning.report.pictures import Picture
from salm_lightning.report.proof import Proof

_PICTURES = {
    "pictures/extremes.png": "An image of typical likeness to its original, and the least similar one. The noise is drawn far stronger "
    "than it is.",
    "pictures/examples.png": "An image of each class. The noise is drawn far stronger than it is.",
}
"""Pictures of an audit that show originals beside protected images, the one for the first page first, with what to say of them."""
_MOST_NAMED = 3


@dataclass(frozen=True)
class Figure:
    """A number of the first page.

    Attributes:
        label: What it is.
        text: The number.
        detail: What it was measured with, or what it is made of.
        share: Length of its bar, from 0 to 1; None for a number without one.
    """

    label: str
    text: str
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class FirstPage:
    """What the first page says.

    Attributes:
        verdict: The verdict, and what follows from it.
        figures: Three numbers.
        note: How to read them.
        floor: Where their bars have a mark: what knowing nothing brings, from 0 to 1.
        picture: Originals beside protected images where an audit has drawn them, else protected images.
        facts: What it means, in sentences.
        published: What is in the release, in sentences.
    """

    verdict: words.Verdict
    figures: tuple[Figure, ...]
    note: str
    floor: float
    picture: Picture
    facts: tuple[str, ...]
    published: tuple[str, ...]


def first_page(evidence: Evidence) -> FirstPage:
    """Return what the first page says."""
    manifest, audit, proof = evidence.manifest, evidence.audit, evidence.proof
    auc = manifest.info.task is Task.MULTI_LABEL
    if audit is not None and audit.rows:
        figures, floor = _learned(audit, auc)
    elif proof is not None:
        figures, floor = _proven(proof, auc)
    else:
        figures, floor = _made(manifest), 0.0
    drawn = (
        replace(picture, caption=caption)
        for name, caption in _PICTURES.items()
        for picture in evidence.pictures
        if picture.file == name
    )
    return FirstPage(
        verdict=words.NOT_AUDITED if audit is None else words.VERDICTS[audit.verdict.word],
        figures=figures,
        note=_note(manifest, auc, floor) if figures[0].share is not None else "",
        floor=floor,
        picture=next(drawn, evidence.sample),
        facts=tuple(_facts(evidence)),
        published=tuple(_published(manifest)),
    )


def untreated(audit: AuditResult) -> Attempt:
    """Return the attempt without countermeasure that learns most, on which the verdict rests; the first attempt if there is none."""
    plain = [row for row in audit.rows if row.countermeasure == NONE]
    return max(plain, key=lambda row: -inf if row.kept is None else row.kept, default=audit.rows[0])


def _learned(audit: AuditResult, auc: bool) -> tuple[tuple[Figure, ...], float]:
    plain, floor = untreated(audit), 0.5 if auc else audit.majority
    worst = next((row for row in audit.rows if row.worst and row is not plain), None)
    last = _guessing(floor, auc)
    if worst is not None:
        last = _figure("The same, with what helps most against the noise", worst.protected, auc, worst, worst.title)
    originals = _figure("A model trained on the originals", plain.clean, auc, plain)
    return (originals, _figure("The same, trained on the protected copy", plain.protected, auc, plain), last), floor


def _figure(label: str, figures: Figures | None, auc: bool, row: Attempt, title: str = "") -> Figure:
    share = None if figures is None else mean(figures.auc if auc else figures.acc)
    trainings = f"mean of {len(row.seeds)} trainings" if len(row.seeds) > 1 else ""
    return Figure(label, _text(share, auc), " · ".join(filter(None, (title, row.arch, trainings))), share or 0.0)


def _proven(proof: Proof, auc: bool) -> tuple[tuple[Figure, ...], float]:
    floor = 0.5 if auc else proof.protected.majority
    shares = [victim.test.auc if auc else victim.test.acc for victim in (proof.clean, proof.protected)]
    labels = ("A model trained on the originals", "The same, trained on the protected copy")
    learned = [
        Figure(label, _text(share, auc), proof.clean.arch, share or 0.0) for label, share in zip(labels, shares, strict=True)
    ]
    return (*learned, _guessing(floor, auc)), floor


def _guessing(floor: float, auc: bool) -> Figure:
    return Figure("Guessing, without any model", _text(floor, auc), "" if auc else "always the most frequent class", floor)


def _made(manifest: Manifest) -> tuple[Figure, ...]:
    coverage, measured = manifest.coverage, manifest.measured
    return (
        Figure("Training images with noise", f"{coverage.selected}", f"of {coverage.samples}"),
        Figure("Largest change of any value", f"{measured.linf}", "of 255 grey levels"),
        Figure("Likeness to the originals", f"{measured.ssim:.3f}", "structural similarity; 1 is identical"),
    )


def _text(share: float | None, auc: bool) -> str:
    return words.decimals(share, 2) if auc else words.percent(share)


def _note(manifest: Manifest, auc: bool, floor: float) -> str:
    tested = _count(manifest, "test")
    of = f"{tested} test images without noise" if tested else "test images without noise"
    if auc:
        return (
            f"Measured on {of}: how well a model ranks images with a finding above those without (AUC). 1 is perfect; the mark, at 0.5, is "
            "guessing."
        )
    return f"Share of {of} that a model names correctly. The mark, at {words.percent(floor)}, is what guessing reaches."


def _facts(evidence: Evidence) -> Iterator[str]:
    """Yield what the findings mean, in sentences."""
    audit, quality, manifest = evidence.audit, evidence.quality, evidence.manifest
    if audit is not None:
        tried = {row.title for row in audit.rows if row.countermeasure != NONE}
        ways = f"{len(tried)} ways to get around the noise" if len(tried) != 1 else "one way to get around the noise"
        yield f"Tried: training on the copy as it is, and {ways if tried else 'nothing else yet'}."
        if audit.verdict.broken_by:
            named = [words.named(name) for name in audit.verdict.broken_by[:_MOST_NAMED]]
            more = len(audit.verdict.broken_by) - len(named)
            yield f"Models learn from the copy with: {'; '.join(named)}{f'; and {more} more' if more else ''}."
    elif evidence.proof is not None:
        kept = evidence.proof.kept(manifest.info)
        yield "A first test: one model was trained on the originals and one on the copy; nothing was tried against the noise."
        yield (
            "It shows nothing: the model trained on the originals learned next to nothing, too."
            if kept is None
            else f"The model trained on the copy keeps {words.percent(max(0.0, kept), 0)} of what the other one learned."
        )
    else:
        yield "No model has been trained on this copy yet, so nobody knows how much one learns from it."
    yield (
        f"The images look {'nearly ' if manifest.measured.linf else ''}the same: the likeness to the originals (structural similarity) is "
        f"{manifest.measured.ssim:.3f} of 1."
    )
    if quality is not None and quality.readable is not None:
        yield (
            f"Software that knows the originals names {words.percent(quality.readable.protected_acc, 0)} of the protected images "
            f"correctly, {words.percent(quality.readable.clean_acc, 0)} without noise."
        )
    yield "The noise is no lock and makes nobody anonymous."


def _published(manifest: Manifest) -> Iterator[str]:
    """Yield what whoever gets the release gets."""
    coverage = manifest.coverage
    if coverage.selected == coverage.samples:
        yield f"{coverage.samples} training images, all with noise."
    else:
        yield f"{coverage.selected} training images with noise, and {coverage.samples - coverage.selected} that are the originals."
    val, test = _count(manifest, "val"), _count(manifest, "test")
    if val or test:
        yield (
            f"{val} validation and {test} test images without noise: they are the originals, and anybody who gets them can train on them."
        )
    else:
        yield "No validation and no test images."


def _count(manifest: Manifest, split: str) -> int:
    spec = manifest.arrays.get(f"{split}_images")
    return spec.shape[0] if spec else 0
