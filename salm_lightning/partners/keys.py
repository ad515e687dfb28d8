"""Keys of Crypt4GH (GA4GH's standard, version 1): a secret one in a file with a passphrase, and a public one to give away."""

from __future__ import annotations

import base64
import getpass
import io
import logging
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from salm_lightning.errors import ConfigurationError, OutputExistsError
from salm_lightning.files import write_bytes

PASSPHRASE = "SALM_PASSPHRASE"
"""Environment variable that holds the passphrase where nobody can be asked."""
_SHORTEST = 8
_LENGTH = 32
"""Bytes of an X25519 key, secret or public."""


def crypt4gh() -> Any:
    """Import crypt4gh, which is an extra, with all that is used of it.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import crypt4gh.header
        import crypt4gh.keys.c4gh
    except ImportError as error:
        raise ConfigurationError(
            f"keys and patches need crypt4gh ({error}); install it: pip install 'salm-lightning[keys]'"
        ) from error
    # It logs what it could not open, which is every other partner's part, and secrets for those who debug.
    logging.getLogger("crypt4gh").setLevel(logging.CRITICAL + 1)
    return crypt4gh


def new_passphrase(path: Path) -> str:
    """Return a passphrase for a key that is being made, from the environment, or asked for twice.

    Raises:
        ConfigurationError: It is too short, the two differ, or nobody can be asked.
    """
    given = _passphrase(f"Passphrase for {path}: ")
    if len(given) < _SHORTEST:
        raise ConfigurationError(f"the passphrase for {path} has {len(given)} characters; choose at least {_SHORTEST}.")
    if PASSPHRASE not in os.environ and _passphrase("The same again: ") != given:
        raise ConfigurationError(f"the two passphrases for {path} differ; nothing was written. Repeat the command.")
    return given


def new_key(path: Path, passphrase: str) -> bytes:
    """Write a secret key, which only this user may read, and beside it the public one, ``path`` with ``.pub`` behind it.

    Returns:
        The public key.

    Raises:
        OutputExistsError: One of the two exists; a key is never replaced.
    """
    library, public_path = crypt4gh(), public_path_of(path)
    for place in (path, public_path):
        if os.path.lexists(place):
            raise OutputExistsError(f"key={path}: {place} exists, and a key is never replaced; name another file.")
    secret = os.urandom(_LENGTH)
    public = public_of(secret)
    content = library.keys.c4gh.encode_private_key(secret, passphrase.encode(), None)
    write_bytes(path, _pem("PRIVATE", content), private=True)  # first: a public key alone might be given away
    try:
        write_bytes(public_path, _pem("PUBLIC", public))
    except OSError:
        path.unlink()
        raise
    return public


def public_path_of(path: Path) -> Path:
    """Return where the public key of a secret one is."""
    return path.with_name(path.name + ".pub")


def secret_key(path: Path) -> bytes:
    """Read a secret key, whose passphrase the environment holds or a person is asked for.

    Raises:
        ConfigurationError: It is no secret key, or the passphrase is wrong.
    """
    library = crypt4gh()
    if not path.is_file():
        raise ConfigurationError(f"key={path} is no file; name a secret key, as salm-cli key new makes one.")
    passphrase = _passphrase(f"Passphrase for {path}: ")
    try:
        with redirect_stderr(io.StringIO()):
            key = bytes(library.keys.get_private_key(str(path), lambda: passphrase))
    except SystemExit as error:  # so the library ends at a wrong passphrase, and at a key that was changed
        raise ConfigurationError(f"key={path}: the passphrase is wrong, or the file was changed.") from error
    except Exception as error:  # of any kind, from a file that may hold anything
        raise ConfigurationError(f"key={path} is no secret key of Crypt4GH ({error}); give the file without .pub.") from error
    if len(key) != _LENGTH:
        raise ConfigurationError(f"key={path} holds {len(key)} bytes, a secret key has {_LENGTH}.")
    return key


def public_key(path: Path) -> bytes:
    """Read a public key.

    Raises:
        ConfigurationError: It is none.
    """
    library = crypt4gh()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        key = bytes(library.keys.get_public_key(str(path)))
        X25519PrivateKey.generate().exchange(
            X25519PublicKey.from_public_bytes(key)
        )  # refuses points with which anybody could read
    except Exception as error:  # of any kind, from a file that may hold anything
        raise ConfigurationError(
            f"{path} is no public key of Crypt4GH ({error}); give the partner's file that ends in .pub."
        ) from error
    return key


def public_of(secret: bytes) -> bytes:
    """Return the public key of a secret one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def shown(public: bytes) -> str:
    """Return a public key as its file shows it, for two people to compare."""
    return base64.b64encode(public).decode("ascii")


def _passphrase(question: str) -> str:
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise ConfigurationError(f"nobody can be asked for a passphrase here; set {PASSPHRASE}.")
    return getpass.getpass(question)


def _pem(kind: str, content: bytes) -> bytes:
    text = base64.b64encode(content).decode("ascii")
    return f"-----BEGIN CRYPT4GH {kind} KEY-----\n{text}\n-----END CRYPT4GH {kind} KEY-----\n".encode()
