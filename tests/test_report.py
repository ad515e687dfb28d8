"""``salm-cli report``: what the page says equals what the files say, whatever they say is shown as text, and a browser can show it."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from fakes import write_fake_npz
from PIL import Image

from salm_lightning.audit.results import Word
from salm_lightning.data import MEDMNIST, NpzDataModule
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import beside, file_sha256
from salm_lightning.main import main
from salm_lightning.release import Manifest, write_release
from salm_lightning.report import gather, render
from salm_lightning.sealed import write_sealed

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


def row(
    countermeasure: str, title: str, protected: list[float], clean: list[float] | None, worst: bool = False
) -> dict[str, Any]:
    """Return a line of the battery."""
    drop = None if clean is None else float(np.mean(clean) - np.mean(protected))
    return {
        "countermeasure": countermeasure,
        "title": title,
        "settings": {"name": countermeasure},
        "arch": "resnet18",
        "seeds": list(range(len(protected))),
        "protected": figures(*protected),
        "clean": None if clean is None else figures(*clean),
        "drop": drop,
        "kept": None if drop is None else 0.7654 if worst else -0.01,
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
        "countermeasures": [{"name": "none"}, {"name": "grey"}],
        "archs": ["resnet18"],
    },
    "majority": 0.1947,
    "chance_balanced": 0.125,
    "rows": [
        row("none", "none", [0.3012, 0.3324], [0.9611, 0.9633]),
        row("grey", "Greyscale", [0.8023, 0.8111], [0.9105, 0.9001], worst=True),
        row("jpeg", "JPEG at quality 10", [0.5551, 0.5719], None),
    ],
    "skipped": [
        {
            "countermeasure": "adversarial",
            "arch": "densenet121",
            "seed": 1,
            "trained_on": "protected",
            "reason": "the budget of 60 minutes was used up",
            "command": "salm-cli audit protected --archs densenet121 --countermeasures adversarial",
        }
    ],
    "verdict": {
        "word": "protects only against careless training",
        "text": "Greyscale brings a model back to 80.7 %.",
        "broken_by": ["Greyscale (resnet18)", "none (vgg11)"],
        "not_covered": ["One seed.", "Countermeasures that were not tried: mixup."],
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
    "release": {"archive_sha256": ""},
    "images": 40,
    "protected_images": 40,
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
PICTURES: dict[str, Any] = {
    "release": {"archive_sha256": ""},
    "pictures": [
        {"file": "pictures/worst.png", "title": "Least similar image", "caption": "Original, noise, protected."},
        {"file": "pictures/tsne.png", "title": "t-SNE", "caption": "Clean and protected images in a model's features."},
    ],
}


def png(width: int, height: int) -> bytes:
    """Return a PNG file."""
    stream = io.BytesIO()
    Image.effect_noise((width, height), 64).save(stream, "PNG")
    return stream.getvalue()


def edited(values: Any, path: str, value: Any) -> Any:
    """Return a copy with another value at a path of keys and numbers, such as ``rows.0.title``; ``...`` takes it away."""
    values = copy.deepcopy(values)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = values
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


def write_audit(folder: Path, digest: str, audit: Any = AUDIT, quality: Any = QUALITY, pictures: Any = PICTURES) -> None:
    """Write what ``salm-cli audit`` would; None leaves a file out."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, values in (("audit", audit), ("quality", quality), ("pictures", pictures)):
        if values is None:
            continue
        if values.get("release", {}).get("archive_sha256") == "":
            values = edited(values, "release.archive_sha256", digest)
        if name == "pictures":
            for number, picture in enumerate(values["pictures"]):
                (folder / picture["file"]).write_bytes(png(900 + number, 20))  # as wide as those of an audit
            listed = [{**picture, "sha256": file_sha256(folder / picture["file"])} for picture in values["pictures"]]
            values = {**values, "pictures": listed}
        write_sealed(folder / f"{name}.json", values)


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
    nothing, worst, jpeg = battery["no countermeasure"], battery["Greyscale worst case"], battery["JPEG at quality 10"]
    assert nothing == [
        "ResNet-18", "2",
        "31.7 %30.1 to 33.2", "29.4 %27.8 to 30.9", "0.328", "34.8 %33.2 to 36.3",
        "96.2 %96.1 to 96.3", "93.9 %93.8 to 94.0", "0.973",
        "64.5", "0 %",
    ]  # fmt: skip
    assert worst[2].startswith("80.7 %")
    assert worst[-2:] == ["9.9", "77 %"]
    assert jpeg[6:] == ["not trained", "n/a", "n/a"]
    assert battery["No model: always the most frequent class"][2:5] == ["19.5 %", "12.5 %", "0.500"]

    similarity = page.rows("Similarity of protected images")
    assert similarity["SSIM (structural similarity)higher is better"][:4] == ["0.9443", "0.9102", "0.8701", "11"]
    assert similarity["PSNR (peak signal-to-noise ratio)higher is better"][:4] == ["34.2 dB", "33.9 dB", "33.0 dB", "12"]
    assert similarity["pHash (perceptual hash)higher is better"][:4] == ["93.4 %", "87.5 %", "78.1 %", "14"]
    assert similarity["Largest change (l-inf)lower is better"][:4] == ["7.9", "8", "8", "17"]
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
    assert skipped == ["DenseNet-121", "1", "protected", *(AUDIT["skipped"][0][key] for key in ("reason", "command"))]
    verdict = AUDIT["verdict"]
    assert f"Verdict: {verdict['word']} " in page.text
    assert verdict["text"] in page.text
    assert "Models learn from the protected images with: Greyscale (ResNet-18); no countermeasure (VGG-11)." in page.text
    assert "One seed. Countermeasures that were not tried: mixup." in page.text
    assert "width factor 0.25, 1200 training steps" in page.text

    manifest = Manifest.read(release)
    assert "All 40 training images." in page.text
    assert "changes by more than 8 of 255 grey levels" in page.text
    assert f"Largest change {manifest.measured.linf} of 255 grey levels" in page.text
    assert " ".join(manifest.info.class_names) in page.text
    assert page.rows("Checksums")["bloodmnist.npz (protected)"] == [manifest.archive.sha256]
    settings = page.rows("Method and training of the noise")
    assert (settings["method.percent"], settings["method.transform.padding"], settings["seed"]) == (["10.0"], ["null"], ["7"])
    assert page.rows("Audit (audit.json)")["countermeasures[1].name"] == ["grey"]
    assert page.rows("Thresholds of the verdict")["broken_within"] == ["0.15"]
    assert "salm-cli verify protected --source bloodmnist " in page.text


