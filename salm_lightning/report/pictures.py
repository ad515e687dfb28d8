"""The pictures of an audit, as data that an HTML file can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from salm_lightning.audit.results import PICTURES
from salm_lightning.checked import member, parse, require_release
from salm_lightning.data.npz import NpzReader
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.manifest import Manifest
from salm_lightning.sealed import read_sealed

SAMPLE = 4
"""Images of a sample."""
SIDE = 224
"""Pixels of one of them."""
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
    sha256: str
    title: str
    caption: str


def read_pictures(folder: Path, archive_sha256: str) -> tuple[Picture, ...]:
    """Read the pictures that ``pictures.json`` names, all in the folder ``pictures`` beside it and about one archive.

    There are none where this installation did not write the list.

    Raises:
        ReleaseError: The list is about another release, or a picture is not the one that was drawn.
    """
    path = folder / PICTURES
    if not path.exists():
        return ()
    album, ours = read_sealed(path)
    if not ours:
        return ()
    require_release(album, PICTURES, archive_sha256)
    entries: tuple[_Entry, ...] = parse(tuple[_Entry, ...], member(album, "pictures", PICTURES), f"{PICTURES}: pictures")
    return tuple(_picture(folder, entry) for entry in entries)


def draw_sample(release: Path, manifest: Manifest) -> Picture:
    """Draw some of the protected images, small ones enlarged so that each of their pixels is a square.

    Raises:
        ReleaseError: The archive is damaged.
    """
    chosen = np.flatnonzero(manifest.coverage.mask())[:SAMPLE]
    with NpzReader(release / manifest.archive.name) as archive:
        rows = chain.from_iterable(archive.chunks("train_images", 1))
        images = [image for number, image in enumerate(islice(rows, int(chosen.max(initial=0)) + 1)) if number in chosen]
    factor = max(1, SIDE // manifest.info.size)
    tiles = [np.asarray(image).repeat(factor, 0).repeat(factor, 1) for image in images]
    sheet = sheet_of([Image.fromarray(tile) for tile in tiles], factor * manifest.info.size)
    return drawn(sheet, "Protected images", f"The first {len(tiles)} images with noise, as they are published.")


def sheet_of(tiles: Sequence[Image.Image], side: int) -> Image.Image:
    """Return some images side by side, two in a row, each in a square of so many pixels."""
    step, columns = side + _GAP, min(2, len(tiles))
    sheet = Image.new("RGB", (columns * step - _GAP, -(-len(tiles) // 2) * step - _GAP), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile.convert("RGB"), (number % 2 * step, number // 2 * step))
    return sheet


def drawn(image: Image.Image, title: str, caption: str) -> Picture:
    """Return an image as a picture of the page."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Picture(title, caption, *image.size, _uri(stream.getvalue()))


def _picture(folder: Path, entry: _Entry) -> Picture:
    path = folder / entry.file
    if not path.is_file() or file_sha256(path) != entry.sha256:
        raise ReleaseError(f"{path} is not the picture that {PICTURES} lists; make the audit again.")
    with Image.open(path) as image:
        return Picture(entry.title, entry.caption, *image.size, _uri(path.read_bytes()), entry.file)


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
