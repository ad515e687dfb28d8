from .base import Facts, UnsupportedImage, Written, added, by_plane, compared, in_units, stored, upright
from .containers import CODECS, differences, facts, pixels_and_kept, read, unexplained, without_noise, write

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
    "in_units",
    "pixels_and_kept",
    "read",
    "stored",
    "unexplained",
    "upright",
    "without_noise",
    "write",
]