def test_the_worst_case_alone_is_bold(make: Make, release: Path) -> None:
    make()
    html = (release.parent / "report.html").read_text(encoding="utf-8")
    table = html[html.index('id="battery-table"') : html.index('id="recall-table"')]
    rows = [line for line in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL) if "<strong>" in line]
    assert len(rows) == 1
    assert re.findall("<strong>(.*?)</strong>", rows[0]) == [
        "Greyscale",
        "80.7\u202f%",
        "78.4\u202f%",
        "0.818",
        "83.8\u202f%",
        "9.9",
        "77\u202f%",
    ]


@pytest.fixture
def page(release: Path) -> Make:
    """Return the page for a release and whatever stands in its audit folder, without the command line."""

    def run(**files: Any) -> Page:
        if files:
            write_audit(release.parent / "audit", Manifest.read(release).archive.sha256, **files)
        return Page(render(gather(release), "protected", DAY))

    return run


def edit_manifest(release: Path, path: str, value: Any) -> None:
    """Change a value of a release's manifest."""
    file = release / "manifest.json"
    file.write_text(json.dumps(edited(json.loads(file.read_text()), path, value)))


AUDIT_TEXTS = (
    *("rows.1.title", "rows.0.arch", "verdict.text", "verdict.broken_by.0", "verdict.not_covered.0", "confusion.class_names.0"),
    "settings.preset",
    *(f"skipped.0.{key}" for key in ("countermeasure", "arch", "trained_on", "reason", "command")),
)


def test_whatever_a_file_says_is_shown_as_text(page: Make, release: Path) -> None:
    evil, audit = iter(f"{EVIL}\"'>{number}" for number in range(99)), AUDIT
    for path in AUDIT_TEXTS:
        audit = edited(audit, path, next(evil))
    audit = edited(audit, f"settings.{next(evil)}", next(evil))
    quality = edited(QUALITY, "segmentation.segmenter", next(evil))
    pictures = edited(PICTURES, "pictures", [{"file": "pictures/a.png", "title": next(evil), "caption": next(evil)}])
    for path in ("dataset.class_names.3", "settings.method.name", "versions.torch", "source.name"):
        edit_manifest(release, path, next(evil))
    edit_manifest(release, f"settings.{next(evil)}", [next(evil)])
    shown = page(audit=audit, quality=quality, pictures=pictures)
    expected = [f"{EVIL}\"'>{number}" for number in range(int(next(evil).rpartition(">")[2]))]
    assert len(expected) > 20
    assert [text for text in expected if text not in shown.text] == []
    assert "script" not in {tag for tag, _ in shown.tags}
    assert {name for _, attributes in shown.tags for name in attributes if name.startswith("on")} == set()
    _, image = [attributes for tag, attributes in shown.tags if tag == "img"]
    assert image["alt"] == f"{pictures['pictures'][0]['title']}. {pictures['pictures'][0]['caption']}"


def test_halves_of_characters_do_not_stop_it(make: Make) -> None:
    assert "half: ?" in make(audit=edited(AUDIT, "verdict.text", "half: \ud800")).text


def test_nothing_is_loaded_and_nothing_runs(page: Make, release: Path) -> None:
    shown = page(audit=AUDIT)
    html = render(gather(release), "protected", DAY)
    files = [(release.parent / "audit" / picture["file"]).read_bytes() for picture in PICTURES["pictures"]]
    assert shown.loads[1:] == ["data:image/png;base64," + base64.b64encode(data).decode() for data in files]
    assert shown.loads[0].startswith("data:image/png;base64,")
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio", "svg"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policies = [
        attributes["content"] for tag, attributes in shown.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_sizes_of_pictures_are_those_of_the_files(page: Make) -> None:
    images = [attributes for tag, attributes in page(audit=AUDIT).tags if tag == "img"]
    assert [(image["width"], image["height"]) for image in images[1:]] == [("900", "20"), ("901", "20")]


