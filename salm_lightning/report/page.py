"""The report itself: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from salm_lightning.audit.results import AUDIT, AuditResult, Matrix, mean
from salm_lightning.audit.words import named
from salm_lightning.data.base import Task
from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.release.folder_manifest import REGIONS_NOTE, FolderManifest
from salm_lightning.release.manifest import Manifest
from salm_lightning.report.evidence import COMPARING, Evidence
from salm_lightning.report.figures import decimals, learned, made, measured, percent

PLACEHOLDER = "ORIGINAL"
"""Stands in commands for the file of which a release was made, where nobody but its owner knows the place."""


def render(evidence: Evidence, release: str, today: date) -> str:
    """Return the page.

    Everything that comes from the release and its audit is escaped. The page has no script and loads nothing; it also tells the
    browser so. ``release`` is the release's folder, as its commands are to name it.
    """
    manifest = evidence.manifest
    picture = next((picture for file in COMPARING for picture in evidence.pictures if picture.file == file), evidence.sample)
    environment = Environment(
        loader=PackageLoader("salm_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mean": mean, "spread": _spread, "plain": _plain, "percent": percent, "decimals": decimals}
    environment.filters |= {"measured": measured, "named": named}
    return environment.get_template("report.html").render(
        **vars(evidence),
        picture=picture,
        shows_originals=evidence.shows_originals,
        others=[other for other in evidence.pictures if other is not picture],
        learned=learned(evidence),
        made=made(manifest),
        missing=missing(evidence, release),
        placeholder=placeholder(manifest),
        method=manifest.method_name,
        several=manifest.info.task is Task.MULTI_LABEL,
        verify=f"salm-cli verify {shlex.quote(release)}",
        original=_original(manifest),
        regions=REGIONS_NOTE if isinstance(manifest, FolderManifest) and manifest.needs_regions else "",
        today=today,
        recall=_recall(evidence.audit),
        tables=_setting_tables(evidence),
    )


def missing(evidence: Evidence, release: str) -> dict[str, str]:
    """Return what the report lacks, each with the command that makes it."""
    source = _original(evidence.manifest)
    command = shlex.join(["salm-cli", "audit", release, "--source", source, *_audit_options(evidence.audit)])
    quality = evidence.quality
    there = {
        "the verdict and the models trained against the noise": evidence.audit,
        "image quality": quality,
        "segmentation": quality and quality.segmentation,
        "reading by a model trained on originals": quality and quality.readable,
        "pictures": evidence.pictures,
    }
    return {part: command for part, found in there.items() if not found}


def placeholder(manifest: Manifest | FolderManifest) -> str:
    """Return what to say of the placeholder for the originals in a command; nothing where a command names them by itself."""
    if manifest.source is None or _original(manifest) != PLACEHOLDER:
        return ""
    kind = "folder" if isinstance(manifest, FolderManifest) else "file"
    return f"{PLACEHOLDER} stands for the {kind} {manifest.source.name} of which the release was made."


def _original(manifest: Manifest | FolderManifest) -> str:
    """Return the word by which a command finds the originals wherever it is run, or the placeholder."""
    if manifest.source is None:
        return "synthetic"  # drawn, not read
    name = manifest.info.name.removesuffix("-any")
    files = (f"{name}.npz", f"{name}_{manifest.info.size}.npz")
    return name if name in MEDMNIST and manifest.source.name in files else PLACEHOLDER


def _audit_options(audit: AuditResult | None) -> list[str]:
    """Return the options that make an audit go on where it stands; others would make another one."""
    settings = {} if audit is None else audit.settings
    given = {name: settings[name] for name in ("preset", "width", "steps", "batch_size", "precision") if name in settings}
    options = {"steps": "victim_steps"}
    return [word for name, value in given.items() for word in (f"--{options.get(name, name)}", _plain(value))]


def _recall(audit: AuditResult | None) -> list[tuple[str, int, float | None, float | None]]:
    """Return each class's name and test images, and the share of them that the first models recognise: protected, clean."""
    if audit is None or audit.confusion is None:
        return []

    def share(matrix: Matrix | None, number: int) -> float | None:
        return matrix[number][number] / sum(matrix[number]) if matrix and any(matrix[number]) else None

    found = audit.confusion
    return [
        (name, sum(found.protected[number]), share(found.protected, number), share(found.clean, number))
        for number, name in enumerate(found.class_names)
    ]


def _setting_tables(evidence: Evidence) -> dict[str, list[tuple[str, str]]]:
    """Return every setting by table and dotted name."""
    manifest, audit = evidence.manifest, evidence.audit
    tables: dict[str, Mapping[str, Any]] = {
        "Dataset": manifest.dataset,
        "Method and training of the noise": manifest.settings,
        **(_files_tables(manifest) if isinstance(manifest, FolderManifest) else _arrays_tables(manifest)),
        "Versions": manifest.versions,
    }
    if audit is not None:
        tables |= {f"Audit ({AUDIT})": audit.settings, "Thresholds of the verdict": audit.verdict.thresholds}
    return {title: list(_flat(values)) for title, values in tables.items()}


def _arrays_tables(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    coverage = asdict(manifest.coverage)
    if coverage["selection"] is not None:
        coverage["selection"] = "one bit per image, in manifest.json"
    return {
        "Bound": manifest.bound.to_dict(),
        "Measured on the stored bytes": asdict(manifest.measured),
        "Coverage": coverage,
        "Arrays": {name: f"{spec.dtype} {list(spec.shape)}" for name, spec in manifest.arrays.items()},
    }


def _files_tables(manifest: FolderManifest) -> dict[str, Mapping[str, Any]]:
    def some(*names: str) -> dict[str, Any]:
        return {name: value for name, value in asdict(manifest).items() if name in names}

    return {
        "Bound": {**some("radius", "bound", "scaling"), "range": list(manifest.range)},
        "Files": some("images", "copied", "largest", "changed_share", "noise_kept"),
    }


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the plain values of nested ones with their dotted names, in their order; depth is no matter."""
    pending: list[tuple[str, Any]] = [("", values)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping) and (value or not name):
            pending += [(f"{name}.{key}" if name else key, value[key]) for key in reversed(value)]
        elif isinstance(value, list) and any(isinstance(element, Mapping | list) for element in value):
            pending += [(f"{name}[{index}]", value[index]) for index in reversed(range(len(value)))]
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    """Write a value of JSON: a text as it is, a list of values with commas."""
    if isinstance(value, list) and value:
        return ", ".join(_plain(element) for element in value)
    return value if isinstance(value, str) else json.dumps(value)


def _spread(values: Sequence[float | None]) -> str:
    """Write the smallest and the largest share over the seeds in percent; nothing for a single one."""
    known = [100 * value for value in values if value is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if len(known) > 1 else ""
