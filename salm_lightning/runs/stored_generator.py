"""The noise generator of an earlier result, and what images that arrive later have to be like for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from salm_lightning.callbacks.saved import latest_checkpoint
from salm_lightning.checked import Count, parse
from salm_lightning.data import FolderDataModule, ImageDataModule, NpzDataModule
from salm_lightning.data.base import Task
from salm_lightning.data.tables import FolderOptions
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.files import file_sha256
from salm_lightning.models import Architecture
from salm_lightning.models.architecture import ARCHITECTURES
from salm_lightning.noise import methods
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.runs.effort import Training
from salm_lightning.runs.record import plain, read_run

RECORD, GENERATOR = "protect.json", "generator"
"""The record of a result, and the folder of the noise generator's run in it."""
_ITS_OWN = ("source_model", "width", "steps", "loop", "updates_per_visit", "source_learning_rate", "seed")
"""Options of a training that a stored generator settles."""


@dataclass(frozen=True)
class Dataset:
    """What a result's record says of the images that it was made from."""

    size: Count
    channels: Count
    task: Task
    class_names: tuple[str, ...]
    folder: dict[str, Any] | None = None

    @property
    def range(self) -> str | None:
        """What black and white were in images above 8 bits."""
        values = (self.folder or {}).get("range")
        return values if isinstance(values, str) else None