@pytest.mark.parametrize("complete", [True, False])
def test_the_page_is_accessible(page: Make, complete: bool) -> None:
    shown = page(audit=AUDIT) if complete else page()
    assert ("html", {"lang": "en"}) in shown.tags
    assert shown.headings[0] == 1
    assert shown.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(shown.headings, shown.headings[1:], strict=False))
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [str(attributes["href"])[1:] for tag, attributes in shown.tags if str(attributes.get("href")).startswith("#")]
    named = [attributes["aria-labelledby"] for _, attributes in shown.tags if "aria-labelledby" in attributes]
    assert set(targets) | set(named) <= set(ids)
    assert all(attributes["alt"] for tag, attributes in shown.tags if tag == "img")
    assert all("scope" in attributes for tag, attributes in shown.tags if tag == "th")
    counts = {tag: sum(name == tag for name, _ in shown.tags) for tag in ("table", "caption", "thead", "img")}
    assert counts["table"] == counts["caption"] == counts["thead"] == len(shown.tables)
    assert counts["img"] == (3 if complete else 1)


def test_colours_have_contrast() -> None:
    """WCAG AA: 4.5 to 1 for text on both backgrounds, in the light and the dark scheme and on paper."""
    style = (Path(__file__).parent.parent / "salm_lightning/report/templates/style.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for text in ("ink", "soft", "accent"):
            for ground in ("paper", "tint"):
                dark, light = sorted(_luminance(colours[name]) for name in (text, ground))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, scheme)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_missing_parts_name_their_command(page: Make) -> None:
    command = "salm-cli audit protected --source bloodmnist "
    bare = page()
    assert "Verdict: none yet" in bare.text
    assert bare.text.count(command) == 5
    assert "Nothing on this page shows that it protects." in bare.text
    assert page(audit=None, pictures=None).text.count(command) == 2
    assert "Verdict: none yet" in page(audit=None).text


@pytest.mark.parametrize(
    ("path", "value", "source"),
    [
        ("source", None, "synthetic"),
        ("dataset.labels", "any finding", "bloodmnist"),
        ("source.name", "my scans.npz", "ORIGINAL"),
    ],
)
def test_the_audit_is_told_its_source(page: Make, release: Path, path: str, value: Any, source: str) -> None:
    edit_manifest(release, path, value)
    shown = page(audit=AUDIT, quality=None)
    command = f"salm-cli audit protected --source {source} --preset quick --width 0.25 --victim_steps 1200 --batch_size 128"
    assert shown.text.count(command) == 3  # what finished is kept, where the settings are the same
    assert f"salm-cli verify protected --source {source} " in shown.text
    note = "ORIGINAL stands for the file my scans.npz of which the release was made."
    assert shown.text.count(note) == (4 if source == "ORIGINAL" else 0)
    assert re.search(r"--source \S*\.npz", shown.text) is None


def first_of(page: Page) -> str:
    """Return the text of the first page."""
    return page.text[page.text.index("Verdict:") : page.text.index("What was protected, and how")]


def test_the_first_page_has_all_that_a_director_needs(make: Make) -> None:
    extremes = {"file": "pictures/extremes.png", "title": "The typical and the worst image", "caption": "Structural similarity."}
    page = make(pictures={**PICTURES, "pictures": [*PICTURES["pictures"], extremes]})
    first = first_of(page)
    figures = ["A model trained on the originals 96.2 %", "The same, trained on the protected copy 31.7 %"]
    figures.append("The same, with what helps most against the noise 80.7 % Greyscale · ResNet-18 · mean of 2 trainings")
    headings = ["Verdict: protects only against careless training", "What it means", "What the release gives away", "What to do"]
    assert [text for text in [*figures, *headings, "Models learn from the copy with: Greyscale"] if text not in first] == []
    assert first.count(" % ResNet-18") + first.count(" % Greyscale") == 3
    assert "40 training images, all with noise. 16 validation and 24 test images without noise: they are the originals" in first
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert [str(alt).partition(".")[0] for alt in images] == [extremes["title"], "Least similar image", "t-SNE"]  # none twice


@pytest.mark.parametrize("word", get_args(Word))
def test_every_verdict_has_a_meaning_and_steps(word: str, page: Make) -> None:
    shown = page(audit=edited(AUDIT, "verdict.word", word))
    section = first_of(shown)
    assert section.startswith(f"Verdict: {word} ")
    assert len(section[section.index("What to do") :]) > 150


