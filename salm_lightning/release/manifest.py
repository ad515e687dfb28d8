"""The manifest of a protected dataset: what it is, how it was made, and what can be checked about it."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from salm_lightning.checked import Count, load_yaml, member, parse, refuse_constant
from salm_lightning.data.base import ARRAYS, SPLITS, DatasetInfo
from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.data.npz import ArraySpec
from salm_lightning.data.sums import FileSum
from salm_lightning.errors import ConfigurationError, ReleaseError, look_up

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
RELEASE, FILES = "release", "files.csv"
"""Folder of the manifest in the result of a protected folder of images, and the table of its files there."""
DATAMODULE = "datamodule.yaml"
DATAMODULE_TEXT = """\
# Trains a victim on the protected dataset in this file's folder:
#   salm-cli fit --config victim.yaml --config THIS_FOLDER/datamodule.yaml
# medmnist reads this folder with download=False; with download=True it would put the clean original in the place of the protected file.
data:
  class_path: PoisonedDataModule
  init_args:
    root: .
"""
"""Text of the config file that makes a victim train on the release in whose folder it lies."""
Publish = Literal["all", "train"]
"""Which splits a release holds."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**24  # bytes; a manifest has a few thousand
_LARGEST_CONFIG = 2**16
NORMS = ("linf", "l2")
_ROUNDING = 1e-9  # of a square root in float64


@dataclass(frozen=True)
class Measured:
    """How far protected images are from their originals. A pixel is *changed* if any of its channels differs.

    Attributes:
        images: Number of images compared.
        images_unchanged: Images that are identical to their originals.
        linf: Largest difference of any value, in grey levels (0 to 255).
        rms_max: Root mean square of the differences of an image's values, in grey levels, of the image where it is largest: its l2 norm
            over the square root of the number of values.
        l0_mean: Changed pixels per image, mean over the images.
        l0_max: Changed pixels of the image with the most.
        changed_share: Changed pixels over all pixels, in [0, 1].
        ssim: Structural similarity (Gaussian window of 11 pixels, sigma 1.5, data range 1), mean over the images.
        psnr: Peak signal-to-noise ratio in dB with the peak at 255, mean over the images that differ from their
            originals (it is infinite for the others); None when none differs.
    """

    images: Count
    images_unchanged: Count
    linf: Count
    rms_max: float
    l0_mean: float
    l0_max: Count
    changed_share: float
    ssim: float
    psnr: float | None


