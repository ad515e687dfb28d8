"""Checking a release: whole ones pass, and every way of tampering that we know of fails the check that is meant for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salm_lightning.commands.verify import verify
from salm_lightning.data import NpzDataModule, SyntheticDataModule
from salm_lightning.data.catalogue import INFO
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.main import main
from salm_lightning.release import Manifest, PoisonedDataModule, verify_release, write_release
from salm_lightning.release.manifest import FORMAT_VERSION

Arrays = dict[str, np.ndarray]
BOUND = {"norm": "linf", "radius": 8}


def make_arrays(counts: dict[str, int], size: int = 12) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] % 3).astype(np.uint8)
    return arrays


def write(folder: Path, arrays: Arrays) -> tuple[Path, Path]:
    """Write a source with these arrays and a release of it; return both paths."""
    source = folder / "tiny.npz"
    np.savez_compressed(source, **arrays)
    images = arrays["train_images"].astype(int)
    noise = np.random.default_rng(1).integers(-8, 9, images.shape)
    protected = np.clip(images + noise, 0, 255).astype(np.uint8)
    write_release(folder / "protected", NpzDataModule(source), [protected], {"method": "SALM", "seed": 0}, BOUND)
    return folder / "protected", source


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("pristine"), make_arrays({"train": 150, "val": 5, "test": 7}))


@pytest.fixture
def release(pristine: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(pristine[0], tmp_path / "protected")
    return tmp_path / "protected"


@pytest.fixture
def source(pristine: tuple[Path, Path]) -> Path:
    return pristine[1]


def failed(release: Path, source: Path | None = None) -> set[str]:
    return {check.name for check in verify_release(release, source) if not check.ok}


def edit_manifest(release: Path, *keys: str, value: Any) -> None:
    path = release / "manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(manifest))


def forge(release: Path, change: Callable[[Arrays], Any]) -> None:
    """Change the arrays and adapt sums and shapes in the manifest, as an attacker would."""
    path = release / "tiny.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored}
    change(arrays)
    np.savez(path, **arrays)
    specs = {name: {"dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()}
    edit_manifest(release, "arrays", value=specs)
    edit_manifest(release, "archive", "sha256", value=file_sha256(path))


def test_a_whole_release_passes(release: Path, source: Path) -> None:
    names = [check.name for check in verify_release(release, source)]
    sums = ["manifest", "files", "checksum", "datamodule.yaml", "arrays", "coverage", "classes"]
    against = ["source", "same arrays", "labels", "val and test", "bound", "black images", "measured values"]
    assert names == sums + against
    assert [check.name for check in verify_release(release)] == sums
    assert failed(release, source) == failed(release) == set()


def same_arrays(path: Path, expected: Arrays) -> bool:
    with np.load(path) as stored:
        return set(stored) == set(expected) and all(np.array_equal(stored[name], expected[name]) for name in expected)


def test_one_flipped_bit_anywhere_is_found(release: Path, source: Path) -> None:
    path = release / "tiny.npz"
    data = path.read_bytes()
    places = [*np.random.default_rng(0).integers(0, len(data), 15).tolist(), 0, 10, 30, 45, len(data) - 1, len(data) - 60]
    with np.load(path) as stored:
        original = dict(stored)
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert "checksum" in failed(release), place
        # an attacker mends the sum too: then the flip is found unless it changed nothing that is read (a time in the zip file)
        edit_manifest(release, "archive", "sha256", value=file_sha256(path))
        assert failed(release, source) or same_arrays(path, original), place


def swap(array: str, first: int, second: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[array][[first, second]] = arrays[array][[second, first]]

    return change


def change_val_pixel(arrays: Arrays) -> None:
    arrays["val_images"][2, 3, 4, 1] ^= 1


def change_test_pixel(arrays: Arrays) -> None:
    arrays["test_images"][6, 11, 11, 2] ^= 1


def blacken(arrays: Arrays) -> None:
    arrays["train_images"][140] = 0


def reorder(arrays: Arrays) -> None:
    order = np.random.default_rng(0).permutation(150)
    for kind in ("images", "labels"):
        arrays[f"train_{kind}"] = arrays[f"train_{kind}"][order]


def drop_last_batch(arrays: Arrays) -> None:
    for kind in ("images", "labels"):
        arrays[f"train_{kind}"] = arrays[f"train_{kind}"][:128]


def duplicate_one(arrays: Arrays) -> None:
    for kind in ("images", "labels"):
        arrays[f"train_{kind}"] = np.concatenate([arrays[f"train_{kind}"], arrays[f"train_{kind}"][:1]])


def widen_labels(arrays: Arrays) -> None:
    arrays["val_labels"] = arrays["val_labels"].astype(np.int64)


def use_floats(arrays: Arrays) -> None:
    arrays["train_images"] = arrays["train_images"].astype(np.float32)
    arrays["train_images"][0] = np.nan


def lose_a_label(arrays: Arrays) -> None:
    arrays["val_labels"] = arrays["val_labels"][:-1]


def lose_all(arrays: Arrays) -> None:
    for kind in ("images", "labels"):
        arrays[f"val_{kind}"] = arrays[f"val_{kind}"][:0]


def one_level_beyond(original: Arrays) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        value = int(original["train_images"][149, 5, 5, 0])
        arrays["train_images"][149, 5, 5, 0] = value + 9 if value < 128 else value - 9

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (swap("train_labels", 0, 1), {"labels"}),
        (swap("test_labels", 0, 1), {"labels"}),
        (change_val_pixel, {"val and test"}),
        (change_test_pixel, {"val and test"}),
        (swap("train_images", 3, 141), {"bound", "measured values"}),
        (blacken, {"bound", "black images", "measured values"}),
        (reorder, {"labels", "bound", "measured values"}),
        (drop_last_batch, {"same arrays", "coverage"}),
        (duplicate_one, {"same arrays", "coverage"}),
        (widen_labels, {"same arrays"}),
        (use_floats, {"arrays"}),
        (lose_a_label, {"arrays"}),
        (lose_all, {"arrays"}),
    ],
)
def test_forged_arrays_fail_the_check_meant_for_them(
    release: Path, source: Path, change: Callable[[Arrays], None], expected: set[str]
) -> None:
    forge(release, change)
    assert failed(release, source) == expected


def test_the_first_wrong_index_is_named(release: Path, source: Path) -> None:
    forge(release, swap("train_labels", 138, 140))
    details = {check.name: check.detail for check in verify_release(release, source)}
    assert details["labels"] == "train_labels differs from the source, first at index 138"


def test_one_grey_level_beyond_the_bound_fails(release: Path, source: Path) -> None:
    with np.load(source) as stored:
        forge(release, one_level_beyond(dict(stored)))
    checks = {check.name: check for check in verify_release(release, source)}
    assert not checks["bound"].ok
    assert "9 grey levels, the bound is 8" in checks["bound"].detail


def test_a_clean_image_among_protected_ones_shows_in_the_measured_values(release: Path, source: Path) -> None:
    with np.load(source) as stored:
        original = stored["train_images"]
    forge(release, lambda arrays: arrays["train_images"].__setitem__(77, original[77]))
    assert failed(release, source) == {"measured values"}


def test_an_image_that_is_black_within_the_bound_fails(tmp_path: Path) -> None:
    arrays = make_arrays({"train": 9, "val": 2, "test": 2})
    arrays["train_images"][4] = 2
    release, source = write(tmp_path, arrays)
    assert failed(release, source) == set()
    forge(release, lambda stored: stored["train_images"].__setitem__(4, 0))
    assert failed(release, source) >= {"black images"}


def test_arrays_of_objects_are_refused_unread(release: Path, source: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (release / "exploded",))

    def plant(arrays: Arrays) -> None:
        arrays["train_labels"] = np.array([[Bomb()]] * 150, dtype=object)

    forge(release, plant)
    assert failed(release, source) == {"arrays"}
    assert not (release / "exploded").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "a/b", "a\\b", "tiny\n", ".tiny", "x" * 101])
def test_names_from_the_manifest_are_never_paths(release: Path, source: Path, name: str) -> None:
    edit_manifest(release, "dataset", "name", value=name)
    edit_manifest(release, "archive", "name", value=f"{name}.npz")
    assert failed(release, source) == {"manifest"}


def test_the_archive_is_the_one_named_after_the_dataset(release: Path) -> None:
    edit_manifest(release, "archive", "name", value="../../etc/passwd")
    assert failed(release) == {"manifest"}


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format_version",), FORMAT_VERSION + 1),
        (("format_version",), FORMAT_VERSION - 1),
        (("format_version",), True),
        (("settings",), []),
        (("bound", "radius"), 300),
        (("bound", "norm"), "l7"),
        (("measured", "ssim"), "good"),
        (("measured", "linf"), 7.5),
        (("coverage", "written"), -1),
        (("dataset", "task"), "guessing"),
        (("dataset", "size"), "12"),
        (("archive", "sha256"), "abc"),
        (("arrays", "train_images"), None),
        (("surplus",), 1),
        pytest.param(("measured", "ssim"), 10**400, id="larger than any float"),
    ],
)
def test_manifests_are_validated(release: Path, keys: tuple[str, ...], value: Any) -> None:
    edit_manifest(release, *keys, value=value)
    assert failed(release) == {"manifest"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": NaN}', "[" * 100_000])
def test_files_that_are_no_manifest(release: Path, text: str) -> None:
    (release / "manifest.json").write_text(text)
    assert failed(release) == {"manifest"}


@pytest.mark.parametrize(("key", "value"), [("ssim", 0.5), ("psnr", None), ("l0_mean", 1.0), ("linf", 7)])
def test_invented_measurements_fail(release: Path, source: Path, key: str, value: float | None) -> None:
    edit_manifest(release, "measured", key, value=value)
    assert failed(release, source) == {"measured values"}


def test_coverage_that_was_not_reached_fails(release: Path, source: Path) -> None:
    for key, value in (("written", 128), ("selected", 5), ("samples", 10**9), ("samples", 10**30)):
        edit_manifest(release, "coverage", "written", value=150)
        edit_manifest(release, "coverage", key, value=value)
        tracemalloc.start()
        assert failed(release, source) == failed(release) == {"coverage"}
        assert tracemalloc.get_traced_memory()[1] < 2**24, "nothing of a stated size is made"
        tracemalloc.stop()
    edit_manifest(release, "coverage", "selection", value="AAAA")
    assert failed(release) == {"manifest"}


@pytest.mark.parametrize("value", [-5, 3, 1000])
@pytest.mark.parametrize("array", ["train_labels", "test_labels"])
def test_labels_of_no_class_fail_without_the_source(release: Path, array: str, value: int) -> None:
    def change(arrays: Arrays) -> None:
        arrays[array] = arrays[array].astype(np.int16)
        arrays[array][-1] = value

    forge(release, change)
    assert failed(release) == {"classes"}
    forge(release, lambda arrays: arrays.update({array: np.zeros((len(arrays[array]), 2), np.uint8)}))
    assert failed(release) == {"classes"}


def test_files_too_many_too_few_or_linked_fail(release: Path, source: Path, tmp_path: Path) -> None:
    (release / "notes.txt").write_text("hello")
    assert failed(release, source) == {"files"}
    (release / "notes.txt").unlink()
    (release / "tiny.npz").rename(tmp_path / "moved.npz")
    assert failed(release, source) == {"files"}
    (release / "tiny.npz").symlink_to(tmp_path / "moved.npz")
    assert failed(release, source) == {"files"}


def test_a_config_that_names_something_else_fails(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = release / "datamodule.yaml"
    text = path.read_text()
    for bad in (text.replace("PoisonedDataModule", "os.system"), text + "trainer: {callbacks: evil.Callback}\n", "", "[1"):
        path.write_text(bad)
        assert failed(release) == {"datamodule.yaml"}
    other = text.replace("root: .", f"root: {tmp_path / 'elsewhere'}")
    merged = "\n".join(f"a{number}: &a{number} {{<<: [*a{number - 1}, *a{number - 1}]}}" for number in range(1, 99))
    for bad in (other, text.replace("root: .", "root: [.]"), f"a0: &a0 {{x: 1}}\n{merged}\n{text}"):
        path.write_text(bad)
        assert failed(release) == {"datamodule.yaml"}
        assert main(["fit", "--config", "victim.yaml", "--config", str(path)]) == 2
    path.write_text(text.replace("root: .", 'root: "../other\\e[2J"'))
    said = r"its root is '../other\x1b[2J', not this folder; write root: . there"
    assert said in {check.detail for check in verify_release(release)}
    capsys.readouterr()
    assert main(["fit", "--config", "victim.yaml", "--config", str(path)]) == 2
    assert f"salm-cli: error: --config {path} is not what a release holds: {said}.\n" in capsys.readouterr().err
    path.write_text(text)
    release = release.rename(tmp_path / "moved")
    assert failed(release) == set()


def test_another_source_fails(release: Path, source: Path, tmp_path: Path) -> None:
    with np.load(source) as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "other.npz", **arrays)  # the same arrays in another file
    assert failed(release, tmp_path / "other.npz") == {"source"}
    for kind in ("images", "labels"):
        arrays[f"train_{kind}"] = np.concatenate([arrays[f"train_{kind}"]] * 2)
    np.savez(tmp_path / "more.npz", **arrays)
    assert failed(release, tmp_path / "more.npz") == {"source", "same arrays"}
    with np.load(source) as stored:
        arrays = dict(stored)
    del arrays["val_labels"]
    np.savez(tmp_path / "less.npz", **arrays)
    assert failed(release, tmp_path / "less.npz") == {"source", "same arrays"}
    assert failed(release, tmp_path / "missing.npz") == {"readable"}
    assert failed(release, tmp_path) == {"source"}


def test_command_prints_a_line_per_check(release: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(release, str(source)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == f"{release}: all 14 checks hold (compared with {source})."


def test_command_says_when_it_checked_sums_only(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(release) == 0
    assert "only sums were checked" in capsys.readouterr().out.splitlines()[-1]


def test_command_fails_when_a_check_does(release: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(release, blacken)
    assert verify(release, str(source)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == ["bound:", "black", "measured"]
    assert "3 of 14 checks FAILED: bound, black images, measured values" in lines[-1]


def test_names_are_shown_and_not_obeyed(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "\x1b[2J\nok   bound: [red]").write_text("")
    assert verify(release) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok", "FAIL"]
    assert r"found \x1b[2J\nok   bound: [red], datamodule.yaml" in lines[1]
    assert main(["verify", "\x1b[31m", "--source"]) == 2
    assert main(["report", "\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_command_on_a_folder_that_is_no_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path) == 1
    assert "is not a protected dataset" in capsys.readouterr().out


MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
from salm_lightning.release import measure, verify_release
measure.ssim_per_image = lambda a, b: a.new_ones(len(a))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
assert all(check.ok for check in verify_release(Path(sys.argv[1]), Path(sys.argv[2])))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_dataset_at_224_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # similarity takes minutes at this size and works on a few images at a time, whatever the chunk
    monkeypatch.setattr("salm_lightning.release.measure.ssim_per_image", lambda a, b: a.new_ones(len(a)))
    used = []
    # large blocks go back to the system at once, else the C library's habits blur the peak
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    for count in (260, 520):  # two whole chunks and more in both
        (tmp_path / str(count)).mkdir()
        paths = write(tmp_path / str(count), make_arrays({"train": count, "val": 1, "test": 1}, 224))
        command = [sys.executable, "-c", MEMORY_SCRIPT, *paths]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        used.append(int(output.stdout) / 2**20)
    print(f"verify used {used[0]:.0f} MiB for 38 MiB of images, {used[1]:.0f} MiB for 75 MiB")
    assert used[1] > 0
    assert used[1] - used[0] < 10


def test_a_medmnist_name_stands_for_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the size that the manifest states; a release without a manifest fails by that."""
    release, source = write(tmp_path, make_arrays({"train": 30, "val": 5, "test": 7}, size=64))
    source.rename(tmp_path / "pathmnist_64.npz")
    assert verify(release, "pathmnist", tmp_path) == 0
    assert f"compared with {tmp_path}/pathmnist_64.npz" in capsys.readouterr().out
    (release / "manifest.json").unlink()
    assert verify(release, "pathmnist", tmp_path) == 1
    assert "FAIL manifest" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"imbalance": 3.0, "background": "dark", "channels": 1}], ids=["default", "others"])
