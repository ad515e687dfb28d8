"""A folder of pictures with titles and captions, for the report and for TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from salm_lightning.audit.results import FOLDER, PICTURES
from salm_lightning.errors import DataError
from salm_lightning.files import replacing, write_json

BOARD = "tensorboard"
"""Folder of what TensorBoard shows."""
_DPI = 150


class Album:
    """Writes figures to ``out/pictures/NAME.png`` and lists them in ``out/pictures.json``.

    Pictures that are there already keep their place in the list, so that a picture which is drawn again replaces its older self; those of
    another release are taken from the list.

    Args:
        out: Folder of the results.
        release: SHA-256 of the archive that the pictures are about; ``None`` where they are about more than one.
    """

    def __init__(self, out: Path, release: str | None = None) -> None:
        self.out = out
        self._release = release
        self._entries = {entry["file"]: entry for entry in read_album(out, release)}

    def add(self, name: str, figure: Figure, title: str, caption: str) -> Path:
        """Write a figure and list it.

        Args:
            name: Of the file, without ``.png``.
            figure: What is drawn.
            title: A few words.
            caption: What can be seen, in one or two sentences.

        Returns:
            The file.
        """
        path = self.out / FOLDER / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
        file = f"{FOLDER}/{path.name}"
        self._entries[file] = {"file": file, "title": title, "caption": caption}
        listed = {"release": {"archive_sha256": self._release}, "pictures": list(self._entries.values())}
        write_json(self.out / PICTURES, listed)
        return path

    def show(self) -> None:
        """Let TensorBoard show every picture once, in place of those that it showed before.

        It has the curves and confusion matrices of victims already, from their own runs.
        """
        if not self._entries:
            return
        board = self.out / BOARD / FOLDER
        shutil.rmtree(board, ignore_errors=True)
        with SummaryWriter(str(board)) as writer:
            for file in self._entries:
                if not Path(file).stem.startswith(("curves", "confusion")):
                    with Image.open(self.out / file) as picture:
                        writer.add_image(Path(file).stem, np.asarray(picture.convert("RGB")), 0, dataformats="HWC")


def read_album(out: Path, release: str | None = None) -> list[dict[str, str]]:
    """Return ``file``, ``title`` and ``caption`` of the pictures of a release in a folder of results, in the order in which they are shown.

    Raises:
        DataError: ``pictures.json`` is no such list.
    """
    path = out / PICTURES
    if not path.is_file():
        return []
    try:
        album = json.loads(path.read_text(encoding="utf-8"))
        if album["release"]["archive_sha256"] != release:
            return []
        return [{key: str(entry[key]) for key in ("file", "title", "caption")} for entry in album["pictures"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a list of pictures ({error}); delete it and run the command again.") from error
