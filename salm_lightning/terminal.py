"""What is shown to somebody who watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from rich.console import Console
from rich.progress import wrap_file

_LONG = 2**29
"""Bytes of which reading takes seconds."""


def is_live(stream: TextIO) -> bool:
    """Return whether a bar that moves can be shown: the stream is a terminal that can, and this is not CI."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


@contextmanager
def watched(file: BinaryIO, num_bytes: int, what: str) -> Iterator[BinaryIO]:
    """Yield a file that shows, with the time that remains, how much of it has been read, if that takes long."""
    if num_bytes < _LONG or not is_live(sys.stderr):
        yield file
        return
    with wrap_file(file, num_bytes, description=what, console=Console(stderr=True), transient=True) as reader:
        yield reader