@dataclass(frozen=True)
class Bound:
    """What a method promises about every image, checked on the stored bytes.

    Attributes:
        norm: ``"linf"``: no value of an image moves by more than ``radius``. ``"l2"``: the l2 norm of an image's differences is at most
            ``radius`` times the square root of the number of its values, that is, their root mean square is at most ``radius``, exactly,
            rounding to bytes included.
        radius: In units of 1/255.
        max_changed_pixels: Most pixels that may change in one image, for masks that guarantee it; None for no such promise.
    """

    norm: str
    radius: float
    max_changed_pixels: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Bound:
        """Build a bound from plain values.

        Raises:
            ConfigurationError: A key is missing or unknown, or a value cannot be.
        """
        if not {"norm", "radius"} <= set(values) <= {"norm", "radius", "max_changed_pixels"}:
            raise ConfigurationError(f"bound={dict(values)!r} needs the keys norm, radius and, if wanted, max_changed_pixels.")
        radius, pixels = values["radius"], values.get("max_changed_pixels")
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius <= 255:
            raise ConfigurationError(f"bound radius={radius!r} must be a number from 0 to 255, in units of 1/255.")
        if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0):
            raise ConfigurationError(f"bound max_changed_pixels={pixels!r} must be a whole number from 0, or left out.")
        return cls(look_up("bound norm", str(values["norm"]), NORMS), float(radius), pixels)

    def to_dict(self) -> dict[str, Any]:
        """Return the values under their names, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def grey_levels(self) -> int:
        """Largest difference between stored bytes that the radius allows."""
        return math.floor(self.radius)

    def reached(self, measured: Measured) -> str:
        """Say how much of the bound on the norm was used."""
        if self.norm == "l2":
            return f"largest root mean square difference {measured.rms_max:.4f} grey levels, bound {self.radius:g}"
        return f"largest difference {measured.linf} grey levels, bound {self.grey_levels}"

    def violation(self, measured: Measured) -> str | None:
        """Say how measured values exceed the bound; None when they do not."""
        if self.norm == "linf" and measured.linf > self.grey_levels:
            return f"a value differs by {measured.linf} grey levels, the bound is {self.grey_levels}"
        if self.norm == "l2" and measured.rms_max > self.radius * (1 + _ROUNDING):
            return f"the values of an image differ by {measured.rms_max:.6g} grey levels (root mean square), the bound is {self.radius:g}"
        if self.max_changed_pixels is not None and measured.l0_max > self.max_changed_pixels:
            return f"an image has {measured.l0_max} changed pixels, the bound is {self.max_changed_pixels}"
        return None


@dataclass(frozen=True)
class Coverage:
    """Which training images were protected.

    Attributes:
        samples: Images in the source's training split.
        written: Images that the last pass delivered, each index exactly once and in order.
        selected: Images that were chosen to carry noise.
        selection: Which ones, unless all were: a bit per image, packed as :func:`numpy.packbits` does, in Base64.
    """

    samples: Count
    written: Count
    selected: Count
    selection: str | None = None

    @classmethod
    def of(cls, written: int, selected: NDArray[np.bool_] | None) -> Coverage:
        """Describe a complete last pass; ``selected`` is boolean ``[N]``, or None where all images were chosen."""
        if selected is None:
            return cls(written, written, written)
        packed = base64.b64encode(np.packbits(selected).tobytes()).decode("ascii")
        return cls(len(selected), written, int(selected.sum()), packed)

    def mask(self) -> NDArray[np.bool_]:
        """Return which training images were chosen, boolean ``[samples]``.

        Raises:
            ReleaseError: ``selection`` does not fit ``samples`` and ``selected``.
        """
        if self.selection is None:
            return np.ones(self.samples, dtype=bool)
        try:
            packed = np.frombuffer(base64.b64decode(self.selection, validate=True), np.uint8)
        except ValueError as error:
            raise ReleaseError(f"coverage.selection is not Base64 ({error}).") from error
        fits = len(packed) == -(-self.samples // 8)
        bits = np.unpackbits(packed, count=self.samples if fits else 0).astype(bool)
        if not fits or bits.sum() != self.selected:
            raise ReleaseError(f"coverage.selection does not mark {self.selected} of {self.samples} images.")
        return bits


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    It holds no time and no path of the machine, so that the same run gives the same bytes.

    Attributes:
        dataset: Description of the dataset: name, task, class_names, channels, size and what else the source tells.
        settings: The method with every setting, and the seed.
        bound: What the method promises.
        measured: How far the training images moved.
        coverage: Which training images were protected.
        source: The file that the splits came from; None for drawn data.
        archive: The ``.npz`` of this release.
        arrays: Its arrays: those of MedMNIST's layout, or of its training split alone, and others that the originals have.
        versions: Versions of the packages that made it.
    """

    dataset: dict[str, Any]
    settings: dict[str, Any]
    bound: Bound
    measured: Measured
    coverage: Coverage
    source: FileSum | None
    archive: FileSum
    arrays: dict[str, ArraySpec]
    versions: dict[str, str]

    @property
    def info(self) -> DatasetInfo:
        """The dataset as DataModules describe it."""
        return info_of(self.dataset)

    @property
    def published(self) -> tuple[str, ...]:
        """Names of the splits whose images are in the release: all of them, or ``train`` alone."""
        return tuple(split for split in SPLITS if f"{split}_images" in self.arrays)

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the arrays that MedMNIST's layout does not know, copied as the originals have them."""
        return tuple(name for name in self.arrays if name not in ARRAYS)

    @property
    def method_name(self) -> str:
        """Name of the method that made the noise, such as ``salm``."""
        return method_of(self.settings)

    def to_json(self) -> str:
        """Return the file's text: keys sorted, two spaces, a line feed at the end."""
        values = {"format_version": FORMAT_VERSION, **asdict(self), "bound": self.bound.to_dict()}
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest and check all of it.

        Raises:
            ReleaseError: It is not a manifest of this format version, or a value has another type than it must have.
        """
        try:
            values = json.loads(text, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ReleaseError(f"{MANIFEST} is not valid JSON ({error}); get the release again from where it came.") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise ReleaseError(
                f"{MANIFEST} has format_version={version!r}, this version of salm_lightning reads {FORMAT_VERSION}; "
                "install the version that wrote the release."
            )
        try:
            bound = Bound.from_dict(parse(dict, member(values, "bound", MANIFEST), f"{MANIFEST}: bound"))
            manifest: Manifest = parse(cls, {**values, "bound": asdict(bound)}, MANIFEST)
            manifest._check(values)
        except ConfigurationError as error:
            raise ReleaseError(f"{MANIFEST} is not a manifest: {error}") from error
        return manifest

    def _check(self, values: dict[str, Any]) -> None:
        """Refuse what the types of the fields let pass."""
        if json.loads(self.to_json()) != values:
            raise ReleaseError(f"{MANIFEST} holds keys that no manifest has; get the release again from where it came.")
        for digest in (self.archive.sha256, *([self.source.sha256] if self.source else ())):
            if not _SHA256.fullmatch(digest):
                raise ReleaseError(f"{MANIFEST}: sha256={digest!r} is not a SHA-256 in lower-case hexadecimal digits.")
        if self.coverage.selection is not None:
            self.coverage.mask()
        expected = archive_name(self.info)
        if self.archive.name != expected:
            raise ReleaseError(f"{MANIFEST}: archive.name={self.archive.name!r} must be {expected!r}, after the dataset.")
        known = {name for name in self.arrays if name in ARRAYS}
        if known not in ({*ARRAYS}, {name for name in ARRAYS if name.startswith("train_")}):
            raise ReleaseError(f"{MANIFEST}: arrays must have the keys {', '.join(ARRAYS)}; it has {', '.join(sorted(known))}.")

    @classmethod
    def read(cls, folder: Path | str) -> Manifest:
        """Read the manifest of a release.

        Raises:
            ReleaseError: There is none, or it is not valid.
        """
        path = Path(folder) / MANIFEST
        for result in (Path(folder), Path(folder).parent):
            if is_folder_result(result):
                raise ReleaseError(f"{folder} belongs to a protected folder of images; name the whole result, {result}.")
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{folder} is not a protected dataset: it has no {MANIFEST}. Name the folder that holds one.")
        if path.stat().st_size > _LARGEST:
            raise ReleaseError(f"{path} is larger than {_LARGEST} bytes, which no manifest is.")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ReleaseError(f"{path} cannot be read ({error}).") from error


def is_folder_result(path: Path) -> bool:
    """Return whether a folder may hold the result of a protected folder of images."""
    return all((path / RELEASE / name).is_file() for name in (MANIFEST, FILES))


def method_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the method that made the noise, from the settings of a manifest."""
    method = settings.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return name if isinstance(name, str) else "not recorded"


