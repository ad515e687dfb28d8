"""The first test of a release: the two models that were trained when it was made, one on the originals and one on the copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salm_lightning.checked import Count, Share, parse, read_json
from salm_lightning.errors import ReleaseError

_RECORDS = ("protect.json", "classwise.json")
_RESULTS = ("victim-clean/results.json", "victim-protected/results.json")


@dataclass(frozen=True)
class _Record:
    results: dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """Metrics on the clean test split; one that is not defined, such as the AUC of a single class, is None."""

    acc: Share
    auc: Share | None
    balanced_acc: Share | None


@dataclass(frozen=True)
class Victim:
    """What a model was measured to be, as its ``results.json`` has it.

    Attributes:
        victim: Its settings.
        steps: Training steps.
        majority: Accuracy of always giving the most common answer.
        test: Its metrics.
    """

    victim: dict[str, Any]
    steps: Count
    majority: Share
    test: Tested

    @property
    def arch(self) -> str:
        """Its architecture."""
        return str(self.victim.get("arch", "model"))


@dataclass(frozen=True)
class Proof:
    """A model trained on the originals, and the same on the protected copy."""

    clean: Victim
    protected: Victim


def read_proof(folder: Path, manifest_sha256: str) -> Proof | None:
    """Read the results that lie beside a release; None without any, or where the record does not say that they are this release's.

    Args:
        folder: Folder of the release.
        manifest_sha256: Checksum of the release's manifest.

    Raises:
        ReleaseError: They are no results.
    """
    paths = [folder / name for name in _RESULTS]
    if manifest_sha256 not in [_recorded(folder / name) for name in _RECORDS] or not all(path.exists() for path in paths):
        return None
    try:
        return Proof(*(parse(Victim, read_json(path), f"{path.parent.name}/{path.name}") for path in paths))
    except ReleaseError as error:
        raise ReleaseError(f"{str(error).partition('; ')[0]}; take it away, or protect anew.") from error


def _recorded(path: Path) -> Any:
    """Return the checksum of the manifest of the release that a record is about; None without a record, or in one of another version."""
    try:
        return parse(_Record, read_json(path), path.name).results.get("release")
    except ReleaseError:
        return None
