"""The containers that are taken, and what the package does with a file of any of them; its content says which, not its ending."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.formats.base import Codec, Facts, Pixels, UnsupportedImage, Written, compared, differing
from salm_lightning.data.formats.dicom import BARE, Dicom
from salm_lightning.data.formats.jpeg import Jpeg
from salm_lightning.data.formats.png import Png
from salm_lightning.data.formats.tiff import TiffFile
from salm_lightning.errors import DAMAGED
from salm_lightning.files import replacing

CODECS: tuple[Codec, ...] = (Dicom(), Png(), Jpeg(), TiffFile())

_OTHERS = (
    ("a GIF", 0, b"GIF8"),
    ("a BMP", 0, b"BM"),
    ("a WebP", 8, b"WEBP"),
    *(("a DICOM file without its preamble", 0, start) for start in BARE),
    ("a PDF", 0, b"%PDF"),
    ("a JPEG 2000", 4, b"jP  \r\n"),
    ("a JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("a JPEG XL", 4, b"JXL \r\n"),
    ("a JPEG XL", 0, b"\xff\x0a"),
    ("a HEIF, an AVIF or a video", 4, b"ftyp"),
    ("a ZIP archive", 0, b"PK\3\4"),
    ("packed with gzip, as NIfTI is", 0, b"\x1f\x8b"),
    ("a NIfTI file", 344, b"n+1\0"),
)
_MOST_BYTES = 2**31
"""More than three times what the most pixels take."""
_PRINTED = bytes(range(32, 127)) + b"\t\n\r"


def facts(path: Path) -> Facts:
    """Return what a file's headers say.

    Raises:
        UnsupportedImage: It cannot be protected as it is; the message names it, one clear reason, and the way out.
    """
    with _named(path), _opened(path) as stream:
        codec = _codec_of(stream.read(352))
        known = codec.facts(stream)
    return _with_name(known, path)


def read(path: Path) -> Pixels:
    """Return the pixels as stored, ``[pages, H, W, C]``, integers and orientation as they are, without alpha.

    Raises:
        UnsupportedImage: It cannot be read, or not be protected.
    """
    return pixels_and_kept(path)[0]


def pixels_and_kept(path: Path) -> tuple[Pixels, NDArray[np.bool_] | None]:
    """Return what :func:`read` does, and which pixels ``[pages, H, W]`` must not change; ``None`` if there are none.

    They are fully transparent, or of a DICOM file padding, or outside its ultrasound regions.

    Raises:
        UnsupportedImage: It cannot be read, or not be protected.
    """
    with _named(path):
        pixels, alpha, _, _ = _decoded(_content(path))
        return pixels, _transparent(alpha)


def without_noise(facts: Facts, still: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which pixels ``[pages, H, W]`` may have no noise, so that those of ``still`` keep their values: of a JPEG whole blocks."""
    if still is None:
        return None
    return next(codec for codec in CODECS if codec.container == facts.container).without_noise(facts, still)


def write(
    original: Path,
    pixels: Pixels,
    target: Path,
    radius: int,
    secret: bytes = b"",
    still: NDArray[np.bool_] | None = None,
) -> Written:
    """Write a file anew with other pixels: each decoded value, read back, is at most ``radius`` from what it was.

    Everything but the pixels' payload is carried over byte for byte, but for embedded pictures, which show the original.

    Args:
        original: The file; nothing of it is changed.
        pixels: What :func:`read` returns, with noise.
        target: Where it goes, completely or not at all.
        radius: Bound of each value's change, in stored integers.
        secret: What new identifiers are made of where files have some, as DICOM's have; empty keeps them.
        still: Further pixels ``[pages, H, W]`` than :func:`pixels_and_kept` says that are not to change; see :func:`without_noise`.

    Raises:
        UnsupportedImage: The original cannot be read, or not be protected.
        ValueError: The pixels are not of the original's kind, or change what must not be changed.
        OSError: The target cannot be written.
    """
    with _named(original):
        content = _content(original)
        before, alpha, codec, known = _decoded(content)
    all_still = [mask for mask in (_transparent(alpha), still) if mask is not None]
    _check(before, pixels, all_still, radius)
    with _named(original):
        made = codec.encode(content, known, pixels, radius, secret)
        after, alpha_after, _, _ = _decoded(made)
        changed = differing(codec.parts(content, blank=False), codec.parts(made, blank=False))
    change, asked = after.astype(np.int32) - before, pixels.astype(np.int32) - before
    largest, share = compared(before, after)
    if largest > radius or not _same(alpha, alpha_after) or any(change[mask].any() for mask in all_still):
        raise UnsupportedImage("cannot be written within the bound", "take it out of the folder, and tell us of it", original)
    with replacing(target) as temporary:
        temporary.write_bytes(made)
    total = np.vdot(asked.astype(np.float64), asked)
    return Written(largest, share, float(np.vdot(asked.astype(np.float64), change) / total) if total else 1.0, changed)


