"""The folder of a result of ``protect`` or ``classwise``: whether it may be taken, what of the result is there, and its record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from salm_lightning.errors import OutputExistsError
from salm_lightning.files import file_sha256
from salm_lightning.release.manifest import MANIFEST
from salm_lightning.release.writer import check_destination
from salm_lightning.runs.record import DONE, FAILED, INTERRUPTED, Run, plain, read_run, resume
from salm_lightning.runs.results import RESULTS

PROTECTED = "protected"
"""Folder of the release in that of a result."""
VICTIMS = ("clean", "protected")
"""What the victims of a proof are trained on."""


def results_file(folder: Path, name: str) -> Path:
    """Return where the results of a proof's victim are."""
    return folder / f"victim-{name}" / RESULTS


class ResultFolder:
    """The folder of a result: a record of what it depends on, parts on the way to it, a release, and the victims of its proof.

    Args:
        record: File of the record.
        identity: All that the result depends on, as JSON values.
        parts: Folders of what is made on the way.
        proof: Whether victims belong to the result.

    Attributes:
        goes_on: Whether what stands there was made with the same settings and is used again.
    """

    def __init__(self, record: Path, identity: dict[str, Any], parts: Sequence[Path], proof: bool) -> None:
        self.record, self.folder = record, record.parent
        self.release = self.folder / PROTECTED
        self._run = Run(plain(identity))
        self._parts, self._proof = [*parts, *(results_file(self.folder, name).parent for name in VICTIMS)], proof
        self.goes_on = False

    def check(self, overwrite: bool, keep_parts: bool = False) -> None:
        """Look whether the folder may be taken: what the same command has left unfinished goes on, anything else is in the way.

        Args:
            overwrite: Begin anew, whatever result stands there.
            keep_parts: Even so use again what was made on the way with the same settings.

        Raises:
            OutputExistsError: A result stands there, or an unfinished one with other settings, and ``overwrite`` is off; or what stands
                there is no result.
        """
        before = read_run(self.record)
        same = before is not None and before.identity == self._run.identity
        self.goes_on = same and (keep_parts or not overwrite)
        if not overwrite:
            self._run = resume(self.record, self._run.identity)
            if same and not (self.is_released and not self.victims_left):
                return
            if not same and (found := [part.name for part in self._parts if part.exists()]):
                raise OutputExistsError(
                    f"out={self.folder} holds {found[0]}, which no {self.record.name} says anything about; name another folder, or begin "
                    "anew with --overwrite true."
                )
        try:
            check_destination(self.release, overwrite)
        except OutputExistsError as error:
            raise OutputExistsError(f"out={self.folder}: {error}") from error

    @property
    def is_released(self) -> bool:
        """Whether the release stands that belongs to the result; another one may be replaced."""
        known, manifest = self._run.results.get("release"), self.release / MANIFEST
        return known is not None and manifest.is_file() and file_sha256(manifest) == known

    @property
    def victims_left(self) -> list[str]:
        """The victims that are still to be trained."""
        return [name for name in VICTIMS if self._proof and not (self.goes_on and results_file(self.folder, name).is_file())]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the folder, and record in the end what became of the result."""
        if not self.goes_on:
            for part in self._parts:
                shutil.rmtree(part, ignore_errors=True)
        self.goes_on, begin = True, time.monotonic()
        self._run.write(self.record)
        status, why = INTERRUPTED, ""
        try:
            yield
            status = DONE
        except Exception as error:
            status, why = FAILED, str(error)
            raise
        finally:
            self._run.ended(status, time.monotonic() - begin, self._run.results, why).write(self.record)

    def note_release(self) -> None:
        """Record that the release that stands there is the result's."""
        self._run = replace(self._run, results={"release": file_sha256(self.release / MANIFEST)})
        self._run.write(self.record)
