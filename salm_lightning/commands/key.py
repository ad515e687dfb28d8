"""``salm-cli key``: a key pair of one's own, for the patches that bring originals back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from salm_lightning.console import say


def key(action: Literal["new"], path: Path) -> None:
    """Make a key: a secret one with a passphrase, and a public one, for whoever is to send you a patch.

    The passphrase is asked for twice; where nobody can be asked it is taken from ``SALM_PASSPHRASE``.

    Args:
        action: ``new``.
        path: File of the secret key, which only you can read; the public one is written beside it, with ``.pub`` behind its name.

    Raises:
        SalmError: A file of that name exists, the passphrase is too short, or crypt4gh is not installed.
    """
    from salm_lightning.partners.keys import new_key, new_passphrase, public_path_of, shown

    public = new_key(path, new_passphrase(path))
    say(
        f"Secret key:   {path}; keep it and its passphrase, neither can be made again\n"
        f"Public key:   {public_path_of(path)}; give it away. It is {shown(public)}"
    )
