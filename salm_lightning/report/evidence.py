"""What a report tells: a release, and what an audit found out about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from salm_lightning.audit.album import PICTURES
from salm_lightning.audit.results import AUDIT, NONE, QUALITY, audit_folder
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release import Check, Manifest, verify_release
from salm_lightning.release.manifest import MANIFEST
from salm_lightning.report.pictures import Picture, read_pictures
from salm_lightning.report.values import Value
from salm_lightning.report.words import NO_COUNTERMEASURE, VERDICT_MEANINGS

_FORMAT_VERSION = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Series:
    """A metric of one victim for each seed; None where it is not defined."""

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values that are defined."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.known) if self.known else None


@dataclass(frozen=True)
class Figures:
    """Metrics of a victim on the clean test split, each for every seed."""

    acc: Series
    auc: Series
    balanced_acc: Series
    peak_acc: Series


@dataclass(frozen=True)
class Row:
    """A line of the battery: one countermeasure and one architecture.

    Attributes:
        title: The countermeasure, for people.
        arch: The victim's architecture.
        seeds: Its seeds.
        protected: Trained on the protected images.
        clean: Trained on the originals under the same countermeasure; None if it was not.
        drop: Mean accuracy of ``clean`` minus that of ``protected``.
        kept: Share of what an ordinary victim learns from the originals that this one learns; the verdict goes by it.
        worst: Whether this is where the protection is weakest.
    """

    title: str
    arch: str
    seeds: tuple[int, ...]
    protected: Figures
    clean: Figures | None
    drop: float | None
    kept: float | None
    worst: bool


@dataclass(frozen=True)
class Skipped:
    """A victim that was not trained, why, and the command that trains it."""

    countermeasure: str
    arch: str
    seed: int
    trained_on: str
    reason: str
    command: str


@dataclass(frozen=True)
class Verdict:
    """What the battery comes to; see ``salm-cli audit``."""

    word: str
    text: str
    broken_by: tuple[str, ...]
    not_covered: tuple[str, ...]
    thresholds: dict[str, Any]


@dataclass(frozen=True)
class Recall:
    """Share of a class's test images that the first victims recognise; None where there are none."""

    name: str
    images: int
    protected: float | None
    clean: float | None


@dataclass(frozen=True)
class Audit:
    """Contents of ``audit.json``, as far as a report shows them."""

    settings: dict[str, Any]
    majority: float
    chance_balanced: float
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    verdict: Verdict
    recall: tuple[Recall, ...]
    seconds: float

    @property
    def untreated(self) -> Row:
        """The row without countermeasure from which most is learned, on which the verdict rests; the first one if there is none."""
        plain = [row for row in self.rows if row.title == NO_COUNTERMEASURE]
        return max(plain, key=lambda row: -inf if row.kept is None else row.kept, default=self.rows[0])


@dataclass(frozen=True)
class Spread:
    """A measure over the images: mean, 5th percentile on the bad side, and the least similar image."""

    mean: float
    p5: float
    worst: float
    worst_index: int


@dataclass(frozen=True)
class Segmentation:
    """How much the segmentation of the images changes."""

    segmenter: str
    changed_share: Spread
    dice: Spread


@dataclass(frozen=True)
class Readable:
    """How well a model trained on originals reads the training images, before and after protection."""

    clean_acc: float
    protected_acc: float
    clean_auc: float | None
    protected_auc: float | None


@dataclass(frozen=True)
class Separability:
    """Accuracy of a linear model that sees the noise alone, and of always naming the most frequent class."""

    noise_acc: float
    majority: float


@dataclass(frozen=True)
class Quality:
    """Contents of ``quality.json``.

    Attributes:
        images: Images that were compared.
        protected_images: Images that carry noise.
        similarity: Measures by name; None for one that is infinite everywhere.
        segmentation: None if it was not measured.
        readable: None if it was not measured.
        separability: None if it was not measured.
    """

    images: int
    protected_images: int
    similarity: dict[str, Spread | None]
    segmentation: Segmentation | None
    readable: Readable | None
    separability: Separability | None


@dataclass(frozen=True)
class Evidence:
    """A release, checked, and what is known about it.

    Attributes:
        manifest: The release's manifest.
        manifest_sha256: Checksum of its file.
        checks: What was checked of the release's files, all of it good.
        audit: The battery and its verdict, if there is one.
        quality: Whether the images are still useful, if that was measured.
        pictures: In the order in which they are shown.
    """

    manifest: Manifest
    manifest_sha256: str
    checks: tuple[Check, ...]
    audit: Audit | None
    quality: Quality | None
    pictures: tuple[Picture, ...]


def gather(release: Path, audit: Path | None = None) -> Evidence:
    """Check a release and read what an audit has written about it.

    Args:
        release: Folder of the release.
        audit: Folder of the audit; ``audit`` beside the release by default, which need not be there.

    Raises:
        ReleaseError: The release is not what its manifest says, a file of the audit is not valid, or it is about another release.
        ConfigurationError: ``audit`` is named and holds nothing of an audit.
    """
    manifest = Manifest.read(release)
    checks = tuple(verify_release(release))
    if failed := [f"{check.name}: {check.detail}" for check in checks if not check.ok]:
        raise ReleaseError(
            f"release={release} is not what was released ({'; '.join(failed)}). Get it again, or protect anew; nothing was written."
        )
    folder = audit_folder(release, None) if audit is None else audit
    if audit is not None and not any((audit / name).exists() for name in (AUDIT, QUALITY, PICTURES)):
        raise ConfigurationError(
            f"audit={audit} holds none of {AUDIT}, {QUALITY} and {PICTURES}; name the folder that salm-cli audit wrote, or leave it out."
        )
    return Evidence(
        manifest=manifest,
        manifest_sha256=file_sha256(release / MANIFEST),
        checks=checks,
        audit=_read(folder / AUDIT, lambda value: _audit(value, manifest)),
        quality=_read(folder / QUALITY, lambda value: _quality(value, manifest)),
        pictures=read_pictures(folder, manifest.archive.sha256),
    )


