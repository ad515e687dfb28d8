"""``audit``, ``quality`` and ``report`` of a protected folder: on the files as they are stored, against the originals."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from functools import partial
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from salm_lightning.audit.file_pairs import FilePairs
from salm_lightning.audit.measuring import joined, measure
from salm_lightning.audit.quality import assess
from salm_lightning.audit.releases import FolderResult, open_release
from salm_lightning.audit.results import audit_folder
from salm_lightning.audit.segmentation import SegmentationNetwork, open_segmenter
from salm_lightning.audit.trials import Trial, title_of
from salm_lightning.data import FolderDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.release import protected_folder
from salm_lightning.release.folder import write_folder
from salm_lightning.release.verify_folder import verify_folder
from salm_lightning.report.folder import about_folder
from salm_lightning.runs.record import DONE, Run
from salm_lightning.sealed import write_sealed

EVIL = "<script>alert('1')<.png"
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


class Made(NamedTuple):
    """A folder and the result that was made of it."""

    scans: Path
    result: Path


def drawn(seed: int, height: int, width: int, planes: int = 3) -> np.ndarray:
    rng, ramp = np.random.default_rng(seed), np.add.outer(np.arange(height), np.arange(width)) * 2 % 190 + 20
    pixels = np.repeat(ramp[..., None], planes, -1) + rng.integers(0, 30, (height, width, planes))
    return (pixels if planes > 1 else pixels[..., 0]).astype(np.uint8)


def protected(scans: Path, result: Path, **options: Any) -> Made:
    data = FolderDataModule(scans, size=16, **{"protects": "all", **options}).load()
    images = data.working.images[data.rows("train")].astype(np.int16)
    noise = np.random.default_rng(1).choice([-8, 8], images.shape)
    blocks = [np.clip(images + noise, 0, 255).astype(np.uint8)]
    write_folder(result, data, blocks, {"method": {"name": "em"}, "seed": 0}, {"norm": "linf", "radius": 8.0}, "once")
    return Made(scans, result)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """RGB files of several sizes and containers, one turned by EXIF, one with markup in its name, and one that is copied."""
    root = tmp_path_factory.mktemp("colour")
    for number, (split, name) in enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")] * 3):
        folder = root / "scans" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        file = EVIL if number == 1 else f"{number}.{('png', 'tif')[number % 2]}"
        Image.fromarray(drawn(number, 30 + number, 44)).save(folder / file)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn(20, 32, 48)).save(root / "scans/train/a/0.jpg", exif=exif, quality=97, subsampling=0)
    (root / "scans/README.md").write_text("scans")
    return protected(root / "scans", root / "result")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Grey files of 16 bits whose values lie between 30,000 and 34,000."""
    root = tmp_path_factory.mktemp("deep")
    for number in range(12):
        folder = root / "scans" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = 30000 + drawn(number, 33, 40, 1).astype(np.uint16) * 16
        Image.fromarray(values).save(folder / f"{number}.png")
    return protected(root / "scans", root / "result", range="30000:34000")


def upright(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image))


# What is opened ---------------------------------------------------------------------------------------------------------------


def test_victims_see_the_files_as_they_are_stored_at_each_size(colour: Made) -> None:
    views = open_release(colour.result).views(str(colour.scans), sizes=[16, 28])
    assert [view.words for view in views] == ["16 px", "28 px"]
    identities = [images.identity() for view in views for images in view.images.values()]
    assert len({json.dumps(identity) for identity in identities}) == 4, "no victim is taken for another"
    for view, size in zip(views, (16, 28), strict=True):
        stored, clean = view.images["protected"], view.images["clean"]
        paths = [image.path for image in clean.survey.folder.images]  # type: ignore[attr-defined]
        for images, tree in ((stored, colour.result / "protected"), (clean, colour.scans)):
            for split, root in (("train", tree), ("test", colour.scans)):
                files = [upright(root / path) for path in paths if path.startswith(split)]
                scaled = [Image.fromarray(file).resize((size, size), Image.Resampling.BILINEAR) for file in files]
                np.testing.assert_array_equal(images.split(split).images, np.stack([np.asarray(each) for each in scaled]))
        assert stored.batch_size == clean.batch_size == 128


