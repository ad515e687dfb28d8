"""The plan of a sweep: every combination of the grid's values as a row of the result, and the fits that they take."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salm_lightning.cli.composition import merge
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import Original
from salm_lightning.errors import ConfigurationError, SalmError, did_you_mean
from salm_lightning.files import address, checksums_of
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.release import PoisonedDataModule
from salm_lightning.release.manifest import safe_name
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.options import FitOptions, compose

CLEAN = "clean"
FIXED = ("dataset", "trained_on", "arch", "seed")
"""Columns that every result has before those of the grid."""
_SAID_ALREADY = ("generator.data.name", "victim.model.arch", "seed")
"""Grid keys whose values those columns show."""


@dataclass(frozen=True)
class Row:
    """One victim of a sweep.

    Attributes:
        values: What tells it from others, by column: :data:`FIXED`, then the grid's keys; empty where a key does not concern it.
        job: Its fit.
    """

    values: dict[str, str]
    job: Job


@dataclass(frozen=True)
class _Generator:
    """A cell's noise generator, and the data that it protects.

    Attributes:
        job: Its fit.
        dataset: Name of the data.
        method: Name of the method.
        data: Options of the data, with defaults.
        data_class: Class of the data.
        source: SHA-256 of the file that the data come from; ``None`` for drawn data.
    """

    job: Job
    dataset: str
    method: str
    data: dict[str, Any]
    data_class: type[ImageDataModule]
    source: str | None


class Planner:
    """Turns a grid into rows and jobs; all settings are read, and all data and modules built once, on the way.

    Args:
        generator: Options of ``fit`` for the noise generators.
        victim: Options of ``fit`` for the victims.
        out: Folder of the sweep.
        download: Whether missing datasets are downloaded, so that the checksum of their file is known.
    """

    def __init__(self, generator: Mapping[str, Any], victim: Mapping[str, Any], out: Path, download: bool) -> None:
        self._sections = {"generator": generator, "victim": victim}
        self._out = out
        self._download = download
        self._generators: dict[str, _Generator] = {}
        self._victims: dict[str, Job] = {}
        self._read: dict[str, dict[str, Any]] = {}

    def rows(self, grid: Mapping[str, Any], clean: bool) -> list[Row]:
        """Return one row for every victim; those that come to the same settings are one.

        Args:
            grid: Values by dotted option.
            clean: Whether victims are also trained on the clean images.

        Raises:
            ConfigurationError: A key or a value of the grid, or an option, cannot work; the message names the cell.
            SalmError: The data cannot be read.
        """
        names = columns_of(check_grid(grid))
        rows: dict[str, Row] = {}
        for values in itertools.product(*grid.values()):
            cell = dict(zip(grid, values, strict=True))
            try:
                found = self._cell(cell, names, clean)
            except SalmError as error:
                shown = ", ".join(f"{key}={label(value)}" for key, value in cell.items()) or "no grid"
                raise ConfigurationError(f"The sweep's cell ({shown}) cannot work: {error}") from error
            for row in found:
                rows.setdefault(row.job.name, row)
        return list(rows.values())

    def _cell(self, cell: Mapping[str, Any], names: Mapping[str, str], clean: bool) -> list[Row]:
        generator = self._generator(self._options("generator", cell))
        options = self._options("victim", cell)
        own_data = _own_data(options.pop("data", None))
        on_clean, arch, seed = self._victim(options, _clean_data(generator, own_data), CLEAN, generator, None)
        protected, _, _ = self._victim(options, _protected_data(generator, own_data), generator.method, generator, generator.job)
        labels = {names[key]: label(value) for key, value in cell.items() if key in names}
        unconcerned = {name: "" for key, name in names.items() if not _concerns_clean(key, generator)}
        rows = [Row(_fixed(generator.dataset, generator.method, arch, seed) | labels, protected)]
        if clean:
            rows.insert(0, Row(_fixed(generator.dataset, CLEAN, arch, seed) | labels | unconcerned, on_clean))
        return rows

    def _options(self, name: str, cell: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {key.removeprefix(f"{name}."): value for key, value in cell.items() if key.startswith(f"{name}.")}
        if "seed" in cell:
            chosen["seed_everything"] = cell["seed"]
        return compose(name, self._sections[name], chosen)

    def _generator(self, options: dict[str, Any]) -> _Generator:
        key = address(options)
        if key not in self._generators:
            read = FitOptions(options, "generator").build()
            if not isinstance(read.model, NoiseGeneratorModule):
                raise ConfigurationError(f"generator.model={type(read.model).__name__} has to be NoiseGeneratorModule.")
            settings, data = read.resolved(), read.datamodule
            if self._download:
                data.prepare_data()
            file = Original(data).file
            dataset, method, source = safe_name(data.info.name), read.model.method.name, None if file is None else file.sha256
            name = f"{dataset}-{method}-{address(settings, source)[:12]}"
            job = Job(self._out, name, settings, makes_release=True)
            self._generators[key] = _Generator(job, dataset, method, settings["data"], type(data), source)
        return self._generators[key]

    def _victim(
        self, options: dict[str, Any], data: dict[str, Any], trained_on: str, generator: _Generator, release: Job | None
    ) -> tuple[Job, str, str]:
        """Return a victim's job, its architecture and its seed."""
        settings = self._victim_settings(options | {"data": data}, build=release is None)
        arch, seed = settings["model"]["init_args"].get("arch", ""), str(settings["seed_everything"])
        # The release's address stands for its folder, which may be moved.
        identity = merge(settings, {"data.root": release.name}) if release else [settings, generator.source]
        countermeasure = settings["model"]["init_args"].get("countermeasure") or {}
        if files := checksums_of(countermeasure.get("init_args") or {}):
            identity = [identity, files]
        if release is not None:
            settings = merge(settings, {"data.root": str(release.release)})
        name = f"{generator.dataset}-{trained_on}-{arch}-{address(identity)[:12]}"
        return self._victims.setdefault(name, Job(self._out, name, settings, release)), arch, seed

    def _victim_settings(self, options: dict[str, Any], build: bool) -> dict[str, Any]:
        key = address(options)
        if key not in self._read:
            read = FitOptions(options, "victim")
            if build and not isinstance(read.build().model, VictimModule):
                raise ConfigurationError(f"victim.model={type(read.model).__name__} has to be VictimModule.")
            self._read[key] = read.resolved()
        return self._read[key]