def _read(path: Path, make: Callable[[Value], _T]) -> _T | None:
    if not path.exists():
        return None
    value = Value.read(path)
    value.version(_FORMAT_VERSION)
    return make(value)


def _audit(value: Value, manifest: Manifest) -> Audit:
    value.require_release(manifest.archive.sha256)
    return Audit(
        settings={key: member.raw for key, member in value["settings"].members().items()},
        majority=value["majority"].share(),
        chance_balanced=value["chance_balanced"].share(),
        rows=tuple(_row(row) for row in value["rows"].elements()),
        skipped=tuple(_skipped(skipped) for skipped in value["skipped"].elements()),
        verdict=_verdict(value["verdict"]),
        recall=value["confusion"].optional(_recall) or (),
        seconds=value["seconds"].number(),
    )


def _row(value: Value) -> Row:
    seeds = tuple(seed.count() for seed in value["seeds"].elements())
    return Row(
        title=_title(value["title"]),
        arch=value["arch"].text(),
        seeds=seeds,
        protected=_figures(value["protected"], len(seeds)),
        clean=value["clean"].optional(lambda clean: _figures(clean, len(seeds))),
        drop=value["drop"].optional(Value.number),
        kept=value["kept"].optional(Value.number),
        worst=value["worst"].flag(),
    )


def _figures(value: Value, seeds: int) -> Figures:
    return Figures(**{name: _series(value[name], seeds) for name in Figures.__dataclass_fields__})


def _series(value: Value, seeds: int) -> Series:
    values = tuple(number.optional(Value.share) for number in value.elements())
    if len(values) != seeds:
        raise ReleaseError(f"{value.where} must have a number for each of the {seeds} seeds, it has {len(values)}.")
    return Series(values)


def _skipped(value: Value) -> Skipped:
    texts = {name: value[name].text() for name in ("arch", "trained_on", "reason", "command")}
    return Skipped(countermeasure=_title(value["countermeasure"]), seed=value["seed"].count(), **texts)


def _title(value: Value) -> str:
    """Return a countermeasure as people call it; what follows in brackets is the architecture."""
    title, bracket, arch = value.text().partition(" (")
    return (NO_COUNTERMEASURE if title == NONE else title) + bracket + arch


def _verdict(value: Value) -> Verdict:
    word = value["word"].text()
    if word not in VERDICT_MEANINGS:
        raise ReleaseError(f"{value['word'].where}={word[:100]!r} must be one of: {', '.join(VERDICT_MEANINGS)}.")
    return Verdict(
        word=word,
        text=value["text"].text(),
        broken_by=tuple(_title(name) for name in value["broken_by"].elements()),
        not_covered=tuple(name.text() for name in value["not_covered"].elements()),
        thresholds={key: member.raw for key, member in value["thresholds"].members().items()},
    )


def _recall(value: Value) -> tuple[Recall, ...]:
    """Read confusion matrices, whose rows are the true classes."""
    names = [name.text() for name in value["class_names"].elements()]
    protected = _matrix(value["protected"], len(names))
    clean = value["clean"].optional(lambda matrix: _matrix(matrix, len(names)))
    return tuple(
        Recall(
            name,
            sum(protected[number]),
            _recognised(protected[number], number),
            None if clean is None else _recognised(clean[number], number),
        )
        for number, name in enumerate(names)
    )


def _matrix(value: Value, classes: int) -> list[list[int]]:
    matrix = [[number.count() for number in row.elements()] for row in value.elements()]
    if [len(row) for row in matrix] != [classes] * classes:
        raise ReleaseError(f"{value.where} must have {classes} rows and columns, one for each class.")
    return matrix


def _recognised(row: list[int], number: int) -> float | None:
    return row[number] / sum(row) if any(row) else None


def _quality(value: Value, manifest: Manifest) -> Quality:
    value.require_release(manifest.archive.sha256)
    return Quality(
        images=value["images"].count(),
        protected_images=value["protected_images"].count(),
        similarity={name: spread.optional(_spread) for name, spread in value["similarity"].members().items()},
        segmentation=value["segmentation"].optional(_segmentation),
        readable=value["readable"].optional(_readable),
        separability=value["linear_separability"].optional(_separability),
    )


def _spread(value: Value) -> Spread:
    numbers = {name: value[name].number() for name in ("mean", "p5", "worst")}
    return Spread(worst_index=value["worst_index"].count(), **numbers)


def _segmentation(value: Value) -> Segmentation:
    return Segmentation(value["segmenter"].text(), _spread(value["changed_share"]), _spread(value["dice"]))


def _readable(value: Value) -> Readable:
    return Readable(
        clean_acc=value["clean_acc"].share(),
        protected_acc=value["protected_acc"].share(),
        clean_auc=value["clean_auc"].optional(Value.share),
        protected_auc=value["protected_auc"].optional(Value.share),
    )


def _separability(value: Value) -> Separability:
    return Separability(value["noise_acc"].share(), value["majority"].share())
