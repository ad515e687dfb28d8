"""Writing a protected dataset: parts, streaming archives, measurements, the manifest, and what a killed process leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
import torch
import yaml
from torchmetrics.functional.image import structural_similarity_index_measure

from salm_lightning.cli.config_files import read_config
from salm_lightning.data import MedMNISTDataModule, NpzDataModule
from salm_lightning.data.npz import ArraySpec, NpzReader, slices, write_array
from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError, ReleaseError, SalmError
from salm_lightning.release import (
    Bound,
    Manifest,
    Meter,
    Parts,
    check_destination,
    verify_release,
    write_release,
    writer,
)
from salm_lightning.release.measure import ssim_per_image

SETTINGS = {"method": "SALM", "percent": 10, "radius": 8, "seed": 3}
BOUND = {"norm": "linf", "radius": 8}
FILES = {"manifest.json", "datamodule.yaml"}
COUNTS = {"train": 23, "val": 5, "test": 7}


def make_arrays(size: int = 12, channels: int = 3, counts: dict[str, int] = COUNTS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size + channels)
    row = (size, size) if channels == 1 else (size, size, channels)
    arrays = {f"{split}_images": rng.integers(0, 256, (n, *row), dtype=np.uint8) for split, n in counts.items()}
    return arrays | {f"{split}_labels": (np.arange(n)[:, None] % 3).astype(np.uint8) for split, n in counts.items()}


def make_source(folder: Path, size: int = 12, channels: int = 3, name: str = "tiny") -> NpzDataModule:
    arrays = make_arrays(size, channels)
    np.savez_compressed(folder / f"{name}.npz", **arrays, train_names=np.arange(23))
    return NpzDataModule(folder / f"{name}.npz")


def add_noise(images: np.ndarray, radius: int = 8) -> np.ndarray:
    noise = np.random.default_rng(1).integers(-radius, radius + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def siblings(folder: Path) -> set[str]:
    return {entry.name for entry in folder.parent.iterdir()}


# Parts


def test_parts_keep_finished_chunks_over_a_restart(tmp_path: Path) -> None:
    images = make_arrays()["train_images"]
    parts = Parts(tmp_path / "parts", "run 1", 23, 10, (12, 12, 3))
    assert parts.pending() == [0, 1, 2]
    tail = np.concatenate([images[20:], np.repeat(images[20:21], 7, axis=0)])
    parts.save(2, tail)  # padded to the full chunk
    parts.save(0, torch.from_numpy(images[:10].transpose(0, 3, 1, 2)))  # as a network's input is laid out
    again = Parts(tmp_path / "parts", "run 1", 23, 10, (12, 12, 3))
    assert again.pending() == [1]
    with pytest.raises(ReleaseError, match="chunk=1 is not done"):
        list(again)
    again.save(1, images[10:20])
    assert [len(block) for block in again] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(list(again)), images)
    again.remove()
    assert not any((tmp_path / "parts").iterdir())


def test_parts_of_another_run_are_discarded(tmp_path: Path) -> None:
    images = make_arrays(channels=1)["train_images"]
    Parts(tmp_path, "run 1", 23, 10, (12, 12)).save(0, images[:10])
    (tmp_path / "notes").mkdir()  # not ours, stays
    other = Parts(tmp_path, "run 2", 23, 10, (12, 12))
    assert other.pending() == [0, 1, 2]
    assert {entry.name for entry in tmp_path.iterdir()} == {"notes", other.folder.name}
    assert json.loads((other.folder / "header.json").read_text())["fingerprint"] == "run 2"


def test_ranks_that_start_late_keep_what_others_have_done(tmp_path: Path) -> None:
    Parts(tmp_path, "old run", 23, 10, (12, 12))
    first = Parts(tmp_path, "run", 23, 10, (12, 12))
    first.save(1, np.zeros((10, 12, 12), np.uint8))
    assert Parts(tmp_path, "run", 23, 10, (12, 12)).pending() == first.pending() == [0, 2]


def test_a_cut_part_counts_as_pending(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run", 20, 10, (12, 12))
    parts.save(0, np.zeros((10, 12, 12), np.uint8))
    path = next(parts.folder.glob("chunk-*"))
    path.write_bytes(path.read_bytes()[:-1])
    assert parts.pending() == [0, 1]


@pytest.mark.parametrize(
    ("chunk", "images", "message"),
    [
        (0, np.zeros((10, 12, 12), np.float32), "expected uint8"),
        (0, np.zeros((10, 12, 13), np.uint8), "expected uint8"),
        (0, np.zeros((9, 12, 12), np.uint8), "has 9 images, expected 10"),
        (3, np.zeros((10, 12, 12), np.uint8), "chunk=3 does not exist"),
    ],
)
def test_parts_refuse_what_does_not_fit(tmp_path: Path, chunk: int, images: np.ndarray, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        Parts(tmp_path, "run", 23, 10, (12, 12)).save(chunk, images)


# Archives


def write_npz(path: Path, arrays: dict[str, np.ndarray], rows: int) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            write_array(archive, name, ArraySpec.of(array), slices(array, rows))
    return path.read_bytes()


def test_written_archives_are_what_numpy_reads_and_depend_on_content_only(tmp_path: Path) -> None:
    arrays = make_arrays() | {"wide": np.arange(21, dtype=">i4").reshape(7, 3)}
    first = write_npz(tmp_path / "a.npz", arrays, 4)
    assert first == write_npz(tmp_path / "b.npz", arrays, 1000)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert set(stored) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored[name], array)
            assert stored[name].dtype == array.dtype


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reader_streams_stored_and_deflated_arrays(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = make_arrays() | {"fortran": np.asfortranarray(np.arange(35.0).reshape(7, 5))}
    save(tmp_path / "a.npz", **arrays)
    with NpzReader(tmp_path / "a.npz") as reader:
        for name, array in arrays.items():
            assert reader.specs[name] == ArraySpec(array.dtype.str, array.shape)
            blocks = list(reader.chunks(name, 4))
            assert {len(block) for block in blocks[:-1]} == {4}
            np.testing.assert_array_equal(np.concatenate(blocks), array)


def test_reader_refuses_objects_and_damage(tmp_path: Path) -> None:
    np.savez(tmp_path / "object.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ReleaseError, match=r"x holds Python objects .*never loaded"):
        NpzReader(tmp_path / "object.npz")
    (tmp_path / "text.npz").write_text("not a zip file")
    with pytest.raises(ReleaseError, match="cannot be read"):
        NpzReader(tmp_path / "text.npz")
    with pytest.raises(ReleaseError, match="does not exist"):
        NpzReader(tmp_path / "missing.npz")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**9,)})
        archive.writestr("x.npy", stream.getvalue() + b"abc")
    with pytest.raises(ReleaseError, match="not what the file holds"):
        NpzReader(tmp_path / "short.npz")


def test_reader_compares_the_zip_checksum(tmp_path: Path) -> None:
    data = bytearray(write_npz(tmp_path / "a.npz", {"x": np.zeros(50_000, np.uint8)}, 50))
    data[40_000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with NpzReader(tmp_path / "a.npz") as reader, pytest.raises(ReleaseError, match="CRC"):
        list(reader.chunks("x", 1000))


# Measurements


def noisy_pair(channels: int, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    images = make_arrays(size, channels)["train_images"]
    images[3] = 0
    images[4] = 255
    protected = add_noise(images)
    protected[:, : size // 2] = images[:, : size // 2]
    protected[5] = images[5]
    return images, protected


@pytest.mark.parametrize("channels", [1, 3])
def test_measured_values_equal_plain_numpy(channels: int) -> None:
    images, protected = noisy_pair(channels)
    meter = Meter()
    meter.update(images, protected)
    measured = meter.compute()
    difference = np.abs(images.astype(int) - protected.astype(int)).reshape(23, 28, 28, channels)
    l0 = np.array([sum(pixel.any() for row in image for pixel in row) for image in difference])
    squared = (difference.astype(float) ** 2).reshape(23, -1).mean(axis=1)
    psnr = [10 * np.log10(255**2 / value) for value in squared if value > 0]
    assert len(psnr) == 22
    assert (measured.images, measured.images_unchanged) == (23, 1)
    assert (measured.linf, measured.l0_max) == (difference.max(), l0.max())
    assert measured.l0_mean == pytest.approx(l0.mean(), abs=1e-12)
    assert measured.changed_share == pytest.approx(l0.sum() / (23 * 28 * 28), abs=1e-12)
    assert measured.psnr == pytest.approx(np.mean(psnr), abs=1e-5)
    assert measured.rms_max == pytest.approx(np.sqrt(squared.max()), abs=1e-12)


@pytest.mark.parametrize(("size", "channels"), [(12, 1), (28, 3), (33, 3), (70, 1)])
def test_ssim_is_the_one_of_torchmetrics(size: int, channels: int) -> None:
    images, protected = noisy_pair(channels, size)
    a, b = (torch.from_numpy(x.reshape(23, size, size, channels)).permute(0, 3, 1, 2).double() / 255 for x in (images, protected))
    expected = structural_similarity_index_measure(b, a, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim_per_image(b, a), expected, rtol=0, atol=1e-12)
    meter = Meter()
    meter.update(images, protected)
    assert meter.compute().ssim == pytest.approx(float(expected.mean()), abs=1e-12)


def test_chunk_borders_do_not_matter() -> None:
    images, protected = noisy_pair(3)
    results = []
    for rows in (1, 7, 23):
        meter = Meter()
        for start in range(0, 23, rows):
            meter.update(images[start : start + rows], protected[start : start + rows])
        results.append(asdict(meter.compute()))
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-12)


def test_identical_images_have_no_psnr() -> None:
    images = make_arrays()["train_images"]
    meter = Meter()
    meter.update(images, images)
    measured = meter.compute()
    assert (measured.psnr, measured.linf, measured.images_unchanged) == (None, 0, 23)
    assert measured.ssim == pytest.approx(1.0, abs=1e-12)


def test_blackened_images_are_found_at_their_index() -> None:
    images = make_arrays()["train_images"]
    images[2] = 0  # black before, no offence
    protected = images.copy()
    protected[9] = 0
    meter = Meter()
    for start in range(0, 23, 5):
        meter.update(images[start : start + 5], protected[start : start + 5])
    assert meter.blackened == [9]


@pytest.mark.parametrize(("radius", "levels"), [(8, 8), (0, 0), (0.4, 0), (2.5, 2), (7.9, 7)])
def test_no_stored_byte_may_move_by_more_than_the_radius(radius: float, levels: int) -> None:
    for change, violated in ((levels, False), (levels + 1, True)):
        meter = Meter()
        grey = np.full((1, 12, 12), 100, np.uint8)
        meter.update(grey, grey + np.uint8(change))
        assert (Bound("linf", radius).violation(meter.compute()) is not None) is violated


def test_an_l2_bound_is_on_each_images_root_mean_square_and_not_on_single_values() -> None:
    grey = np.full((2, 12, 12), 100, np.uint8)
    protected = grey + np.where(np.arange(144).reshape(12, 12) % 4 == 0, 16, 0)  # 16 on a quarter of the values: 8 over all
    for first, violated in ((116, False), (101, True)):
        protected[1, 0, 0], protected[1, 0, 1] = first, 100 if first == 116 else 117
        meter = Meter()
        meter.update(grey, protected.astype(np.uint8))
        measured = meter.compute()
        assert (Bound("l2", 8).violation(measured) is not None) is violated
        assert Bound("linf", 8).violation(measured) is not None
    assert Bound("l2", 8.1).violation(measured) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "linf"}, "needs the keys"),
        ({"norm": "linf", "radius": 8, "percent": 3}, "needs the keys"),
        ({"norm": "inf", "radius": 8}, "did you mean 'linf'"),
        ({"norm": "linf", "radius": "8"}, "radius='8' must be a number"),
        ({"norm": "linf", "radius": float("nan")}, "radius=nan must be a number"),
        ({"norm": "linf", "radius": 8, "max_changed_pixels": -1}, "max_changed_pixels=-1"),
    ],
)
def test_bad_bounds_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Bound.from_dict(values)


# Releases


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_no_release_names_a_file_that_was_not_protected(tmp_path: Path, change: str) -> None:
    source, arrays = make_source(tmp_path).load(), make_arrays()
    path = source.source_path
    if change == "removed":
        path.unlink()
    else:
        np.savez(path, **(arrays | {"train_images": 255 - arrays["train_images"]}))
    with pytest.raises(SalmError, match=r"was changed or removed after it was opened|does not exist"):
        write_release(tmp_path / "out" / "protected", source, slices(add_noise(arrays["train_images"]), 4), SETTINGS, BOUND)
    assert siblings(tmp_path / "out" / "protected") == set()
    with pytest.raises(DataError, match="was changed or removed after it was opened"):
        _ = source.source_file


@pytest.mark.parametrize("channels", [1, 3])
def test_release_holds_the_protected_images_and_everything_else_as_it_was(tmp_path: Path, channels: int) -> None:
    source = make_source(tmp_path, channels=channels)
    arrays = make_arrays(channels=channels)
    protected = add_noise(arrays["train_images"])
    manifest = write_release(tmp_path / "out" / "protected", source, slices(protected, 4), SETTINGS, BOUND)
    folder = tmp_path / "out" / "protected"
    assert {entry.name for entry in folder.iterdir()} == FILES | {"tiny.npz"}
    assert siblings(folder) == {"protected"}
    with np.load(folder / "tiny.npz", allow_pickle=False) as stored:
        assert set(stored) == {*arrays, "train_names"}
        for name, array in (arrays | {"train_images": protected}).items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)
    assert Manifest.read(folder) == manifest
    assert manifest.settings == SETTINGS
    assert (manifest.coverage.samples, manifest.coverage.written) == (23, 23)
    assert manifest.measured.linf == 8
    assert (protected.astype(int) < arrays["train_images"]).any()  # negative noise survived
    assert all(check.ok for check in verify_release(folder, source.source_path))


def test_parts_become_a_release(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    protected = add_noise(make_arrays()["train_images"])
    parts = Parts(tmp_path / "parts", "run", 23, 8, (12, 12, 3))
    for chunk in parts.pending():
        parts.save(chunk, protected[list(parts.rows(chunk))])
    write_release(tmp_path / "protected", source, parts, SETTINGS, BOUND)
    with np.load(tmp_path / "protected" / "tiny.npz") as stored:
        np.testing.assert_array_equal(stored["train_images"], protected)


def test_bytes_do_not_depend_on_place_or_blocks(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    protected = add_noise(make_arrays()["train_images"])
    for folder, rows in (("a", 23), ("b/c", 4)):
        write_release(tmp_path / folder, source, slices(protected, rows), SETTINGS, BOUND)
    for name in ("tiny.npz", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b/c" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()


@pytest.mark.parametrize(("size", "file"), [(28, "breastmnist.npz"), (64, "breastmnist_64.npz")])
def test_a_release_is_a_drop_in_for_medmnist(tmp_path: Path, size: int, file: str) -> None:
    arrays = make_arrays(size, 1)
    arrays |= {name: array % 2 for name, array in arrays.items() if name.endswith("labels")}
    np.savez(tmp_path / file, **arrays)
    source = MedMNISTDataModule("breastmnist", size, tmp_path)
    protected = add_noise(arrays["train_images"])
    write_release(tmp_path / "protected", source, [protected], SETTINGS, BOUND)
    theirs = medmnist.BreastMNIST("train", root=tmp_path / "protected", size=size)
    np.testing.assert_array_equal(theirs.imgs, protected)
    np.testing.assert_array_equal(theirs.labels, arrays["train_labels"])


def test_odd_file_names_become_safe_ones(tmp_path: Path) -> None:
    source = make_source(tmp_path, name="..my data (2)")
    manifest = write_release(tmp_path / "protected", source, [make_arrays()["train_images"]], SETTINGS, BOUND)
    assert manifest.archive.name == "my_data__2_.npz"
    assert all(check.ok for check in verify_release(tmp_path / "protected", source.source_path))


def test_config_for_victims_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path)
    images = [make_arrays()["train_images"]]
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    write_release("runs/version 1: new/protected", source, images, SETTINGS, BOUND)
    write_release(tmp_path / "elsewhere", source, images, SETTINGS, BOUND)
    for folder in (Path("runs/version 1: new/protected"), tmp_path / "elsewhere"):
        config = yaml.safe_load((folder / "datamodule.yaml").read_text())
        assert config == {"data": {"class_path": "PoisonedDataModule", "init_args": {"root": "."}}}
        path = folder / "datamodule.yaml"
        assert "download=False" in path.read_text()
        # read from wherever one stands, it means its own folder
        assert read_config(str(path))["data"]["init_args"]["root"] == str(folder)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            assert read_config("datamodule.yaml")["data"]["init_args"]["root"] == "."


def break_bound(images: np.ndarray) -> np.ndarray:
    protected = images.copy()
    protected[4, 0, 0, 0] = images[4, 0, 0, 0] + 9 if images[4, 0, 0, 0] < 128 else images[4, 0, 0, 0] - 9
    return protected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "22 of 23 training images were protected"),
        (lambda x: x[:0], "0 of 23 training images were protected"),
        (lambda x: np.concatenate([x, x[:1]]), "more than the 23 training images"),
        (lambda x: x.astype(np.int16), "expected uint8"),
        (lambda x: x[:, :11], "expected uint8"),
        (break_bound, "differs by 9 grey levels, the bound is 8"),
    ],
)
def test_bad_images_leave_nothing_behind(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    source = make_source(tmp_path)
    images = change(make_arrays()["train_images"])
    with pytest.raises(ReleaseError, match=message):
        write_release(tmp_path / "out" / "protected", source, slices(images, 5), SETTINGS, BOUND)
    assert siblings(tmp_path / "out" / "protected") == set()


def test_an_image_that_was_not_selected_must_not_change(tmp_path: Path) -> None:
    source, clean = make_source(tmp_path), make_arrays()["train_images"]
    selected = np.arange(len(clean)) < 20
    protected = np.where(selected[:, None, None, None], add_noise(clean), clean)
    protected[21, 3, 4, 1] ^= 1
    folder = tmp_path / "protected"
    with pytest.raises(ReleaseError, match="training image 21 was not selected and differs"):
        write_release(folder, source, [protected], SETTINGS, BOUND, selected=selected)
    assert not folder.exists()
    protected[21] = clean[21]
    assert write_release(folder, source, [protected], SETTINGS, BOUND, selected=selected).coverage.selected == 20


def test_an_image_that_becomes_black_is_refused(tmp_path: Path) -> None:
    arrays = make_arrays()
    arrays["train_images"][7] = 3
    np.savez(tmp_path / "dark.npz", **arrays)
    protected = arrays["train_images"].copy()
    protected[7] = 0
    with pytest.raises(ReleaseError, match=r"all black.*\[7\]"):
        write_release(tmp_path / "protected", NpzDataModule(tmp_path / "dark.npz"), [protected], SETTINGS, BOUND)


def test_a_promise_of_few_changed_pixels_is_kept(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    protected = make_arrays()["train_images"] ^ 1
    with pytest.raises(ReleaseError, match="144 changed pixels, the bound is 14"):
        write_release(tmp_path / "protected", source, [protected], SETTINGS, BOUND | {"max_changed_pixels": 14})


@pytest.mark.parametrize("settings", [{"path": Path("x")}, {"radius": float("nan")}])
def test_settings_must_be_plain(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        write_release(tmp_path / "protected", make_source(tmp_path), [], settings, BOUND)


def test_existing_folders_are_kept_unless_asked(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    images = make_arrays()["train_images"]
    folder = tmp_path / "protected"
    check_destination(folder)
    write_release(folder, source, [images], SETTINGS, BOUND)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_release(folder, source, [images], SETTINGS, BOUND)
    check_destination(folder, overwrite=True)
    assert write_release(folder, source, [images], SETTINGS | {"seed": 4}, BOUND, overwrite=True).settings["seed"] == 4
    assert siblings(folder) == {"protected", "tiny.npz"}
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="not a protected dataset"):
        write_release(folder, source, [images], SETTINGS, BOUND, overwrite=True)
    assert (folder / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputExistsError, match="exists"):
        check_destination(tmp_path / "empty")


def test_a_failed_replacement_leaves_the_old_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path)
    images = make_arrays()["train_images"]
    folder = tmp_path / "protected"
    write_release(folder, source, [images], SETTINGS, BOUND)
    before = (folder / "manifest.json").read_bytes()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(writer, "exchange", lambda *_: False)
    with pytest.raises(OSError, match="disk on fire"):
        write_release(folder, source, [images ^ 1], SETTINGS, BOUND, overwrite=True)
    assert (folder / "manifest.json").read_bytes() == before
    assert siblings(folder) == {"protected", "tiny.npz"}


# A process that is killed


def kill_at_event(number: int) -> None:
    """Kill this process at the n-th time that it opens, makes, renames or removes something."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and "protected" in str(arguments[0]):
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)


