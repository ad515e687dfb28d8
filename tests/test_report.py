"""``salm-cli report``: what the page says equals what the files say, whatever they say is shown as text, and a browser can show it."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_npz
from PIL import Image

from salm_lightning.cli import main
from salm_lightning.data import MEDMNIST, NpzDataModule
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.release import Manifest, write_release
from salm_lightning.report import gather, render

EVIL = "<script>alert('1')</script>"
SETTINGS = {
    "method": {"name": "salm", "percent": 10.0, "transform": {"flip": True, "padding": None}},
    "source": "resnet18",
    "updates_per_visit": "auto",
    "seed": 7,
}
DAY = date(2026, 3, 9)


def figures(*acc: float) -> dict[str, list[float]]:
    """Return five metrics that can be told apart, for as many seeds as accuracies."""
    shifts = {"acc": 0.0, "auc": 0.011, "balanced_acc": -0.023, "peak_acc": 0.031, "best_on_val_acc": 0.007}
    return {name: [value + shift for value in acc] for name, shift in shifts.items()}


def row(treatment: str, title: str, protected: list[float], clean: list[float] | None, worst: bool = False) -> dict[str, Any]:
    """Return a line of the battery."""
    drop = None if clean is None else float(np.mean(clean) - np.mean(protected))
    return {
        "treatment": treatment,
        "title": title,
        "settings": {"name": treatment},
        "arch": "resnet18",
        "seeds": list(range(len(protected))),
        "protected": figures(*protected),
        "clean": None if clean is None else figures(*clean),
        "drop": drop,
        "worst": worst,
    }


AUDIT: dict[str, Any] = {
    "format_version": 1,
    "release": {"name": "bloodmnist", "method": "salm", "archive_sha256": "", "source_sha256": None},
    "settings": {
        "width": 0.25,
        "steps": 1200,
        "batch_size": 128,
        "preset": "quick",
        "seeds": [0, 1],
        "treatments": [{"name": "none"}, {"name": "grey"}],
        "archs": ["resnet18"],
    },
    "majority": 0.1947,
    "chance_balanced": 0.125,
    "rows": [
        row("none", "Nothing", [0.3012, 0.3324], [0.9611, 0.9633]),
        row("grey", "Greyscale", [0.8023, 0.8111], [0.9105, 0.9001], worst=True),
        row("jpeg", "JPEG at quality 10", [0.5551, 0.5719], None),
    ],
    "skipped": [
        {
            "treatment": "adversarial",
            "arch": "densenet121",
            "seed": 1,
            "trained_on": "protected",
            "reason": "the budget of 60 minutes was used up",
            "command": "salm-cli audit protected --archs densenet121 --treatments adversarial",
        }
    ],
    "verdict": {
        "word": "protects only against careless training",
        "text": "Greyscale brings a model back to 80.7 %.",
        "broken_by": ["Greyscale"],
        "not_covered": ["pre-trained models", "denoising by diffusion"],
        "thresholds": {"broken_within": 0.15, "near_majority": 0.2},
    },
    "confusion": {"protected": [[3, 1], [2, 2]], "clean": [[4, 0], [0, 4]], "class_names": ["basophil", "platelet"]},
    "curves": [],
    "seconds": 1830.0,
}


def spread(mean: float, p5: float, worst: float, index: int) -> dict[str, float | int]:
    """Return a measure of similarity as quality.json has it."""
    return {"mean": mean, "p5": p5, "worst": worst, "worst_index": index}


QUALITY: dict[str, Any] = {
    "format_version": 1,
    "images": 40,
    "similarity": {
        "ssim": spread(0.94431, 0.91022, 0.87011, 11),
        "psnr": spread(34.18, 33.91, 33.02, 12),
        "ahash": spread(0.981, 0.953, 0.906, 13),
        "phash": spread(0.934, 0.875, 0.781, 14),
        "dhash": spread(0.918, 0.844, 0.766, 15),
        "nmi": spread(0.712, 0.655, 0.601, 16),
        "linf": spread(7.91, 8.0, 8.0, 17),
        "l0": spread(783.5, 784.0, 784.0, 18),
        "changed_share": spread(0.9994, 1.0, 1.0, 19),
    },
    "segmentation": {
        "segmenter": "otsu",
        "changed_share": spread(0.0041, 0.0123, 0.0456, 20),
        "dice": spread(0.9921, 0.9654, 0.8768, 21),
    },
    "readable": {"clean_acc": 0.9877, "protected_acc": 0.9655, "clean_auc": 0.9991, "protected_auc": 0.9944},
    "linear_separability": {"noise_acc": 0.9988, "majority": 0.1942},
}
PICTURES = [
    {"file": "worst.png", "title": "Least similar image", "caption": "Original, noise, protected."},
    {"file": "tsne.png", "title": "t-SNE", "caption": "Clean and protected images in a model's features."},
]


def png(width: int, height: int) -> bytes:
    """Return a PNG file."""
    stream = io.BytesIO()
    Image.effect_noise((width, height), 64).save(stream, "PNG")
    return stream.getvalue()


def write_audit(folder: Path, digest: str, audit: Any = AUDIT, quality: Any = QUALITY, pictures: Any = PICTURES) -> None:
    """Write what ``salm-cli audit`` would; None leaves a file out."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    if audit is not None:
        audit = copy.deepcopy(audit)
        audit["release"]["archive_sha256"] = audit["release"]["archive_sha256"] or digest
    for name, values in (("audit", audit), ("quality", quality), ("pictures", pictures)):
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    for number, picture in enumerate(pictures or []):
        (folder / "pictures" / Path(picture["file"]).name).write_bytes(png(30 + number, 20))


