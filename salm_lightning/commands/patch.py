"""``salm-cli patch``: give partners the originals back, encrypted for their keys."""

from __future__ import annotations

import os
from pathlib import Path

from salm_lightning.cli.composition import listed
from salm_lightning.console import command, progress, say
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import expanded


def patch(
    result: Path,
    source: str | None = None,
    for_: list[str] | str | None = None,
    add: list[str] | str | None = None,
    key: Path | None = None,
    out: Path | None = None,
    root: Path | None = None,
) -> None:
    """Write a patch, with which partners alone get the originals of a protected result back.

    Args:
        result: A result of ``protect``, or what is published of it.
        source: What was protected: the folder, the ``.npz`` file, or a MedMNIST name.
        for_: Public keys of the partners who may read it; give the option for each of them.
        add: Public keys of partners who may read it from now on, too; the originals are not encrypted again.
        key: Your own secret key. You can then read the patch, and add partners to it.
        out: The patch; ``patch.c4gh`` beside what is published by default.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.

    Raises:
        SalmError: An argument is wrong, the result is damaged, or ``source`` is not what it was made from.
    """
    if (for_ is None) == (add is None):
        raise ConfigurationError("give public keys either with --for, to write a patch, or with --add, to let others read one.")
    from salm_lightning.partners import keys
    from salm_lightning.partners.patch import add_partners, default_patch, write_patch

    readers = [keys.public_key(expanded(path)) for path in listed(add or for_)]
    target = out or default_patch(result)
    if add is not None:
        if key is None:
            raise ConfigurationError("--add needs --key, with which the patch can be read.")
        add_partners(target, keys.secret_key(key), readers)
        say(f"Patch:      {target}, which {_counted(len(readers), 'more partner')} can read")
        return
    if source is None:
        raise ConfigurationError("--for needs --source, what was protected.")
    original = _original(result, source, root)
    secret = keys.secret_key(key) if key else os.urandom(32)
    with progress("encrypting originals") as on_progress:
        made = write_patch(result, original, target, secret, [*readers, *([keys.public_of(secret)] if key else [])], on_progress)
    copied = f"; {_counted(made.files - made.carried, 'file')} published unchanged" if made.files > made.carried else ""
    say(
        f"Patch:      {target}, {target.stat().st_size / 1e6:.1f} MB, with {_counted(made.carried, 'original')}{copied}\n"
        f"For:        {_counted(len(readers), 'partner')}{', and your own key' if key else ''}\n"
        f"Contents:   {made.sum}; tell your partners by another way, restore shows it to them\n"
        f"Restore:    {command('salm-cli', 'restore', 'PROTECTED', target.name, '--key', 'KEY', '--out', 'ORIGINALS')}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _original(result: Path, source: str, root: Path | None) -> Path:
    """Return the file or folder that a user names."""
    from salm_lightning.data.catalogue import MEDMNIST, archive_path
    from salm_lightning.partners.patch import published
    from salm_lightning.release.manifest import Manifest

    if source.lower() in MEDMNIST:
        return archive_path(source.lower(), Manifest.read(published(result)).info.size, root)
    return expanded(source)
