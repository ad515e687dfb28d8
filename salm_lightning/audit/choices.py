"""What a user chooses for an audit: a preset, countermeasures by name or with settings, architectures and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.audit.results import NONE
from salm_lightning.audit.trials import is_plain, settings_of
from salm_lightning.cli.parser import SalmArgumentParser, parse
from salm_lightning.countermeasures import COUNTERMEASURES, Countermeasure, Grey
from salm_lightning.data import DatasetInfo
from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.models import ARCHITECTURES
from salm_lightning.runs.effort import check_seed


@dataclass(frozen=True)
class Preset:
    """Everything that a user may leave open.

    Attributes:
        countermeasures: As on the command line.
        archs: Architectures; the first one is the main one.
        seeds: Seeds.
        width: Width factor of the victims.
        steps: Training steps of each victim.
        cross: Every countermeasure with every architecture; else countermeasures with the first one, and the others without any.
        compared: At most so many images are compared with their originals; None for all.
    """

    countermeasures: tuple[Any, ...]
    archs: tuple[str, ...]
    seeds: tuple[int, ...]
    width: float
    steps: int
    cross: bool
    compared: int | None = None


def _with(class_path: str, **options: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": options}


_ALONE = tuple(
    name for name, kind in COUNTERMEASURES.items() if all(p.default is not p.empty for p in signature(kind).parameters.values())
)
"""Countermeasures that need no settings."""
PRESETS = {
    # Minutes on a CPU. Strong augmentation teaches next to nothing in so few steps; adversarial training takes several times as long.
    "quick": Preset(
        countermeasures=(NONE, "jpeg", "grey", "resample"),
        archs=("resnet18",),
        seeds=(0,),
        width=0.125,
        steps=300,
        cross=True,
        compared=2000,
    ),
    # Tables 2 to 4 of the paper, at its settings.
    "paper": Preset(
        countermeasures=(NONE, "mean", "median", "gaussian", "centercrop"),
        archs=("resnet18", "vgg11", "resnet50", "densenet121"),
        seeds=(0,),
        width=1.0,
        steps=20000,
        cross=False,
    ),
    "full": Preset(
        countermeasures=(
            NONE,
            *_ALONE,
            _with("JPEG", quality=50),
            _with("JPEG", quality=90),
            _with("AdversarialTraining", radius=4),
        ),
        archs=tuple(ARCHITECTURES),
        seeds=(0, 1, 2),
        width=1.0,
        steps=20000,
        cross=True,
    ),
}
"""Presets by name."""


@dataclass(frozen=True)
class Choice:
    """A countermeasure, and how it is written on the command line.

    Attributes:
        countermeasure: The countermeasure.
        text: A name, or class and options as YAML.
    """

    countermeasure: Countermeasure
    text: str


def read_countermeasures(values: Sequence[Any]) -> list[Choice]:
    """Return countermeasures from names, such as ``jpeg``, and classes with options; the first one is none at all, given or not.

    All else is compared with the victims without countermeasure. What is given twice counts once.

    Args:
        values: ``none``, names of :data:`~salm_lightning.countermeasures.COUNTERMEASURES`, class paths, or
            ``{class_path: JPEG, init_args: {quality: 10}}``.

    Raises:
        ConfigurationError: A name or an option is not known, or a value is out of range.
    """
    entries = [entry for value in values if (entry := _entry(value)) != NONE]
    parser = SalmArgumentParser(prog="salm-cli audit")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--countermeasures", type=list[Countermeasure])
    args = ["--countermeasures", json.dumps(entries)]
    made = parser.instantiate(parse(parser, args))["countermeasures"]
    chosen = {_key(Countermeasure()): Choice(Countermeasure(), NONE)}
    for entry, countermeasure in zip(entries, made, strict=True):
        chosen.setdefault(_key(countermeasure), Choice(countermeasure, json.dumps(entry) if isinstance(entry, dict) else entry))
    return list(chosen.values())


def effective(choices: Sequence[Choice], info: DatasetInfo) -> list[Choice]:
    """Return the countermeasures that do something to the images: taking the colours away does nothing to grey ones."""
    return [choice for choice in choices if not (isinstance(choice.countermeasure, Grey) and info.channels == 1)]


def untried(names: Iterable[str], info: DatasetInfo) -> list[str]:
    """Return the names of the known countermeasures that would do something and are not among those given."""
    tried = set(names)
    return [name for name, kind in COUNTERMEASURES.items() if name not in tried and not (kind is Grey and info.channels == 1)]


def check_archs(archs: Sequence[str]) -> list[str]:
    """Return architectures, each once.

    Raises:
        ConfigurationError: One is not known, or there is none.
    """
    if not archs:
        raise ConfigurationError(f"archs is empty; give at least one of: {', '.join(ARCHITECTURES)}.")
    return list(dict.fromkeys(look_up("archs", arch, ARCHITECTURES) for arch in archs))


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return seeds, each once.

    Raises:
        ConfigurationError: There is none, or one is out of range.
    """
    if not seeds:
        raise ConfigurationError("seeds is empty; give at least one, such as [0].")
    for seed in seeds:
        check_seed(seed, "seeds")
    return list(dict.fromkeys(seeds))


def _entry(value: Any) -> Any:
    """Return a countermeasure as the parser takes it, names resolved; what is no name at all is the parser's to refuse."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return {**value, "class_path": _class_of(value["class_path"])}
    return _class_of(value) if isinstance(value, str) else value


def _class_of(name: str) -> str:
    if "." in name:
        return name
    known = {NONE: NONE, **{key: kind.__name__ for key, kind in COUNTERMEASURES.items()}}
    return name if name in known.values() else known[look_up("countermeasures", name, known)]


def _key(countermeasure: Countermeasure) -> str:
    kind = NONE if is_plain(countermeasure) else type(countermeasure).__qualname__
    return json.dumps([kind, settings_of(countermeasure)], sort_keys=True)