def test_its_words_are_no_names_of_options_or_classes(make: Make) -> None:
    """Commands and the tables of settings apart, which are names by nature."""
    title = "adversarialtraining radius 4"
    audit = edited(edited(AUDIT, "rows.1.title", title), "rows.2.title", "mean size 3")
    audit = edited(audit, "verdict.broken_by", [f"{title} (resnet18)", "none (vgg11)"])
    audit = edited(audit, "verdict.text", "There is nothing to protect. Train longer (--victim_steps) or wider (--width).")
    audit = edited(audit, "verdict.not_covered", ["Countermeasures that were not tried: centercrop, uerasermax."])
    page = make(audit=edited(audit, "skipped", []))
    prose = re.sub(
        r"salm-cli \S+ [^.:]*", "", page.text[page.text.index("Verdict:") : page.text.index("Every setting and checksum Ch")]
    )
    assert re.findall(r"\s--\w+|\b[a-z]+_[a-z_]+\b(?!\.)", prose.replace("salm_lightning", "")) == []
    assert re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", re.sub("ResNet|DenseNet|CutMix", "", prose)) == []
    for word in ("ahash", "changed_share", "resnet18", "vgg11", "adversarialtraining", "centercrop", "uerasermax"):
        assert word not in prose
    assert "Models learn from the copy with: adversarial training radius 4 (ResNet-18); no countermeasure (VGG-11)." in prose
    assert "mean filter size 3" in prose


def test_the_number_of_classes_is_plain_where_names_have_commas(page: Make, release: Path) -> None:
    names = ["malignant", "normal, benign", *Manifest.read(release).info.class_names[2:]]
    edit_manifest(release, "dataset.class_names", names)
    page()
    html = render(gather(release), "protected", DAY)
    assert re.findall(r'<span class="class">(.*?)</span>', html) == 2 * names
    assert "8 classes:" in html


def test_many_names_of_classes_do_not_fill_the_first_page(page: Make, release: Path) -> None:
    edit_manifest(release, "dataset.class_names", [f"a class with a name that takes much room {number}" for number in range(8)])
    shown = page()
    assert "8 classes, listed below." in first_of(shown)
    assert "takes much room" not in first_of(shown)
    assert "takes much room 7" in shown.text


@pytest.mark.parametrize("splits", [(), ("val", "test")])
def test_what_a_release_gives_away_is_said_high_up(splits: tuple[str, ...], page: Make, release: Path) -> None:
    evidence = gather(release)
    arrays = {name: spec for name, spec in evidence.manifest.arrays.items() if name.startswith(("train", *splits))}
    shown = Page(render(replace(evidence, manifest=replace(evidence.manifest, arrays=arrays)), "protected", DAY))
    assert ("16 validation and 24 test images without noise" in first_of(shown)) is bool(splits)
    assert ("No validation and no test images." in first_of(shown)) is not splits


def test_further_arrays_and_the_way_to_read_a_release_are_named(page: Make, release: Path) -> None:
    evidence = gather(release)
    arrays = {**evidence.manifest.arrays, f"patients{EVIL}": evidence.manifest.arrays["train_labels"]}
    shown = Page(render(replace(evidence, manifest=replace(evidence.manifest, arrays=arrays)), "protected", DAY))
    assert f"Further data, copied as the originals have it: patients{EVIL}. Look whether it may be published." in first_of(shown)
    assert "Further data" not in page().text
    assert "reads the protected copy with download=False" in shown.text
    edit_manifest(release, "source.name", "my scans.npz")
    assert "download=False" not in page().text


def test_several_labels_per_image_are_told_by_their_auc(page: Make, release: Path) -> None:
    page(audit=AUDIT)
    evidence = gather(release)
    dataset = {**evidence.manifest.dataset, "task": "multi-label"}
    first = first_of(Page(render(replace(evidence, manifest=replace(evidence.manifest, dataset=dataset)), "protected", DAY)))
    assert "A model trained on the originals 0.973 ResNet-18" in first
    assert "The same, trained on the protected copy 0.328 ResNet-18" in first
    assert "1 is perfect; the mark, at 0.5, is guessing." in first


def test_without_an_audit_it_shows_protected_images_as_they_are(release: Path) -> None:
    manifest = Manifest.read(release)
    with np.load(release / manifest.archive.name) as archive:
        stored = archive["train_images"]
    sample = gather(release).sample
    with Image.open(io.BytesIO(base64.b64decode(sample.uri.partition(",")[2]))) as picture:
        drawn = np.asarray(picture)
    assert drawn.shape[:2] == (sample.height, sample.width)
    corners = ((0, 0), (0, 232), (232, 0), (232, 232))
    for (top, left), image in zip(corners, stored[:4], strict=True):
        assert np.array_equal(drawn[top : top + 224 : 8, left : left + 224 : 8], image)
        assert np.array_equal(drawn[top + 7 : top + 224 : 8, left + 7 : left + 224 : 8], image)


def test_a_sample_shows_images_that_carry_noise(tmp_path: Path) -> None:
    arrays = write_fake_npz(tmp_path / "chest.npz", MEDMNIST["chestmnist"], (40, 16, 24))
    noisy, selected = arrays["train_images"].copy(), np.isin(np.arange(40), [7, 30])
    noisy[selected, 5, 7] ^= 64
    data = NpzDataModule(tmp_path / "chest.npz", "multi-label")
    write_release(tmp_path / "release", data, [noisy], {}, {"norm": "linf", "radius": 64}, selected=selected)
    sample = gather(tmp_path / "release").sample
    with Image.open(io.BytesIO(base64.b64decode(sample.uri.partition(",")[2]))) as picture:
        drawn = np.asarray(picture.convert("L"))
    assert drawn.shape == (224, 456)
    assert np.array_equal(drawn[::8, :224:8], noisy[7])
    assert np.array_equal(drawn[::8, 232::8], noisy[30])


