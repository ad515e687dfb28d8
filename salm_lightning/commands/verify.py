"""``salm-cli verify``: check a protected dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from salm_lightning.release.verify import Check, verify_release


def verify(release: Path, source: Path | None = None) -> int:
    """Check a protected dataset and print one line per check.

    Args:
        release: Folder of the protected dataset.
        source: The original ``.npz`` file. Without it, only the files' sums are compared with the manifest.

    Returns:
        Exit code: 0 if all checks hold, else 1.
    """
    console = Console(soft_wrap=True, highlight=False)
    with _progress() as on_progress:
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


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, on terminals only."""
    console = Console(stderr=True)
    quiet = not sys.stderr.isatty() or bool(os.environ.get("CI"))
    columns = (TextColumn("comparing images"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("compare", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
