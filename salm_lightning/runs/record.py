"""The record of a run, one JSON file: what identifies it, what became of it, how long it took and what came out.

Everything that trains or makes something keeps one: the results of ``protect`` and ``classwise``, the fits of a sweep, the victims of
an audit. Whether a run is done, goes on or is in the way is decided here, in the same words for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from salm_lightning.errors import OutputExistsError, ReleaseError
from salm_lightning.files import address
from salm_lightning.sealed import read_sealed, write_sealed

OPEN, DONE, FAILED, INTERRUPTED = "open", "done", "failed", "interrupted"
"""What became of a run; an open one has begun, or not even that, and has not ended."""
_MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Run:
    """A run as its record has it.

    Attributes:
        identity: All that the run depends on, as JSON values: settings, and checksums of the files that they name.
        status: ``open``, ``done``, ``failed`` or ``interrupted``.
        why: Why it is not done.
        seconds: Time that it took, over all its starts.
        results: What came out, as JSON values.
    """

    identity: dict[str, Any]
    status: str = OPEN
    why: str = ""
    seconds: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it has ended with its results."""
        return self.status == DONE

    @property
    def key(self) -> str:
        """The SHA-256 of its identity."""
        return address(self.identity)

    def ended(self, status: str, seconds: float, results: Mapping[str, Any] | None = None, why: str = "") -> Run:
        """Return what to record once it has ended, ``seconds`` after its last start."""
        return replace(self, status=status, why=why, seconds=self.seconds + seconds, results=dict(results or {}))

    def write(self, path: Path) -> None:
        """Write the record, sealed, completely or not at all."""
        write_sealed(path, asdict(self))


def read_run(path: Path, ours: bool = False) -> Run | None:
    """Return the run that a file records; ``None`` where there is no such file, or one that is no record.

    With ``ours`` also where this installation did not write it: anybody can say that a run is done.
    """
    try:
        values, sealed = read_sealed(path)
        return Run(**values) if sealed or not ours else None
    except (OSError, ReleaseError, TypeError):
        return None


def resume(path: Path, identity: Mapping[str, Any], name: str = "out") -> Run:
    """Return the run that a record holds, or a new one of this identity where there is none; nothing is written.

    ``name`` is what the user calls the record's folder.

    Raises:
        OutputExistsError: The record is of a run with other settings; the message names those that differ.
    """
    found, wanted = read_run(path), Run(plain(identity))
    if found is None:
        return wanted
    if found.identity != wanted.identity:
        differing = list(_differences(found.identity, wanted.identity))
        shown = "; ".join(differing[:_MOST_DIFFERENCES]) + ("; ..." if len(differing) > _MOST_DIFFERENCES else "")
        raise OutputExistsError(
            f"{name}={path.parent} holds a result with other settings ({shown}); repeat its command, name another folder, or begin anew "
            "with --overwrite true."
        )
    return found


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back: tuples as lists, enums as their text."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*there, *asked]):
        before, now = there.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{path}{key}.")
        elif before != now:
            yield f"{path}{key} is {before!r} there and {now!r} here"
