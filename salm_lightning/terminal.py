"""Whether somebody watches."""

from __future__ import annotations

import os
from typing import TextIO


def is_live(stream: TextIO) -> bool:
    """Return whether a bar that moves can be shown: the stream is a terminal that can, and this is not CI."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