def test_the_sums_of_the_files_are_checked_once_for_all_sizes(colour: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    monkeypatch.setattr(protected_folder, "verify_folder", lambda *given: checks.append(given) or verify_folder(*given))
    open_release(colour.result).views(str(colour.scans), sizes=[16, 28, 40])
    assert len(checks) == 1


def test_above_8_bits_victims_see_all_values_too(deep: Made) -> None:
    views = open_release(deep.result).views(str(deep.scans))
    assert [view.words for view in views] == ["16 px", "28 px", "16 px with all values"]
    first, _, full = (view.images["clean"].split("train").images for view in views)
    assert first.max() > 150
    stored = [np.asarray(Image.open(path)) for path in sorted(deep.scans.rglob("*.png"))]
    assert int(np.min(stored)) // 257 <= full.min()
    assert full.max() - full.min() <= 17, "4,000 of 65,536 values are a few of 256 levels"


def test_sizes_that_make_no_sense_and_originals_that_are_missing(colour: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "source is missing: models are measured on clean images"),
        (["--source", str(colour.scans), "--sizes", "4"], "sizes=4 is out of range"),
        (["--source", str(colour.scans), "--sizes", "a,b"], "sizes=a,b must be numbers of pixels"),
        (["--source", str(colour.result / "protected")], "is not what"),
        (["--source", "nowhere"], "source=nowhere is no folder"),
        (["--source", str(colour.scans), "--out", str(colour.result / "protected/audit")], "lies in the release"),
    ):
        assert main(["audit", str(colour.result), *words]) == 2
        error = capsys.readouterr().err
        assert said in error, words
        assert "Traceback" not in error
    assert not (colour.result / "audit").exists()
    assert main(["audit", str(colour.result / "protected"), "--source", str(colour.scans)]) == 2
    assert f"name the whole result, {colour.result}" in capsys.readouterr().err
    assert audit_folder(colour.result, None) == colour.result / "audit"