@dataclass(frozen=True)
class StoredGenerator:
    """The noise generator of a result of ``salm-cli protect``.

    Attributes:
        result: The result's folder.
        checkpoint: Its last checkpoint; ``None`` for a method that needs no training.
        sum: SHA-256 of that.
        made_from: The images that it was trained on.
        identity: All that the result depends on, from its record.
        ours: Whether this installation wrote the record: what others wrote is never run.
    """

    result: Path
    checkpoint: Path | None
    sum: str | None
    made_from: Dataset
    identity: Mapping[str, Any]
    ours: bool

    @classmethod
    def read(cls, result: Path) -> StoredGenerator:
        """Read what a result holds.

        Raises:
            ConfigurationError: It holds no generator, or one that is damaged.
        """
        run = read_run(result / RECORD)
        if run is None or "release" not in run.results:
            raise ConfigurationError(
                f"generator={result} is no result of salm-cli protect: it has no {RECORD} that names one; name the result's folder."
            )
        try:
            made_from = parse(Dataset, run.identity.get("dataset"), f"{RECORD}: dataset")
            checkpoint = latest_checkpoint(result / GENERATOR / "checkpoints")
        except SalmError as error:
            raise ConfigurationError(f"generator={result} cannot be used: {error}") from error
        total = None if checkpoint is None else file_sha256(checkpoint)
        return cls(result, checkpoint, total, made_from, run.identity, read_run(result / RECORD, ours=True) is not None)

    def method(self, given: Method) -> Method:
        """Return the method that the generator was made with.

        Raises:
            ConfigurationError: Another one is asked for, or it is a class that is not this program's and has to be named.
        """
        stored = self.identity.get("method")
        if plain(given.settings()) == stored:
            return self._with_checkpoint(given)
        name = stored.get("name") if isinstance(stored, Mapping) else None
        if given.settings() != SALM().settings():
            raise ConfigurationError(f"method={given.name}: generator={self.result} was made with {name}; leave --method out.")
        kinds: dict[str, type[Method]] = {kind.lower(): getattr(methods, kind) for kind in methods.__all__}
        kind = kinds.get(str(name))
        made = None if kind is None or inspect.isabstract(kind) else self._built(kind, dict(stored or {}))
        if made is None or plain(made.settings()) != stored:
            raise ConfigurationError(
                f"generator={self.result} was made with method {name}, which is none of this version's; give it with --method."
            )
        return self._with_checkpoint(made)

    def _with_checkpoint(self, method: Method) -> Method:
        if method.trains_source_on is not None and self.checkpoint is None:
            raise ConfigurationError(
                f"generator={self.result} holds no checkpoint in {GENERATOR}; name the result whose noise generator was trained."
            )
        return method

    def _built(self, kind: type[Method], stored: dict[str, Any]) -> Method:
        takes = inspect.signature(kind).parameters
        values = {name: value for name, value in stored.items() if name in takes}
        try:
            if isinstance(values.get("transform"), Mapping):
                values["transform"] = CropFlip(**values["transform"])
            return kind(**values)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"generator={self.result}: {RECORD} holds no method of ours ({error}).") from error

    def training(self, given: Training) -> Training:
        """Return how its source model was trained, and victims as they are asked for.

        Raises:
            ConfigurationError: Something else is asked for that the generator settles, or its source model is a class of the owner's.
        """
        default = {field.name: field.default for field in fields(Training)}
        its_own: dict[str, Any] = {name: self.identity.get(name) for name in _ITS_OWN}
        for name, value in its_own.items():
            asked = getattr(given, name)
            if asked not in (default[name], value) and not (name == "source_model" and self._is_same_source(asked)):
                raise ConfigurationError(f"{name}={asked}: that of generator={self.result} is {value}; leave --{name} out.")
        source = its_own["source_model"]
        if source not in ARCHITECTURES and not self.ours and not self._is_same_source(given.source_model):
            raise ConfigurationError(
                f"generator={self.result} has the source model {source}, which is code, and its {RECORD} was written elsewhere; give it "
                "with --source_model if you trust it."
            )
        try:
            return replace(given, **its_own)
        except (SalmError, TypeError) as error:
            raise ConfigurationError(f"generator={self.result}: {RECORD} holds no training of ours ({error}).") from error

    def _is_same_source(self, given: str | dict[str, Any] | None) -> bool:
        return given is not None and Architecture.parse(given, "source_model").settings() == self.identity.get("source_model")

    def reading(self, kind: object, size: int | None, given: FolderOptions) -> tuple[int | None, FolderOptions]:
        """Return the size at which images are read, and how a folder of them is: as the generator sees them, unless asked otherwise."""
        size = size or (None if kind is NpzDataModule else self.made_from.size)  # an archive has the size that it has
        return size, replace(given, range=given.range or self.made_from.range) if kind is FolderDataModule else given

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Let an error of images that are read as the generator needs them say so."""
        try:
            yield
        except SalmError as error:
            raise type(error)(f"{error} (Read as generator={self.result} needs it.)") from error

    def check(self, images: ImageDataModule) -> None:
        """Refuse images that the generator cannot protect.

        Raises:
            ConfigurationError: Classes, channels, size or range are others than those that it was trained with.
        """
        known, info = self.made_from, images.info
        reasons = []
        if not _same_classes(known.class_names, info.class_names):
            reasons.append(_classes(known.class_names, info.class_names))
        if (info.task is Task.MULTI_LABEL) != (known.task is Task.MULTI_LABEL):
            reasons.append(f"it knows {known.task} labels, theirs are {info.task}")
        if info.channels != known.channels:
            reasons.append(f"it sees {known.channels} channel(s), they have {info.channels}")
        if info.size != known.size:
            reasons.append(f"its working size is {known.size} pixels, theirs {info.size}")
        values = images.describe().get("folder", {}).get("range")
        if values != known.range:
            reasons.append(f"it sees the range {known.range or '0:255'}, theirs is {values or '0:255'}")
        if reasons:
            raise ConfigurationError(
                f"generator={self.result} does not fit {images.word}: {'; '.join(reasons)}. Train one for these images."
            )


def _same_classes(known: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Return whether classes are the same, as far as can be told: an archive has numbers in the place of names."""
    numbers = tuple(map(str, range(len(known))))
    return known == names or (len(known) == len(names) and numbers in (known, names))


def _classes(known: tuple[str, ...], names: tuple[str, ...]) -> str:
    missing = [name for name in known if name not in names]
    strange = [name for name in names if name not in known]
    parts = [
        *([f"without {', '.join(missing[:5])}"] if missing else []),
        *([f"with {', '.join(strange[:5])}, which it does not know"] if strange else []),
    ]
    return f"it knows {len(known)} classes, they come {' and '.join(parts) or 'in another order'}"
