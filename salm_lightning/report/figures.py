"""The three figures of a report's first page."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from salm_lightning.audit.results import NONE, Attempt, AuditResult, Figures, mean
from salm_lightning.data.base import Task
from salm_lightning.release.manifest import Manifest
from salm_lightning.report.evidence import Evidence
from salm_lightning.report.proof import Proof
from salm_lightning.report.words import decimals, percent

_ORIGINALS = "A model trained on the originals"
_COPY = "The same, trained on the protected copy"
_HELPED = "The same, with what helps most against the noise"


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
    detail: str
    share: float | None = None


def first_figures(evidence: Evidence) -> list[Figure]:
    """Return three figures: of the audit, else of the first test, else of the release alone."""
    auc = evidence.manifest.info.task is Task.MULTI_LABEL
    if evidence.audit is not None and evidence.audit.rows:
        return _audited(evidence.audit, auc)
    return _made(evidence.manifest) if evidence.proof is None else _proven(evidence.proof, auc)


def floor_of(evidence: Evidence) -> float:
    """Return what knowing nothing brings, from 0 to 1: AUC for several labels per image, else accuracy."""
    if evidence.manifest.info.task is Task.MULTI_LABEL:
        return 0.5
    if evidence.audit is not None:
        return evidence.audit.majority
    return 0.0 if evidence.proof is None else evidence.proof.clean.majority


def _audited(audit: AuditResult, auc: bool) -> list[Figure]:
    plain = _untreated(audit)
    worst = next((row for row in audit.rows if row.worst and row is not plain), None)
    last = _guessing(audit.majority, auc) if worst is None else _reached(_HELPED, worst.protected, auc, worst, worst.title)
    return [_reached(_ORIGINALS, plain.clean, auc, plain), _reached(_COPY, plain.protected, auc, plain), last]


def _untreated(audit: AuditResult) -> Attempt:
    """Return the attempt without countermeasure that learns most, on which the verdict rests; the first attempt if there is none."""
    plain = [row for row in audit.rows if row.countermeasure == NONE]
    return max(plain, key=lambda row: -inf if row.kept is None else row.kept, default=audit.rows[0])


def _reached(label: str, figures: Figures | None, auc: bool, row: Attempt, title: str = "") -> Figure:
    share = None if figures is None else mean(figures.auc if auc else figures.acc)
    trainings = f"mean of {len(row.seeds)} trainings" if len(row.seeds) > 1 else ""
    return Figure(label, _text(share, auc), " · ".join(filter(None, (title, row.arch, trainings))), share or 0.0)


def _proven(proof: Proof, auc: bool) -> list[Figure]:
    victims = {_ORIGINALS: proof.clean, _COPY: proof.protected}
    shares = {label: victim.test.auc if auc else victim.test.acc for label, victim in victims.items()}
    reached = [Figure(label, _text(share, auc), victims[label].arch, share or 0.0) for label, share in shares.items()]
    return [*reached, _guessing(proof.clean.majority, auc)]


def _guessing(majority: float, auc: bool) -> Figure:
    share, detail = (0.5, "") if auc else (majority, "always the most frequent class")
    return Figure("Guessing, without any model", _text(share, auc), detail, share)


def _made(manifest: Manifest) -> list[Figure]:
    coverage, measured = manifest.coverage, manifest.measured
    return [
        Figure("Training images with noise", f"{coverage.selected}", f"of {coverage.samples}"),
        Figure("Largest change of any value", f"{measured.linf}", "of 255 grey levels"),
        Figure("Likeness to the originals", f"{measured.ssim:.3f}", "structural similarity; 1 is identical"),
    ]


def _text(share: float | None, auc: bool) -> str:
    return decimals(share, 2) if auc else percent(share)
