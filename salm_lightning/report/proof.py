"""The first test of a release: the two models that were trained when it was made, one on the originals and one on the copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salm_lightning.checked import Count, Share, parse, read_json
from salm_lightning.data.base import DatasetInfo
from salm_lightning.metrics.learned import Scale, floors_of
from salm_lightning.runs.record import DONE

_RECORDS = ("protect.json", "classwise.json")
_RESULTS = ("victim-clean/results.json", "victim-protected/results.json")


@dataclass(frozen=True)
class _Record:
    status: str
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

    def kept(self, info: DatasetInfo) -> float | None:
        """Return the share of what the clean model learned that the other one learned, too; None if that is next to nothing."""
        floors = floors_of(info.task, info.num_classes, self.clean.majority)
        clean, protected = vars(self.clean.test), vars(self.protected.test)
        return Scale.of(floors, {name: clean[name] or 0.0 for name in floors}).kept(protected)


def read_proof(folder: Path, manifest_sha256: str) -> Proof | None:
    """Read the results that lie beside a release; None without any, or where the record does not say that they are this release's.

    Args:
        folder: Folder of the release.
        manifest_sha256: Checksum of the release's manifest.

    Raises:
        ReleaseError: They are no results.
    """
    records = [parse(_Record, read_json(path), path.name) for name in _RECORDS if (path := folder / name).exists()]
    paths = [folder / name for name in _RESULTS]
    done = any(record.status == DONE and record.results.get("release") == manifest_sha256 for record in records)
    if not done or not all(path.exists() for path in paths):
        return None
    clean, protected = (parse(Victim, read_json(path), f"{path.parent.name}/{path.name}") for path in paths)
    return Proof(clean, protected)
