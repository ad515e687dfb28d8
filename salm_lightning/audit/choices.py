"""What a user chooses for an audit: a preset, countermeasures, architectures and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from salm_lightning.audit.results import NONE
from salm_lightning.audit.trials import is_plain, settings_of
from salm_lightning.countermeasures import COUNTERMEASURES, JPEG, SHALLOW, AdversarialTraining, Countermeasure, Grey
from salm_lightning.data import DatasetInfo
from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.models import ARCHITECTURES, Architecture
from salm_lightning.runs.effort import check_seed


@dataclass(frozen=True)
class Preset:
    """Everything that a user may leave open.

    Attributes:
        countermeasures: Beside none at all.
        archs: Architectures; the first one is the main one.
        seeds: Of the victims, as width factor and training steps are.
        cross: Every countermeasure with every architecture; else countermeasures with the first one, and the others without any.
        compared: At most so many images are compared with their originals; None for all.
    """

    countermeasures: Sequence[Countermeasure | str]
    archs: Sequence[Any]
    seeds: Sequence[int]
    width: float
    steps: int
    cross: bool
    compared: int | None = None


_WITHOUT_SETTINGS = tuple(
    name for name, kind in COUNTERMEASURES.items() if all(p.default is not p.empty for p in signature(kind).parameters.values())
)
_ALL: tuple[Countermeasure | str, ...] = (*_WITHOUT_SETTINGS, *SHALLOW, JPEG(50), JPEG(90), AdversarialTraining(radius=4))
_QUICK = ("medmnistrecipe", "logisticregression", "jpeg", "grey", "resample")
_FILTERS, _PAPER = ("mean", "median", "gaussian", "centercrop"), ("resnet18", "vgg11", "resnet50", "densenet121")
PRESETS = {
    # Minutes on a CPU. Strong augmentation teaches next to nothing in so few steps; adversarial training takes several times as long.
    "quick": Preset(_QUICK, ("resnet18",), (0,), width=0.125, steps=300, cross=True, compared=2000),
    # Tables 2 to 4 of the paper, at its settings.
    "paper": Preset(_FILTERS, _PAPER, (0,), width=1.0, steps=20000, cross=False),
    "full": Preset(_ALL, tuple(ARCHITECTURES), (0, 1, 2), width=1.0, steps=20000, cross=True),
}
"""Presets by name."""


def choose(preset: str, **given: Any) -> Preset:
    """Return a preset with what is given in the place of its own; None leaves it.

    Architectures, as :class:`~salm_lightning.models.Architecture`, and seeds are there once each.

    Raises:
        ConfigurationError: A name is not known, a seed is out of range, or there is no architecture or seed.
    """
    chosen = PRESETS[look_up("preset", preset, PRESETS)]
    for name, example in {"archs": list(ARCHITECTURES), "seeds": [0]}.items():
        if given[name] is not None and not given[name]:
            raise ConfigurationError(f"{name} is empty; give at least one, such as {example}.")
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    for seed in chosen.seeds:
        check_seed(seed, "seeds")
    archs = dict.fromkeys(Architecture.parse(arch, "archs") for arch in chosen.archs)
    return replace(chosen, archs=tuple(archs), seeds=tuple(dict.fromkeys(chosen.seeds)))


def choose_countermeasures(values: Iterable[Countermeasure | str], info: DatasetInfo) -> list[Countermeasure]:
    """Return countermeasures, each once; the first one is none at all, given or not, which all else is compared with.

    Names are ``none`` and those of :data:`~salm_lightning.countermeasures.COUNTERMEASURES` and
    :data:`~salm_lightning.countermeasures.SHALLOW` in any case; what does nothing to the data is left out.

    Raises:
        ConfigurationError: A name is not known, or stands for a countermeasure that needs settings.
    """
    unique: dict[str, Countermeasure] = {}
    for value in (Countermeasure(), *values):
        kind = class_of(value) if isinstance(value, str) else type(value)
        try:
            each = kind() if isinstance(value, str) else value
        except TypeError as error:
            raise ConfigurationError(
                f"countermeasures={value!r} needs settings ({error}); give a {kind.__name__}(...)."
            ) from error
        unique[json.dumps([kind.__qualname__, settings_of(each)], sort_keys=True)] = each
    return [each for each in unique.values() if does_something(type(each), info)]


def class_of(name: str) -> type[Countermeasure]:
    """Return the countermeasure of a name in any case.

    Raises:
        ConfigurationError: It is not known.
    """
    known: dict[str, type[Countermeasure]] = {NONE: Countermeasure, **COUNTERMEASURES, **SHALLOW}
    return known[name.lower()] if name.lower() in known else known[look_up("countermeasures", name, known)]


def text_of(countermeasure: Countermeasure) -> str:
    """Return how a countermeasure is written on the command line: its name, or class and settings."""
    if is_plain(countermeasure):
        return NONE
    kind = type(countermeasure)
    own = kind in (*COUNTERMEASURES.values(), *SHALLOW.values())
    options = {name: getattr(countermeasure, name) for name in signature(kind).parameters if hasattr(countermeasure, name)}
    path = kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"
    return json.dumps({"class_path": path, "init_args": options}, default=str) if options else path


def does_something(kind: type[Countermeasure], info: DatasetInfo) -> bool:
    """Return whether a countermeasure changes some data at all: taking the colours away does nothing to grey images."""
    return not (issubclass(kind, Grey) and info.channels == 1)
