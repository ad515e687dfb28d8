"""``salm-cli verify``: check a protected dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from salm_lightning import data
from salm_lightning.console import progress, say, visible
from salm_lightning.data.catalogue import archive_path
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.release.manifest import Manifest, is_folder_result
from salm_lightning.release.verify import Check, verify_release


def verify(release: Path, source: str | None = None, root: Path | None = None, keep_out: str | None = None) -> int:
    """Check a protected dataset and print one line per check.

    Args:
        release: Folder of the protected dataset; of a protected folder of images the result, which holds ``protected``.
        source: What was protected: a MedMNIST name, the original ``.npz`` file or folder, or ``synthetic``. Without it, only
            the files' sums are compared with the manifest.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        keep_out: Masks or boxes that a folder was protected with, whose pixels have to be as they were.

    Returns:
        Exit code: 0 if all checks hold, else 1.

    Raises:
        ConfigurationError: An option is for another kind of release, or ``keep_out`` is given without ``source``.
    """
    if is_folder_result(release):
        if root is not None:
            raise ConfigurationError(f"root={root} is for MedMNIST names; {release} is the result of a folder. Leave it out.")
        return _folder(release, source, keep_out)
    if keep_out is not None:
        raise ConfigurationError(
            f"keep_out={keep_out} is for the results of folders; {release} is an .npz release. Leave it out."
        )
    original = None if source is None else _original(source, root, release)
    with progress("comparing images") as on_progress:
        checks = verify_release(release, original, on_progress)
    return _print(release, checks, original if isinstance(original, Path) else source)


def _folder(result: Path, source: str | None, keep_out: str | None) -> int:
    """Check the result of a folder."""
    from salm_lightning.release.verify_folder import original_tree, verify_folder

    original = None if source is None else original_tree(source)
    with progress("comparing files") as on_progress:
        checks = verify_folder(result, original, on_progress, keep_out)
    return _print(result, checks, original)


def _print(release: Path, checks: Sequence[Check], source: Path | str | None) -> int:
    """Print a line for each check, and return the exit code."""
    console = Console(soft_wrap=True, highlight=False)
    for check in checks:
        mark = Text("ok  ", style="green") if check.ok else Text("FAIL", style="bold red")
        console.print(Text.assemble(mark, visible(f" {check.name}: {check.detail}")))
    failed = [check.name for check in checks if not check.ok]
    if failed:
        say(f"{release}: {len(failed)} of {len(checks)} checks FAILED: {', '.join(failed)}")
        return 1
    against = "only sums were checked, give --source to check the rest" if source is None else f"compared with {source}"
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
