"""Composing what a user gives, in files and as options, into one set of settings.

One rule holds for every command, every option and every source. Later values win, option by option. A class (of a method, of data, of
an optimiser, ...) that takes the place of another begins with its own defaults: what was given for the earlier one is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import yaml

from salm_lightning.cli.config_files import read_config, resolve_config
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import expanded

DEFAULT = "default"
"""Where a setting comes from that the user has not named."""
CONFIG_OPTIONS = ("-c", "--config")
_FLAGS = ("-h", "--help", "--print_config", "--print_shtab")
_BOOLEANS = ("true", "false", "yes", "no")
_SHORT_NAMED = ("salm_lightning", "torch", "torchvision", "lightning", "pytorch_lightning")
"""Packages whose classes have a name without a dot, too."""


@dataclass(frozen=True)
class Rules:
    """What a command knows of some options.

    Attributes:
        defaults: Class and options that an option has until another class is named, by its dotted name.
        words: What the words for an option stand for, by its dotted name: a function from the word to a class with options, or to the
            word itself.
        plain: Options that are mappings of any names to any values.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    plain: Collection[str] = ()


@dataclass
class Setting:
    """An option as the user gave it, and the options below it.

    ``class_path`` and ``init_args`` are resolved: the setting ``model`` has the class's name as value, its options as children.

    Attributes:
        path: Its dotted name; empty for the root.
        origin: Where and how it was given, such as ``--model.width`` or ``my.yaml: model.width``.
        value: Its value as it stands; an empty mapping where only options below it are given.
        typed: Whether the value comes from the command line.
        spelt_out: Whether it was given as ``class_path``.
    """

    path: str = ""
    rules: Rules = field(default_factory=Rules)
    origin: str = ""
    value: Any = field(default_factory=dict)
    typed: bool = False
    spelt_out: bool = False
    children: dict[str, Setting] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, origin: str = "", path: str = "") -> Setting:
        """Return a setting for a value that may itself hold options."""
        setting = cls(path)
        setting.put(value, origin)
        return setting

    def find(self, path: str) -> Setting | None:
        """Return the setting at a dotted path below this one, or ``None``."""
        found: Setting | None = self
        for name in path.split("."):
            found = found.children.get(name) if found else None
        return found

    def options(self) -> Any:
        """Return the value with all options below it, as a config file holds them."""
        below = {name: child.options() for name, child in self.children.items()}
        if not isinstance(self.value, str):
            return below if self.value == {} else self.value
        if not below and not self.spelt_out:
            return self.value
        keywords = {"dict_kwargs": below.pop("dict_kwargs")} if "dict_kwargs" in below else {}
        return {"class_path": self.value, **({"init_args": below} if below else {}), **keywords}

    def put(self, value: Any, origin: str, typed: bool = False) -> None:
        """Take a later value over.

        Raises:
            ConfigurationError: It names another class, and options for the earlier one stand before it on the command line.
        """
        value = _at_home(value)
        if not self.origin and self.path in self.rules.defaults:
            self._put_options(self.rules.defaults[self.path], DEFAULT, False)
        if isinstance(value, str) and self.path in self.rules.words:
            value = self.rules.words[self.path](value)
        self.origin = self.origin or origin
        if isinstance(value, dict):
            self._put_options(value, origin, typed)
        else:
            self._put_value(value, origin, typed)

    def _put_value(self, value: Any, origin: str, typed: bool) -> None:
        names = isinstance(value, str)
        if not (names and isinstance(self.value, str) and same_class(value, self.value)):
            late = next((below for child in self.children.values() for below in child.walk() if below.typed), None)
            if typed and names and late:
                raise ConfigurationError(f"{late.origin} stands before {origin} {value}; give the class first, then its options.")
            if self.value != {} or not names:
                self.children = {}
        elif "." in self.value:
            value = self.value
        self.value, self.origin, self.typed = value, origin, typed

    def _put_options(self, options: Mapping[str, Any], origin: str, typed: bool) -> None:
        if isinstance(self.value, list) and self.value:
            self.value = [*self.value[:-1], merge(self.value[-1], options)]
            return
        if "class_path" in options:
            self._put_value(options["class_path"], origin, typed)
            self.spelt_out = True
        elif not isinstance(self.value, str):
            self.value = {}
        for name, below in options.items():
            first, dot, rest = str(name).partition(".") if self.path not in self.rules.plain else (name, "", "")
            if dot:
                below = {rest: below}
            if first == "init_args":
                self._put_options(below or {}, origin, typed)
            elif first != "class_path":
                self._put_below(first, below, origin, typed)

    def _put_below(self, name: str, value: Any, origin: str, typed: bool) -> None:
        appends, name = name.endswith("+"), name.rstrip("+")
        child = self.children.setdefault(name, Setting(f"{self.path}.{name}" if self.path else name, self.rules))
        if appends:
            value = [*(listed(child.options()) if child.origin else []), *listed(value)]
        child.put(value, f"{origin}.{name}" if self.path else origin + name, typed)

    def walk(self) -> Iterator[Setting]:
        """Yield this setting and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def _at_home(value: Any) -> Any:
    """Return a value, or the values of a list, with the user's home folder where ``~`` begins a path; no other word begins so."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~") and value != "~" else value


