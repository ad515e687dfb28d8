"""The three figures of a report's first page, in the measure on which the verdict rests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from salm_lightning.audit.results import Attempt
from salm_lightning.data.base import DatasetInfo
from salm_lightning.metrics.learned import KEPT_LIMIT, Scale, floors_of
from salm_lightning.release.folder_manifest import FolderManifest
from salm_lightning.release.manifest import Manifest
from salm_lightning.report.evidence import Evidence

MISSING = "n/a"
"""Stands where there is no number."""
_Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Figure:
    """A number of the first page, with what it was measured with or is made of, and the length of its bar, from 0 to 1, if it has one."""

    label: str
    text: str
    detail: str
    share: float | None = None


@dataclass(frozen=True)
class Learned:
    """What models have learned, in the measure that tells it: the accuracy, unless another one alone shows that the copy teaches enough.

    Attributes:
        measure: ``acc``, ``balanced_acc`` or, for several labels per image, ``auc``.
        floor: What knowing nothing brings.
        kept: Share of what a model learns from the originals that the same learns from the copy; None if that is next to nothing.
        figures: On the originals, on the copy, and in the worst case, or guessing.
    """

    measure: str
    floor: float
    kept: float | None
    figures: tuple[Figure, ...]


def learned(evidence: Evidence) -> Learned | None:
    """Return what models have learned in the audit, else in the first test; None without both."""
    info, audit, proof = evidence.manifest.info, evidence.audit, evidence.proof
    if audit is not None and audit.rows:
        # What learns most in an ordinary way: on it the verdict rests.
        plain = [row for row in audit.rows if row.is_ordinary]
        first = max(plain, key=lambda row: -inf if row.kept is None else row.kept, default=audit.rows[0])
        last = next((row for row in audit.rows if row.worst and row is not first), None)
        clean = first.clean.means() if first.clean else {}
        found = _learned(info, audit.majority, clean, first.protected.means(), _model(first), last)
        return replace(found, kept=first.kept)  # the audit's scale goes up to the best of its models
    if proof is None:
        return None
    return _learned(info, proof.clean.majority, vars(proof.clean.test), vars(proof.protected.test), proof.clean.arch)


def made(manifest: Manifest | FolderManifest) -> tuple[Figure, ...]:
    """Return figures of a release on which no model has been trained."""
    if isinstance(manifest, FolderManifest):
        low, high = manifest.range
        return (
            Figure("Image files with noise", f"{manifest.images}", f"beside {manifest.copied} that are published as they are"),
            Figure(
                "Largest change of any value",
                f"{manifest.largest}",
                f"of {high - low:g} {manifest.units or 'levels'} from black to white",
            ),
            Figure(
                "Noise that the files hold",
                percent(manifest.noise_kept, 0),
                "of what was made, as the result says; JPEG loses some",
            ),
        )
    coverage, measured = manifest.coverage, manifest.measured
    return (
        Figure("Training images with noise", f"{coverage.selected}", f"of {coverage.samples}"),
        Figure("Largest change of any value", f"{measured.linf}", "of 255 grey levels"),
        Figure("Likeness to the originals", f"{measured.ssim:.3f}", "structural similarity; 1 is identical"),
    )


def _learned(
    info: DatasetInfo, majority: float, clean: _Metrics, protected: _Metrics, model: str, worst: Attempt | None = None
) -> Learned:
    floors = floors_of(info.task, info.num_classes, majority)
    scale = Scale.of(floors, {name: clean.get(name) or 0.0 for name in floors})
    alone = {name: Scale(floors, {name: reached}) for name, reached in scale.reached.items()}
    judged = [protected] if worst is None else [protected, worst.protected.means()]
    broken = [name for metrics in judged for name in alone if (alone[name].kept(metrics) or 0.0) > KEPT_LIMIT]
    measure = [*broken, *scale.reached, *floors][0]

    def figure(label: str, metrics: _Metrics, detail: str) -> Figure:
        value = metrics.get(measure)
        return Figure(label, measured(value, measure), detail, value or 0.0)

    last = figure("Guessing, without any model", floors, "")
    if worst is not None:
        label, detail = "The same, with what helps most against the noise", f"{worst.title} · {_model(worst)}"
        last = figure(label, worst.protected.means(), detail)
    first = figure("A model trained on the originals", clean, model)
    second = figure("The same, trained on the protected copy", protected, model)
    return Learned(measure, floors[measure], scale.kept(protected), (first, second, last))


def _model(row: Attempt) -> str:
    return (
        row.arch
        + (f" · {row.view}" if row.view else "")
        + (f" · mean of {len(row.seeds)} trainings" if len(row.seeds) > 1 else "")
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share, such as ``61.6 %``."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u202f%"


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number, such as ``0.944``."""
    return MISSING if value is None else f"{value:.{digits}f}"


def measured(value: float | None, measure: str) -> str:
    """Write a metric: an AUC as a number, all others as shares."""
    return decimals(value) if measure == "auc" else percent(value)
