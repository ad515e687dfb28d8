"""Files that say whether this installation wrote them: what came with a folder from elsewhere is never taken for a result of ours."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from salm_lightning.checked import parse, read_json
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import state_root, write_json

_SEAL = "seal"
_BYTES = 32


def write_sealed(path: Path, values: Mapping[str, Any], private: bool = False) -> None:
    """Write JSON values with a seal that only the key of this installation makes, for a file of this name.

    What is not a number, such as the AUC of a single class, is written as null: JSON has no NaN. A
    ``private`` file is its owner's alone to read.

    Raises:
        ConfigurationError: There is no key, and none can be made.
    """
    plain = json.loads(json.dumps(values), parse_constant=lambda name: None)
    write_json(path, {**plain, _SEAL: _seal(path.name, plain, _key())}, private)


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the values of a JSON file, and whether they are this installation's, in a file that had this name.

    Raises:
        ReleaseError: It is a link, is too large, or is not an object of JSON.
    """
    values = parse(dict, read_json(path), path.name)
    seal, key = str(values.pop(_SEAL, "")), _known_key()
    return values, key is not None and hmac.compare_digest(seal.encode(errors="replace"), _seal(path.name, values, key).encode())


def _seal(name: str, values: Mapping[str, Any], key: bytes) -> str:
    return hmac.digest(key, json.dumps([name, values], sort_keys=True).encode(), "sha256").hex()


def _known_key() -> bytes | None:
    path = state_root() / "key"
    return path.read_bytes() if path.is_file() else None


def _key() -> bytes:
    """Return the key, which is made where it is needed first; of several programs at once one makes it."""
    path = state_root() / "key"
    try:
        if not path.is_file():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent) as temporary:  # which only its owner may read
                temporary.write(secrets.token_bytes(_BYTES))
                temporary.flush()
                os.fsync(temporary.fileno())  # an empty key would be everybody's
                with suppress(FileExistsError):
                    os.link(temporary.name, path)
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"SALM_STATE_DIR={path.parent}: the key that marks results as yours cannot be kept there ({error.strerror}); name a folder "
            "that you may write, and keep it."
        ) from error