def check_grid(grid: Mapping[str, Any]) -> Sequence[str]:
    """Return the grid's keys.

    Raises:
        ConfigurationError: A key names no option of the generator or the victim, or has no list of values.
    """
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
    return list(grid)


def columns_of(keys: Iterable[str]) -> dict[str, str]:
    """Return the column of every grid key that needs one: its whole name, so that lines of different grids never share a column."""
    columns = {key: ".".join(part for part in key.split(".") if part != "init_args") for key in keys}
    return {key: column for key, column in columns.items() if column not in _SAID_ALREADY}


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """Return what to call the columns of one grid: as many last parts as tell each from the others."""
    columns = list(columns)
    return {column: column if column in FIXED else _short_name(column, columns) for column in columns}


def _short_name(column: str, columns: Sequence[str]) -> str:
    parts = column.split(".")
    names = (".".join(parts[-length:]) for length in range(1, len(parts)))
    others = [other for other in columns if other != column]
    return next((name for name in names if not any(f".{other}".endswith(f".{name}") for other in others)), column)


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


def _fixed(*values: str) -> dict[str, str]:
    return dict(zip(FIXED, values, strict=True))


def _own_data(given: Any) -> dict[str, Any]:
    """Return the victim's own data options: how releases and clean images are loaded, never which ones.

    Raises:
        ConfigurationError: They name data of their own.
    """
    release = PoisonedDataModule.__name__
    data = merge({"class_path": release}, {} if given is None else given)
    if data["class_path"].rpartition(".")[2] != release:
        raise ConfigurationError(
            f"victim.data={data['class_path']}: a sweep's victims train on its releases and on the generator's data. Name those under "
            "generator.data, and leave only options such as batch_size under victim.data."
        )
    options: dict[str, Any] = data.get("init_args") or {}
    return {name: value for name, value in options.items() if name != "root"}  # the config of a single run names its release


def _clean_data(generator: _Generator, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generator's data with those of the victim's data options that they have."""
    known = inspect.signature(generator.data_class).parameters
    options = {name: value for name, value in own.items() if name in known}
    return {**generator.data, "init_args": {**generator.data["init_args"], **options}}


def _concerns_clean(key: str, generator: _Generator) -> bool:
    """Return whether a grid key reaches victims on the clean images."""
    section, *parts = [part for part in key.split(".") if part != "init_args"]
    if section == "generator":
        return "data" in parts
    return parts[:1] != ["data"] or parts[1:2] == [] or parts[1] in inspect.signature(generator.data_class).parameters


def _protected_data(generator: _Generator, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a victim on the release, loaded as the clean data are, so that the two can be compared."""
    known = inspect.signature(PoisonedDataModule).parameters
    shared = {name: value for name, value in generator.data["init_args"].items() if name in known}
    # The empty root takes the place of the release's.
    return {"class_path": PoisonedDataModule.__name__, "init_args": {**shared, **own, "root": ""}}
