from .base import Facts, UnsupportedImage, Written, added, by_plane, compared, stored, upright
from .containers import CODECS, differences, facts, kept, read, unexplained, write

__all__ = [
    "CODECS",
    "Facts",
    "UnsupportedImage",
    "Written",
    "added",
    "by_plane",
    "compared",
    "differences",
    "facts",
    "kept",
    "read",
    "stored",
    "unexplained",
    "upright",
    "write",
]