def datamodule_fault(path: Path) -> str:
    """Say what is wrong with the config file of a release: whoever runs it runs what it names, and trains on what it points at.

    It may name our class and its own folder, and nothing else.
    """
    try:
        config = load_yaml(path.read_text(encoding="utf-8") if path.stat().st_size <= _LARGEST_CONFIG else "")
        root = config["data"]["init_args"]["root"]
        if config != {"data": {"class_path": "PoisonedDataModule", "init_args": {"root": root}}}:
            return "it names something else than PoisonedDataModule and this folder; do not run it"
        if (path.parent / root).resolve() == path.parent.resolve():
            return ""
        return f"its root is {root!r}, not this folder; write root: . there"
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return "it does not name PoisonedDataModule and this folder; do not run it"


def archive_name(info: DatasetInfo) -> str:
    """Return the file name of a release's arrays: the one under which MedMNIST's own package looks for that dataset and size.

    Raises:
        ReleaseError: The dataset's name is not made of letters, digits, ``_``, ``.`` and ``-``.
    """
    if not _NAME.fullmatch(info.name):
        raise ReleaseError(f"dataset.name={info.name!r} must be letters, digits, '_', '.' and '-', at most 100 of them.")
    suffix = f"_{info.size}" if info.name in MEDMNIST and info.size != MEDMNIST[info.name].size else ""
    return f"{info.name}{suffix}.npz"


def extra_arrays(names: Iterable[str], publish: Publish) -> list[str]:
    """Return, of the arrays of an original file, those that MedMNIST's layout does not know and that a release holds."""
    withheld = () if publish == "all" else ("val_", "test_")
    return [name for name in names if name not in ARRAYS and not name.startswith(withheld)]


def safe_name(name: str) -> str:
    """Return a dataset's name with whatever a release's file name cannot hold replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100].lstrip("_.-") or "dataset"


def info_of(dataset: Mapping[str, Any]) -> DatasetInfo:
    """Return the description of a dataset from the plain values of a manifest.

    Raises:
        ReleaseError: A value is missing, or has another type than it must have.
    """
    info: DatasetInfo = parse(DatasetInfo, dataset, f"{MANIFEST}: dataset")
    return info