def test_a_row_for_each_size(colour: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def train(trial: Trial, images: Any, *_: Any) -> tuple[Run, Any]:
        seen.append((trial.title, images.image_size))
        acc = 0.9 if trial.trained_on == "clean" else 0.8 if trial.view == "28 px" else 0.5
        values = {"acc": acc, "auc": acc, "balanced_acc": acc, "confusion": [[1, 1], [1, 1]]}
        results = {"test": values, "history": {"best_on_val": values, "peak": values}, "majority": 0.5}
        results |= {"data": images.describe(), "title": title_of(trial.victim.countermeasure)}
        results |= {"curve": {"steps": [3], "test_acc": [acc]}}
        return Run(trial.identity, DONE, "", 1.0, results), SimpleNamespace(countermeasure=None, network=nn.Linear(1, 1))

    monkeypatch.setattr(Trial, "train", train)
    monkeypatch.setattr("salm_lightning.audit.run.draw_audit", lambda *_: None)
    words = ["--source", str(colour.scans), "--sizes", "16,28", "--countermeasures", "[mean]", "--quality", "false"]
    assert main(["audit", str(colour.result), *words, "--out", str(tmp_path), "--accelerator", "cpu"]) == 0
    assert seen == [
        ("protected, none at 16 px, resnet18, seed 0", 16),
        ("clean, none at 16 px, resnet18, seed 0", 16),
        ("protected, none at 28 px, resnet18, seed 0", 28),
        ("clean, none at 28 px, resnet18, seed 0", 28),
        ("protected, mean at 16 px, resnet18, seed 0", 16),
        ("clean, mean at 16 px, resnet18, seed 0", 16),
    ]
    audit = json.loads((tmp_path / "audit.json").read_text())
    rows = {(row["title"], row["view"]): row for row in audit["rows"]}
    assert list(rows) == [
        ("none", "16 px"),
        ("early stopping", "16 px"),
        ("none", "28 px"),
        ("early stopping", "28 px"),
        ("mean", "16 px"),
    ]
    assert rows["none", "28 px"]["kept"] == pytest.approx(0.75)
    assert rows["none", "28 px"]["clean"]["acc"] == [0.9]
    assert audit["verdict"]["word"] == "does not protect"
    assert "without any countermeasure at 28 px" in audit["verdict"]["text"]
    assert audit["settings"]["views"] == ["16 px", "28 px"]
    assert audit["release"]["archive_sha256"] == open_release(colour.result).sha256
    lines = list(csv.DictReader((tmp_path / "audit.csv").open()))
    assert [line["view"] for line in lines] == ["16 px"] * 2 + ["28 px"] * 2 + ["16 px"] * 2
    # The same, one size at a time: what was found before is a part of the table, with its twin.
    seen.clear()
    words = ["--source", str(colour.scans), "--sizes", "28", "--countermeasures", "none", "--quality", "false"]
    assert main(["audit", str(colour.result), *words, "--out", str(tmp_path), "--accelerator", "cpu"]) == 0
    again = json.loads((tmp_path / "audit.json").read_text())
    assert seen == []
    assert {(row["title"], row["view"]) for row in again["rows"]} == set(rows)
    assert all(row["clean"] is not None for row in again["rows"])


# Quality ----------------------------------------------------------------------------------------------------------------------


def test_likeness_is_measured_on_the_pixels_of_each_file(colour: Made, tmp_path: Path) -> None:
    source = open_release(colour.result).originals(str(colour.scans))
    result = assess(colour.result, source, tmp_path, segmenter=open_segmenter("otsu"))
    with (tmp_path / "quality.csv").open(newline="") as stream:
        lines = {line["file"]: line for line in csv.DictReader(stream)}
    assert set(lines) == {
        path.relative_to(colour.scans).as_posix() for path in colour.scans.rglob("*") if path.suffix != ".md" and path.is_file()
    }
    ssim = {}
    for file, line in lines.items():
        before, after = upright(colour.scans / file), upright(colour.result / "protected" / file)
        ssim[file] = structural_similarity(before, after, channel_axis=-1, data_range=255, **SSIM)
        # scikit-image leaves the border out of its mean, ours and torchmetrics' mirror it
        assert float(line["ssim"]) == pytest.approx(ssim[file], abs=0.02)
        assert float(line["psnr"]) == pytest.approx(peak_signal_noise_ratio(before, after), abs=1e-4)
        assert float(line["linf"]) == np.abs(before.astype(int) - after).max()
        assert float(line["l0"]) == (before != after).any(axis=-1).sum()
    assert (result.images, result.protected_images, result.white) == (13, 13, 255)
    worst = result.similarity["ssim"]
    assert worst is not None
    assert float(lines[worst.worst_file]["ssim"]) == pytest.approx(worst.worst)
    assert worst.mean == pytest.approx(np.mean([float(line["ssim"]) for line in lines.values()]))
    assert result.linear_separability is not None
    assert result.linear_separability.images == 7, "of the training split, as models see it"
    first, again, other = (FilePairs(colour.result, source, 3, seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert (len(first), first.protected_images) == (3, 13)
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()


def test_above_8_bits_likeness_is_that_within_the_range(deep: Made) -> None:
    pairs = FilePairs(deep.result, open_release(deep.result).originals(str(deep.scans)))  # type: ignore[arg-type]
    assert pairs.white == 4000
    measured = joined([part.similarity for part in pairs.map(partial(measure, pairs.white, None))])
    assert len(pairs) == len(measured["psnr"]) == 12
    for place in range(len(pairs)):
        before, after = (
            np.asarray(Image.open(root / pairs.file(place))).clip(30000, 34000).astype(int)
            for root in (deep.scans, deep.result / "protected")
        )
        assert measured["psnr"][place] == pytest.approx(peak_signal_noise_ratio(before, after, data_range=4000), abs=1e-4)
        assert measured["linf"][place] == np.abs(before - after).max() > 8


def test_torchscript_passes_between_processes(tmp_path: Path) -> None:
    import pickle

    script = torch.jit.script(nn.Conv2d(1, 1, 1))  # type: ignore[no-untyped-call]
    torch.jit.save(script, tmp_path / "net.pt")  # type: ignore[no-untyped-call]
    opened = open_segmenter(f"torchscript:{tmp_path / 'net.pt'}")
    images = drawn(0, 9, 9, 1)[None]
    for each in (opened, SegmentationNetwork(nn.Conv2d(1, 1, 1), "mine")):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(each))(images), each(images))


# The report -------------------------------------------------------------------------------------------------------------------


def pictures_of(html: str, alt: str) -> list[np.ndarray]:
    found = re.findall(rf'<img src="data:image/png;base64,([^"]+)"[^>]*alt="{alt}\.', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_report_shows_files_at_their_own_size(colour: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(colour.result), "--source", str(colour.scans), "--out", str(page)]) == 0
    html = page.read_text()
    files = [unescape(file) for file in re.findall(r"<h3>((?:train|test)/[^<]+)</h3>", html)]
    assert files == ["test/a/10.png", "train/a/0.jpg", f"train/b/{EVIL}"]
    for name, root in (("Before", colour.scans), ("After", colour.result / "protected")):
        for file, shown in zip(files, pictures_of(html, name), strict=True):
            np.testing.assert_array_equal(shown, upright(root / file))
    for file, shown in zip(files, pictures_of(html, "Difference"), strict=True):
        before, after = (upright(root / file).astype(int) for root in (colour.scans, colour.result / "protected"))
        limit = np.abs(after - before).max()
        np.testing.assert_allclose(shown, 127.5 + 127.5 * (after - before) / limit, atol=0.5)
        assert f"black and white are {limit} of 255 levels" in html
    assert "13 with noise: 1 JPEG, 7 PNG, 5 TIFF" in html
    compared, claimed = html.split("Compared with the originals, file by file")[1].split("which nothing here has checked")
    assert "changes by at most" in compared
    assert "holds" not in compared
    assert "PNG holds 100" in claimed
    assert [text.count("differ on average") for text in (compared, claimed)] == [0, 1]
    assert "This page shows original images: it is not for publication." in html
    assert "Private:  the report shows original images; it is not for publication" in capsys.readouterr().out
    assert "1 .md" in html
    assert "Verdict: none yet" in html
    shutil.copytree(colour.result, tmp_path / "result")
    assert main(["report", str(tmp_path / "result")]) == 0
    html = (tmp_path / "result/report.html").read_text()
    assert "Nobody has compared the files with the originals for this page" in html
    assert pictures_of(html, "Before") == []
    assert "not for publication" not in html + capsys.readouterr().out


def test_the_report_windows_what_has_more_than_8_bits(deep: Made, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(deep.result), "--source", str(deep.scans), "--out", str(page)]) == 0
    html = page.read_text()
    for file, shown in zip(re.findall(r"<h3>([ab]/[^<]+)</h3>", html), pictures_of(html, "After"), strict=True):
        values = np.asarray(Image.open(deep.result / "protected" / file)).astype(float)
        np.testing.assert_allclose(shown, (values.clip(30000, 34000) - 30000) * 255 / 4000, atol=0.5)
    assert "sees weaker noise" in html
    assert "black is 30000, white 34000" in html