def merge(base: Any, value: Any) -> Any:
    """Return an option's value after a later one was given for it, by the rule of this module; dotted names reach below."""
    setting = Setting.of(deepcopy(base))
    setting.put(deepcopy(value), "")
    return setting.options()


def same_class(one: str, other: str) -> bool:
    """Return whether two names mean the same class: a short one in any case, or its path in a package that has short names."""
    return _short(one) == _short(other)


def _short(name: str) -> str:
    root, dot, _ = name.partition(".")
    return name if dot and root not in _SHORT_NAMED else name.rpartition(".")[2].lower()


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as its only element."""
    return value if isinstance(value, list) else [value]


@dataclass
class Composition:
    """All that a command line gives.

    Attributes:
        settings: The options, composed.
        flags: What is no option: ``--help`` and the like.
        words: What stands by itself.
        after_switch: The option before a word that may have been meant for it, by word.
    """

    settings: Setting
    flags: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    after_switch: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Return a command line of the same meaning, with one config."""
        options = self.settings.options()
        config = ["--config", json.dumps(options, default=str)] if options else []
        printing = [flag for flag in self.flags if flag.startswith("--print")]  # of all that stands before it
        return [*(flag for flag in self.flags if flag not in printing), *config, *self.words, *printing]


def compose(
    args: Sequence[str],
    switches: Collection[str] = (),
    rules: Rules | None = None,
    base: Mapping[str, Any] | None = None,
    origin: str = "",
) -> Composition:
    """Compose all options of a command line and its config files; what is typed comes after all files.

    ``switches`` mean ``true`` when they stand by themselves. ``base`` are options that come before all others, and ``origin`` is what
    messages put before the name of one of these.

    Raises:
        ConfigurationError: A config file cannot be read, an option has no value, or another one would drop it.
    """
    settings = Setting(rules=rules or Rules())
    settings.put(dict(base or {}), origin)
    found = Composition(settings)
    typed: list[tuple[str, str]] = []
    remaining = list(args)
    while remaining:
        argument = remaining.pop(0)
        option, equals, value = argument.partition("=")
        following = remaining[0] if remaining and not remaining[0].startswith("--") else None
        if not option.startswith("-"):
            found.words.append(_at_home(argument))
        elif option in _FLAGS or option.endswith(".help"):
            found.flags.append(argument)
            if option.endswith(".help") and following is not None and not equals:
                found.flags.append(remaining.pop(0))
        else:
            if not equals and option in switches and (following or "").lower() not in _BOOLEANS:
                value = "true"
                found.after_switch |= {following: option} if following else {}
            elif not equals and following is None:
                raise ConfigurationError(f"{option}: expected one argument.")
            elif not equals:
                value = remaining.pop(0)
            if option in CONFIG_OPTIONS:
                path = resolve_config(value)
                settings.put(read_config(path), f"{path}: ")
            else:
                typed.append((option.lstrip("-"), value))
    for name, value in typed:
        settings.put({name: _read(value, name.partition(".")[0] in settings.rules.plain)}, "--", typed=True)
    return found


def _read(text: str, whole: bool) -> Any:
    """Return an option's value, read as YAML if it looks like a list, a mapping or nothing; its type reads the rest, if it has one."""
    if text[:1] not in ("{", "[") and text not in ("null", "~") and not whole:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
