"""Values of a JSON file that know where they stand, so that a wrong one can be named."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from salm_lightning.errors import ReleaseError

_LARGEST = 2**24  # bytes; an audit of a hundred victims with their curves has a few hundred thousand
_T = TypeVar("_T")


@dataclass(frozen=True)
class Value:
    """A value and its place.

    Every method that reads it as something raises a :class:`ReleaseError` if it is something else.

    Attributes:
        raw: What the JSON holds.
        where: File and path of keys, such as ``audit.json: rows[2].arch``.
    """

    raw: Any
    where: str

    @classmethod
    def read(cls, path: Path) -> Value:
        """Read a JSON file.

        Raises:
            ReleaseError: It is a link, is too large, or is not JSON.
        """
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{path} is not a file; links are not followed.")
        if path.stat().st_size > _LARGEST:
            raise ReleaseError(f"{path} is larger than {_LARGEST} bytes, which no audit writes; make the audit again.")
        try:
            return cls(json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant), path.name)
        except (OSError, ValueError, RecursionError) as error:
            raise ReleaseError(f"{path} is not valid JSON ({error}); make the audit again.") from error

    def __getitem__(self, key: str) -> Value:
        members = self.members()
        if key not in members:
            raise ReleaseError(f"{self.where} lacks {key!r}; make the audit again.")
        return members[key]

    def require_release(self, archive_sha256: str) -> None:
        """Refuse what was found out about another release than the one whose archive has this checksum."""
        digest = self["release"]["archive_sha256"].text()
        if digest != archive_sha256:
            raise ReleaseError(
                f"{self.where} is about another release (archive_sha256={digest[:64]!r}, this one's is {archive_sha256}); audit this "
                "one, or name its audit with --audit."
            )

    def members(self) -> dict[str, Value]:
        """Return the values of an object by key."""
        joint = "." if ": " in self.where else ": "
        return {key: Value(raw, f"{self.where}{joint}{key}") for key, raw in self._of(dict, "an object").items()}

    def elements(self) -> list[Value]:
        """Return the values of a list."""
        return [Value(raw, f"{self.where}[{index}]") for index, raw in enumerate(self._of(list, "a list"))]

    def text(self) -> str:
        """Return a text."""
        return self._of(str, "a text")

    def flag(self) -> bool:
        """Return true or false."""
        return self._of(bool, "true or false")

    def count(self) -> int:
        """Return a whole number from 0."""
        if type(self.raw) is not int or self.raw < 0:
            self._refuse("a whole number from 0")
        return self.raw

    def number(self) -> float:
        """Return a finite number."""
        if type(self.raw) not in (int, float) or not abs(self.raw) <= sys.float_info.max:
            self._refuse("a number")
        return float(self.raw)

    def share(self) -> float:
        """Return a number from 0 to 1."""
        if not 0 <= self.number() <= 1:
            self._refuse("a number from 0 to 1")
        return self.number()

    def optional(self, read: Callable[[Value], _T]) -> _T | None:
        """Return what ``read`` makes of the value, or None for null."""
        return None if self.raw is None else read(self)

    def version(self, expected: int) -> None:
        """Refuse a file whose ``format_version`` is another one."""
        if self["format_version"].raw != expected:
            raise ReleaseError(
                f"{self.where} has format_version={reprlib.repr(self['format_version'].raw)}, this version of salm_lightning reads "
                f"{expected}; make the audit again, or install the version that made it."
            )

    def _of(self, kind: type[_T], name: str) -> _T:
        if not isinstance(self.raw, kind):
            self._refuse(name)
        return self.raw

    def _refuse(self, expected: str) -> NoReturn:
        raise ReleaseError(f"{self.where} must be {expected}, it is {reprlib.repr(self.raw)}; make the audit again.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
