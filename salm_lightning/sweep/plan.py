"""The plan of a sweep: every combination of the grid's values as a victim of the result, and the fits that they take."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from salm_lightning.cli.composition import merge
from salm_lightning.cli.messages import options_of
from salm_lightning.data import SPLITS, ImageDataModule, MedMNISTDataModule
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.datamodule import default_batch_size
from salm_lightning.errors import ConfigurationError, SalmError, did_you_mean
from salm_lightning.files import address, checksums_of
from salm_lightning.models import Architecture
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise.methods import Method
from salm_lightning.release import PoisonedDataModule
from salm_lightning.release.manifest import safe_name
from salm_lightning.runs.estimate import Network
from salm_lightning.runs.plan import noise_work, proof_work
from salm_lightning.sweep.job import FIXED, Cost, Job
from salm_lightning.sweep.options import FitOptions, compose

CLEAN = "clean"
_SAID_ALREADY = ("generator.data.name", "victim.model.arch", "seed")
"""Grid keys whose values those columns show."""


class Planner:
    """Turns a grid into victims and jobs; all settings are read, and all data and modules built once, on the way.

    ``generator`` and ``victim`` are options of ``fit``. Missing datasets are downloaded, if that is wanted, so that the checksum of their
    file is known.
    """

    def __init__(self, generator: Mapping[str, Any], victim: Mapping[str, Any], out: Path, download: bool) -> None:
        self._sections = {"generator": generator, "victim": victim}
        self._out = out
        self._download = download
        self._generators: dict[str, tuple[Job, ImageDataModule]] = {}
        self._victims: dict[str, dict[str, Any]] = {}

    def victims(self, grid: Mapping[str, Any], clean: bool) -> list[Job]:
        """Return every victim; those that come to the same settings are one.

        The grid has lists of values by dotted option; ``clean`` says whether victims are also trained on the clean images.

        Raises:
            ConfigurationError: A key or a value of the grid, or an option, cannot work; the message names the cell.
            SalmError: The data cannot be read.
        """
        _check_grid(grid)
        victims: dict[str, Job] = {}
        for values in itertools.product(*grid.values()):
            cell = dict(zip(grid, values, strict=True))
            try:
                on_clean, protected = self._cell(cell)
            except SalmError as error:
                shown = ", ".join(f"{key}={label(value)}" for key, value in cell.items()) or "no grid"
                raise ConfigurationError(f"The sweep's cell ({shown}) cannot work: {error}") from error
            for victim in (on_clean, protected) if clean else (protected,):
                victims.setdefault(victim.name, victim)
        return list(victims.values())

    def _cell(self, cell: Mapping[str, Any]) -> tuple[Job, Job]:
        """Return the victims on the clean images and on the release."""
        generator, images = self._generator(self._options("generator", cell))
        options, offered = self._options("victim", cell), options_of(type(images))[0]
        own = _own_data(options.pop("data", None))
        labels = {column: label(cell[key]) for key, column in columns_of(cell).items()}
        of_clean = {column: labels[column] if _concerns_clean(key, offered) else "" for key, column in columns_of(cell).items()}
        data, known = generator.settings["data"], options_of(PoisonedDataModule)[0]
        clean = {**data, "init_args": data["init_args"] | {name: value for name, value in own.items() if name in offered}}
        # The release is loaded as the clean data are, so that the two can be compared; the empty root takes the place of its own.
        shared = {name: value for name, value in data["init_args"].items() if name in known}
        protected = {"class_path": PoisonedDataModule.__name__, "init_args": {**shared, **own, "root": ""}}
        return (
            self._victim(options | {"data": clean}, generator, images, CLEAN, of_clean),
            self._victim(options | {"data": protected}, generator, images, generator.values["trained_on"], labels),
        )

    def _options(self, name: str, cell: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {key.removeprefix(f"{name}."): value for key, value in cell.items() if key.startswith(f"{name}.")}
        if "seed" in cell:
            chosen["seed_everything"] = cell["seed"]
        return compose(name, self._sections[name], chosen)

    def _generator(self, options: dict[str, Any]) -> tuple[Job, ImageDataModule]:
        """Return a noise generator's fit, with dataset and method as values, and its data."""
        key = address(options)
        if key not in self._generators:
            read = FitOptions(options, "generator").build()
            if not isinstance(read.model, NoiseGeneratorModule):
                raise ConfigurationError(f"generator.model={type(read.model).__name__} has to be NoiseGeneratorModule.")
            settings, data, method = read.resolved(), read.datamodule, read.model.method
            if self._download:
                data.prepare_data()
            source = None if (file := data.source_file) is None else file.sha256
            values = {"dataset": safe_name(data.info.name), "trained_on": method.name}
            name, identity = _identity("-".join(values.values()), settings, source)
            job = Job(self._out, name, settings, None, True, values, identity, cost_of(settings, data, method))
            self._generators[key] = job, data
        return self._generators[key]

    def _victim(
        self, options: dict[str, Any], generator: Job, images: ImageDataModule, trained_on: str, labels: dict[str, str]
    ) -> Job:
        key, release = address(options), None if trained_on == CLEAN else generator
        if key not in self._victims:
            read = FitOptions(options, "victim")
            if release is None and not isinstance(read.build().model, VictimModule):
                raise ConfigurationError(f"victim.model={type(read.model).__name__} has to be VictimModule.")
            self._victims[key] = read.resolved()
        settings = self._victims[key]
        arch, seed = Architecture.parse(settings["model"]["init_args"]["arch"]).name, str(settings["seed_everything"])
        fixed = (generator.values["dataset"], trained_on, arch, seed)
        addressed = placed = settings
        if release is not None:  # its address stands for its folder, which may be moved
            addressed, placed = (merge(settings, {"data.root": root}) for root in (release.name, str(release.release)))
        name, identity = _identity("-".join(fixed[:3]), addressed, generator.identity["source"])
        values = dict(zip(FIXED, fixed, strict=True)) | labels
        return Job(self._out, name, placed, release, False, values, identity, cost_of(settings, images))


