"""Why a command line was refused: which option is meant, which values it takes.

jsonargparse says what did not parse, as a tree of every attempt that it made. This module looks at the settings again, after
that, and finds the cause in the signatures of the classes: an unknown option or name, a value of another type, something that is
missing. Where it finds nothing, jsonargparse's own words are shown, shortened.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from salm_lightning.cli.config_files import Setting
from salm_lightning.errors import did_you_mean

EXAMPLES = {
    "model": "--model NoiseGeneratorModule --model.method SALM, or --config method/salm.yaml, or --config victim.yaml",
    "data": "--data MedMNISTDataModule --data.name pathmnist, or --config dataset/pathmnist.yaml",
    "data.name": "--data.name pathmnist",
    "data.path": "--data.path my_images.npz",
    "data.root": "--data.root lightning_logs/salm_pathmnist/protected",
    "model.method": "--model.method SALM",
}
"""What to give for options that have no default."""
_ABOUT_OPTIONS = ("config", "c", "h", "help", "print_config", "print_shtab")
"""What every command takes beside its own options."""
_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Expected a <class 'NoneType'>",
    "- Expected a path but",
)


def find_problem(root: Setting, known: Mapping[str, Any], taken: Collection[str] = ()) -> str | None:
    """Return what is wrong with the settings, or ``None`` if nothing is found.

    Args:
        root: All settings that the user gave.
        known: Type of every option of the command by its dotted name.
        taken: Dotted options that are not the user's to give.
    """
    top: dict[str, Any] = {}
    for name, hint in known.items():
        if name.endswith(".help"):
            continue
        group = name.partition(".")[0]
        if group == name:
            top[name] = hint
        else:
            top[group] = {**(top.get(group) or {}), name.partition(".")[2]: hint}
    top |= dict.fromkeys(_ABOUT_OPTIONS)
    problem = _unknown_option(root, list(top), "") or next(
        (found for name, child in root.children.items() if (found := _check(child, top.get(name), name, taken))), None
    )
    if problem:
        return problem
    missing = [name for name in ("model", "data") if name in top and _classes(top[name]) and name not in root.children]
    return " ".join(f"--{name} is missing: give for example {EXAMPLES[name]}." for name in missing) or None


def condense(message: str) -> str:
    """Return a message of jsonargparse without the attempts that say nothing."""
    lines = [line.rstrip() for line in message.splitlines()]
    return "\n".join(
        line for line in lines if line and not line.lstrip().startswith(_NOISE) and not line.lstrip().startswith("- <class")
    )


def _check(setting: Setting, hint: Any, path: str, taken: Collection[str]) -> str | None:
    """Return what is wrong with one option and those below it."""
    if hint is None:
        return None
    if isinstance(hint, dict):  # a plain group of options, such as the Trainer's
        return _unknown_option(setting, list(hint), f"{path} ") or _first(setting, hint, path, taken)
    if isinstance(setting.value, list):
        elements = [
            Setting.of(element, f"{setting.origin}, element {number}") for number, element in enumerate(setting.value, start=1)
        ]
        return next((found for element in elements if (found := _check(element, hint, path, taken))), None)
    bases = _classes(hint)
    if not bases:
        return _wrong_value(setting, hint)
    chosen, refusal = _choose(setting, bases, hint, path)
    if refusal or chosen is None:
        return refusal
    return _check_class(setting, chosen, path, taken)


def _choose(setting: Setting, bases: list[type], hint: Any, path: str) -> tuple[type | None, str | None]:
    """Return the class that a setting names, or what is wrong with the name."""
    choices = _choices(bases)
    if isinstance(setting.value, str):
        chosen = choices.get(setting.value) or _import(setting.value)
        if chosen is None and str not in _members(hint) and not _is_simple_value(setting.value, hint):
            return None, _not_known(f"{setting.origin}={setting.value}", setting.value, choices)
        late = [
            child
            for child in setting.children.values()
            if child.order < setting.order and child.from_option and setting.from_option
        ]
        if late:
            return (
                None,
                f"{late[0].origin} stands before {setting.origin} {setting.value}; give the class first, then its options.",
            )
        return chosen, None
    if not setting.children or setting.value is not None:
        return None, None
    if len(choices) == 1 and not inspect.isabstract(bases[0]):
        return bases[0], None
    if path in EXAMPLES:
        first = next(iter(setting.children.values()))
        return None, f"{first.origin} is given without --{path}; choose it first, one of: {', '.join(sorted(choices))}."
    return None, None


def _check_class(setting: Setting, cls: type, path: str, taken: Collection[str]) -> str | None:
    """Return what is wrong with the options of a class."""
    parameters = _parameters(cls)
    hints = _hints(cls)
    free = [name for name in parameters if f"{path}.{name}" not in taken]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    problem = None if open_ended else _unknown_option(setting, free, f"{cls.__name__} ")
    if problem:
        return problem
    defaulted = {
        name: _default_class(parameters[name].default, hints.get(name)) for name in setting.children if name in parameters
    }
    for name, child in setting.children.items():
        if child.value is None and defaulted.get(name) is not None:
            found = _check_class(child, defaulted[name], f"{path}.{name}", taken)  # type: ignore[arg-type]
        else:
            found = _check(child, hints.get(name), f"{path}.{name}", taken)
        if found:
            return found
    for name in free:
        parameter = parameters[name]
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and name not in setting.children:
            example = EXAMPLES.get(f"{path}.{name}")
            way_out = f"give for example {example}" if example else f"give --{path}.{name}"
            return f"{cls.__name__} needs {name}: {way_out}.{_listed(hints.get(name))}"
    return None


def _unknown_option(setting: Setting, choices: list[str], owner: str) -> str | None:
    for name, child in setting.children.items():
        if name not in choices:
            described = next(child.origins())
            shown = ", ".join(sorted(choice for choice in choices if choice not in _ABOUT_OPTIONS))
            return f"{described} is not an option{did_you_mean(name, choices) or '.'} {owner or 'The '}options: {shown}."
    return None


def _first(setting: Setting, hints: Mapping[str, Any], path: str, taken: Collection[str]) -> str | None:
    checks = (_check(child, hints.get(name), f"{path}.{name}", taken) for name, child in setting.children.items())
    return next((found for found in checks if found), None)


def _wrong_value(setting: Setting, hint: Any) -> str | None:
    """Return what a value of numbers, booleans and fixed words should have been; other types are jsonargparse's to explain."""
    if setting.value is None or setting.children:
        return None
    members = _members(hint)
    words = [str(word) for member in members if get_origin(member) is Literal for word in get_args(member)]
    words += [str(word.value) for member in members if _is_class(member, Enum) for word in member]
    understood = all(member in _WORDS or get_origin(member) is Literal or _is_class(member, Enum) for member in members)
    if not members or not understood or _is_simple_value(setting.value, hint) or str(setting.value) in words:
        return None
    plain = [_WORDS[member] for member in members if member in _WORDS]
    described = f"{setting.origin}={setting.value}"
    if not plain:
        return _not_known(described, str(setting.value), words)
    return f"{described}: expected {' or '.join([*plain, *map(repr, words)])}."