def differences(original: Path, other: Path) -> list[str]:
    """Return in words what differs between two files but the pixels' payload; nothing where nothing does.

    Raises:
        UnsupportedImage: One of them cannot be read.
    """
    return _compared(original, other, lambda codec, *two: differing(*(codec.parts(one, blank=False) for one in two)))


def unexplained(original: Path, other: Path) -> list[str]:
    """Return those :func:`differences` which :func:`write` does not make, as it does when it leaves out embedded pictures.

    Raises:
        UnsupportedImage: One of them cannot be read.
    """
    return _compared(original, other, lambda codec, *two: codec.unexplained(*two))


def _compared(original: Path, other: Path, look: Callable[[Codec, bytes, bytes], tuple[str, ...]]) -> list[str]:
    contents, codecs = [], []
    for path in (original, other):
        with _named(path):
            contents.append(_content(path))
            codecs.append(_codec_of(contents[-1]))
    if codecs[0] is not codecs[1]:
        return [f"{codecs[0].container} has become {codecs[1].container}"]
    with _named(other):
        return list(look(codecs[0], contents[0], contents[1]))


def _opened(path: Path) -> BinaryIO:
    """Open a file of a size that an image may have; a pipe would keep us waiting."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise UnsupportedImage("is no file", "take it out of the folder")
    if state.st_size > _MOST_BYTES:
        raise UnsupportedImage(f"has {state.st_size:,} bytes, more than {_MOST_BYTES:,}", "scale it down, or cut it into tiles")
    return path.open("rb")


def _content(path: Path) -> bytes:
    with _opened(path) as stream:
        return stream.read(_MOST_BYTES + 1)


def _codec_of(head: bytes) -> Codec:
    for codec in CODECS:
        if head.startswith(codec.signatures, codec.starts_at):
            return codec
    if not head:
        raise UnsupportedImage("is empty (0 bytes)", "copy it again, or take it out of the folder")
    kind = next((name for name, at, magic in _OTHERS if head[at : at + len(magic)] == magic), None)
    if kind is None and not head[:64].removeprefix(b"\xef\xbb\xbf").strip(_PRINTED):
        kind = "a web page or the like" if b"<" in head[:64] else "text"
    taken = ", ".join(codec.container for codec in CODECS)
    raise UnsupportedImage(
        f"is {kind or 'of an unknown kind'}, by its content", f"store the image as {taken}, or take it out of the folder"
    )


def _decoded(content: bytes) -> tuple[Pixels, Pixels | None, Codec, Facts]:
    codec = _codec_of(content)
    known = codec.facts(io.BytesIO(content))
    pixels, alpha = codec.decode(content, known)
    if pixels.shape != known.shape:
        raise UnsupportedImage(f"is damaged (its pixels are {pixels.shape}, its header says {known.shape})", "copy it again")
    return pixels, alpha, codec, known


def _same(alpha: Pixels | None, other: Pixels | None) -> bool:
    return alpha is other if alpha is None or other is None else np.array_equal(alpha, other)


def _transparent(alpha: Pixels | None) -> NDArray[np.bool_] | None:
    return None if alpha is None or alpha.all() else np.equal(alpha, 0)


def _check(before: Pixels, pixels: Pixels, still: Iterable[NDArray[np.bool_]], radius: int) -> None:
    if pixels.shape != before.shape or pixels.dtype != before.dtype:
        raise ValueError(f"the pixels are {pixels.dtype} {pixels.shape}, the original's {before.dtype} {before.shape}")
    change = np.abs(pixels.astype(np.int32) - before)
    if change.max(initial=0) > radius:
        raise ValueError(f"the pixels change by up to {change.max()}, more than {radius}")
    if any(change[mask].any() for mask in still):
        raise ValueError("pixels that have to keep their values change")


def _with_name(known: Facts, path: Path) -> Facts:
    ending = path.suffix.lower()
    return replace(known, misnamed=any(ending in codec.endings and codec.container != known.container for codec in CODECS))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let every error be of our kind and name the file."""
    try:
        yield
    except UnsupportedImage as error:
        raise UnsupportedImage(error.reason, error.way_out, path) from error
    except OSError as error:
        if error.errno is None:  # Pillow's, of what it reads
            raise _damaged(path, error) from error
        raise UnsupportedImage(
            f"cannot be read ({error.strerror})", "give it to this user, or take it out of the folder", path
        ) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UnsupportedImage:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return UnsupportedImage(f"is damaged ({reason})", "copy it again, or take it out of the folder", path)
