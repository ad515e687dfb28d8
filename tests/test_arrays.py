from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import fake_arrays, write_fake_npz

import salm_lightning.data.arrays as arrays_file
from salm_lightning import console
from salm_lightning.data import SPLITS, DatasetInfo, Task
from salm_lightning.data.arrays import infer_info, labels_to_tensor, read_npz, to_tensor
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import DataError
from salm_lightning.files import file_sha256

RGB = DatasetInfo("cells", Task.MULTI_CLASS, ("a", "b", "c"), channels=3, size=8)
GREY = DatasetInfo("scans", Task.BINARY, ("no", "yes"), channels=1, size=8)
FINDINGS = DatasetInfo("chest", Task.MULTI_LABEL, ("x", "y", "z", "w"), channels=1, size=8)


@pytest.mark.parametrize("info", [RGB, GREY, FINDINGS], ids=lambda info: info.name)
@pytest.mark.parametrize("limit", [2**30, 0], ids=["memory", "mapped"])
def test_arrays_come_back_as_they_were_stored(tmp_path: Path, info: DatasetInfo, limit: int) -> None:
    stored = write_fake_npz(tmp_path / "set.npz", info, train_names=np.array(["unknown", "extra", "array"]))
    splits = read_npz(tmp_path / "set.npz", info, limit)
    assert list(splits) == list(SPLITS)
    for name, split in splits.items():
        np.testing.assert_array_equal(split.images, stored[f"{name}_images"])
        np.testing.assert_array_equal(split.labels, stored[f"{name}_labels"])
        assert isinstance(split.images, np.memmap) == (limit == 0)


def test_an_unpacked_archive_is_read_only_and_reused_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "set.npz"
    write_fake_npz(path, RGB)
    first = read_npz(path, RGB, 0)["train"].images
    assert not first.flags.writeable
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["test_images.npy", "train_images.npy", "val_images.npy"]
    with monkeypatch.context() as patch:
        patch.setattr(arrays_file, "_unpack_member", None)
        read_npz(path, RGB, 0)

    changed = write_fake_npz(path, RGB, seed=1)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read_npz(path, RGB, 0)["train"].images, changed["train_images"])


def test_an_unpacking_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    _write_with_flipped_byte(tmp_path / "set.npz", "test_images")
    with pytest.raises(DataError, match="test_images cannot be read"):
        read_npz(tmp_path / "set.npz", RGB, 0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "file"))
    write_fake_npz(tmp_path / "set.npz", RGB)
    with pytest.raises(DataError, match="Set SALM_CACHE_DIR"):
        read_npz(tmp_path / "set.npz", RGB, 0)


def _images(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"val_images": None}, r"lacks val_images\..*found: .*train_images"),
        ({"test_labels": None, "train_images": None}, "lacks train_images, test_labels"),
        ({"train_images": _images(40, 8, 8, 3, dtype="float32")}, "train_images has dtype float32; .* uint8"),
        ({"train_images": _images(40, 9, 9, 3)}, r"train_images has shape \(40, 9, 9, 3\).*size=8.*\[N, 8, 8, 3\]"),
        ({"train_images": _images(40, 8, 8)}, r"train_images has shape \(40, 8, 8\).*3 channel"),
        ({"val_images": _images(12, 8, 8, 4)}, r"val_images has shape \(12, 8, 8, 4\)"),
        ({"train_labels": _images(40, 1, dtype="float64")}, "train_labels has dtype float64; .*integer"),
        ({"train_labels": _images(40, 1, dtype="bool")}, "train_labels has dtype bool"),
        ({"train_labels": _images(40)}, r"train_labels has shape \(40,\); .*\[N, 1\]"),
        ({"train_labels": _images(40, 2)}, r"train_labels has shape \(40, 2\); a multi-class dataset has \[N, 1\]"),
        ({"val_labels": np.full((12, 1), 3)}, r"val_labels has 12 value\(s\) outside 0\.\.2, the first at index 0: \[3\]"),
        ({"val_labels": np.array([[0]] * 11 + [[-1]])}, r"val_labels has 1 value.* at index 11: \[-1\]"),
        ({"test_labels": _images(15, 1)}, "test has 16 images but 15 labels"),
        ({"test_images": _images(0, 8, 8, 3), "test_labels": _images(0, 1)}, "test is empty"),
        ({"train_labels": np.array([[None]] * 40)}, r"train_labels holds Python objects \(pickle\)"),
        ({"train_images": np.array([[object()]])}, r"train_images holds Python objects \(pickle\)"),
    ],
)
def test_what_is_wrong_with_an_array_is_named(tmp_path: Path, replaced: dict[str, np.ndarray | None], message: str) -> None:
    write_fake_npz(tmp_path / "set.npz", RGB, **replaced)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(tmp_path / "set.npz", RGB)
    assert str(tmp_path / "set.npz") in str(caught.value)