PROOF: dict[str, Any] = {
    "victim": {"arch": "resnet18", "width": 0.25},
    "steps": 1500,
    "majority": 0.1947,
    "test": {"acc": 0.9012, "auc": 0.9876, "balanced_acc": 0.8765, "recall": [1.0], "confusion": [[1]]},
    "history": {},
}


def write_proof(release: Path, digest: str | None = None, clean: Any = PROOF, **protected: Any) -> None:
    """Write what ``salm-cli protect`` leaves beside a release, which has this manifest."""
    manifest = file_sha256(release / "manifest.json") if digest is None else digest
    test = {"acc": 0.2512, "auc": 0.6012, "balanced_acc": 0.2034}
    for name, results in (("clean", clean), ("protected", {**PROOF, "test": test, **protected})):
        facts = {"trained_on": name, "release": manifest}
        write_sealed(release.parent / f"victim-{name}/results.json", results | facts)


def test_the_proof_of_protect_is_shown(page: Make, release: Path) -> None:
    write_proof(release)
    shown = page()
    rows = shown.rows("A ResNet-18 trained on each")
    assert rows["The originals"] == ["90.1 %", "87.6 %", "0.988"]
    assert rows["The protected copy"] == ["25.1 %", "20.3 %", "0.601"]
    assert rows["No model: always the most frequent class"] == ["19.5 %", "12.5 %", "0.500"]
    first = first_of(shown)
    assert "Verdict: none yet" in first
    assert "A model trained on the originals 90.1 % ResNet-18 The same, trained on the protected copy 25.1 % ResNet-18" in first
    kept = max((0.2512 - 0.1947) / (0.9012 - 0.1947), (0.2034 - 0.125) / (0.8765 - 0.125))
    assert f"The model trained on the copy keeps {kept:.0%}".replace("%", "\u202f%").replace("\u202f", " ") in first
    audited = page(audit=AUDIT)
    assert "The originals" in audited.rows("A ResNet-18 trained on each")
    assert "A model trained on the originals 96.2 %" in first_of(audited)  # the audit's, which is about more


def test_the_figures_are_in_the_measure_that_tells_it(page: Make, release: Path) -> None:
    """A model that names rare classes need not beat the most frequent class's share: its balanced accuracy says what it has learned."""
    write_proof(release, test={"acc": 0.24, "auc": 0.9, "balanced_acc": 0.7})
    first = first_of(page())
    assert "A model trained on the originals 87.6 % ResNet-18 The same, trained on the protected copy 70.0 % ResNet-18" in first
    assert "Guessing, without any model 12.5 %" in first
    assert "The model trained on the copy keeps 77 % of what the one trained on the originals learned." in first
    audit = edited(AUDIT, "rows.0.protected.balanced_acc", [0.7, 0.7])
    assert "The same, trained on the protected copy 70.0 % ResNet-18 · mean of 2 trainings" in first_of(page(audit=audit))


def test_a_proof_that_shows_nothing_says_so(page: Make, release: Path) -> None:
    write_proof(release, clean=edited(edited(PROOF, "test.acc", 0.2), "test.balanced_acc", 0.2))
    assert "That shows nothing yet: no model trained on the originals learned enough to compare with." in first_of(page())


def test_a_proof_of_another_release_is_passed_over(page: Make, release: Path) -> None:
    write_proof(release, digest="0" * 64)
    assert "The first test" not in page().text
    write_proof(release)
    victims = [release.parent / f"victim-{name}/results.json" for name in ("clean", "protected")]
    shutil.copy(victims[0], victims[1])
    assert "The first test" not in page().text
    victims[0].unlink()
    assert "The first test" not in page().text


def test_a_proof_is_read_like_anything_from_others(page: Make, release: Path) -> None:
    write_proof(release, clean={**PROOF, "victim": {"arch": EVIL}}, victim={"arch": EVIL})
    shown = page()
    assert EVIL in shown.text
    assert "script" not in {tag for tag, _ in shown.tags}
    write_proof(release, majority=1.5)
    with pytest.raises(ReleaseError, match=r"victim-protected: majority must be a number from 0 to 1, it is 1\.5"):
        page()
    write_proof(release, steps="many")
    with pytest.raises(ReleaseError, match="victim-protected: steps must be a whole number from 0"):
        page()


