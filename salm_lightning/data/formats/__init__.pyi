from .base import Facts, UnsupportedImage, Written, one_line, stored, upright
from .containers import CODECS, differences, facts, kept, read, unexplained, write

__all__ = [
    "CODECS",
    "Facts",
    "UnsupportedImage",
    "Written",
    "differences",
    "facts",
    "kept",
    "one_line",
    "read",
    "stored",
    "unexplained",
    "upright",
    "write",
]
