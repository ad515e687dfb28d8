"""``salm-cli restore``: the originals of a protected result, byte for byte."""

from __future__ import annotations

from pathlib import Path

from salm_lightning.console import progress, say
from salm_lightning.errors import ConfigurationError


def restore(result: Path, patch: Path, key: Path | None = None, out: Path | None = None) -> None:
    """Make the originals again of a protected result with a patch for your key: every byte of all files, or nothing.

    Args:
        result: What was published, or the result that holds it.
        patch: The patch, from the owner.
        key: Your secret key.
        out: Folder that is made for the originals.

    Raises:
        SalmError: Something stands at ``out``, the key does not open the patch, the patch was changed or is of another result.
    """
    if key is None or out is None:
        raise ConfigurationError(
            f"--{'key' if key is None else 'out'} is missing; give your secret key with --key, and a new folder with --out."
        )
    from salm_lightning.partners import patch as patches
    from salm_lightning.partners.keys import secret_key

    with progress("restoring originals") as on_progress:
        made = patches.restore(result, patch, secret_key(key), out, on_progress)
    say(
        f"Originals:  {out}: {made.files} restored, each with the sum that the patch names\n"
        f"Contents:   {made.sum}; the owner's patch showed the same, or it comes from somebody else"
    )
