"""Regions that keep their values, such as lesions, scales and text that is burned in: masks beside images, a folder of masks, or boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from salm_lightning.data import formats
from salm_lightning.data.formats import Facts
from salm_lightning.data.tables import column_of, read_lines
from salm_lightning.data.walk import Kind, Problem, walk
from salm_lightning.errors import DAMAGED, ConfigurationError, DataError
from salm_lightning.files import address, expanded, file_sha256

KEPT_OUT = "kept_out"
"""What a description calls the sum of all regions; where they came from only their owner knows."""
_SIDES = ("x", "y", "width", "height")
_NO_IMAGE = Kind("masks and boxes without an image", "Name them as the images are, or take them out.")
_NO_BOX = Kind("boxes that are none", "Give x, y, width and height in whole pixels, width and height of at least one.")
_OUTSIDE = Kind("boxes outside of their image", "Give them in pixels of the image as it is seen, from its left upper corner.")
_OTHER_SIZE = Kind("masks of another size than their image", "Give masks with a pixel for each of the image as it is seen.")
_UNREADABLE = Kind("masks that cannot be read", "Store them as PNG or TIFF.")
_MASKS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
_DAMAGED: tuple[type[Exception], ...] = (Image.DecompressionBombError, *DAMAGED)
_CONVERTED = ("P", "PA", "LA", "La", "RGBA", "RGBa", "CMYK")
"""Modes in which a value that is not 0 may be black, or transparent."""


class Box(NamedTuple):
    """A box in pixels of an image as it is seen."""

    x: int
    y: int
    width: int
    height: int


Region = Path | Box
"""A mask, all of whose pixels count that are not black, or a box."""


class KeptOut(NamedTuple):
    """What is kept out of a folder's images: the regions of each by its path, and what is wrong with them."""

    regions: dict[str, tuple[Region, ...]]
    problems: list[Problem]

    def sum(self) -> str:
        """Return a SHA-256 of all of it; empty where nothing is kept out."""
        known = {
            path: [list(one) if isinstance(one, Box) else file_sha256(one) for one in regions]
            for path, regions in self.regions.items()
        }
        return address(known) if known else ""


def masked_by(path: str, pattern: str | None) -> str | None:
    """Return the path without ending of the image that a file masks by its name; ``None`` if it is no mask.

    The first ``*`` of a pattern such as ``*_mask*.png`` is the image's name.
    """
    if pattern is None or "*" not in pattern:
        return None
    start, *middle, end = pattern.split("*")
    file = PurePosixPath(path)
    name, stems_end, at, beyond = file.name, 0, len(start) + 1, len(file.name) - len(end)
    for part in middle:  # each as early as it can be, so that nothing has to be tried twice
        found = name.find(part, at, beyond)
        if found < 0:
            return None
        stems_end, at = stems_end or found, found + len(part)
    if at > beyond or not (name.startswith(start) and name.endswith(end)):
        return None
    return str(file.parent / name[len(start) : stems_end or beyond])