def test_nothing_comes_from_files_that_were_made_elsewhere(
    page: Make, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as of_the_maker:
        of_the_maker.setenv("SALM_STATE_DIR", str(tmp_path / "another machine"))
        write_audit(release.parent / "audit", Manifest.read(release).archive.sha256)
        write_proof(release)
        assert "Verdict: protects only against careless training" in page().text
    names = "audit/audit.json, audit/quality.json, audit/pictures.json, victim-clean/results.json, victim-protected/results.json"
    shown = page()
    assert f"Made elsewhere, not checked: {names}. Nothing on this page comes from them." in shown.text
    assert "Verdict: none yet" in shown.text
    assert [text for text in ("Greyscale", "densenet121", "0.944", "90.1") if text in shown.text] == []
    assert len([tag for tag, _ in shown.tags if tag == "img"]) == 1
    assert main(["report", str(release)]) == 0
    assert f"Verdict:  none yet\nNot used: {names}: made elsewhere, not checked" in capsys.readouterr().out
    write_audit(release.parent / "audit", Manifest.read(release).archive.sha256)
    forged = json.loads((release.parent / "audit/audit.json").read_text())
    forged["verdict"]["word"] = "protects"
    (release.parent / "audit/audit.json").write_text(json.dumps(forged))
    assert "Verdict: none yet" in page().text
    assert "0.944" in page().text, "the others are ours"


def test_it_needs_no_heavy_library() -> None:
    """Neither torch nor what takes it along: whoever receives a release reads about it at once."""
    heavy = ("torch", "lightning", "matplotlib", "pandas", "sklearn", "skimage", "scipy", "torchmetrics")
    code = f"import sys, salm_lightning.report; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_parts_of_the_quality_may_be_missing(page: Make) -> None:
    quality = {**QUALITY, "segmentation": None, "readable": None, "linear_separability": None, "images": 30}
    quality["similarity"] = {**QUALITY["similarity"], "psnr": None}
    shown = page(quality=quality)
    assert "30 of 40 protected training images (a random sample) were compared" in shown.text
    assert shown.text.count("salm-cli audit protected") == 2 + 1  # segmentation, readability; and what the fixture skipped
    assert not any(caption.startswith(("Segmentation", "A model trained")) for caption in shown.tables)
    psnr = shown.rows("Similarity")["PSNR (peak signal-to-noise ratio)higher is better"]
    assert psnr[0] == "without end: no image differs"
    assert "What the noise gives away" not in shown.text


def test_an_audit_that_has_just_begun(page: Make) -> None:
    verdict = {**AUDIT["verdict"], "word": "not judged", "broken_by": [], "not_covered": []}
    shown = page(audit={**AUDIT, "rows": [], "skipped": [], "confusion": None, "verdict": verdict})
    assert "Verdict: not judged" in shown.text
    assert "No model has finished training yet." in shown.text
    assert "All models that this audit set out to train were trained." in shown.text


def test_values_that_are_not_defined(page: Make) -> None:
    audit = edited(AUDIT, "rows.0.protected.auc", [None, None])
    audit = edited(audit, "rows.0.clean.acc", [None, 0.9])
    audit = edited(audit, "confusion.protected", [[0, 0], [2, 2]])
    shown = page(audit=audit)
    assert shown.rows("Models trained on the protected")["no countermeasure"][4:7] == ["n/a", "34.8 %33.2 to 36.3", "90.0 %"]
    assert shown.rows("Share of each class")["basophil"] == ["0", "n/a", "100.0 %"]


def test_the_verdict_shows_the_model_that_it_rests_on(page: Make) -> None:
    learned = row("none", "none", [0.7], [0.8]) | {"arch": "vit", "kept": 0.9}
    unknown = row("none", "none", [0.5], None) | {"arch": "linear"}
    shown = page(audit={**AUDIT, "rows": [row("none", "none", [0.4], [0.9]), unknown, learned]})
    originals = "A model trained on the originals 80.0 % vision transformer"
    assert f"{originals} The same, trained on the protected copy 70.0 % vision transformer" in shown.text


def test_a_single_seed_says_so(page: Make) -> None:
    audit = {**AUDIT, "rows": [row("none", "none", [0.4], [0.9])]}
    shown = page(audit=audit)
    assert shown.rows("Models trained on the protected")["no countermeasure"][2] == "40.0 %"
    assert "Every row has a single seed here" in shown.text
    assert "Every row has a single seed here" not in page(audit=AUDIT).text


def test_a_release_of_some_images_by_another_method(tmp_path: Path) -> None:
    arrays = write_fake_npz(tmp_path / "chest.npz", MEDMNIST["chestmnist"], (40, 16, 24))
    noisy, selected = arrays["train_images"].copy(), np.arange(40) < 30
    noisy[:30, 5, 7] ^= 64
    bound = {"norm": "l2", "radius": 8.5, "max_changed_pixels": 3}
    settings = {"method": {"name": "sp"}}
    write_release(
        tmp_path / "release", NpzDataModule(tmp_path / "chest.npz", "multi-label"), [noisy], settings, bound, selected=selected
    )
    shown = Page(render(gather(tmp_path / "release"), "my copy", DAY))
    assert "30 of 40 training images (75.0 %). The other 10 training images are the originals." in shown.text
    assert "Some training images are the originals too. 10 of 40 carry no noise." in shown.text
    assert "14 labels" in shown.text
    assert "28 \u00d7 28 pixels, grey, multi-label" in shown.text
    assert "Availability Attacks Create Shortcuts" in shown.text
    assert "changes of an image is at most 8.50 of 255 grey levels" in shown.text
    assert "No image has more than 3 changed pixels." in shown.text
    assert "10 of 40 images are identical to their originals." in shown.text
    assert "salm-cli verify 'my copy' --source ORIGINAL ORIGINAL stands for the file chest.npz" in shown.text
    assert shown.rows("Coverage")["selection"] == ["one bit per image, in manifest.json"]


def test_only_the_date_changes(release: Path) -> None:
    write_audit(release.parent / "audit", Manifest.read(release).archive.sha256)
    first, second = (render(gather(release), "protected", day) for day in (DAY, date(2027, 11, 30)))
    assert render(gather(release), "protected", DAY) == first
    assert second.replace("2027-11-30", "2026-03-09").replace("30 November 2027", "9 March 2026") == first


def test_settings_of_any_depth(page: Make, release: Path) -> None:
    depth = 400
    edit_manifest(release, "settings.deep", json.loads('{"a":' * depth + "[[1, 2], {}]" + "}" * depth))
    settings = page().rows("Method and training")
    name = "deep" + ".a" * depth
    assert (settings[f"{name}[0]"], settings[f"{name}[1]"]) == (["1, 2"], ["{}"])


WRONG_AUDITS = [
    ("format_version", 2, "has format_version=2, this version of salm_lightning reads 1"),
    ("release.archive_sha256", "0" * 64, "audit.json is about another release"),
    ("release", ..., "audit.json lacks 'release'"),
    ("majority", 1.2, "audit.json: majority must be a number from 0 to 1, it is 1.2"),
    ("rows", {}, "audit.json: rows must be a list, it is {}"),
    ("rows.1.title", 3, "audit.json: rows[1].title must be a text, it is 3"),
    ("rows.1.worst", 1, "audit.json: rows[1].worst must be true or false, it is 1"),
    ("rows.0.protected.acc", [0.5], "audit.json: rows[0].protected.acc must have a number for each of the 2 seeds, it has 1"),
    ("rows.0.protected.auc.1", "0.5", "audit.json: rows[0].protected.auc[1] must be a number, it is '0.5'"),
    ("rows.0.seeds.0", True, "audit.json: rows[0].seeds[0] must be a whole number from 0, it is True"),
    ("verdict.word", "protects well", "verdict.word='protects well' must be one of: protects, "),
    ("confusion.clean", [[1, 2]], "audit.json: confusion.clean must have 2 rows and columns"),
    ("settings", [], "audit.json: settings must be an object, it is []"),
    ("seconds", 10**400, "audit.json: seconds must be a number"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG_AUDITS, ids=[path for path, _, _ in WRONG_AUDITS])
def test_wrong_values_are_named(page: Make, path: str, value: Any, message: str) -> None:
    with pytest.raises(ReleaseError, match=re.escape(message)):
        page(audit=edited(AUDIT, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("release.archive_sha256", "0" * 64, "quality.json is about another release"),
        ("similarity.ssim.worst_index", -1, "quality.json: similarity.ssim.worst_index must be a whole number from 0"),
        ("segmentation.dice", None, "quality.json: segmentation.dice must be an object"),
        ("readable.clean_acc", None, "quality.json: readable.clean_acc must be a number"),
    ],
)
def test_wrong_quality_is_named(page: Make, path: str, value: Any, message: str) -> None:
    with pytest.raises(ReleaseError, match=re.escape(message)):
        page(quality=edited(QUALITY, path, value))


def test_pictures_of_another_release_are_refused(page: Make) -> None:
    with pytest.raises(ReleaseError, match=r"pictures\.json is about another release"):
        page(pictures=edited(PICTURES, "release.archive_sha256", "0" * 64))


@pytest.mark.parametrize("text", ["", "[" * 10**5, '{"majority": NaN}', "\udcff", "3"])
def test_files_that_are_no_audit(page: Make, release: Path, text: str) -> None:
    write_audit(release.parent / "audit", "")
    (release.parent / "audit/audit.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ReleaseError, match=r"audit\.json.*make it again"):
        page()


def test_files_that_are_too_large_or_links(page: Make, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = release.parent / "audit"
    write_audit(folder, Manifest.read(release).archive.sha256)
    with monkeypatch.context() as patch:
        patch.setattr("salm_lightning.checked._LARGEST", 100)
        with pytest.raises(ReleaseError, match=r"audit\.json is larger than 100 bytes"):
            page()
    picture = folder / "pictures/worst.png"
    picture.unlink()
    for leave in (lambda: None, lambda: picture.symlink_to(release), lambda: picture.write_bytes(png(4, 4))):
        picture.unlink(missing_ok=True)
        leave()
        with pytest.raises(ReleaseError, match=r"worst\.png is not the picture that pictures\.json lists"):
            page()


def test_a_release_that_was_changed_is_refused(release: Path) -> None:
    with (release / "bloodmnist.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ReleaseError, match=r"is not what was released \(checksum: .*nothing was written"):
        gather(release)


def test_an_audit_folder_that_is_named_must_hold_one(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds none of audit\.json, quality\.json and pictures\.json"):
        gather(release, tmp_path)


def test_the_command(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_audit(tmp_path / "elsewhere", Manifest.read(release).archive.sha256, quality={**QUALITY, "segmentation": None})
    assert main(["report", "out/protected", "--audit", "elsewhere", "--out", "new/page.html"]) == 0
    shown = capsys.readouterr().out
    assert "Report:   new/page.html (0." in shown
    assert f"Verdict:  {AUDIT['verdict']['word']}. {AUDIT['verdict']['text']}" in shown
    assert "Missing:  segmentation\nMade by:  salm-cli audit out/protected --source bloodmnist --preset quick" in shown
    html = Path("new/page.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in html
    assert [path.name for path in Path("new").iterdir()] == ["page.html"]
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = beside(Path("new/page.html"))
    left.with_name(left.name.replace(str(os.getpid()), str(gone.pid))).touch()
    assert main(["report", "out/protected", "--audit", "elsewhere", "--out", "new/page.html"]) == 0, "as after a kill at its end"
    assert Path("new/page.html").read_text(encoding="utf-8") == html
    assert [path.name for path in Path("new").iterdir()] == ["page.html"]
    assert {path.name for path in release.iterdir()} == {"bloodmnist.npz", "manifest.json", "datamodule.yaml"}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("taken.html", "taken.html exists; name another file with --out, or pass --overwrite true"),
        ("report.pdf", "out=report.pdf must end in .html"),
        ("out/protected/report.html", "lies in the release"),
        ("folder.html", "out=folder.html is a folder"),
    ],
)
def test_what_is_not_written(
    out: str, message: str, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    Path("taken.html").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", "out/protected", "--out", out]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("taken.html").read_text() == "mine"


def test_from_within_the_release_it_is_written_beside_it(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(release)
    assert main(["report", "."]) == 0
    assert (release.parent / "report.html").is_file()


def _chromium() -> str:
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is on the path")
    return found


def _browse(page: Path, folder: Path, *options: str) -> tuple[str, str]:
    """Open a page in headless Chromium; return what it prints and what it logs."""
    command = [
        *(_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--v=0", "--hide-scrollbars", *options, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


PROBE = """<!DOCTYPE html><title></title><iframe width="{width}" height="3000" style="border: 0" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, right = {width} + 1;
  const wide = [...page.querySelectorAll("body *")].filter(
    (element) => !element.closest(".scroll, .skip") && element.getBoundingClientRect().right > right);
  const size = (element) => parseFloat(page.defaultView.getComputedStyle(element).fontSize);
  document.title = JSON.stringify({{
    first: page.querySelector("#verdict").getBoundingClientRect().bottom,
    images: [...page.images].map((image) => [image.naturalWidth, image.naturalHeight]),
    width: page.defaultView.innerWidth, page: page.documentElement.scrollWidth, wide: wide.map((element) => element.className),
    smallest: Math.min(...[...page.querySelectorAll("p, li, dd, td")].map(size)), tables: page.querySelectorAll("table").length,
  }});
}});</script>"""
"""Shows the page in a frame of a given width, because windows have a least one, and looks at it from outside."""


@pytest.mark.slow
def test_in_a_browser(make: Make, release: Path, tmp_path: Path) -> None:
    """It opens without a message, its pictures load, and no part of it is wider than a phone's or a desktop's window."""
    page = make()
    file = release.parent / "report.html"
    for width in (390, 1280):
        picture = tmp_path / f"{width}.png"
        _, log = _browse(file, tmp_path, f"--window-size={width},3000", f"--screenshot={picture}")
        assert "CONSOLE" not in log
        with Image.open(picture) as shot:
            assert shot.size == (width, 3000)
            assert len(shot.convert("L").getcolors(256) or []) > 10
        probe = tmp_path / "probe.html"
        probe.write_text(PROBE.format(width=width, page=escape(file.read_text(encoding="utf-8"))), encoding="utf-8")
        dom, log = _browse(probe, tmp_path, "--window-size=1400,3000", "--dump-dom")
        assert "CONSOLE" not in log
        found = json.loads(unescape(dom[dom.index("<title>") + 7 : dom.index("</title>")]))
        assert found["images"][1:] == [[900, 20], [901, 20]]
        assert found["first"] <= 900 or width < 1280  # the first page needs no scrolling on a director's screen
        assert (found["width"], found["page"], found["wide"]) == (width, width, [])
        assert found["smallest"] >= 13
        assert found["tables"] == len(page.tables)
    _browse(file, tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext"):
        printed = subprocess.run(["pdftotext", tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True).stdout
        first, second, *_ = printed.split("\f")
        assert "Verdict" in first
        assert "What to do" in first
        assert "What was protected, and how" not in first
        assert "What was protected, and how" in second


@pytest.mark.slow
def test_a_browser_refuses_scripts_and_says_so(make: Make, release: Path, tmp_path: Path) -> None:
    """The policy holds, and a message would be noticed by the test above."""
    make()
    file = release.parent / "report.html"
    file.write_text(file.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'ran'</script></main>"))
    dom, log = _browse(file, tmp_path, "--dump-dom")
    assert "<title>ran</title>" not in dom
    assert "CONSOLE" in log
