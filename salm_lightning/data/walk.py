"""The files below a folder: which there are, and which are images, by their names and first bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from salm_lightning.data.formats.dicom import BARE

_JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir")
"""What programs leave behind, in lower case, beside what is hidden; some of it holds small copies of the images."""
_IMAGES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".dcm", ".dicom", ".bmp", ".gif", ".webp", ".heic", ".heif"),
        *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".svs", ".ndpi"),
    }
)
_MAYBE = frozenset(
    {
        *(".nii", ".gz", ".mha", ".mhd", ".nrrd", ".pdf", ".mp4", ".avi", ".mov", ".mkv", ".npy", ".npz", ".h5", ".mat", ".zip"),
        *(".tar", ".tgz", ".7z", ".rar"),
    }
)
"""Endings of files that may hold images; they count as such where they have a label."""
_NONE = frozenset(
    {
        *(".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".yaml", ".yml", ".xml", ".html", ".log", ".py", ".ipynb", ".sh"),
        *(".xlsx", ".xls", ".docx"),
    }
)
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", *BARE)
_DICOM = (".dcm", ".dicom")
_CLASS = re.compile(rb"\x02\x00\x02\x00UI..1\.2\.840\.10008\.5\.1\.4\.1\.1\.([\d.]+)", re.DOTALL)
"""The class that a DICOM file's first elements name."""
_NO_IMAGE = (b"9.", b"11.", b"66.", b"88.", b"481.")
"""Classes of waveforms, presentation states, segmentations and the like, reports, and radiotherapy, which has images as well."""
_RT_IMAGE = b"481.1"
IMAGE, CONTAINER, OTHER = "image", "container", "other"


class Kind(NamedTuple):
    """A kind of problem: what is wrong with files, and the way out."""

    what: str
    way_out: str


class Problem(NamedTuple):
    """What keeps a folder from being protected: of which kind, which file (or group, or class), and more on that one."""

    kind: Kind
    path: str
    why: str = ""


_LINKS = Kind("links", "Put the files themselves there; links to files within the folder are taken.")
_INDEX = Kind(
    "indexes of DICOM files (DICOMDIR), which no longer fit them afterwards", "Take them out, and make new ones of the result."
)
_UNREADABLE = Kind("folders that cannot be opened", "Change their permissions, or take them out.")


def walk(root: Path) -> tuple[list[str], list[Problem]]:
    """Return the files below a folder, with ``/`` and sorted, and what cannot be followed; hidden files and junk are passed over."""
    files, problems, within = [], [], os.path.realpath(root)
    open_folders = [""]
    while open_folders:
        folder = open_folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            problems.append(Problem(_UNREADABLE, folder or ".", error.strerror or ""))
            continue
        for entry in entries:
            path = f"{folder}{entry.name}"
            if is_junk(entry.name):
                continue
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not os.path.exists(target):  # noqa: PTH110
                    problems.append(Problem(_LINKS, path, "to nothing"))
                elif not target.startswith(within + os.sep):
                    problems.append(Problem(_LINKS, path, "out of the folder"))
                elif entry.is_dir():
                    problems.append(Problem(_LINKS, path, "to a folder"))
                else:
                    files.append(path)
            elif entry.name.upper() == "DICOMDIR":
                problems.append(Problem(_INDEX, path))
            elif entry.is_dir():
                open_folders.append(f"{path}/")
            elif entry.is_file():
                files.append(path)
    return sorted(files), sorted(problems, key=lambda problem: problem.path)


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or left behind by a program."""
    return name.startswith(".") or name.lower() in _JUNK


def kind_of_file(root: Path, path: str) -> str:
    """Return what a file is by its ending, where that says nothing by its first bytes, and where it is DICOM by the class that it names."""
    ending = PurePosixPath(path).suffix.lower()
    if ending in _IMAGES and ending not in _DICOM:
        return IMAGE
    if ending in _MAYBE:
        return CONTAINER
    if ending in _NONE:
        return OTHER
    try:
        with (root / path).open("rb") as file:
            head = file.read(1024)
    except OSError:
        return IMAGE if ending in _DICOM else OTHER
    named = _CLASS.search(head) if head[128:132] == b"DICM" else None
    if named and named[1].startswith(_NO_IMAGE) and named[1] != _RT_IMAGE:
        return OTHER
    return IMAGE if ending in _DICOM or head.startswith(_STARTS) or head[128:132] == b"DICM" else OTHER