def find_kept_out(
    root: Path,
    files: Sequence[str],
    images: Iterable[str],
    masks: str | None,
    keep_out: str | None,
    find: Callable[[str], list[str]],
) -> KeptOut:
    """Find the regions of a folder's images.

    Args:
        root: The folder.
        files: All files below it.
        images: Those that are images, without masks.
        masks: Pattern of the names of masks that lie beside their images; one is for all images of its name, whatever their endings.
        keep_out: A folder of masks with the images' paths, whatever their endings, or a table of boxes.
        find: Returns the images that a word of a table may mean.

    Raises:
        ConfigurationError: One of the words cannot work.
        DataError: A table cannot be read.
    """
    if masks is not None and ("*" not in masks or "/" in masks):
        raise ConfigurationError(
            f"masks={masks} has no * for an image's name without ending; give a pattern such as '*_mask.png'."
        )
    beside = {path: masked_by(path, masks) for path in files}
    known = dict.fromkeys(images)
    of_stem: dict[str, list[str]] = {}
    for path in known:
        of_stem.setdefault(_stem(path), []).append(path)
    regions: dict[str, tuple[Region, ...]] = {}
    problems: list[Problem] = []

    def note(paths: Sequence[str], region: Region, said: str) -> None:
        if not paths:
            problems.append(Problem(_NO_IMAGE, said))
        for path in paths:
            regions[path] = (*regions.get(path, ()), region)

    for path, stem in beside.items():
        if stem is not None:
            note([stem] if stem in known else of_stem.get(stem, []), root / path, path)
    if keep_out is not None:
        place = expanded(keep_out)
        if place.is_dir():
            if place.resolve().is_relative_to(root.resolve()):
                raise ConfigurationError(f"keep_out={keep_out} lies in the folder; masks among images are named with --masks.")
            masks_there, unseen = walk(place)
            problems += [problem._replace(path=str(place / problem.path)) for problem in unseen]
            for path in masks_there:
                note(of_stem.get(_stem(path), []), place / path, path)
        elif place.is_file():
            for word, box in _boxes(place, problems):
                found = find(word)
                note(found if len(found) == 1 else [], box, word)
        else:
            raise ConfigurationError(f"keep_out={keep_out} is not there; give a folder of masks, or a table of boxes.")
    if (masks or keep_out) and not regions and not problems:
        word = f"masks={masks}" if keep_out is None else f"keep_out={keep_out}"
        raise ConfigurationError(f"{word} keeps nothing out of {root}: there is no mask or box of one of its images.")
    return KeptOut(regions, problems)


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _boxes(path: Path, problems: list[Problem]) -> Iterable[tuple[str, Box]]:
    head, lines = read_lines(path)
    file, absent = column_of(path, head, "file", None), [side for side in _SIDES if side not in head]
    if file is None or absent:
        raise DataError(
            f"keep_out={path} has no column {absent[0] if absent else 'file'}; a table of boxes has file, {', '.join(_SIDES)}."
        )
    for line, cells in lines:
        named = dict(zip(head, cells, strict=False))
        sides = [named[side] for side in _SIDES]
        if all(side.isdecimal() for side in sides) and int(sides[2]) > 0 and int(sides[3]) > 0:
            yield named[file], Box(*map(int, sides))
        else:
            problems.append(Problem(_NO_BOX, named[file], f"line {line}: {', '.join(sides)}"))


def misfits(regions: Mapping[str, tuple[Region, ...]], known: Mapping[str, Facts]) -> list[Problem]:
    """Return the masks and boxes that do not fit their images, from headers alone."""
    problems = []
    for path, facts in known.items():
        height, width = _seen(facts)
        for region in regions.get(path, ()):
            if isinstance(region, Box):
                if region.x + region.width > width or region.y + region.height > height:
                    problems.append(Problem(_OUTSIDE, path, f"{', '.join(map(str, region))} in {width} x {height}"))
                continue
            try:
                with Image.open(region, formats=_MASKS) as image:
                    size, pages = ImageOps.exif_transpose(image).size, getattr(image, "n_frames", 1)
            except _DAMAGED as error:
                problems.append(Problem(_UNREADABLE, region.name, type(error).__name__))
                continue
            if size != (width, height) or pages not in (1, facts.pages):
                problems.append(Problem(_OTHER_SIZE, path, f"{size[0]} x {size[1]} and not {width} x {height}"))
    return problems


def mask_of(regions: Iterable[Region], facts: Facts) -> NDArray[np.bool_] | None:
    """Return which pixels of an image are in one of its regions, as they are stored, ``[pages, H, W]``; ``None`` without regions.

    Raises:
        DataError: A mask was changed since it was looked at.
    """
    height, width = _seen(facts)
    found: NDArray[np.bool_] | None = None
    for region in regions:
        if found is None:
            found = np.zeros((facts.pages, height, width), bool)
        if isinstance(region, Box):
            found[:, region.y : region.y + region.height, region.x : region.x + region.width] = True
            continue
        masks = _masks(region)
        if masks.shape[1:] != found.shape[1:] or len(masks) not in (1, len(found)):
            raise DataError(f"{region} was changed while the command ran; leave it alone, and repeat the command.")
        found |= masks
    return None if found is None else formats.stored(found, facts.orientation)


def together(*masks: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return the pixels that are in any of some masks; ``None`` where none is."""
    there = [mask for mask in masks if mask is not None]
    return np.logical_or.reduce(there) if there else None


def _seen(facts: Facts) -> tuple[int, int]:
    """Return height and width of an image as it is seen."""
    return (facts.width, facts.height) if facts.orientation in (5, 6, 7, 8) else (facts.height, facts.width)


def _masks(path: Path) -> NDArray[np.bool_]:
    """Return the pages of a mask as they are seen, ``[pages, H, W]``."""
    try:
        with Image.open(path, formats=_MASKS) as image:
            pages = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                page = ImageOps.exif_transpose(image)
                array = np.asarray(page.convert("RGB") if page.mode in _CONVERTED else page) != 0
                pages.append(array.any(axis=-1) if array.ndim == 3 else array)
        return np.stack(pages)
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read as a mask ({type(error).__name__}); store it as PNG or TIFF.") from error
