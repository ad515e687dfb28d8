"""A protected folder: the same tree of files with noise in their pixels alone, proven on the stored files, whole or absent."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from salm_lightning.data import FolderDataModule, formats
from salm_lightning.data.walk import is_junk
from salm_lightning.errors import DataError, OutputExistsError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.main import main
from salm_lightning.release.folder import check_place, cost_of_files, write_folder
from salm_lightning.release.folder_manifest import FileRecord, FolderManifest, read_records, stored_bound, write_table
from salm_lightning.release.noisy_file import native_noise
from salm_lightning.release.protected_folder import ProtectedFolderDataModule, StoredFolder
from salm_lightning.release.verify_folder import verify_folder

RNG = np.random.default_rng(0)
BOUND = {"norm": "linf", "radius": 8.0}
SETTINGS = {"method": {"name": "em"}}


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def smooth(height: int, width: int, planes: int = 3) -> np.ndarray:
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 3 % 200 + 20
    return np.repeat(ramp[..., None], planes, -1).astype(np.uint8) if planes > 1 else ramp.astype(np.uint8)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two splits, two classes; PNG, JPEG and TIFF, one turned, one with alpha, and files that are no images."""
    root = tmp_path / "scans"
    for split, count in (("train", 6), ("test", 3)):
        for name in ("a", "b"):
            for number in range(count):
                ending = ("png", "jpg", "tif")[number % 3]
                pixels = smooth(30 + number, 41)
                pixels[..., 0] += RNG.integers(0, 9, pixels.shape[:2], np.uint8) + (20 if name == "b" else 0)
                save(root / split / name / f"{number}.{ending}", pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "train/a/turned.jpg", smooth(24, 40), exif=exif)
    clear = np.dstack([smooth(20, 20), np.uint8([0, 255]).repeat(200).reshape(20, 20)])
    save(root / "train/b/clear.png", clear)
    (root / "README.md").write_text("scans")
    (root / "train/a/Thumbs.db").write_bytes(b"small copies")
    return root


def noisy(data: FolderDataModule, radius: int = 8) -> list[np.ndarray]:
    images = data.working.images[data.rows("train")].astype(np.int16)
    return [np.clip(images + RNG.integers(-radius, radius + 1, images.shape), 0, 255).astype(np.uint8)]


def written(scans: Path, result: Path, **options: object) -> FolderManifest:
    data = FolderDataModule(scans, size=16, **{"protects": "all", **options}).load()  # type: ignore[arg-type]
    return write_folder(result, data, noisy(data), SETTINGS, BOUND, "first")


def failed(result: Path, source: Path | None) -> list[str]:
    return [check.name for check in verify_folder(result, source) if not check.ok]


def test_the_same_tree_with_noise_in_the_pixels_alone(scans: Path, tmp_path: Path) -> None:
    manifest = written(scans, tmp_path / "out")
    before = {path.relative_to(scans).as_posix() for path in scans.rglob("*") if path.is_file() and not is_junk(path.name)}
    tree = tmp_path / "out/protected"
    assert {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"protected", "release"}
    assert (manifest.images, manifest.copied, manifest.bound, manifest.range) == (20, 1, 8, (0, 255))
    assert failed(tmp_path / "out", scans) == []
    for path in before - {"README.md"}:
        original, stored = formats.read(scans / path), formats.read(tree / path)
        change = np.abs(stored.astype(int) - original)
        assert 0 < change.max() <= 8, path
        assert formats.differences(scans / path, tree / path) == []
    with Image.open(tree / "train/b/clear.png") as file, Image.open(scans / "train/b/clear.png") as original_file:
        after, clean = np.asarray(file), np.asarray(original_file)
    np.testing.assert_array_equal(after[:10], clean[:10])
    assert (after[10:, :, :3] != clean[10:, :, :3]).any()
    record = next(record for record in read_records(tmp_path / "out") if record.file == "train/b/clear.png")
    assert record.kept_out == 200
    classes = TorchvisionFolder(tree / "train")
    assert classes.classes == ["a", "b"]
    assert len(classes) == 14