def _is_simple_value(value: Any, hint: Any) -> bool:
    """Return whether a value is a number or boolean that the type takes."""
    members = _members(hint)
    text = str(value).lower()
    if bool in members and text in ("true", "false", "yes", "no"):
        return True
    for kind in (int, float):
        if kind in members:
            try:
                kind(text)
            except ValueError:
                continue
            return True
    return False


def _not_known(described: str, value: str, choices: Collection[str]) -> str:
    return f"{described} is not known{did_you_mean(value, choices) or '.'} Choices: {', '.join(sorted(set(choices)))}."


def _listed(hint: Any) -> str:
    names = sorted(_choices(_classes(hint)))
    return f" Choices: {', '.join(names)}." if names else ""


def _members(hint: Any) -> list[Any]:
    """Return the alternatives of a type: of a union all, of a container its elements', of a factory what it returns."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [member for arg in args for member in _members(arg)]
    if origin is not None and origin is not Literal and args:
        last = args[-1] if getattr(origin, "__name__", "") == "Callable" else args[0]
        return _members(last)
    return [] if hint in (type(None), _torch("Tensor")) else [hint]  # no command line names a tensor


def _classes(hint: Any) -> list[type]:
    """Return the classes that a setting may name by a class name, as opposed to plain values."""
    if isinstance(hint, dict):
        return []
    return [
        member
        for member in _members(hint)
        if inspect.isclass(member)
        and member.__module__ not in ("builtins", "typing", "types")
        and not issubclass(member, (Enum, Path))
    ]


def _choices(bases: list[type]) -> dict[str, type]:
    """Return the classes to choose from by name; a base that others build on is none itself."""
    found = {cls.__name__: cls for base in bases for cls in _concrete(base)}
    return {name: cls for name, cls in found.items() if cls not in bases or len(found) == 1}


def _concrete(base: type) -> Iterator[type]:
    """Yield the public classes that can stand for ``base``."""
    if not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base
    below: list[type] = base.__subclasses__()
    for child in below:
        yield from _concrete(child)


def _import(name: str) -> type | None:
    """Return the class at a dotted path, or ``None``."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None
    return found if inspect.isclass(found) else None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters that are options: not what an optimiser or a schedule is given by its owner."""
    found = {name: value for name, value in inspect.signature(cls).parameters.items() if value.kind is not value.VAR_POSITIONAL}
    if issubclass(cls, (_torch("optim.Optimizer"), _torch("optim.lr_scheduler.LRScheduler"))):
        found.pop(next(iter(found)))
    return found


def _torch(name: str) -> Any:
    """Return a class of torch; while torch is not loaded nothing is one, and the empty tuple is no class's base."""
    return operator.attrgetter(name)(sys.modules["torch"]) if "torch" in sys.modules else ()


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):
        return {}


def _default_class(default: Any, hint: Any) -> type | None:
    """Return the class of a default such as ``lambda p: SGD(p, lr=0.1)``, which the user changes option by option."""
    if default is None and _torch("optim.Optimizer") in _classes(hint):
        return cast(type, _torch("optim.SGD"))  # which the parser begins with
    names = getattr(getattr(default, "__code__", None), "co_names", ())
    return next((cls for name, cls in _choices(_classes(hint)).items() if name in names), None)


def _is_class(value: Any, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base)
