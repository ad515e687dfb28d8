"""``salm-cli report``: a release and its audit as one HTML file."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from salm_lightning.audit.results import beside, lies_in
from salm_lightning.console import progress, say
from salm_lightning.errors import ConfigurationError, OutputExistsError
from salm_lightning.files import remove_leftovers, write_text
from salm_lightning.report import Evidence, gather, missing, placeholder, render

_ENDINGS = (".html", ".htm")


def report(
    release: Path,
    audit: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    source: str | None = None,
    keep_out: str | None = None,
) -> None:
    """Write one HTML file that tells what was protected, how, and whether it holds.

    What the audit has not measured is left out, and the report names the command that measures it.

    Args:
        release: Folder of the protected dataset; of a protected folder of images the result, which holds ``protected``.
        audit: Folder that ``salm-cli audit`` wrote; ``audit`` beside the release by default.
        out: The HTML file; ``report.html`` beside the release by default.
        overwrite: Replace a file that stands at ``out``.
        source: The folder that was protected, for its result: every file is compared with its original, and some are shown.
        keep_out: Masks or boxes that a folder was protected with, whose pixels have to be as they were.

    Raises:
        SalmError: The release or a file of the audit is not valid, or another file stands at ``out``.
    """
    path = beside(release) / "report.html" if out is None else out
    _check_path(path, release)
    with progress("comparing files") as on_progress:
        evidence = gather(release, audit, source, on_progress, keep_out)
    page = render(evidence, _seen_from(path, release), datetime.now(UTC).date())
    if os.path.lexists(path) and not (overwrite or _holds(path, page)):
        raise OutputExistsError(f"{path} exists; name another file with --out, or pass --overwrite true to replace it.")
    remove_leftovers(path.parent.glob(".*.tmp"))
    write_text(path, page)
    _summary(path, evidence, release)


def _check_path(path: Path, release: Path) -> None:
    """Refuse, before any work is done, a file that may not be written."""
    if path.suffix.lower() not in _ENDINGS:
        raise ConfigurationError(f"out={path} must end in .html; a browser prints that as PDF.")
    if lies_in(path, release):
        raise ConfigurationError(f"out={path} lies in the release, which may hold nothing else; put it beside {release}.")
    if path.is_dir():
        raise ConfigurationError(f"out={path} is a folder; name a file.")


def _holds(path: Path, page: str) -> bool:
    """Return whether a file has this page already, as after a command that was killed at its end."""
    return path.is_file() and path.read_bytes() == page.encode("utf-8", errors="replace")


def _seen_from(path: Path, release: Path) -> str:
    """Return the release's folder as commands in the report name it: from the report's folder, without those above it."""
    folder = release.resolve()
    beside = path.resolve().parent
    return folder.relative_to(beside).as_posix() if folder.is_relative_to(beside) else folder.name


def _summary(path: Path, evidence: Evidence, release: Path) -> None:
    verdict = "none yet" if evidence.audit is None else f"{evidence.audit.verdict.word}. {evidence.audit.verdict.text}"
    say(f"Report:   {path} ({path.stat().st_size / 2**20:.1f} MiB)\nVerdict:  {verdict}")
    if evidence.shows_originals:
        say("Private:  the report shows original images; it is not for publication")
    if evidence.elsewhere:
        say(
            f"Not used: {', '.join(evidence.elsewhere)}: made elsewhere, not checked; what counts is what this installation has measured"
        )
    if lacking := missing(evidence, str(release)):
        say(f"Missing:  {'; '.join(lacking)}\nMade by:  {next(iter(lacking.values()))}")
        if note := placeholder(evidence.manifest):
            say(note)
