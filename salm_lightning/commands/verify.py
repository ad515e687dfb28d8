"""``salm-cli verify``: check a protected dataset."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from salm_lightning.console import progress
from salm_lightning.data import MEDMNIST, MedMNISTDataModule
from salm_lightning.errors import ReleaseError
from salm_lightning.release import Manifest
from salm_lightning.release.verify import Check, verify_release


def verify(release: Path, source: str | None = None, root: Path | None = None) -> int:
    """Check a protected dataset and print one line per check.

    Args:
        release: Folder of the protected dataset.
        source: What was protected: a MedMNIST name, or the original ``.npz`` file. Without it, only the files' sums are compared with the
            manifest.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.

    Returns:
        Exit code: 0 if all checks hold, else 1.
    """
    console = Console(soft_wrap=True, highlight=False)
    original = None if source is None else _original(source, root, release)
    with progress("comparing images") as on_progress:
        checks = verify_release(release, original, on_progress)
    for check in checks:
        console.print(_line(check))
    failed = [check.name for check in checks if not check.ok]
    if failed:
        console.print(Text(f"{release}: {len(failed)} of {len(checks)} checks FAILED: {', '.join(failed)}"))
        return 1
    against = "only sums were checked, give --source to check the rest" if original is None else f"compared with {original}"
    console.print(Text(f"{release}: all {len(checks)} checks hold ({against})."))
    return 0


def _original(source: str, root: Path | None, release: Path) -> Path:
    """Return the file that a user names; which size of MedMNIST's, the manifest says."""
    if source not in MEDMNIST:
        return Path(source)
    try:
        size = Manifest.read(release).info.size
    except ReleaseError:
        return Path(source)  # it will fail by its manifest
    return MedMNISTDataModule(source, size, root).source_path


def _line(check: Check) -> Text:
    mark = Text("ok  ", style="green") if check.ok else Text("FAIL", style="bold red")
    return Text.assemble(mark, f" {check.name}: {check.detail}")
