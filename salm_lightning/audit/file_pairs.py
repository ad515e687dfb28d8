"""Protected files beside their originals, each of its own size: decoded in several processes, a file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from salm_lightning.audit.pairs import Compared, Some, check_sample, sampled
from salm_lightning.audit.shown import Stored
from salm_lightning.data import formats
from salm_lightning.data.folder_images import FolderDataModule
from salm_lightning.data.keep_out import mask_of, together
from salm_lightning.data.workers import in_processes
from salm_lightning.errors import ReleaseError
from salm_lightning.release.files_side_by_side import FilePair, Pages, decode_pair, on_pages, page_name, white_of
from salm_lightning.release.folder_manifest import COPIED, PROTECTED, FolderManifest, read_records

_R = TypeVar("_R")
_FEW = 32
"""Files from which on processes are worth their start."""


class _Page(NamedTuple):
    """A page: its file, the file's number among the images, its own in the file, and how many that has."""

    pair: FilePair
    number: int
    page: int
    pages: int


class FilePairs(Compared):
    """The files of a result that carry noise beside the originals, upright, a page each; above 8 bits within the range.

    Positions are those of the pages in the order of the table of files.

    Args:
        result: The result of a folder; that its files are those of its table is known.
        originals: What it was made from.
        max_images: Take a random sample of at most so many pages.
        seed: Settles the sample.

    Attributes:
        regions_missing: Whether regions were kept out that ``originals`` do not know.

    Raises:
        ReleaseError: The table is not about these originals.
        ConfigurationError: ``max_images`` is less than 1.
    """

    def __init__(self, result: Path, originals: FolderDataModule, max_images: int | None = None, seed: int = 0) -> None:
        check_sample(max_images)
        manifest, folder = FolderManifest.read(result), originals.survey.folder
        numbers = {image.path: number for number, image in enumerate(folder.images)}
        self.info = manifest.info
        self._values = originals.working.values
        self.white = white_of(self._values)
        self._regions = folder.kept_out.regions
        self.regions_missing = folder.kept_out.sum() != manifest.kept_out
        self._pages: list[_Page] = []
        for record in read_records(result):
            number = numbers.get(record.file)
            facts = None if number is None else originals.survey.headers[number].facts
            if record.format != COPIED and (number is None or facts is None):
                raise ReleaseError(f"source={originals.word} has no image {record.file}; give the folder that was protected.")
            if record.format != COPIED and number is not None and facts is not None:
                pair = FilePair(result / PROTECTED, folder.root, record, self._values)
                self._pages += [_Page(pair, number, page, facts.pages) for page in range(facts.pages)]
        self.protected_images = len(self._pages)
        self.rows = sampled(np.arange(len(self._pages)), max_images, seed)
        self.labels = originals.labels[[self._pages[row].number for row in self.rows]]

    def name(self, position: int) -> str:
        """Return the name of the file without its folders, and of several pages which one."""
        return PurePosixPath(self.file(position)).name

    def file(self, position: int) -> str:
        """Return the file, and of several pages which one."""
        page = self._pages[self.rows[position]]
        return page_name(page.pair.record.file, page.page, page.pages)

    def at(self, positions: NDArray[np.integer]) -> tuple[Some, Some]:
        """Decode the pairs at some positions."""
        original, protected = [], []
        for page in (self._pages[row] for row in self.rows[positions]):
            before, after = decode_pair(page.pair, self.info.channels)
            original.append(before[page.page])
            protected.append(after[page.page])
        return original, protected

    def with_kept_pixels(self, most: int) -> NDArray[np.intp]:
        """Return at most so many positions of files of which pixels keep their values, evenly spread."""
        found = np.flatnonzero([self._pages[row].pair.record.kept_out > 0 for row in self.rows])
        places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
        return np.take(found, places)

    def kept(self, position: int) -> NDArray[np.bool_]:
        """Return which pixels of an image keep their values, upright, as far as its file and the regions that are known say."""
        page = self._pages[self.rows[position]]
        path = page.pair.originals / page.pair.record.file
        facts, (_, still) = formats.facts(path), formats.pixels_and_kept(path)
        still = together(still, mask_of(self._regions.get(page.pair.record.file, ()), facts))
        return np.zeros(0, bool) if still is None else formats.upright(still, facts.orientation)[page.page]

    def map(self, work: Callable[[Stored, Stored], _R]) -> Iterator[_R]:
        """Yield what ``work`` makes of each file's pages, in several processes."""
        chosen = [self._pages[row] for row in self.rows]
        tasks = [
            Pages(pages[0].pair, tuple(page.page for page in pages))
            for pages in (list(of_file) for _, of_file in groupby(chosen, key=lambda page: page.number))
        ]
        return in_processes(partial(on_pages, work, self.info.channels), tasks, _FEW)
