"""What an audit and a comparison of images find, as values: ``audit.json`` and ``quality.json`` hold the same."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, Self

from salm_lightning.checked import Count, Share, member, parse, require_release
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.release.folder_manifest import PROTECTED
from salm_lightning.release.manifest import RELEASE, is_folder_result
from salm_lightning.sealed import read_sealed, write_sealed

AUDIT, QUALITY, PICTURES = "audit.json", "quality.json", "pictures.json"
FOLDER = "pictures"
"""Folder of the pictures, beside their list."""
FORMAT_VERSION = 1
"""Of both files."""
NONE = "none"
"""Name of no countermeasure at all."""
RECIPES = ("noaugment", "medmnistrecipe", "adamwrecipe")
"""Countermeasures that are none: how people train who know nothing of the noise, where that is not the paper's way."""
EARLY_STOPPING = "early stopping"
"""Row of the victims without countermeasure as they were at their best on the clean validation split."""
Word = Literal[
    "protects",
    "holds against careless training, more was not tried",
    "protects only against careless training",
    "does not protect",
    "not judged",
]
"""A verdict in a word."""
TrainedOn = Literal["protected", "clean"]
"""``protected`` for the release, ``clean`` for the originals."""
Series = tuple[Share | None, ...]
"""A metric, a value for each seed; None where it is not known."""
Matrix = tuple[tuple[Count, ...], ...]