def _concerns_clean(key: str, offered: Collection[str]) -> bool:
    """Return whether a grid key reaches victims on the clean images, whose data offer some options."""
    section, *parts = [part for part in key.split(".") if part != "init_args"]
    if section == "generator":
        return "data" in parts
    return parts[:1] != ["data"] or parts[1:2] == [] or parts[1] in offered


def cost_of(settings: Mapping[str, Any], data: ImageDataModule, method: Method | None = None) -> Cost:
    """Return the cost of a fit from all its options and the generator's data; those of MedMNIST need not be there.

    ``method`` is that of a noise generator, which also makes a release; for a victim, what a countermeasure adds is not counted.
    """
    model, trainer = settings["model"]["init_args"], settings["trainer"]
    batch_size = settings["data"]["init_args"]["batch_size"] or default_batch_size(data.image_size)
    arch = model["arch" if method is None else "source"]
    named = arch if isinstance(arch, str) else Architecture.parse(arch)
    network = Network(named, model["width"], data.channels, data.image_size, batch_size)
    official = INFO[data.info.name]["n_samples"] if isinstance(data, MedMNISTDataModule) else None
    sizes = official or {name: len(data.split(name)) for name in SPLITS}
    steps, interval = trainer["max_steps"], trainer["val_check_interval"]
    if steps < 1:  # one epoch where only a time is given
        steps = max(1, trainer["max_epochs"] or 1) * math.ceil(sizes["train"] / batch_size)
    looks = math.ceil(steps / interval) if isinstance(interval, int) else 1
    if method is None:
        work = proof_work(network, sizes, steps, looks)._replace(keeps_weights=True)
    else:
        updates = model["pgd_steps"] if model["loop"] == "fresh" else model["updates_per_visit"]
        work = noise_work(network, sizes, steps, looks, method, model["loop"], updates, model["last_pass_steps"])
    return Cost((work,), str(trainer["accelerator"]), trainer["precision"] or "32-true")


def _identity(words: str, settings: dict[str, Any], source: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name of a run and all that it depends on: settings, and sums of the data and of files that the model names."""
    identity = {"settings": settings, "source": source, "files": checksums_of({text: text for text in _texts(settings["model"])})}
    return f"{words}-{address(identity)[:12]}", identity


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _texts(below)


def _check_grid(grid: Mapping[str, Any]) -> None:
    """Refuse a key that names no option of the generator or the victim, or has no list of values."""
    for key, values in grid.items():
        section, dot, rest = key.partition(".")
        if key != "seed" and not (section in ("generator", "victim") and rest):
            hint = did_you_mean(section, ("generator", "victim") if dot else ("seed",)) or "."
            raise ConfigurationError(
                f"grid key {key!r} is not known{hint} Give 'seed', or an option of fit after 'generator.' or 'victim.', such as "
                "'generator.model.method'."
            )
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"grid key {key!r} has {values!r}; give a list of values, such as [{values or 0}].")


def columns_of(keys: Iterable[str]) -> dict[str, str]:
    """Return the column of every grid key that needs one: its whole name, so that lines of different grids never share a column."""
    columns = {key: ".".join(part for part in key.split(".") if part != "init_args") for key in keys}
    return {key: column for key, column in columns.items() if column not in _SAID_ALREADY}


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """Return what to call the columns of one grid: as many last parts as tell each from the others."""
    ends = [f".{column}" for column in columns]
    found = {}
    for parts in (end.split(".")[1:] for end in ends):
        names = (".".join(parts[-length:]) for length in range(1, len(parts)))
        column = ".".join(parts)
        found[column] = next((name for name in names if sum(end.endswith(f".{name}") for end in ends) == 1), column)
    return found


def label(value: Any) -> str:
    """Return a grid value as a short text, such as ``SALM percent=10``."""
    if isinstance(value, dict):
        return " ".join(_labels(value, "")) or "default"
    if isinstance(value, list):
        return " ".join(map(label, value))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _labels(options: Mapping[str, Any], path: str) -> Iterable[str]:
    for name, value in options.items():
        if name == "class_path":
            yield f"{path}={value}" if path else str(value)
        elif isinstance(value, dict):
            yield from _labels(value, path if name == "init_args" else f"{path}.{name}".lstrip("."))
        else:
            yield f"{path}.{name}={label(value)}".lstrip(".")


def _own_data(given: Any) -> dict[str, Any]:
    """Return the victim's own data options: how releases and clean images are loaded, never which ones."""
    release = PoisonedDataModule.__name__
    data = merge({"class_path": release}, {} if given is None else given)
    if data["class_path"].rpartition(".")[2] != release:
        raise ConfigurationError(
            f"victim.data={data['class_path']}: a sweep's victims train on its releases and on the generator's data. Name those under "
            "generator.data, and leave only options such as batch_size under victim.data."
        )
    options: dict[str, Any] = data.get("init_args") or {}
    return {name: value for name, value in options.items() if name != "root"}  # the config of a single run names its release