def test_a_table_leads_to_the_protected_files(tmp_path: Path) -> None:
    """As Hugging Face's ``imagefolder`` reads it: ``metadata.csv``, whose ``file_name`` is a path from there, and columns beside it."""
    rows = [f"{kind}-{number}.png,{kind}" for kind in ("cell", "scale") for number in range(6)]
    for row in rows:
        save(tmp_path / "scans/images" / row.partition(",")[0], RNG.integers(60, 190, (20, 20, 3), np.uint8))
    (tmp_path / "scans/metadata.csv").write_text("file_name,label\n" + "\n".join(f"images/{row}" for row in rows))
    written(tmp_path / "scans", tmp_path / "out")
    tree = tmp_path / "out/protected"
    with (tree / "metadata.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [line["label"] for line in found] == ["cell"] * 6 + ["scale"] * 6
    for line in found:
        with Image.open(tree / line["file_name"]) as after, Image.open(tmp_path / "scans" / line["file_name"]) as before:
            assert 0 < np.abs(np.asarray(after).astype(int) - np.asarray(before)).max() <= 8
    assert {path.suffix for path in tree.rglob("*") if path.is_file()} == {".png", ".csv"}


def test_the_time_and_room_of_files_are_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png", smooth(60 + number, 60))
    clock = iter(range(0, 300, 3))  # which moves on by 3 s between the two times that it is read
    monkeypatch.setattr("salm_lightning.release.folder.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("salm_lightning.release.folder.cores", lambda: 2)
    data = FolderDataModule(tmp_path / "scans", size=16, protects="all").load()
    seconds, size = cost_of_files(data, 8.0)
    assert seconds == 3 * 12 / 2
    monkeypatch.undo()
    images = data.working.images
    noise = RNG.choice(np.array([-8, 8]), images.shape)
    write_folder(tmp_path / "out", data, [np.clip(images + noise, 0, 255).astype(np.uint8)], SETTINGS, BOUND, "first")
    written = sum(path.stat().st_size for path in (tmp_path / "out/protected").rglob("*.png"))
    assert written > 3 * sum(path.stat().st_size for path in (tmp_path / "scans").rglob("*.png"))
    assert size == pytest.approx(written, rel=0.1)


def test_noise_is_turned_with_the_image(scans: Path) -> None:
    facts = formats.facts(scans / "train/a/turned.jpg")
    noise = np.zeros((1, 16, 16), np.int16)
    noise[:, :4] = 8  # at the top of what people see
    stored = native_noise(noise, facts, "nearest", 1.0, 8)
    assert stored.shape == (1, 24, 40, 3)
    seen = formats.upright(stored, facts.orientation)
    assert seen.shape == (1, 40, 24, 3)
    assert (seen[:, :10] == 8).all()
    assert (seen[:, 10:] == 0).all()


@pytest.mark.parametrize("scaling", ["nearest", "bilinear", "bicubic"])
def test_noise_stays_within_the_bound_in_stored_integers(scans: Path, scaling: str) -> None:
    facts = formats.facts(scans / "train/a/0.png")
    noise = RNG.choice(np.int16([-8, 8]), (1, 16, 16, 3))
    stored = native_noise(noise, facts, scaling, 20.0, 157)  # type: ignore[arg-type]
    assert np.abs(stored).max() == 157
    assert stored_bound(8, (30000, 35000)) == 156
    grey = native_noise(noise, formats.Facts("PNG", 9, 7, 1, 8), scaling, 1.0, 8)  # type: ignore[arg-type]
    assert grey.shape == (1, 9, 7, 1)


def test_sixteen_bits_keep_a_bound_of_their_range(tmp_path: Path) -> None:
    for number in range(12):
        pixels = RNG.integers(30000, 34001, (20, 20)).astype(np.uint16) + np.uint16(500 * (number % 2))
        save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png", pixels)
    manifest = written(tmp_path / "scans", tmp_path / "out", range="30000:34080")
    assert (manifest.range, manifest.bound) == ((30000, 34080), 128)
    assert 100 < manifest.largest <= 128
    assert failed(tmp_path / "out", tmp_path / "scans") == []


def test_stored_files_are_seen_in_the_range_of_the_originals(tmp_path: Path) -> None:
    """Also in 0 to 255, which is how files of 8 bits are seen."""
    for number in range(12):
        save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png", RNG.integers(0, 3000, (20, 20)).astype(np.uint16))
    data = FolderDataModule(tmp_path / "scans", size=16, protects="all", range="0:255").load()
    write_folder(tmp_path / "out", data, noisy(data), {"seed": 0, **SETTINGS}, BOUND, "first")
    stored = StoredFolder(tmp_path / "out", data.only_train()).load()
    seen, originals = (each.split("train").images[:].astype(int) for each in (stored, data.only_train()))
    assert np.abs(seen - originals).max() <= 9


def test_the_training_split_alone(scans: Path, tmp_path: Path) -> None:
    manifest = written(scans, tmp_path / "out", protects="train")
    assert (manifest.images, manifest.copied) == (14, 7)
    assert (tmp_path / "out/protected/test/a/0.png").read_bytes() == (scans / "test/a/0.png").read_bytes()
    assert failed(tmp_path / "out", scans) == []


Spoil = Callable[[Path, Path], object]


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _say(tree: Path, key: str, value: object) -> None:
    manifest = tree.parent / "release/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {key: value}))


def _brighter(tree: Path, scans: Path) -> None:
    with Image.open(tree / "train/a/0.png") as file:
        pixels = np.asarray(file)
    save(tree / "train/a/0.png", (pixels + 20).astype(np.uint8))


@pytest.mark.parametrize(
    ("spoil", "checks"),
    [
        (lambda tree, scans: (tree / "train/a/0.png").unlink(), ["files"]),
        (lambda tree, scans: (tree / "more.png").touch(), ["files"]),
        (lambda tree, scans: (tree / ".hidden").touch(), ["files"]),
        (lambda tree, scans: _pipe(tree / "train/a/0.png"), ["files"]),
        (lambda tree, scans: _pipe(tree.parent / "release/files.csv"), ["manifest"]),
        (lambda tree, scans: _say(tree, "radius", 1e308), ["manifest"]),
        (lambda tree, scans: _say(tree, "range", [-1e308, 1e308]), ["manifest"]),
        (lambda tree, scans: _say(tree, "range", [0, 1e308]), ["manifest"]),
        (_brighter, ["sums", "bound"]),
        (lambda tree, scans: shutil.copy(scans / "train/a/0.png", tree / "train/a/0.png"), ["sums", "bound"]),
        (lambda tree, scans: (tree / "README.md").write_text("other"), ["sums"]),
        (lambda tree, scans: (scans / "train/a/1.jpg").unlink(), ["images", "source"]),
        (lambda tree, scans: shutil.copy(scans / "train/b/0.png", scans / "train/a/0.png"), ["source"]),
    ],
)
def test_verify_names_what_was_changed(scans: Path, tmp_path: Path, spoil: Spoil, checks: list[str]) -> None:
    written(scans, tmp_path / "out")
    spoil(tmp_path / "out/protected", scans)
    assert failed(tmp_path / "out", scans) == checks


def test_verify_does_not_believe_the_table(scans: Path, tmp_path: Path) -> None:
    """A table that fits a spoilt tree does not fit the manifest; a manifest that fits that one still has the bound against it."""
    written(scans, tmp_path / "out")
    table = tmp_path / "out/release/files.csv"
    _brighter(tmp_path / "out/protected", scans)
    lines = list(csv.reader(table.open(newline="")))
    (line,) = (line for line in lines if line[0] == "train/a/0.png")
    line[3] = file_sha256(tmp_path / "out/protected/train/a/0.png")
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    assert failed(tmp_path / "out", scans) == ["table", "bound"]
    manifest = tmp_path / "out/release/manifest.json"
    manifest.write_text(manifest.read_text().replace('"bound": 8', '"bound": 40'))
    assert "coverage" in failed(tmp_path / "out", scans)


def test_a_killed_writing_goes_on(scans: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time, numpy as np\nfrom pathlib import Path\nimport salm_lightning.release.folder as f\n"
        "from salm_lightning.data import FolderDataModule\n"
        "def slowly(work, jobs, few):\n    for job in jobs:\n        yield work(job)\n"
        "        print(job.path, flush=True)\n        time.sleep(0.05)\n"
        "f.in_processes = slowly\n"
        f"data = FolderDataModule({str(scans)!r}, size=16, protects='all').load()\n"
        "images = np.minimum(data.working.images.astype(int) + 5, 255).astype(np.uint8)\n"
        f"f.write_folder(Path({str(tmp_path / 'out')!r}), data, [images], {SETTINGS!r}, {BOUND!r}, 'same')\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    first = [killed.stdout.readline().strip() for _ in range(5)]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/protected").exists()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not set(first[:4]) & set(done)
    assert len(done) < 17
    assert failed(tmp_path / "out", scans) == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"protected", "release"}


def test_an_unfinished_tree_from_elsewhere_is_not_gone_on_with(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FolderDataModule(scans, size=16, protects="all").load()
    with pytest.raises(ReleaseError, match="0 of 20 images were protected"):
        write_folder(tmp_path / "out", data, [], SETTINGS, BOUND, "first")
    digest = file_sha256(scans / "train/a/0.png")
    (tmp_path / "out/.unfinished/protected/train/a").mkdir(parents=True)
    shutil.copy(scans / "train/a/0.png", tmp_path / "out/.unfinished/protected/train/a/0.png")
    (tmp_path / "out/.unfinished/journal.csv").write_bytes(f"train/a/0.png,PNG,{digest},{digest},0,0.0,0,1.0,\r\n".encode())
    monkeypatch.setenv("SALM_STATE_DIR", str(tmp_path / "elsewhere"))
    write_folder(tmp_path / "out", data, noisy(data), SETTINGS, BOUND, "first")
    assert (tmp_path / "out/protected/train/a/0.png").read_bytes() != (scans / "train/a/0.png").read_bytes()


def test_a_source_that_changes_is_noticed_and_nothing_is_published(scans: Path, tmp_path: Path) -> None:
    data = FolderDataModule(scans, size=16, protects="all").load()
    shutil.copy(scans / "train/a/3.png", scans / "train/a/0.png")
    with pytest.raises(ReleaseError, match=r"train/a/0\.png was changed while the command ran"):
        write_folder(tmp_path / "out", data, noisy(data), SETTINGS, BOUND, "first")
    assert not (tmp_path / "out/protected").exists()


FAST = "--size 16 --width 0.1 --steps 4 --victim_steps 3 --batch_size 8 --accelerator cpu --source_model cnn --method em"


def test_protect_a_folder(scans: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(f"protect {scans} --out out {FAST}")) == 0
    printed = capsys.readouterr().out
    assert f"salm-cli verify out --source {scans}" in printed
    assert "files with noise" in printed
    assert main(shlex.split(f"verify out --source {scans}")) == 0
    assert main(shlex.split("verify out")) == 0
    assert not Path("out/.protected.parts").exists()
    before = Path("out/release/manifest.json").read_bytes()
    assert main(shlex.split(f"protect {scans} --out out {FAST}")) == 0
    assert "done before" in capsys.readouterr().out
    assert main(shlex.split(f"protect {scans} --out out {FAST} --seed 1")) == 2
    assert "holds a result with other settings (seed is 0 there and 1 here)" in capsys.readouterr().err
    assert main(shlex.split(f"protect {scans} --out out {FAST} --overwrite true --proof false")) == 0
    assert Path("out/release/manifest.json").read_bytes() == before
    Path("out/protected/mine.txt").touch()
    assert main(shlex.split(f"protect {scans} --out out {FAST} --overwrite true")) == 2
    assert "holds mine.txt, which no result of ours says anything about" in capsys.readouterr().err


def test_a_victim_trains_on_the_stored_files(scans: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    data = FolderDataModule(scans, size=16, protects="all").load()
    write_folder(Path("out"), data, noisy(data), {"seed": 0, **SETTINGS}, BOUND, "first")
    stored = ProtectedFolderDataModule("out", scans).load()
    assert [len(stored.split(name)) for name in ("train", "val", "test")] == [14, 6, 6]
    clean = data.only_train().split("train").images.astype(int)
    change = np.abs(stored.split("train").images - clean)
    assert 0 < change.max() <= 9
    np.testing.assert_array_equal(stored.split("test").images, data.split("test").images)
    fit = "--model.width 0.1 --trainer.max_steps 2 --trainer.accelerator cpu --trainer.default_root_dir runs"
    victim = f"fit --config victim.yaml --data ProtectedFolderDataModule --data.root out --data.original {scans} {fit}"
    assert main(shlex.split(victim)) == 0
    Path("out/protected/README.md").write_text("other")
    with pytest.raises(ReleaseError, match=r"out is not what was released \(sums: README\.md"):
        ProtectedFolderDataModule("out", scans).load()
    (scans / "test/b/0.png").unlink()
    with pytest.raises(DataError, match="is not what out was made from: images or labels differ"):
        ProtectedFolderDataModule("out", scans)


@pytest.mark.parametrize("out", ["scans/out", "scans", "."])
def test_a_result_and_its_source_do_not_lie_in_each_other(
    out: str, scans: Path, workplace: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(f"protect scans --out {out} {FAST}")) == 2
    assert f"out={out}: " in capsys.readouterr().err
    assert not Path("scans/out").exists()


def test_only_noise_with_a_largest_value(scans: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(f"protect scans --out out {FAST.replace('--method em', '--method sp')}")) == 2
    assert "--method.norm linf" in capsys.readouterr().err
    (Path("out") / "protected").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="--overwrite true"):
        check_place(Path("out"), overwrite=False)


# What the source says of a result -----------------------------------------------------------------------------------------------


def rewrite(result: Path, change: Callable[[list[FileRecord]], list[FileRecord]]) -> None:
    """Change the table of files, and all counts and sums in the manifest, as somebody would who wants it to hold."""
    records = change(read_records(result))
    write_table(result / "release/files.csv", records)
    carrying = [record for record in records if record.format != "copied"]
    path = result / "release/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["sha256"] = file_sha256(result / "release/files.csv")
    manifest |= {"images": len(carrying), "copied": len(records) - len(carrying)}
    path.write_text(json.dumps(manifest | {"largest": max(record.largest for record in carrying)}))


@pytest.mark.parametrize("how", [{}, {"protects": "train"}], ids=["all", "train"])
def test_a_result_that_lost_images_or_holds_an_original(scans: Path, tmp_path: Path, how: dict[str, object]) -> None:
    result = tmp_path / "out"
    written(scans, result, **how)
    assert failed(result, scans) == []
    (result / "protected/train/b/0.png").unlink()
    rewrite(result, lambda records: [record for record in records if record.file != "train/b/0.png"])
    assert failed(result, None) == [], "the table is the only witness, and it was rewritten"
    found = {check.name: check for check in verify_folder(result, scans)}
    assert [name for name, check in found.items() if not check.ok] == ["images"]
    assert found["images"].detail == "train/b/0.png of the source is missing"


def test_an_original_in_the_place_of_its_image(scans: Path, tmp_path: Path) -> None:
    result, other = tmp_path / "out", "train/a/0.png"
    written(scans, result)
    shutil.copy(scans / other, result / "protected" / other)

    def copied(record: FileRecord) -> FileRecord:
        return FileRecord(other, "copied", record.before, record.before) if record.file == other else record

    rewrite(result, lambda records: [copied(record) for record in records])
    assert failed(result, None) == []
    found = {check.name: check for check in verify_folder(result, scans)}
    assert [name for name, check in found.items() if not check.ok] == ["images"]
    assert found["images"].detail == f"{other} has to carry noise, and is the original"


def test_labels_count_and_twins_stay_together_where_images_are_held_out(tmp_path: Path) -> None:
    scans, result = tmp_path / "scans", tmp_path / "out"
    for number in range(24):
        pixels = RNG.integers(60, 190, (20, 20, 3), np.uint8) if number % 4 < 2 else pixels_of(scans, number - 2)
        save(scans / "ab"[number % 2] / f"{number}.png", pixels)
    written(scans, result, protects="train")
    assert failed(result, scans) == []
    record = next(record for record in read_records(result) if record.format == "copied")
    assert record.file.endswith(".png"), "what is held out is published as it is"
    manifest = result / "release/manifest.json"
    values = json.loads(manifest.read_text())
    values["source"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(values))
    assert failed(result, scans) == ["images"]


def pixels_of(scans: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(scans / "ab"[number % 2] / f"{number}.png"))