class Page(HTMLParser):
    """What a page holds: its text, its tags, its tables as rows of cells by caption, and what it would load."""

    LOADS = ("src", "srcset", "data", "poster", "background", "action", "formaction", "manifest")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self._cell: list[str] | None = None
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.text = " ".join("".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.loads += [value or "" for name, value in attrs if name in self.LOADS or (tag == "link" and name == "href")]
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._cell = []
        elif tag in ("br", "p", "li", "dt", "dd"):
            self._text.append(" ")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self._text.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "caption") and self._cell is not None:
            cell, self._cell = " ".join("".join(self._cell).split()), None
            if tag == "caption":
                self._caption = cell
            else:
                self._rows[-1].append(cell)
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def rows(self, caption: str) -> dict[str, list[str]]:
        """Return the rows of the table whose caption begins so, by their first cell."""
        (rows,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        return {cells[0]: cells[1:] for cells in rows}


Make = Callable[..., Page]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of tiny images in a folder of its own."""
    arrays = write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (40, 16, 24))
    noisy = arrays["train_images"] // 2 + 60
    noisy = np.clip(noisy, arrays["train_images"].clip(8) - 8, arrays["train_images"].clip(max=247) + 8).astype(np.uint8)
    folder = tmp_path / "out" / "protected"
    folder.parent.mkdir()
    write_release(folder, NpzDataModule(tmp_path / "bloodmnist.npz"), [noisy], SETTINGS, {"norm": "linf", "radius": 8})
    return folder


@pytest.fixture
def make(release: Path) -> Make:
    """Write an audit beside the release and return the page that the command makes of both."""

    def run(**files: Any) -> Page:
        write_audit(release.parent / "audit", Manifest.read(release).archive.sha256, **files)
        assert main(["report", str(release), "--overwrite", "true"]) == 0
        return Page((release.parent / "report.html").read_text(encoding="utf-8"))

    return run


def test_numbers_are_those_of_the_files(make: Make, release: Path) -> None:
    page = make()
    battery = page.rows("Models trained on the protected images")
    nothing, worst, jpeg = battery["Nothing"], battery["Greyscale worst case"], battery["JPEG at quality 10"]
    assert nothing == [
        "resnet18", "2",
        "31.7 %30.1 to 33.2", "29.4 %27.8 to 30.9", "0.328", "34.8 %33.2 to 36.3",
        "96.2 %96.1 to 96.3", "93.9 %93.8 to 94.0", "0.973",
        "64.5",
    ]  # fmt: skip
    assert worst[2].startswith("80.7 %")
    assert worst[-1] == "9.9"
    assert jpeg[6:] == ["not trained", "–"]
    assert battery["No model: always the most frequent class"][2:5] == ["19.5 %", "12.5 %", "0.500"]

    similarity = page.rows("Similarity of protected images")
    assert similarity["SSIM (structural similarity)higher is better"][:4] == ["0.9443", "0.9102", "0.8701", "11"]
    assert similarity["PSNR (peak signal-to-noise ratio)higher is better"][:4] == ["34.2 dB", "33.9 dB", "33.0 dB", "12"]
    assert similarity["pHash (perceptual hash)higher is better"][:4] == ["93.4 %", "87.5 %", "78.1 %", "14"]
    assert similarity["Largest change (l-inf)lower is better"][:4] == ["7.91", "8", "8", "17"]
    assert similarity["Share of pixels changedlower is better"][:4] == ["99.9 %", "100.0 %", "100.0 %", "19"]
    assert len(similarity) == 1 + len(QUALITY["similarity"])
    segmentation = page.rows("Segmentation of protected images")
    assert segmentation["Dicehigher is better"][:4] == ["99.2 %", "96.5 %", "87.7 %", "21"]
    assert segmentation["Share of pixels that change sideslower is better"][0] == "0.4 %"
    readable = page.rows("A model trained on the originals")
    assert (readable["Originals"], readable["Protected"]) == (["98.8 %", "0.999"], ["96.5 %", "0.994"])
    assert "names the right class for 99.9 % of the images" in page.text
    assert page.rows("Share of each class's test images")["basophil"] == ["4", "75.0 %", "100.0 %"]

    (skipped,) = [cells for name, cells in page.rows("Models that were not trained").items() if name == "adversarial"]
    assert skipped == ["densenet121", "1", "protected", *(AUDIT["skipped"][0][key] for key in ("reason", "command"))]
    verdict = AUDIT["verdict"]
    assert f"Verdict: {verdict['word']} " in page.text
    assert verdict["text"] in page.text
    assert "Weakened or broken by: Greyscale." in page.text
    assert "Not covered by this verdict: pre-trained models; denoising by diffusion." in page.text
    assert "width factor 0.25, 1200 training steps" in page.text

    manifest = Manifest.read(release)
    assert "All 40 training images." in page.text
    assert "changes by more than 8 of 255 grey levels" in page.text
    assert f"Largest change {manifest.measured.linf} of 255 grey levels" in page.text
    assert ", ".join(manifest.info.class_names) in page.text
    assert page.rows("Checksums")["bloodmnist.npz (protected)"] == [manifest.archive.sha256]
    settings = page.rows("Method and training of the noise")
    assert (settings["method.percent"], settings["method.transform.padding"], settings["seed"]) == (["10.0"], ["null"], ["7"])
    assert page.rows("Audit (audit.json)")["treatments[1].name"] == ["grey"]
    assert page.rows("Thresholds of the verdict")["broken_within"] == ["0.15"]
    assert "salm-cli verify protected --source bloodmnist.npz" in page.text


def test_the_worst_case_is_bold(make: Make) -> None:
    make()
