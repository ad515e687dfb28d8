"""A folder that one program works in at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salm_lightning.errors import OutputExistsError


@contextmanager
def alone(out: Path, what: str) -> Iterator[None]:
    """Keep others out of a folder, also while processes are at work that a killed program has left: they inherit the lock.

    Args:
        out: The folder, which is made.
        what: What works there, such as ``sweep``.

    Raises:
        OutputExistsError: Another one is running there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(
                f"out={out}: another {what} is running there, or a run that it left; wait for it, or choose another folder."
            ) from error
        os.set_inheritable(lock.fileno(), True)
        yield
