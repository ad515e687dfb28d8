"""``salm-cli verify``: check a protected dataset."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from salm_lightning import data
from salm_lightning.console import progress, say, visible
from salm_lightning.data.catalogue import archive_path
from salm_lightning.errors import SalmError
from salm_lightning.release.manifest import Manifest
from salm_lightning.release.verify import verify_release


def verify(release: Path, source: str | None = None, root: Path | None = None) -> int:
    """Check a protected dataset and print one line per check.

    Args:
        release: Folder of the protected dataset.
        source: What was protected: a MedMNIST name, the original ``.npz`` file or folder, or ``synthetic``. Without it, only
            the files' sums are compared with the manifest.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.

    Returns:
        Exit code: 0 if all checks hold, else 1.
    """
    console = Console(soft_wrap=True, highlight=False)
    original = None if source is None else _original(source, root, release)
    with progress("comparing images") as on_progress:
        checks = verify_release(release, original, on_progress)
    for check in checks:
        mark = Text("ok  ", style="green") if check.ok else Text("FAIL", style="bold red")
        console.print(Text.assemble(mark, visible(f" {check.name}: {check.detail}")))
    failed = [check.name for check in checks if not check.ok]
    if failed:
        say(f"{release}: {len(failed)} of {len(checks)} checks FAILED: {', '.join(failed)}")
        return 1
    shown = original if isinstance(original, Path) else source
    against = "only sums were checked, give --source to check the rest" if original is None else f"compared with {shown}"
    say(f"{release}: all {len(checks)} checks hold ({against}).")
    return 0


def _original(source: str, root: Path | None, release: Path) -> Path | data.ImageDataModule:
    """Return the file that a user names, without loading Lightning for it, or images that are drawn as the manifest says."""
    path = Path(source)
    try:
        manifest = Manifest.read(release)
        if source.lower() in data.MEDMNIST:
            return archive_path(source.lower(), manifest.info.size, root)
        if path.is_file():
            return path
        from salm_lightning.data.original import images_of_release

        return images_of_release(source, manifest.dataset, manifest.settings, root)
    except SalmError:
        return path  # what is wrong with it, or with the release, the checks say
