"""The pictures of an audit, with titles and captions, for the report and for TensorBoard: the album, and what is drawn of victims."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from salm_lightning.audit.figures import Bar, Curve, battery_figure, curves_figure
from salm_lightning.audit.results import FOLDER, PICTURES, AuditResult
from salm_lightning.audit.words import named
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256, replacing
from salm_lightning.metrics.figures import CLEAN, PROTECTED, confusion_figure
from salm_lightning.runs.folder import clear_run
from salm_lightning.sealed import read_sealed, write_sealed

BOARD = "tensorboard"
"""Folder of what TensorBoard shows."""
_DPI = 150
_COLORS = {"protected": PROTECTED, "clean": CLEAN}


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
        """Write a figure to ``pictures/NAME.png``, list it under a title and a caption of one or two sentences, and return the file."""
        path = self.out / FOLDER / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
        file = f"{FOLDER}/{path.name}"
        self._entries[file] = {"file": file, "sha256": file_sha256(path), "title": title, "caption": caption}
        listed = {"release": {"archive_sha256": self._release}, "pictures": list(self._entries.values())}
        write_sealed(self.out / PICTURES, listed)
        return path

    def show(self) -> None:
        """Let TensorBoard show every picture once, in place of those that it showed before.

        It has the curves and confusion matrices of victims already, from their own runs.
        """
        if not self._entries:
            return
        board = self.out / BOARD / FOLDER
        clear_run(board)
        with SummaryWriter(str(board)) as writer:
            for file in self._entries:
                if not Path(file).stem.startswith(("curves", "confusion")):
                    with Image.open(self.out / file) as picture:
                        writer.add_image(Path(file).stem, np.asarray(picture.convert("RGB")), 0, dataformats="HWC")


def read_album(out: Path, release: str | None = None) -> list[dict[str, str]]:
    """Return ``file``, ``sha256``, ``title`` and ``caption`` of the pictures of a release in a folder of results, in their order.

    There are none where no list is, or one that this installation did not write.
    """
    with suppress(ReleaseError):
        album, ours = read_sealed(out / PICTURES)
        if ours and album["release"]["archive_sha256"] == release:
            return list(album["pictures"])
    return []


def draw_audit(result: AuditResult, out: Path) -> None:
    """Draw the battery, learning curves and confusion matrices of an audit into ``out/pictures``, and for TensorBoard."""
    album, several = Album(out, result.release.archive_sha256), len({row.arch for row in result.rows}) > 1

    def titled(title: str, arch: str) -> str:
        return f"{named(title)}, {arch}" if several else named(title)

    if result.rows:
        bars = [
            Bar(titled(row.label, row.arch), row.protected.acc, row.clean.acc if row.clean else (), row.worst)
            for row in result.rows
        ]
        title = "What each attempt to learn from the protected images reaches"
        caption = (
            "Accuracy on clean test images of models trained on protected images (circles) and, treated alike, on clean ones (squares); "
            "a mark per seed. The worst case is in bold, the dotted line is what always answering the most common class reaches."
        )
        album.add("battery", battery_figure(bars, result.majority), title, caption)
    panels: dict[str, list[Curve]] = {}
    for curve in result.curves:
        line = Curve(curve.trained_on, curve.steps, curve.test_acc, _COLORS[curve.trained_on])
        panels.setdefault(titled(curve.countermeasure, curve.arch), []).append(line)
    if panels:
        first = next(iter(panels))
        caption = f"{first}: accuracy on clean test images while training on clean and on protected images."
        album.add("curves", curves_figure({first: panels[first]}, result.majority), "Learning curves", caption)
    if len(panels) > 1:
        caption = "The same for every countermeasure and architecture."
        album.add("curves-all", curves_figure(panels, result.majority), "Learning curves of every countermeasure", caption)
    for trained_on in _COLORS:
        if result.confusion and (matrix := getattr(result.confusion, trained_on)):
            album.add(
                f"confusion-{trained_on}",
                confusion_figure(matrix, result.confusion.class_names),
                f"Answers of a model trained on {trained_on} images",
                "Confusion matrix on clean test images: a row for each true class, a column for each answer; numbers are images.",
            )
    album.show()
