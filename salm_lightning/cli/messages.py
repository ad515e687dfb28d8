"""What is wrong with a command line, in one line: an option or a name that nobody knows, or the value that a type refuses.

The first two are found in the signatures of the classes that were chosen, because jsonargparse answers them with a tree of all its
attempts; the same walk spells names that were given in another case. All else is in jsonargparse's own words, shortened.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from salm_lightning.cli.composition import Setting
from salm_lightning.errors import did_you_mean

_KEY = re.compile(r'Parser key "([\w.]+)":')
_REASON = re.compile(r"(?:Expected an? (?!dot import|path but)|Not of type )(.+?)(?:\. Got value: .*|: .*)?$", re.MULTILINE)
_MISSING = re.compile(r"arguments are required: ([\w., ]+?)(?:\. Got value|$)", re.MULTILINE)


def unknown(settings: Setting, hints: Mapping[str, Any], taken: Collection[str] = ()) -> list[str]:
    """Return what nobody knows of a command's settings, in words, and spell the names of classes in them as the classes are called.

    ``hints`` are the types of all its options, by dotted names as those of ``taken``, which are not the user's to give.
    """
    top = {name: hint for name, hint in hints.items() if "." not in name}
    for path, hint in hints.items():
        group, dot, name = path.partition(".")
        if dot:  # a plain group of options, such as the Trainer's
            top[group] = {**(top[group] if isinstance(top.get(group), dict) else {}), name: hint}
    return list(_options(settings, top, "The", taken))


def _options(setting: Setting, hints: Mapping[str, Any], owner: str, taken: Collection[str]) -> Iterator[str]:
    for name, child in setting.children.items():
        if name in hints:
            yield from _option(child, hints[name], taken)
        elif name != "dict_kwargs":
            listed = ", ".join(sorted(hints))
            yield f"{child.origin} is not an option{did_you_mean(name, hints) or '.'} {owner} options: {listed}."


def _option(setting: Setting, hint: Any, taken: Collection[str]) -> Iterator[str]:
    if isinstance(hint, dict):
        yield from _options(setting, hint, setting.path, taken)
        return
    bases = _classes(hint)
    if isinstance(setting.value, list) and bases:
        origins = (f"{setting.origin}, element {number}" for number in itertools.count(1))
        elements = [Setting.of(value, origin, setting.path) for value, origin in zip(setting.value, origins, strict=False)]
        for element in elements:
            yield from _option(element, hint, taken)
        setting.value = [element.options() for element in elements]
        return
    chosen: Any = bases[0] if len(bases) == 1 and not inspect.isabstract(bases[0]) and setting.children else None
    if isinstance(setting.value, str) and bases:
        choices = {cls.__name__: cls for base in bases for cls in _concrete(base) if len(bases) == 1 or not cls.__subclasses__()}
        setting.value = {name.lower(): name for name in choices}.get(setting.value.lower(), setting.value)
        chosen = choices.get(setting.value) or imported(setting.value)
        if chosen is None and str not in _members(hint):
            closest = did_you_mean(setting.value, choices) or "."
            yield f"{setting.origin}={setting.value} is not known{closest} Choices: {', '.join(sorted(choices))}."
    if inspect.isclass(chosen):
        hints, open_ended = options_of(chosen)
        # What is optimised or scheduled is not the user's to give.
        made_by_owner = any(base.__name__ in ("Optimizer", "LRScheduler") for base in chosen.__mro__)
        names = [*hints, *(setting.children if open_ended else ())][made_by_owner:]
        known = {name: hints.get(name) for name in names if f"{setting.path}.{name}" not in taken}
        yield from _options(setting, known, chosen.__name__, taken)


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
    reasons = ["true or false" if reason == "bool" else plain_types(reason) for reason in _REASON.findall(rest)]
    if found is not None and reasons:
        value = found.value if not isinstance(found.value, dict) else found.options()
        expected = " or ".join(dict.fromkeys(reason for reason in reasons if reason != "NoneType"))
        closest = did_you_mean(str(value), re.findall(r"'(.+?)'", expected)) or "."
        return f"{found.origin}={value}: expected {expected}{closest}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip()) + way_out


def plain_types(text: str) -> str:
    """Return a text in which types stand by their names alone."""
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\]", lambda match: match[1] or match[2], text)


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