@dataclass(frozen=True)
class ResultFile:
    """What a file of results holds."""

    FILE: ClassVar[str]
    format_version: int = field(default=FORMAT_VERSION, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write the file, sealed, completely or not at all."""
        write_sealed(folder / self.FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path, archive_sha256: str) -> Self | None:
        """Read the file of a folder; None where there is none, or one that this installation did not make.

        Raises:
            ReleaseError: It is a link, too large, not JSON, of another version, or about another release than the one whose archive has
                this checksum; or a value is missing or not what its field says.
        """
        path = folder / cls.FILE
        if not path.exists():
            return None
        raw, ours = read_sealed(path)
        if not ours:
            return None
        version = member(raw, "format_version", path.name)
        if version != FORMAT_VERSION:
            raise ReleaseError(
                f"{path.name} has format_version={reprlib.repr(version)}, this version of salm_lightning reads {FORMAT_VERSION}; make the "
                "audit again, or install the version that made it."
            )
        require_release(raw, path.name, archive_sha256)
        result: Self = parse(cls, raw, path.name)
        return result


@dataclass(frozen=True)
class AuditedRelease:
    """Which release was audited: its name, its method's, and the SHA-256 of its archive and of its original, if that was a file.

    In the place of the archive of a folder's result stands its manifest, and in that of the original file all files of the folder.
    """

    name: str
    method: str
    archive_sha256: str
    source_sha256: str | None = None


@dataclass(frozen=True)
class Figures:
    """Metrics of a victim on the clean test split, each for every seed: after the last step, at its peak, and at the best validation."""

    acc: Series
    auc: Series
    balanced_acc: Series
    peak_acc: Series
    best_on_val_acc: Series

    def means(self) -> dict[str, float | None]:
        """Return the mean of each over the seeds in which it is known."""
        return {name: mean(values) for name, values in vars(self).items()}


@dataclass(frozen=True)
class Attempt:
    """An attempt to learn from the protected images: a countermeasure with an architecture, over the seeds.

    Attributes:
        title: The countermeasure with its settings, for people.
        settings: The same as JSON values.
        clean: Trained on the originals under the same countermeasure; None if it was not.
        drop: Mean accuracy of ``clean`` minus that of ``protected``, over the seeds that both have.
        kept: Share of what an ordinary victim learns from the originals that this one learns; the verdict goes by it.
        worst: Whether this is where the protection is weakest.
        view: How the victims saw the images, in words, where there are several ways.

    Raises:
        ValueError: A metric does not have a value for each seed.
    """

    countermeasure: str
    title: str
    settings: dict[str, Any]
    arch: str
    seeds: tuple[Count, ...]
    protected: Figures
    clean: Figures | None
    drop: float | None = None
    kept: float | None = None
    worst: bool = False
    view: str = ""

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return viewed(self.title, self.view)

    @property
    def is_ordinary(self) -> bool:
        """Whether someone who knows nothing of the noise trains so."""
        return self.countermeasure in (NONE, *RECIPES)

    def __post_init__(self) -> None:
        seeds, figures = len(self.seeds), {"protected": self.protected, "clean": self.clean}
        for name, metric, values in ((name, *pair) for name, each in figures.items() if each for pair in vars(each).items()):
            if len(values) != seeds:
                raise ValueError(f"{name}.{metric} must have a number for each of the {seeds} seeds, it has {len(values)}")


@dataclass(frozen=True)
class Unfinished:
    """A victim that has not finished, what became of it, why, and the command that trains it."""

    countermeasure: str
    arch: str
    seed: Count
    trained_on: str
    reason: str
    command: str
    status: str = "open"


@dataclass(frozen=True)
class Verdict:
    """What the attempts come to, by thresholds; ``broken_by`` are titles, with architectures, of those that learn too much."""

    word: Word
    text: str
    broken_by: tuple[str, ...]
    not_covered: tuple[str, ...]
    thresholds: dict[str, float]


@dataclass(frozen=True)
class Confusion:
    """Confusion matrices of the ordinary victims of the first architecture and seed: a row for each true class.

    Raises:
        ValueError: A matrix does not have a row and a column for each class.
    """

    protected: Matrix
    clean: Matrix | None
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        for name, matrix in {"protected": self.protected, "clean": self.clean}.items():
            if matrix is not None and [len(row) for row in matrix] != [classes] * classes:
                raise ValueError(f"{name} must have {classes} rows and columns, one for each class")


@dataclass(frozen=True)
class VictimCurve:
    """Accuracy of a victim on the clean test split after some of its steps; ``countermeasure`` is a label."""

    trained_on: TrainedOn
    arch: str
    seed: Count
    countermeasure: str
    steps: tuple[Count, ...]
    test_acc: tuple[Share, ...]


@dataclass(frozen=True)
class AuditResult(ResultFile):
    """What an audit found: the contents of ``audit.json``.

    Attributes:
        settings: How it was audited, as JSON values: ``width``, ``steps``, ``batch_size`` and ``precision`` of the victims, ``preset``,
            ``seeds``, ``countermeasures`` and ``archs``; of a folder's result, how victims saw the images, ``views``.
        majority: Accuracy of always giving the most common answer.
        chance_balanced: Balanced accuracy of knowing nothing.
        rows: What was tried.
        skipped: What was planned and has not finished.
        confusion: None for several labels per image, or if the first victim has not finished.
        seconds: Training time of all victims.
    """

    FILE: ClassVar[str] = AUDIT
    release: AuditedRelease
    settings: dict[str, Any]
    majority: Share
    chance_balanced: Share
    rows: tuple[Attempt, ...]
    skipped: tuple[Unfinished, ...]
    verdict: Verdict
    confusion: Confusion | None
    curves: tuple[VictimCurve, ...]
    seconds: float


@dataclass(frozen=True)
class Extremes:
    """A measure of many images: its mean, its 5th percentile on the bad side, and the worst image with its place in the split.

    Of a folder's result, that is its place among the pages of the files that carry noise, and ``worst_file`` names the file.
    """

    mean: float
    p5: float
    worst: float
    worst_index: Count
    worst_file: str = ""


@dataclass(frozen=True)
class Segmentation:
    """How much the segmentation of the images changes, by what: pixels of another class, and Dice of the foregrounds."""

    segmenter: str
    changed_share: Extremes
    dice: Extremes


@dataclass(frozen=True)
class Readability:
    """How well a model that was trained on clean images, usually these, reads the training images before and after protection.

    An AUC is None where the labels have one class only; ``majority`` is the accuracy of the most common answer.
    """

    clean_acc: Share
    protected_acc: Share
    clean_auc: Share | None
    protected_auc: Share | None
    majority: Share | None = None


@dataclass(frozen=True)
class Separability:
    """Accuracy, on those of the images that were held out, of a linear model of the noise alone and of their most common answer."""

    noise_acc: Share
    majority: Share
    images: Count = 0
    held_out: Count = 0


@dataclass(frozen=True)
class ComparedRelease:
    """The SHA-256 of the archive whose images were compared; of a folder's result, of its manifest."""

    archive_sha256: str


@dataclass(frozen=True)
class Quality(ResultFile):
    """Whether protected images are still useful: the contents of ``quality.json``.

    Attributes:
        images: Images that were compared.
        protected_images: Images that carry noise.
        similarity: Measures by name; None for one that is infinite everywhere.
        segmentation: None if it was not measured.
        readable: None if it was not measured.
        linear_separability: None where too few images or a single class left nothing to fit.
        white: Of how many levels from black to white the largest change is; above 8 bits stored integers of the range.
    """

    FILE: ClassVar[str] = QUALITY
    release: ComparedRelease
    images: Count
    protected_images: Count
    similarity: dict[str, Extremes | None]
    segmentation: Segmentation | None
    readable: Readability | None
    linear_separability: Separability | None
    white: Count = 255


def viewed(title: str, view: str) -> str:
    """Return what was tried, with how the images were seen, if there are several ways."""
    return f"{title} at {view}" if view else title


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known, or None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def beside(release: Path) -> Path:
    """Return the folder that a release lies in, with what is found out about it; the result of a folder is one itself."""
    if is_folder_result(release):
        return release
    return release.parent if release.name else release.absolute().parent  # the parent of "." is "."


def lies_in(path: Path, release: Path) -> bool:
    """Return whether a path lies where a release holds nothing but itself."""
    closed = (release / PROTECTED, release / RELEASE) if is_folder_result(release) else (release,)
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in closed)


def audit_folder(release: Path, out: Path | None) -> Path:
    """Return the folder of what is found out about a release: ``out``, or ``audit`` beside the release.

    Raises:
        ConfigurationError: ``out`` lies in the release, where a foreign file is taken for tampering; or what lies beside it is a link.
    """
    if out is None:
        folder = beside(release) / "audit"
        if folder.is_symlink():
            raise ConfigurationError(
                f"{folder} is a link, which whoever made the release may have laid; name the folder that you mean."
            )
        return folder
    if lies_in(out, release):
        raise ConfigurationError(f"out={out} lies in the release, which must hold nothing else; give a folder outside of it.")
    return out
