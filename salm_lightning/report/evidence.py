"""What a report tells: a release, what an audit found out about it, and the first test that was made with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from salm_lightning.audit.results import AUDIT, PICTURES, QUALITY, AuditResult, Quality, audit_folder, beside
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.manifest import MANIFEST, Manifest
from salm_lightning.release.verify import Check, verify_release
from salm_lightning.report.pictures import Picture, draw_sample, read_pictures
from salm_lightning.report.proof import Proof, read_proof


@dataclass(frozen=True)
class Evidence:
    """A release, checked, and what is known about it.

    Attributes:
        manifest: The release's manifest.
        manifest_sha256: Checksum of its file.
        checks: What was checked of the release's files, all of it good.
        audit: What was tried against the noise and the verdict, if there is one.
        quality: Whether the images are still useful, if that was measured.
        proof: The two models of the command that made the release, if they were trained.
        pictures: Of the audit, in the order in which they are shown.
        sample: Some of the protected images.
    """

    manifest: Manifest
    manifest_sha256: str
    checks: tuple[Check, ...]
    audit: AuditResult | None
    quality: Quality | None
    proof: Proof | None
    pictures: tuple[Picture, ...]
    sample: Picture


def gather(release: Path, audit: Path | None = None) -> Evidence:
    """Check a release and read what was found out about it.

    Args:
        release: Folder of the release.
        audit: Folder of the audit; ``audit`` beside the release by default, which need not be there.

    Raises:
        ReleaseError: The release is not what its manifest says, a file of the audit is not valid, or it is about another release.
        ConfigurationError: ``audit`` is named and holds nothing of an audit.
    """
    manifest = Manifest.read(release)
    checks = tuple(verify_release(release))
    if failed := [f"{check.name}: {check.detail}" for check in checks if not check.ok]:
        raise ReleaseError(
            f"release={release} is not what was released ({'; '.join(failed)}). Get it again, or protect anew; nothing was written."
        )
    folder = audit_folder(release, None) if audit is None else audit
    if audit is not None and not any((audit / name).exists() for name in (AUDIT, QUALITY, PICTURES)):
        raise ConfigurationError(
            f"audit={audit} holds none of {AUDIT}, {QUALITY} and {PICTURES}; name the folder that salm-cli audit wrote, or leave it out."
        )
    digest, manifest_sha256 = manifest.archive.sha256, file_sha256(release / MANIFEST)
    return Evidence(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        checks=checks,
        audit=AuditResult.read(folder, digest),
        quality=Quality.read(folder, digest),
        proof=read_proof(beside(release), manifest_sha256),
        pictures=read_pictures(folder, digest),
        sample=draw_sample(release, manifest),
    )
