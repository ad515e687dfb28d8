"""What is wrong with a command line, in one line: an option or a name that nobody knows, or the value that a type refuses.

The first two are found in the signatures of the classes that were chosen, because jsonargparse answers them with a tree of all its
attempts; the same walk spells names that were given in another case. All else is in jsonargparse's own words, shortened.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from salm_lightning.cli.composition import Setting
from salm_lightning.errors import did_you_mean

_KEY = re.compile(r'Parser key "([\w.]+)":')
_REASON = re.compile(r"(?:Expected an? (?!dot import|path but)|Not of type )(.+?)(?:\. Got value: .*|: .*)?$", re.MULTILINE)
_MISSING = re.compile(r"arguments are required: ([\w., ]+?)(?:\. Got value|$)", re.MULTILINE)


class Walk:
    """A walk over settings and the types of the options that they set.

    It spells the names of classes as the classes are called, and collects what nobody knows.

    Args:
        hints: Type of every option of the command by its dotted name.
        taken: Dotted options that are not the user's to give.

    Attributes:
        problems: What is wrong, in the order in which it was found.
    """

    def __init__(self, hints: Mapping[str, Any], taken: Collection[str] = ()) -> None:
        self.problems: list[str] = []
        self._taken = taken
        self._top: dict[str, Any] = {}
        for path, hint in hints.items():
            group, dot, name = path.partition(".")
            if dot:  # a plain group of options, such as the Trainer's
                below = self._top[group] if isinstance(self._top.get(group), dict) else {}
                self._top[group] = {**below, name: hint}
            else:
                self._top[group] = hint

    def over(self, settings: Setting) -> Walk:
        """Walk over all settings."""
        self._options(settings, self._top, "The")
        return self

    def _options(self, setting: Setting, hints: Mapping[str, Any], owner: str) -> None:
        for name, child in setting.children.items():
            if name in hints:
                self._option(child, hints[name])
            elif name != "dict_kwargs":
                self.problems.append(
                    f"{child.origin} is not an option{did_you_mean(name, hints) or '.'} {owner} options: {', '.join(sorted(hints))}."
                )

    def _option(self, setting: Setting, hint: Any) -> None:
        if isinstance(hint, dict):
            self._options(setting, hint, setting.path)
            return
        bases = _classes(hint)
        if isinstance(setting.value, list) and bases:
            elements = [
                Setting.of(value, f"{setting.origin}, element {number}", setting.path)
                for number, value in enumerate(setting.value, start=1)
            ]
            for element in elements:
                self._option(element, hint)
            setting.value = [element.options() for element in elements]
            return
        chosen = self._choose(setting, bases, str in _members(hint))
        if chosen is not None:
            self._options(setting, self._parameters(chosen, setting), chosen.__name__)

    def _choose(self, setting: Setting, bases: list[type], takes_text: bool) -> type | None:
        """Return the class that a setting names, or the only one that there is."""
        if not setting.names_class or not bases:
            return bases[0] if len(bases) == 1 and not inspect.isabstract(bases[0]) and setting.children else None
        choices = {cls.__name__: cls for base in bases for cls in _concrete(base) if len(bases) == 1 or not cls.__subclasses__()}
        by_case = {name.lower(): name for name in choices}
        setting.value = by_case.get(setting.value.lower(), setting.value)
        chosen = choices.get(setting.value) or imported(setting.value)
        if chosen is None and not takes_text:
            self.problems.append(
                f"{setting.origin}={setting.value} is not known{did_you_mean(setting.value, choices) or '.'} "
                f"Choices: {', '.join(sorted(choices))}."
            )
        return chosen if inspect.isclass(chosen) else None

    def _parameters(self, cls: type, setting: Setting) -> dict[str, Any]:
        """Return the types of a class's options; of an open-ended class, whatever is given is one."""
        hints, open_ended = options_of(cls)
        names = [*hints, *(setting.children if open_ended else ())]
        if _is_made_by_its_owner(cls):
            names = names[1:]
        return {name: hints.get(name) for name in names if f"{setting.path}.{name}" not in self._taken}


def options_of(cls: type) -> tuple[dict[str, Any], bool]:
    """Return the types of a class's options, those that it passes on to its base among them, and whether it takes any others."""
    from jsonargparse._parameter_resolvers import get_signature_parameters

    parameters = inspect.signature(cls).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    resolved = {parameter.name: parameter.annotation for parameter in get_signature_parameters(cls)}
    return resolved, passes_on and len(resolved) < len(parameters)


def condense(message: str, settings: Setting | None = None, way_out: str = "", example: str = "") -> str:
    """Return a parser's message in one line that names the option as it was given, its value and what it takes."""
    path = ".".join(key for key in _KEY.findall(message) if key != "config")
    rest = _KEY.split(message)[-1]
    if missing := _MISSING.search(rest):
        names = ", ".join(f"--{f'{path}.' if path else ''}{name.removeprefix('fit.')}" for name in missing[1].split(", "))
        return f"{names} is missing{f'; for example: {example}' if example else ''}."
    found = settings.find(path) if settings and path else None
    reasons = [_plain(reason) for reason in _REASON.findall(rest)]
    if found is not None and reasons:
        value = found.value if not isinstance(found.value, dict) else found.options()
        expected = " or ".join(dict.fromkeys(reason for reason in reasons if reason != "NoneType"))
        closest = did_you_mean(str(value), re.findall(r"'(.+?)'", expected)) or "."
        return f"{found.origin}={value}: expected {expected}{closest}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip()) + way_out


def _plain(kind: str) -> str:
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\]", lambda match: match[1] or match[2], kind)


def _members(hint: Any) -> list[Any]:
    """Return the alternatives of a type: of a union all, of a container its elements', of a factory what it returns."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [member for arg in args for member in _members(arg)]
    if origin is not None and origin is not Literal and args:
        return _members(args[-1] if getattr(origin, "__name__", "") == "Callable" else args[0])
    return [hint]


def _classes(hint: Any) -> list[type]:
    """Return the classes that a setting may name, as opposed to plain values."""
    return [
        member
        for member in dict.fromkeys(_members(hint))
        if inspect.isclass(member)
        and member.__module__ not in ("builtins", "typing", "types", "datetime", "torch")
        and not issubclass(member, (Enum, Path))
    ]


def _concrete(base: type) -> Iterable[type]:
    """Yield the public classes that can stand for ``base``."""
    if not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base
    children: list[type] = base.__subclasses__()
    for child in children:
        yield from _concrete(child)


def imported(name: str) -> Any:
    """Return what stands at a dotted path, or ``None``."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None


def _is_made_by_its_owner(cls: type) -> bool:
    """Return whether the first argument, what is optimised or scheduled, is not the user's to give."""
    return any(base.__name__ in ("Optimizer", "LRScheduler") for base in cls.__mro__)