def test_a_release_of_drawn_data_is_verified_by_drawing_them_anew(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = SyntheticDataModule(num_classes=3, size=16, train_size=20, val_size=6, test_size=8, seed=4, **options)
    images = np.array(drawn.split("train").images)
    write_release(tmp_path / "good", drawn, [images ^ 1], {"method": "test", "seed": 4}, {"norm": "linf", "radius": 8})
    assert main(["verify", str(tmp_path / "good"), "--source", "synthetic"]) == 0
    assert "drawn anew" in capsys.readouterr().out
    write_release(tmp_path / "other", drawn, [images], {"method": "test", "seed": 5}, {"norm": "linf", "radius": 8})
    assert main(["verify", str(tmp_path / "other"), "--source", "synthetic"]) == 1


def test_the_clean_original_in_the_place_of_the_protected_file_is_called_so(
    release: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(source, release / "tiny.npz")
    check = next(check for check in verify_release(release) if not check.ok)
    assert check.name == "checksum"
    assert "CLEAN ORIGINAL" in check.detail
    assert "download=True" in check.detail
    with pytest.raises(ReleaseError, match=r"CLEAN ORIGINAL.*medmnist with download=True"):
        PoisonedDataModule(release).setup("fit")
    edit_manifest(release, "source", "sha256", value="0" * 64)  # as where a release was made of an edited file
    monkeypatch.setitem(INFO, "tiny", {"MD5": hashlib.md5(source.read_bytes()).hexdigest()})
    assert any("CLEAN ORIGINAL" in check.detail for check in verify_release(release))
    monkeypatch.setitem(INFO, "tiny", {"MD5": "0" * 32})
    assert not any("CLEAN ORIGINAL" in check.detail for check in verify_release(release))


def _with_extras(folder: Path, publish: str = "all") -> tuple[Path, Path, Arrays]:
    arrays = make_arrays({"train": 20, "val": 5, "test": 7})
    extras = {
        "train_names": np.array([f"scan {number}" for number in range(20)]),
        "val_patients": np.arange(5.0),
        "test_patients": np.asfortranarray(np.arange(14).reshape(7, 2)),
        "classes": np.array(["a", "b", "c"]),
        "site": np.array(7),
        "record": np.zeros(2, [("x", "i4"), ("y", "f8")]),
    }
    np.savez_compressed(folder / "tiny.npz", **arrays, **extras)
    images = [arrays["train_images"] ^ 1]
    source = NpzDataModule(folder / "tiny.npz")
    write_release(folder / "protected", source, images, {"method": "SALM", "seed": 0}, BOUND, publish=publish)
    return folder / "protected", folder / "tiny.npz", extras


def test_other_arrays_are_copied_and_compared(tmp_path: Path) -> None:
    release, source, extras = _with_extras(tmp_path)
    with np.load(release / "tiny.npz", allow_pickle=False) as stored:
        for name, array in extras.items():
            np.testing.assert_array_equal(stored[name], array)
            assert stored[name].dtype == array.dtype
    checks = verify_release(release, source)
    assert all(check.ok for check in checks)
    assert "classes, record, site" in next(check.detail for check in checks if check.name == "other arrays")
    assert set(Manifest.read(release).extras) == set(extras)
    with np.load(source) as stored:
        arrays = dict(stored)
    np.savez(source, **{**arrays, "site": np.array(8)})
    assert failed(release, source) == {"source", "other arrays"}
    np.savez(source, **{**arrays, "more": np.array(8)})
    assert failed(release, source) == {"source", "same arrays"}


def test_arrays_of_python_objects_are_left_out_and_named(tmp_path: Path) -> None:
    arrays = make_arrays({"train": 20, "val": 5, "test": 7})
    np.savez(tmp_path / "tiny.npz", **arrays, names=np.array([None, "x"], dtype=object))
    source = NpzDataModule(tmp_path / "tiny.npz")
    with pytest.warns(UserWarning, match="names hold Python objects .*a release is made without them"):
        source.setup()
    write_release(tmp_path / "protected", source, [arrays["train_images"] ^ 1], {"method": "SALM", "seed": 0}, BOUND)
    assert failed(tmp_path / "protected", tmp_path / "tiny.npz") == set()
    with np.load(tmp_path / "protected/tiny.npz") as stored:
        assert set(stored) == set(arrays)


def test_a_release_of_the_training_images_holds_no_clean_image(tmp_path: Path) -> None:
    release, source, _ = _with_extras(tmp_path, "train")
    with np.load(release / "tiny.npz", allow_pickle=False) as stored:
        assert set(stored) == {"train_images", "train_labels", "train_names", "classes", "site", "record"}
    assert failed(release) == set()
    checks = verify_release(release, source)
    assert all(check.ok for check in checks)
    assert next(check.detail for check in checks if check.name == "val and test") == "not published"
    manifest = Manifest.read(release)
    assert manifest.published == ("train",)
    assert Manifest.from_json(manifest.to_json()) == manifest
    edit_manifest(release, "arrays", "val_images", value={"dtype": "|u1", "shape": [5, 12, 12, 3]})
    with pytest.raises(ReleaseError, match="arrays must have the keys"):
        Manifest.read(release)