def survives(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that dies at an event; whether it came to its end before that."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            kill_at_event(number)
            work()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.fixture
def quick_meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, since the children are forked, and no similarity, which is not what these tests are about."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("salm_lightning.release.measure.ssim_per_image", lambda a, b: torch.ones(len(a)))
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("quick_meter")
def test_a_killed_writer_leaves_all_or_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    source.setup()
    images = make_arrays()["train_images"]
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out" / "protected"

    def work() -> object:
        return write_release(folder, source, slices(images, 5), SETTINGS, BOUND)

    for number in range(100):
        finished = survives(number, work)
        if folder.exists():
            assert all(check.ok for check in verify_release(folder))
        else:
            assert all(re.fullmatch(r"\.protected\..+\.\d+\.tmp", name) for name in siblings(folder))
            work()
        assert siblings(folder) == {"protected"}
        shutil.rmtree(folder)
        if finished:
            break
    assert finished
    assert number > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("quick_meter")
@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_killed_replacement_never_loses_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr(writer, "exchange", lambda *_: False)
    source = make_source(tmp_path)
    source.setup()
    images = make_arrays()["train_images"]
    folder = tmp_path / "out" / "protected"

    def work(seed: int = 2) -> Manifest:
        return write_release(folder, source, slices(images, 5), SETTINGS | {"seed": seed}, BOUND, overwrite=True)

    outcomes = set()
    for number in range(100):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        work(1)
        finished = survives(number, work)
        if folder.exists():
            assert all(check.ok for check in verify_release(folder))
            outcomes.add(Manifest.read(folder).settings["seed"])
        else:  # between the two renames: the old one stands aside, is guarded, and comes back
            assert all(check.ok for check in verify_release(folder.with_name(".protected.salm-old")))
            with pytest.raises(OutputExistsError, match="salm-old exists"):
                check_destination(folder)
            writer.recover(folder)
            assert Manifest.read(folder).settings["seed"] == 1
            outcomes.add("aside")
        work(3)
        assert siblings(folder) == {"protected"}
        if finished:
            break
    assert finished
    assert outcomes == ({1, 2} if in_one_step else {1, 2, "aside"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_a_pending_or_a_whole_part(tmp_path: Path) -> None:
    images = make_arrays()["train_images"]
    for number in range(20):
        parts = Parts(tmp_path / "protected", f"run {number}", 23, 23, (12, 12, 3))
        finished = survives(number, lambda parts=parts: parts.save(0, images))  # type: ignore[misc]
        if parts.pending():
            parts.save(0, images)
        np.testing.assert_array_equal(parts.read(0), images)
        if finished:
            break
    assert finished
    # made the folder; removed what may lie in the way; opened, flushed and renamed the temporary file; removed what is left of it;
    # flushed the folder
    assert number == 7
    assert {entry.name for entry in parts.folder.iterdir()} == {"header.json", "chunk-000000.npy"}


# Memory


@pytest.mark.usefixtures("quick_meter")
def test_memory_is_bounded_by_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salm_lightning.data.sums._BLOCK", 2**16)  # of hashing, so that it does not hide the rest
    counts = {"train": 4000, "val": 4, "test": 4}
    arrays = make_arrays(28, 3, counts)
    np.savez(tmp_path / "big.npz", **arrays)
    source = NpzDataModule(tmp_path / "big.npz")
    source.setup()  # held by the caller, not by the writer
    size = arrays["train_images"].nbytes
    del arrays
    originals = source.split("train").images
    tracemalloc.start()
    write_release(tmp_path / "protected", source, (block ^ 1 for block in slices(originals, 64)), SETTINGS, BOUND)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert all(check.ok for check in verify_release(tmp_path / "protected", source.source_path))
    verified = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(written, verified) < size / 4
