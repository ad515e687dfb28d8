"""The report itself: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from salm_lightning.audit.results import AUDIT
from salm_lightning.data.base import ANY_FINDING
from salm_lightning.release import Manifest
from salm_lightning.report import words
from salm_lightning.report.evidence import Audit, Evidence, Series


def render(evidence: Evidence, release: str, today: date) -> str:
    """Return the page.

    Everything that comes from the release and its audit is escaped. The page has no script and loads nothing; it also tells the
    browser so.

    Args:
        evidence: What there is to tell.
        release: The release's folder, as its commands are to name it.
        today: Date of the report.
    """
    method = evidence.manifest.method_name
    return _environment().get_template("report.html").render(
        evidence=evidence,
        manifest=evidence.manifest,
        audit=evidence.audit,
        quality=evidence.quality,
        missing=missing(evidence, release),
        method=method,
        paper=words.METHODS.get(method),
        words=words,
        verify=f"salm-cli verify {shlex.quote(release)}",
        original=evidence.manifest.source and shlex.quote(evidence.manifest.source.name),
        today=today,
        tables=_setting_tables(evidence),
    )  # fmt: skip


def missing(evidence: Evidence, release: str) -> dict[str, str]:
    """Return what the report lacks, each with the command that makes it."""
    command = shlex.join(
        ["salm-cli", "audit", release, "--source", _audit_source(evidence.manifest), *_audit_options(evidence.audit)]
    )
    quality = evidence.quality
    there = {
        "the verdict and the battery of trained models": evidence.audit,
        "image quality": quality,
        "segmentation": quality and quality.segmentation,
        "reading by a model trained on originals": quality and quality.readable,
        "pictures": evidence.pictures,
    }
    return {part: command for part, found in there.items() if not found}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("salm_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "decimals": _decimals, "spread": _spread, "plain": _plain}
    return environment


def _audit_source(manifest: Manifest) -> str:
    """Return what names the originals to ``salm-cli audit``, as far as a manifest tells it."""
    if manifest.source is None:
        return "synthetic"  # drawn, not read
    return manifest.info.name if manifest.dataset.get("labels") == ANY_FINDING else manifest.source.name


def _audit_options(audit: Audit | None) -> list[str]:
    """Return the options that make an audit go on where it stands; others would make another one."""
    settings = {} if audit is None else audit.settings
    given = {name: settings[name] for name in ("preset", "width", "steps", "batch_size", "precision") if name in settings}
    return [word for name, value in given.items() for word in (f"--{name}", _plain(value))]


def _setting_tables(evidence: Evidence) -> dict[str, list[tuple[str, str]]]:
    """Return every setting by table and dotted name."""
    manifest, audit = evidence.manifest, evidence.audit
    coverage = asdict(manifest.coverage)
    if coverage["selection"] is not None:
        coverage["selection"] = "one bit per image, in manifest.json"
    tables = {
        "Dataset": manifest.dataset,
        "Method and training of the noise": manifest.settings,
        "Bound": manifest.bound.to_dict(),
        "Measured on the stored bytes": manifest.measured.to_dict(),
        "Coverage": coverage,
        "Arrays": {name: f"{spec.dtype} {list(spec.shape)}" for name, spec in manifest.arrays.items()},
        "Versions": manifest.versions,
    }
    if audit is not None:
        tables |= {f"Audit ({AUDIT})": audit.settings, "Thresholds of the verdict": audit.verdict.thresholds}
    return {title: list(_flat(values)) for title, values in tables.items()}


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


def _decimals(value: float | None, digits: int = 3) -> str:
    return words.MISSING if value is None else f"{value:.{digits}f}"


def _spread(series: Series, digits: int = 1, scale: float = 100.0) -> str:
    """Write the smallest and the largest value over the seeds; nothing for a single one."""
    if len(series.known) < 2:
        return ""
    low, high = (f"{scale * bound:.{digits}f}" for bound in (min(series.known), max(series.known)))
    return f"{low} to {high}"