def test_multi_label_files_are_checked_for_their_columns_and_for_zero_or_one(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "two.npz", FINDINGS, val_labels=_images(12, 3))
    with pytest.raises(DataError, match=r"val_labels has shape \(12, 3\); a multi-label dataset has \[N, 4\]"):
        read_npz(tmp_path / "two.npz", FINDINGS)
    write_fake_npz(tmp_path / "two.npz", FINDINGS, test_labels=np.full((16, 4), 2))
    with pytest.raises(DataError, match=r"test_labels has 16 value\(s\) outside 0\.\.1"):
        read_npz(tmp_path / "two.npz", FINDINGS)


def test_a_missing_file_a_folder_and_a_file_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        read_npz(tmp_path / "none.npz", RGB)
    with pytest.raises(DataError, match=r"is a folder; an \.npz archive"):
        read_npz(tmp_path, RGB)
    (tmp_path / "text.npz").write_text("not a zip archive")
    with pytest.raises(DataError, match=r"is not an \.npz archive"):
        read_npz(tmp_path / "text.npz", RGB)
    write_fake_npz(tmp_path / "part.npz", RGB)
    whole = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "part.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="or only part of one"):
        read_npz(tmp_path / "part.npz", RGB)


def _write_with_flipped_byte(path: Path, name: str) -> None:
    """Store uncompressed, and change one pixel: nothing but the archive's checksum can tell."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in fake_arrays(RGB, (40, 40, 40)).items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{key}.npy", buffer.getvalue())
        end = archive.getinfo(f"{name}.npy").header_offset + archive.getinfo(f"{name}.npy").file_size
    content = bytearray(path.read_bytes())
    content[end] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train_images", "test_images", "val_images"])
def test_a_single_changed_bit_in_the_images_is_noticed(tmp_path: Path, name: str) -> None:
    _write_with_flipped_byte(tmp_path / "set.npz", name)
    with pytest.raises(DataError, match=rf"is damaged: {name} cannot be read .*CRC"):
        read_npz(tmp_path / "set.npz", RGB)


@pytest.mark.parametrize(("cut", "extra"), [(100, b""), (0, b"more")], ids=["shorter", "longer"])
def test_an_array_that_is_not_as_long_as_its_header_says_is_damage(tmp_path: Path, cut: int, extra: bytes) -> None:
    write_fake_npz(tmp_path / "set.npz", RGB)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as target, zipfile.ZipFile(tmp_path / "set.npz") as source:
        for item in source.namelist():
            content = source.read(item)
            target.writestr(item, content[: len(content) - cut] + extra if item == "train_images.npy" else content)
    with pytest.raises(DataError, match="is damaged: train_images cannot be read"):
        read_npz(tmp_path / "other.npz", RGB)


def test_images_get_a_channel_axis_and_share_no_memory() -> None:
    grey = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    rgb = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    rgb.setflags(write=False)
    assert to_tensor(grey).shape == (2, 1, 3, 4)
    tensor = to_tensor(rgb)
    assert tensor.is_contiguous()
    for image, row, column, channel in np.ndindex(rgb.shape):
        assert tensor[image, channel, row, column] == rgb[image, row, column, channel]
    tensor.zero_()
    assert rgb.any()
    to_tensor(grey).zero_()
    assert grey.any()


def test_labels_become_what_the_losses_take() -> None:
    classes = labels_to_tensor(np.array([[2], [0]], np.uint8), Task.ORDINAL)
    assert classes.dtype == torch.int64
    assert classes.tolist() == [2, 0]
    findings = labels_to_tensor(np.array([[1, 0], [1, 1]], np.uint8), Task.MULTI_LABEL)
    assert findings.dtype == torch.float32
    assert findings.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_checksums_are_the_standard_ones(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sums(tmp_path / "abc").md5 == "900150983cd24fb0d6963f7d28e17f72"
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("info", "task", "expected"),
    [
        (RGB, None, Task.MULTI_CLASS),
        (GREY, None, Task.BINARY),
        (FINDINGS, None, Task.MULTI_LABEL),
        (RGB, Task.ORDINAL, Task.ORDINAL),
        (GREY, Task.MULTI_CLASS, Task.MULTI_CLASS),
    ],
)
def test_the_description_is_inferred(tmp_path: Path, info: DatasetInfo, task: Task | None, expected: Task) -> None:
    write_fake_npz(tmp_path / "mine.npz", info)
    found = infer_info(tmp_path / "mine.npz", task)
    assert (found.name, found.task, found.num_classes) == ("mine", expected, info.num_classes)
    assert (found.channels, found.size) == (info.channels, info.size)


def test_a_class_that_only_the_test_split_has_counts(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", GREY, test_labels=np.array([[4]] * 16))
    assert infer_info(tmp_path / "mine.npz").num_classes == 5


def test_several_columns_are_refused_for_a_task_with_one(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", FINDINGS)
    with pytest.raises(DataError, match="4 columns, which is multi-label, not task='multi-class'"):
        infer_info(tmp_path / "mine.npz", Task.MULTI_CLASS)


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", GREY, train_images=_images(40, 8, 9))
    with pytest.raises(DataError, match="must be square"):
        infer_info(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 1, 1, 1], "all training images have the label \\[1\\]"), ([0, 1, 2, 1000000], "the largest label is 1000000")],
    ids=["one class", "no class numbers"],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path: Path, labels: list[int], message: str) -> None:
    write_fake_npz(tmp_path / "set.npz", GREY, (4, 4, 4), train_labels=np.array(labels)[:, None])
    with pytest.raises(DataError, match=message):
        infer_info(tmp_path / "set.npz")


def test_classes_without_training_images_are_named(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "set.npz", GREY, (4, 4, 4), train_labels=np.array([[0], [3], [0], [3]]))
    with pytest.warns(UserWarning, match="no training image has label 1, 2 of 0 to 3"):
        assert infer_info(tmp_path / "set.npz").num_classes == 4


def test_reading_a_large_file_is_shown_to_who_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    stored = write_fake_npz(tmp_path / "set.npz", RGB)
    quiet = file_sums(tmp_path / "set.npz").md5
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "is_live", lambda _: True)
    monkeypatch.setattr(console, "_LONG", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert file_sums(tmp_path / "set.npz").md5 == quiet
    np.testing.assert_array_equal(read_npz(tmp_path / "set.npz", RGB, 0)["train"].images, stored["train_images"])
    shown = capsys.readouterr().err
    for what in ("Comparing the checksum", "Unpacking train_images", " kB"):
        assert what in shown


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("scans.csv", b"file,label\na.png,1\n", "a text file"),
        ("scan.dcm", b"\0" * 128 + b"DICM" + b"\x02\0", "a DICOM file"),
        ("scan.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "a PNG image"),
        ("scan.tif", b"II*\0" + b"\0" * 20, "a TIFF image"),
        ("scan.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 20, "a JPEG image"),
        ("one.npy", b"\x93NUMPY\x01\0", r"an \.npy file with a single array"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"is not an \.npz archive, but {kind}\. Put all images .* into one archive"):
        infer_info(tmp_path / name)


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (_images(40, 8, 8, 1), r"grey images have no last axis: store train_images\[\.\.\., 0\]"),
        (_images(40, 3, 8, 8), r"channels come last: store train_images\.transpose\(0, 2, 3, 1\)"),
        (_images(40, 1, 8, 8), r"channels come last: store train_images\[:, 0\]"),
        (_images(40, 8, 9), "images must be square"),
    ],
)
def test_axes_in_another_order_are_refused_with_what_to_store(tmp_path: Path, images: np.ndarray, advice: str) -> None:
    write_fake_npz(tmp_path / "set.npz", GREY, train_images=images)
    with pytest.raises(DataError, match=advice):
        infer_info(tmp_path / "set.npz")


def test_a_last_axis_of_one_is_named_where_the_dataset_is_known(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "set.npz", GREY, val_images=_images(12, 8, 8, 1))
    with pytest.raises(DataError, match=r"store val_images\[\.\.\., 0\]"):
        read_npz(tmp_path / "set.npz", GREY)


def test_classes_numbered_from_one_are_refused(tmp_path: Path) -> None:
    labels = {f"{split}_labels": np.arange(count)[:, None] % 2 + 1 for split, count in (("train", 40), ("val", 12), ("test", 16))}
    write_fake_npz(tmp_path / "set.npz", GREY, **labels)
    with pytest.raises(DataError, match=r"the smallest label is 1, .* number the classes from 0: store labels - 1"):
        infer_info(tmp_path / "set.npz")


def test_one_hot_labels_are_taken_as_several_labels_and_said_to_be(tmp_path: Path) -> None:
    counts = (("train", 40), ("val", 12), ("test", 16))
    one_hot = {f"{split}_labels": np.eye(3, dtype=np.uint8)[np.arange(count) % 3] for split, count in counts}
    write_fake_npz(tmp_path / "set.npz", GREY, **one_hot)
    with pytest.warns(UserWarning, match=r"exactly one of 3 labels; .* \(multi-label\)\. .*argmax.*--data\.task multi-label"):
        assert infer_info(tmp_path / "set.npz").task is Task.MULTI_LABEL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_info(tmp_path / "set.npz", Task.MULTI_LABEL)
        one_hot["val_labels"][0] = 1
        write_fake_npz(tmp_path / "several.npz", GREY, **one_hot)
        infer_info(tmp_path / "several.npz")
    with pytest.raises(DataError, match=r"3 columns, which is multi-label, .*store labels\.argmax\(axis=1\)"):
        infer_info(tmp_path / "set.npz", Task.MULTI_CLASS)
