"""``salm-cli inspect``: what is said of folders as owners have them, and every reason not to protect them, in one line each."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from salm_lightning.data import workers
from salm_lightning.data.folder import read_folder
from salm_lightning.data.survey import SAME, survey
from salm_lightning.main import main

RNG = np.random.default_rng(0)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(12, 10) if pixels is None else pixels).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    for split, count in {"train": 4, "test": 2}.items():
        for name in ("benign", "malignant"):
            for number in range(count):
                save(tmp_path / "scans" / split / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "scans"


Shown = Callable[[str, int], str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    def run(arguments: str, code: int) -> str:
        capsys.readouterr()
        assert main(["inspect", *shlex.split(arguments)]) == code
        printed = capsys.readouterr()
        return printed.out or printed.err

    return run


def test_a_folder_that_can_be_protected(scans: Path, shown: Shown) -> None:
    (scans / "README.md").touch()
    text = shown("scans", 0)
    assert text == (
        "scans: 12 images, 2 classes\n"
        "\n"
        "  Layout       folders, split / class / image\n"
        "  Splits       train 8, test 4\n"
        "  Format       PNG 12 (grey)\n"
        "  Size         10 x 12\n"
        "  Depth        8 bits\n"
        "  Colour       grey\n"
        "  Other files  1 .md; published as they are\n"
        "\n"
        "  class          train     test      all\n"
        "  benign             4        2        6\n"
        "  malignant          4        2        6\n"
        "\n"
        "Nothing stands in the way of protecting it.\n"
    )


def broken(kind: str) -> bytes:
    whole = save(Path(f"{kind}.png"), noise(40, 40)).read_bytes()
    return {"cut": whole[: len(whole) // 2], "empty": b"", "page": b"<!DOCTYPE html><html>Not found</html>"}[kind]


def test_each_reason_is_one_kind_with_its_files(scans: Path, shown: Shown) -> None:
    for kind in ("cut", "empty", "page"):
        (scans / f"train/benign/{kind}.jpg").write_bytes(broken(kind))
    palette = Image.fromarray(noise(8, 8, 3)).quantize(8)
    palette.save(scans / "train/benign/palette.png")
    palette.save(scans / "test/benign/palette2.png")
    Image.fromarray(noise(8, 8) > 99).save(scans / "test/benign/bit.png")
    moving = [Image.fromarray(noise(8, 8)) for _ in range(3)]
    moving[0].save(scans / "train/benign/moving.png", save_all=True, append_images=moving[1:])
    save(scans / "train/benign/picture.gif")
    (scans / "train/benign/link.png").symlink_to("/etc/passwd")
    text = shown("scans --out found/inspect.csv", 2)
    assert max(map(len, text.splitlines())) <= 80
    assert text.endswith("It cannot be protected as it is.\n")
    with Path("found/inspect.csv").open(newline="") as stream:
        lines = {line["file"]: line for line in csv.DictReader(stream)}
    assert len(lines) == 12 + 9
    found = {path.rpartition("/")[2]: line["problem"] for path, line in lines.items() if line["problem"]}
    kinds = (
        "cut.jpg",
        "empty.jpg",
        "page.jpg",
        "palette.png",
        "palette2.png",
        "bit.png",
        "moving.png",
        "picture.gif",
        "link.png",
    )
    assert set(found) == set(kinds)
    assert found["link.png"] == "links"
    assert "palette" in found["palette.png"]
    assert "animation" in found["moving.png"]
    assert all(line["way_out"].endswith(".") for line in lines.values() if line["problem"])
    good = lines["train/benign/0.png"]
    assert (good["split"], good["labels"], good["container"], good["height"], good["bits"]) == (
        "train",
        "benign",
        "PNG",
        "12",
        "8",
    )
    for name in found:
        assert name in text


def test_many_files_of_a_kind_are_counted(scans: Path, shown: Shown) -> None:
    for number in range(12):
        (scans / f"train/benign/empty{number}.png").touch()
    text = shown("scans", 2)
    assert "Is empty: 12\n" in text
    assert "      and 2 more; --out FILE.csv lists all\n" in text


def test_the_same_picture_in_two_splits(scans: Path, shown: Shown) -> None:
    pixels = np.asarray(Image.open(scans / "train/benign/0.png"))
    text = PngInfo()
    text.add_text("patient", "somebody")
    save(scans / "test/malignant/again.png", pixels, pnginfo=text)
    save(scans / "train/benign/twice.png", pixels)
    assert "test/malignant/again.png (as train/benign/0.png)" in shown("scans", 2)
    assert [problem.kind for problem in survey(read_folder(scans)).problems] == [SAME]
    assert "1 images are in several splits, which is allowed" in shown("scans --allow_leak true", 0)


def test_depth_and_range(scans: Path, shown: Shown) -> None:
    for number, path in enumerate(sorted(scans.rglob("*.png"))):
        save(path, (RNG.integers(1000, 2001, (40, 40)) + number).astype(np.uint16))
    text = shown("scans", 0)
    assert "  Depth        16 bits\n" in text
    assert "in the 8 that were decoded, of 65,536; 99 %" in text
    save(scans / "train/benign/0.png")
    assert "Images of another depth than most: 1\n" in shown("scans", 2)


def test_colour_that_is_none(scans: Path, shown: Shown) -> None:
    for path in sorted(scans.rglob("*.png")):
        save(path, np.repeat(noise(8, 8, 1), 3, axis=2))
    assert "Colour       stored in RGB, but grey in all 8 that were decoded" in shown("scans", 0)
    save(scans / "train/benign/0.png", noise(8, 8, 3))
    assert "Colour       RGB\n" in shown("scans", 0)
    save(scans / "train/benign/1.png", noise(8, 8))
    assert "RGB 11, grey 1: a model sees all in RGB" in " ".join(shown("scans", 0).split())


def test_tables_groups_and_many_classes(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["Image Index;Finding Labels;Patient ID;age"]
    for number in range(80):
        save(tmp_path / "x" / f"{number}.png")
        rows.append(f"{number}.png;finding {number % 40}|all;p{number % 7};50")
    (tmp_path / "x/labels.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    text = shown("x", 0)
    assert "  Columns      Image Index (files), Finding Labels (labels), Patient ID (groups)\n" in text
    assert "  Not used     age\n" in text
    assert "  Groups       7\n" in text
    assert "  and 12 rarer ones\n" in text
    assert "80 images with any number of labels each, 41 classes" in text


def test_what_is_no_folder_of_images_is_said_in_one_line(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown("nowhere", 2) == "salm-cli: error: folder=nowhere is not there; name a folder of images.\n"
    (tmp_path / "empty").mkdir()
    assert shown("empty", 2) == "salm-cli: error: folder=empty holds no image; it is empty.\n"


def test_names_cannot_command_the_terminal(scans: Path, shown: Shown) -> None:
    (scans / "train/benign/\x1b[2J\n.png").touch()
    os.mkdir(os.fsencode(scans) + b"/train/\xff")  # noqa: PTH102
    save(Path(os.fsdecode(os.fsencode(scans) + b"/train/\xff/1.png")))
    text = shown("scans --out all.csv", 2)
    assert "\\x1b[2J\\n.png" in text
    assert Path("all.csv").read_text(encoding="utf-8").count("\\udcff") > 0


def double(number: int) -> int:
    if number == 30 and workers.os.getpid() != FIRST:
        os._exit(1)
    return 2 * number


FIRST = os.getpid()


@pytest.mark.parametrize("few", [2, 1000])
def test_work_in_processes_keeps_its_order_and_survives_their_end(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salm_lightning.data.workers.cores", lambda: 2)
    assert list(workers.in_processes(double, range(50), few)) == list(range(0, 100, 2))


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_processes_end_with_the_one_that_is_killed(tmp_path: Path) -> None:
    program = (
        "from salm_lightning.data import workers\nworkers.cores = lambda: 2\nimport test_inspect\n"
        "for _ in workers.in_processes(test_inspect.wait, [0.1] * 600): print(flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert first.stdout is not None
    first.stdout.readline()
    family = _descendants(first.pid)
    assert len(family) >= 3
    first.kill()
    first.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in family) and time.monotonic() < end:
        time.sleep(0.1)
    assert [process for process in family if Path(f"/proc/{process}").exists()] == []


def _descendants(process: int) -> list[int]:
    children = [int(word) for path in Path(f"/proc/{process}/task").glob("*/children") for word in path.read_text().split()]
    return [*children, *(below for child in children for below in _descendants(child))]


@pytest.mark.real_data
def test_owners_folders(real_data_root: Path, shown: Shown) -> None:
    text = shown(f"{real_data_root}/owners/nih_chest_multilabel", 2)
    assert "Groups in several splits: 30\n" in text
    assert "Images without a label: 2\n" in text
    shown(f"{real_data_root}/owners/nih_chest_multilabel --allow_leak true --unlabelled skip", 0)
    text = shown(f"{real_data_root}/owners/ct_png16_derived", 0)
    assert "29,744 to 35,839 in the 46 that were decoded" in text
