"""What a report tells: a release, what an audit found out about it, and the first test that was made with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salm_lightning.audit.releases import ArchiveRelease, FolderResult, open_release
from salm_lightning.audit.results import AUDIT, PICTURES, QUALITY, AuditResult, Quality, audit_folder, beside
from salm_lightning.checked import Count, Share, parse
from salm_lightning.errors import ConfigurationError, DataError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.folder_manifest import FolderManifest
from salm_lightning.release.manifest import Manifest
from salm_lightning.release.verify import Check
from salm_lightning.report.folder import Files, PairOfPictures, about_folder
from salm_lightning.report.pictures import Picture, draw_sample, read_pictures
from salm_lightning.sealed import read_sealed

COMPARING = ("pictures/extremes.png", "pictures/examples.png")
"""Pictures that each audit of images has of originals beside protected ones, the one for the first page first."""
_VICTIMS = ("clean", "protected")


@dataclass(frozen=True)
class Tested:
    """Metrics on the clean test split; one that is not defined, such as the AUC of a single class, is None."""

    acc: Share
    auc: Share | None
    balanced_acc: Share | None


@dataclass(frozen=True)
class Victim:
    """What a model was measured to be, as its ``results.json`` has it: its settings, steps, the majority line and its metrics."""

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


@dataclass(frozen=True)
class Evidence:
    """A release, checked with good results, and what is known about it.

    ``kind`` names it, ``files`` is what the table of a folder's result says, and ``pairs`` are some of its files beside their originals.
    ``proof`` are the two models of the command that made the release; ``pictures`` are those of the audit in the order in which they are
    shown, ``sample`` is one of some of the protected images. What was not measured is None, and so is what was not measured here: of
    the files in ``elsewhere``, which this installation did not write, nothing is used.
    """

    kind: str
    manifest: Manifest | FolderManifest
    manifest_sha256: str
    checks: tuple[Check, ...]
    audit: AuditResult | None
    quality: Quality | None
    proof: Proof | None
    pictures: tuple[Picture, ...]
    sample: Picture
    elsewhere: tuple[str, ...]
    files: Files | None = None
    pairs: tuple[PairOfPictures, ...] = ()

    @property
    def shows_originals(self) -> bool:
        """Whether pictures of it hold original images, which are not for publication."""
        return bool(self.pairs) or any(picture.file in COMPARING for picture in self.pictures)


def gather(
    release: Path,
    audit: Path | None = None,
    source: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    keep_out: str | None = None,
) -> Evidence:
    """Check a release and read what was found out about it.

    Args:
        release: Its folder.
        audit: The folder of the audit: by default ``audit`` beside the release, which need not be there.
        source: The originals of a folder's result, with which every file is compared then.
        on_progress: Takes how many files were looked at, and of how many.
        keep_out: Masks or boxes that it was made with.

    Raises:
        ReleaseError: The release is not what its manifest says, a file of the audit is not valid, or it is about another release.
        DataError: ``source`` is not what it was made from.
        ConfigurationError: ``audit`` is named and holds nothing of an audit, or ``source`` or ``keep_out`` for a release of arrays.
    """
    opened = open_release(release)
    manifest = opened.manifest
    checks = tuple(opened.check(source, on_progress, keep_out))
    wrong = [check for check in checks if not check.ok]
    if any(check.name == "source" for check in wrong) and {check.name for check in wrong} <= {"images", "source"}:
        raise DataError(
            f"source={source} is not what {release} was made from ({wrong[0].detail}). Give the folder that was protected."
        )
    if failed := [f"{check.name}: {check.detail}" for check in wrong]:
        raise ReleaseError(
            f"release={release} is not what was released ({'; '.join(failed)}). Get it again, or protect anew; nothing was written."
        )
    folder = audit_folder(release, None) if audit is None else audit
    if audit is not None and not any((audit / name).exists() for name in (AUDIT, QUALITY, PICTURES)):
        raise ConfigurationError(
            f"audit={audit} holds none of {AUDIT}, {QUALITY} and {PICTURES}; name the folder that salm-cli audit wrote, or leave it out."
        )
    digest, manifest_sha256 = opened.sha256, file_sha256(opened.manifest_path)
    tests = [beside(release) / f"victim-{name}/results.json" for name in _VICTIMS]
    files = [path for path in (*(folder / name for name in (AUDIT, QUALITY, PICTURES)), *tests) if path.exists()]
    audited, quality, about = AuditResult.read(folder, digest), Quality.read(folder, digest), {}
    if isinstance(opened, FolderResult):
        worst = quality.similarity.get("ssim") if quality else None
        about = about_folder(opened, source, worst.worst_file if worst else "")
    return Evidence(
        kind=opened.kind,
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        checks=checks,
        audit=audited,
        quality=quality,
        proof=_read_proof(tests, manifest_sha256),
        pictures=read_pictures(folder, digest),
        elsewhere=tuple(f"{path.parent.name}/{path.name}" for path in files if not read_sealed(path)[1]),
        **({"sample": draw_sample(release, opened.manifest)} if isinstance(opened, ArchiveRelease) else about),
    )


def _read_proof(paths: Sequence[Path], manifest_sha256: str) -> Proof | None:
    """Read the results that lie beside a release; None without those of both victims, trained here for the release of this manifest."""
    found = [read_sealed(path) if path.exists() else ({}, False) for path in paths]
    wanted = [{"trained_on": name, "release": manifest_sha256} for name in _VICTIMS]
    if not all(ours and facts.items() <= values.items() for (values, ours), facts in zip(found, wanted, strict=True)):
        return None
    return Proof(*(parse(Victim, values, path.parent.name) for path, (values, _) in zip(paths, found, strict=True)))
