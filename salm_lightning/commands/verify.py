"""``salm-cli verify``: check a protected dataset."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from salm_lightning.release.verify import Check, verify_release
from salm_lightning.summary import progress


def verify(release: Path, source: Path | None = None) -> int:
    """Check a protected dataset and print one line per check.

    Args:
        release: Folder of the protected dataset.
        source: The original ``.npz`` file. Without it, only the files' sums are compared with the manifest.

    Returns:
        Exit code: 0 if all checks hold, else 1.
    """
    console = Console(soft_wrap=True, highlight=False)
    with progress("comparing images") as on_progress:
        checks = verify_release(release, source, on_progress)
    for check in checks:
        console.print(_line(check))
    failed = [check.name for check in checks if not check.ok]
    if failed:
        console.print(Text(f"{release}: {len(failed)} of {len(checks)} checks FAILED: {', '.join(failed)}"))
        return 1
    against = "only sums were checked, give --source to check the rest" if source is None else f"compared with {source}"
    console.print(Text(f"{release}: all {len(checks)} checks hold ({against})."))
    return 0


def _line(check: Check) -> Text:
    mark = Text("ok  ", style="green") if check.ok else Text("FAIL", style="bold red")
    return Text.assemble(mark, f" {check.name}: {check.detail}")