@pytest.mark.parametrize(("values", "planes"), [("0:255", 1), ("100:355", 3)])
def test_a_range_of_255_values_above_8_bits_is_a_range(values: str, planes: int, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = drawn(number, 33, 40, planes).astype(np.uint16) * 3  # up to 717
        assert cv2.imwrite(str(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png"), pixels)
    made = protected(tmp_path / "scans", tmp_path / "result", range=values)
    low, opened = int(values.split(":")[0]), open_release(made.result)
    source, window = opened.originals(str(made.scans)), (lambda pixels: (pixels.astype(int) - low).clip(0, 255))

    def stored(root: Path, file: str) -> np.ndarray:
        return window(cv2.imread(str(root / file), cv2.IMREAD_UNCHANGED))

    pairs = FilePairs(made.result, source)  # type: ignore[arg-type]
    found = joined([part.similarity for part in pairs.map(partial(measure, pairs.white, None))])
    for place in range(len(pairs)):
        before, after = (stored(root, pairs.file(place)) for root in (made.scans, made.result / "protected"))
        assert found["psnr"][place] == pytest.approx(peak_signal_noise_ratio(before, after, data_range=255), abs=1e-4)
    view = opened.views(str(made.scans), sizes=[16])[0]
    clean, noisy = (view.images[name].split("train").images[:].astype(int) for name in ("clean", "protected"))
    assert 0 < np.abs(clean - noisy).max() <= 8, "both are seen from black to white of the range"
    assert main(["report", str(made.result), "--source", str(made.scans)]) == 0
    html = (made.result / "report.html").read_text()
    assert f"black is {low}, white {low + 255}" in html
    assert "sees weaker noise" in html
    shown = zip(re.findall(r"<h3>([ab]/[^<]+)</h3>", html), pictures_of(html, "After"), strict=True)
    for file, picture in shown:
        assert picture.dtype == np.uint8
        wanted = stored(made.result / "protected", file)
        np.testing.assert_array_equal(picture, wanted[..., ::-1] if planes == 3 else wanted)


def test_the_page_of_a_file_that_is_least_like_its_original_is_shown(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        first, *others = (Image.fromarray(drawn(10 * number + page, 33, 40)) for page in range(3))
        first.save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.tif", save_all=True, append_images=others)
    made = protected(tmp_path / "scans", tmp_path / "result")
    opened = open_release(made.result)
    assert isinstance(opened, FolderResult)
    pairs = FilePairs(made.result, opened.originals(str(made.scans)))  # type: ignore[arg-type]
    worst = pairs.file(5)
    assert worst.endswith("2.tif, page 3")
    shown = about_folder(opened, str(made.scans), worst)["pairs"]
    assert [pair.file for pair in shown] == [worst, "a/0.tif, page 1", "a/6.tif, page 1", "b/7.tif, page 1"]
    assert ["least like" in pair.pictures[1].caption for pair in shown] == [True, False, False, False]
    with (
        Image.open(made.scans / "a/2.tif") as stored,
        Image.open(io.BytesIO(base64.b64decode(shown[0].pictures[0].uri[22:]))) as seen,
    ):
        stored.seek(2)
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(stored))


@pytest.mark.parametrize(
    ("name", "value"), [("noise_kept", "nan"), ("noise_kept", "1e300"), ("changed_share", "-5"), ("changed_share", "inf")]
)
def test_numbers_that_no_file_has_are_refused(
    name: str, value: str, colour: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "protected").mkdir()
    shutil.copy(colour.result / "release/manifest.json", tmp_path / "release")
    with (colour.result / "release/files.csv").open(newline="") as stream:
        lines = list(csv.reader(stream))
    lines[1][lines[0].index(name)] = value
    with (tmp_path / "release/files.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{name}={float(value)} of {lines[1][0]} must be from" in error
    assert "Traceback" not in error


def test_nothing_of_a_delivered_result_is_trusted(
    colour: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, page = tmp_path / "result", tmp_path / "page.html"
    shutil.copytree(colour.result, result)
    digest = FolderResult(result).sha256
    (result / "audit").mkdir()
    forged = {"release": {"archive_sha256": digest}, "format_version": 1, "verdict": {"word": "protects", "text": "Trust me."}}
    (result / "audit/audit.json").write_text(json.dumps(forged))
    assert main(["report", str(result), "--out", str(page)]) == 0
    html = page.read_text()
    assert "Trust me" not in html
    assert "Made elsewhere, not checked:</strong> audit/audit.json" in html
    assert "<script" not in html
    # Of another result, with our own seal.
    write_sealed(result / "audit/audit.json", {**forged, "release": {"archive_sha256": "0" * 64}})
    assert main(["report", str(result), "--out", str(page), "--overwrite", "true"]) == 2
    assert "is about another release" in capsys.readouterr().err
    shutil.rmtree(result / "audit")
    assert main(["report", str(result), "--source", str(result / "protected"), "--out", str(page)]) == 2
    assert "is not what" in capsys.readouterr().err
    stored = result / "protected/train/a/0.png"
    stored.unlink()
    stored.symlink_to("/etc/hostname")
    for words in (["report", str(result)], ["audit", str(result), "--source", str(colour.scans), "--accelerator", "cpu"]):
        assert main(words) == 2
        assert "is not what was released (files:" in capsys.readouterr().err
    manifest = result / "release/manifest.json"
    manifest.write_text(manifest.read_text().replace('"images": 13', '"images": "13"'))
    assert main(["report", str(result)]) == 2
    assert "must be a whole number" in capsys.readouterr().err


def test_the_report_of_regions_that_were_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(number, 20, 24, 1)).save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    Path("boxes.csv").write_text("file,x,y,width,height\na/0.png,8,5,12,7\n")
    protected(tmp_path / "scans", tmp_path / "result", keep_out="boxes.csv")
    assert main(["report", "result", "--source", "scans"]) == 2
    assert "give with --keep_out what the result was made with" in capsys.readouterr().err
    assert main(["report", "result", "--keep_out", "boxes.csv"]) == 2
    assert "keep_out=boxes.csv needs the originals" in capsys.readouterr().err
    assert main(["report", "result", "--source", "scans", "--keep_out", "boxes.csv"]) == 0
    page = Path("result/report.html").read_text()
    assert "--source ORIGINAL --keep_out REGIONS" in page
    assert "REGIONS stands for the folder of masks, or the table of boxes" in page


def test_options_of_one_kind_alone(colour: Made, capsys: pytest.CaptureFixture[str]) -> None:
    archive = str(open_archive(colour).path)
    for words, said in (
        (["verify", archive, "--keep_out", "boxes.csv"], "keep_out=boxes.csv is for the results of folders"),
        (["report", archive, "--keep_out", "boxes.csv"], "keep_out=boxes.csv is for the results of folders"),
        (
            ["quality", archive, "--source", "any.npz", "--keep_out", "boxes.csv"],
            "keep_out=boxes.csv is for the results of folders",
        ),
        (["verify", str(colour.result), "--root", "there"], "root=there is for MedMNIST names"),
        (["verify", str(colour.result), "--keep_out", "boxes.csv"], "keep_out=boxes.csv needs the originals"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"source=scans is for the results of folders"):
        open_archive(colour).check("scans")
    with pytest.raises(ConfigurationError, match=r"sizes=\[28\] is for the results of folders"):
        open_archive(colour).views(None, sizes=[28])


def open_archive(colour: Made) -> Any:
    from salm_lightning.data import NpzDataModule
    from salm_lightning.release import write_release

    folder = colour.result.parent / "archive"
    if not folder.exists():
        arrays = {
            f"{split}_images": np.stack([drawn(number, 12, 12) for number in range(4)]) for split in ("train", "val", "test")
        }
        labels = {f"{split}_labels": np.array([[0], [1], [0], [1]], np.uint8) for split in ("train", "val", "test")}
        np.savez(colour.result.parent / "tiny.npz", **arrays, **labels)
        source = NpzDataModule(colour.result.parent / "tiny.npz")
        write_release(folder, source, [source.split("train").images], {}, {"norm": "linf", "radius": 8})
    return open_release(folder)
