"""The pictures of an audit, as data that an HTML file can hold."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from salm_lightning.audit.results import PICTURES
from salm_lightning.checked import member, parse, read_json, require_release
from salm_lightning.data.npz import NpzReader
from salm_lightning.errors import ReleaseError
from salm_lightning.release.manifest import Manifest

_NAME = re.compile(r"pictures/[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,99}\.png", re.ASCII)
_LARGEST = 2**23  # bytes of a picture
_LARGEST_SUM = 2**26  # bytes of all; browsers open no larger page in good time
_MOST_PIXELS = 2**26
_SAMPLE = 4  # images
_SIDE = 224  # pixels of one of them
_GAP = 8


@dataclass(frozen=True)
class Picture:
    """A PNG file of so many pixels as a ``data:`` address; ``file`` names it in the folder of an audit, empty for one drawn here."""

    title: str
    caption: str
    width: int
    height: int
    uri: str
    file: str = ""


@dataclass(frozen=True)
class _Entry:
    file: str
    title: str
    caption: str


def read_pictures(folder: Path, archive_sha256: str) -> tuple[Picture, ...]:
    """Read the pictures that ``pictures.json`` names, all in the folder ``pictures`` beside it and about one archive.

    Raises:
        ReleaseError: The list is not valid or about another release, or a file is missing, is too large, or is no PNG.
    """
    path = folder / PICTURES
    if not path.exists():
        return ()
    album = read_json(path)
    require_release(album, PICTURES, archive_sha256)
    entries: tuple[_Entry, ...] = parse(tuple[_Entry, ...], member(album, "pictures", PICTURES), f"{PICTURES}: pictures")
    pictures = tuple(_picture(folder, entry, f"{PICTURES}: pictures[{number}].file") for number, entry in enumerate(entries))
    if sum(len(picture.uri) for picture in pictures) > _LARGEST_SUM * 4 / 3:
        raise ReleaseError(f"the pictures of {folder} have more than {_LARGEST_SUM} bytes; leave some out of {PICTURES}.")
    return pictures


def draw_sample(release: Path, manifest: Manifest) -> Picture:
    """Draw some of the protected images, small ones enlarged so that each of their pixels is a square.

    Raises:
        ReleaseError: The archive is damaged.
    """
    chosen = np.flatnonzero(manifest.coverage.mask())[:_SAMPLE]
    with NpzReader(release / manifest.archive.name) as archive:
        rows = chain.from_iterable(archive.chunks("train_images", 1))
        images = [image for number, image in enumerate(islice(rows, int(chosen.max(initial=0)) + 1)) if number in chosen]
    factor = max(1, _SIDE // manifest.info.size)
    tiles = [np.asarray(image).repeat(factor, 0).repeat(factor, 1) for image in images]
    columns = min(2, len(tiles))
    side = factor * manifest.info.size + _GAP
    sheet = Image.new("RGB", (columns * side - _GAP, -(-len(tiles) // 2) * side - _GAP), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile).convert("RGB"), (number % 2 * side, number // 2 * side))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    caption = f"The first {len(tiles)} images with noise, as they are published."
    return Picture("Protected images", caption, *sheet.size, _uri(stream.getvalue()))


def _picture(folder: Path, entry: _Entry, where: str) -> Picture:
    if not _NAME.fullmatch(entry.file):
        raise ReleaseError(f"{where}={entry.file[:100]!r} must be pictures/NAME.png with a name of letters, digits and '_.=,+-'.")
    path = folder / entry.file
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise ReleaseError(f"{path}, which {PICTURES} names, is not a file; make the audit again. Links are not followed.")
    if path.stat().st_size > _LARGEST:
        raise ReleaseError(f"{path} is larger than {_LARGEST} bytes; make it smaller, or leave it out of {PICTURES}.")
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()  # the checksums of all parts; no pixel is decoded
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ReleaseError(f"{path} is not a sound PNG file ({error}); make the audit again.") from error
    if width * height > _MOST_PIXELS:
        raise ReleaseError(f"{path} has {width} x {height} pixels, more than {_MOST_PIXELS}; leave it out of {PICTURES}.")
    return Picture(entry.title, entry.caption, width, height, _uri(data), entry.file)


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
