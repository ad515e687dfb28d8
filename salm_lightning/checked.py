"""JSON and YAML that anybody may have written: JSON read as dataclasses, or refused by the name of what is wrong."""

from __future__ import annotations

import json
import reprlib
import sys
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from salm_lightning.errors import ReleaseError, look_up

_LARGEST = 2**24  # bytes; an audit of a hundred victims with their curves has a few hundred thousand
_MOST_VALUES = 10**5  # of YAML; a config has some dozens
_AGAIN = "make it again, or get it again from where it came."
_WORDS = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object", list: "a list"}

Count = Annotated[int, "from 0"]
"""A whole number from 0."""
Share = Annotated[float, "from 0 to 1"]
"""A number from 0 to 1."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ReleaseError: It is a link, is too large, or is not JSON.
    """
    if path.is_symlink() or not path.is_file():
        raise ReleaseError(f"{path} is not a file; links are not followed.")
    if path.stat().st_size > _LARGEST:
        raise ReleaseError(f"{path} is larger than {_LARGEST} bytes, which no audit writes; make it again.")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{path} is not valid JSON ({error}); {_AGAIN}") from error


def load_yaml(text: str) -> Any:
    """Return what YAML holds.

    Raises:
        yaml.YAMLError: It is not YAML, or holds very many values: a few aliases of aliases stand for millions.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MOST_VALUES} values, its aliases (*name) written out")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("its values lie too deep in each other") from error
    finally:
        loader.dispose()


def _values_in(node: yaml.Node, known: dict[int, float]) -> float:
    if id(node) not in known:
        known[id(node)] = inf  # to itself, which may be a part of itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(
            _values_in(part, known) for each in parts for part in (each if isinstance(each, tuple) else (each,))
        )
    return known[id(node)]


def require_release(raw: Any, where: str, archive_sha256: str) -> None:
    """Refuse what was found out about another release than the one whose archive has this checksum.

    Raises:
        ReleaseError: It was.
    """
    release = f"{where}: release"
    digest = parse(str, member(member(raw, "release", where), "archive_sha256", release), f"{release}.archive_sha256")
    if digest != archive_sha256:
        raise ReleaseError(
            f"{where} is about another release (archive_sha256={digest[:64]!r}, this one's is {archive_sha256}); audit this one, or name "
            "its audit with --audit."
        )


def parse(kind: Any, raw: Any, where: str) -> Any:
    """Return a value of JSON as a type says.

    Args:
        kind: The type: text, number, ``Share``, ``Count``, ``StrEnum``, tuple, mapping or dataclass. Fields with a default may be
            missing, and keys that a dataclass does not know are passed over.
        raw: What the JSON holds.
        where: File and path of keys, such as ``audit.json: rows[2].arch``.

    Raises:
        ReleaseError: It is something else.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if origin in (Union, UnionType):
        (wanted,) = (arg for arg in args if arg is not NoneType)
        return None if raw is None else parse(wanted, raw, where)
    if origin is Literal:
        if raw not in args:
            raise ReleaseError(f"{where}={reprlib.repr(raw)} must be one of: {', '.join(args)}.")
        return raw
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(look_up(where.rpartition(": ")[2], parse(str, raw, where), map(str, kind)))
    if origin is tuple:
        return tuple(parse(args[0], element, f"{where}[{index}]") for index, element in enumerate(parse(list, raw, where)))
    if origin is dict:
        return {key: parse(args[1], value, _below(where, key)) for key, value in parse(dict, raw, where).items()}
    if is_dataclass(kind):
        return _dataclass(kind, raw, where)
    if kind == Count:
        return raw if type(raw) is int and raw >= 0 else _refuse(raw, where, "a whole number from 0")
    if kind == Share:
        return share if 0 <= (share := parse(float, raw, where)) <= 1 else _refuse(raw, where, "a number from 0 to 1")
    if kind is float:
        return float(raw) if type(raw) in (int, float) and abs(raw) <= sys.float_info.max else _refuse(raw, where, "a number")
    return raw if type(raw) is kind else _refuse(raw, where, _WORDS[kind])


def member(raw: Any, key: str, where: str) -> Any:
    """Return a value of an object.

    Raises:
        ReleaseError: It is no object, or lacks the key.
    """
    if key not in parse(dict, raw, where):
        raise ReleaseError(f"{where} lacks {key!r}; {_AGAIN}")
    return raw[key]


def _dataclass(kind: Any, raw: Any, where: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind) if field.name in parse(dict, raw, where) or field.default is MISSING]
    values = {name: parse(hints[name], member(raw, name, where), _below(where, name)) for name in known}
    try:
        return kind(**values)
    except ValueError as error:  # its parts do not fit each other
        raise ReleaseError(f"{_below(where, str(error))}; {_AGAIN}") from error


def _below(where: str, key: str) -> str:
    return f"{where}{'.' if ': ' in where else ': '}{key}"


def _refuse(raw: Any, where: str, expected: str) -> NoReturn:
    raise ReleaseError(f"{where} must be {expected}, it is {reprlib.repr(raw)}; {_AGAIN}")


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinity, which JSON does not know; for ``json.loads(parse_constant=...)``.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not a number of JSON")
