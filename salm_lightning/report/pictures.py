"""The pictures of an audit, as data that an HTML file can hold."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from salm_lightning.audit.album import FOLDER, PICTURES
from salm_lightning.errors import ReleaseError
from salm_lightning.report.values import Value

_NAME = re.compile(FOLDER + r"/[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,99}\.png", re.ASCII)
_LARGEST = 2**23  # bytes of a picture
_LARGEST_SUM = 2**26  # bytes of all; browsers open no larger page in good time
_MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    Attributes:
        title: What it shows, in a few words.
        caption: How to read it.
        width: In pixels.
        height: In pixels.
        uri: The file as a ``data:`` address.
    """

    title: str
    caption: str
    width: int
    height: int
    uri: str


def read_pictures(folder: Path, archive_sha256: str) -> tuple[Picture, ...]:
    """Read the pictures that ``pictures.json`` names, all in the folder ``pictures`` beside it.

    Args:
        folder: Of the results.
        archive_sha256: Checksum of the archive that they have to be about.

    Raises:
        ReleaseError: The list is not valid or about another release, or a file is missing, is too large, or is no PNG.
    """
    path = folder / PICTURES
    if not path.exists():
        return ()
    album = Value.read(path)
    album.require_release(archive_sha256)
    pictures = tuple(_picture(folder, value) for value in album["pictures"].elements())
    if sum(len(picture.uri) for picture in pictures) > _LARGEST_SUM * 4 / 3:
        raise ReleaseError(f"the pictures of {folder} have more than {_LARGEST_SUM} bytes; leave some out of {PICTURES}.")
    return pictures


def _picture(folder: Path, value: Value) -> Picture:
    name = value["file"].text()
    if not _NAME.fullmatch(name):
        raise ReleaseError(
            f"{value['file'].where}={name[:100]!r} must be {FOLDER}/NAME.png with a name of letters, digits and '_.=,+-'."
        )
    data = _bytes(folder / name)
    width, height = _size(folder / name, data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(value["title"].text(), value["caption"].text(), width, height, uri)


def _bytes(path: Path) -> bytes:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise ReleaseError(f"{path}, which {PICTURES} names, is not a file; make the audit again. Links are not followed.")
    if path.stat().st_size > _LARGEST:
        raise ReleaseError(f"{path} is larger than {_LARGEST} bytes; make it smaller, or leave it out of {PICTURES}.")
    return path.read_bytes()


def _size(path: Path, data: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG file, without decoding its pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()  # the checksums of all parts
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ReleaseError(f"{path} is not a sound PNG file ({error}); make the audit again.") from error
    if width * height > _MOST_PIXELS:
        raise ReleaseError(f"{path} has {width} x {height} pixels, more than {_MOST_PIXELS}; leave it out of {PICTURES}.")
    return width, height
