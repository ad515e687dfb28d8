"""What folders and tables are taken for, as owners have them, and what is refused by name."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from salm_lightning.data.folder import ImageFolder, read_folder
from salm_lightning.data.tables import Reading
from salm_lightning.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"


def make(root: Path, *paths: str, table: str | bytes | None = None, name: str = "metadata.csv") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PNG)
    if table is not None:
        root.mkdir(exist_ok=True)
        (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def kinds(folder: ImageFolder) -> dict[str, int]:
    return dict(Counter(problem.kind.what for problem in folder.problems))


def labels(folder: ImageFolder) -> dict[str, list[str]]:
    return {image.path: [folder.class_names[label] for label in image.labels] for image in folder.images}


def test_class_folders(tmp_path: Path) -> None:
    folder = read_folder(make(tmp_path, "cat/1.png", "cat/deep/2.PNG", "dog/1.jpg", "dog/2.tif", "dog/notes.txt", "README.md"))
    assert folder.layout == "folders, class / image"
    assert labels(folder) == {"cat/1.png": ["cat"], "cat/deep/2.PNG": ["cat"], "dog/1.jpg": ["dog"], "dog/2.tif": ["dog"]}
    assert folder.splits == ()
    assert folder.others == ("README.md", "dog/notes.txt")
    assert folder.problems == folder.notes == ()


def test_splits_above_classes(tmp_path: Path) -> None:
    folder = read_folder(make(tmp_path, *(f"{split}/{name}/1.png" for split in ("Training", "valid", "test") for name in "ab")))
    assert folder.layout == "folders, split / class / image"
    assert folder.splits == ("train", "val", "test")
    assert folder.class_names == ("a", "b")
    assert {image.split for image in folder.images if image.path.startswith("valid")} == {"val"}


def test_what_programs_leave_behind_is_no_image_and_nothing_to_copy(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png", "__MACOSX/a/1.png", "a/._1.png", "a/Thumbs.db", ".git/x.png")
    folder = read_folder(tmp_path)
    assert len(folder.images) == 4
    assert folder.others == ()


def test_a_file_without_a_known_ending_is_looked_at(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/scan", "b/1.png", "b/2.png")
    (tmp_path / "b/IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "b/notes.dat").write_bytes(b"notes")
    assert [image.path for image in read_folder(tmp_path).images] == ["a/1.png", "a/scan", "b/1.png", "b/2.png", "b/IM0001"]


@pytest.mark.parametrize(
    ("head", "row", "group"),
    [
        ("file_name,label,split,patient_id", "{},x y,train,7", "7"),
        ("Image Index,Finding Labels,is_valid,Patient ID", "{},x y,0,7", "7"),
        ("image;dx;set;subject", "{};x y;Training;7", "7"),
        ("\ufeffpath\ttarget\tsubset", "{}\tx y\ttrain", ""),
        ("filename,diagnosis,age", '"{}","x y",3', ""),
    ],
)
def test_columns_are_recognised_by_their_names(tmp_path: Path, head: str, row: str, group: str) -> None:
    lines = [head, row.format("1.png"), row.format("2.png"), row.format("3.png").replace("x y", "ü"), ""]
    make(tmp_path, "1.png", "2.png", "3.png", "4.png", table="\r\n".join([*lines, row.format("4.png").replace("x y", "ü")]))
    folder = read_folder(tmp_path)
    assert folder.problems == ()
    assert folder.class_names == ("x y", "ü")
    assert folder.images[0][1:] == ((0,), "train" if len(folder.table.headings) > 3 or "sub" in head else "", group)  # type: ignore[union-attr]


def test_columns_can_be_given(tmp_path: Path) -> None:
    make(tmp_path, *(f"{n}.png" for n in range(4)), table="name,contrast,label\n0,a;b,x\n1,b,x\n2,none,x\n3,,x", name="mine.csv")
    reading = Reading(labels="mine.csv", file_column="name", label_column="contrast", label_delimiter=";")
    folder = read_folder(tmp_path, reading)
    assert labels(folder) == {"0.png": ["a", "b"], "1.png": ["b"], "2.png": [], "3.png": []}
    assert folder.multi_label
    with pytest.raises(DataError, match=r"--label_column='contrst' is no column of .*did you mean 'contrast'"):
        read_folder(tmp_path, Reading(labels="mine.csv", file_column="name", label_column="contrst"))
    with pytest.raises(
        DataError, match=r"mine.csv has no column of file names that is known \('name', 'contrast', 'label'\); .*--file_column"
    ):
        read_folder(tmp_path, Reading(labels="mine.csv"))


def test_several_labels_an_image(tmp_path: Path) -> None:
    table = "Image Index,Finding Labels\n1.png,Mass|Nodule\n2.png,No Finding\n3.png,Mass"
    folder = read_folder(make(tmp_path, "1.png", "2.png", "3.png", table=table))
    assert folder.multi_label
    assert labels(folder) == {"1.png": ["Mass", "Nodule"], "2.png": [], "3.png": ["Mass"]}


@pytest.mark.parametrize(("third", "several"), [("0,1", False), ("1,1", True), ("0,0", True)])
def test_columns_of_zeros_and_ones(tmp_path: Path, third: str, several: bool) -> None:
    table = f"file,is_valid,MEL,NV\n1,0,1,0\n2,0,1.0,0.0\n3,1,{third}\n4,1,0,1"
    folder = read_folder(make(tmp_path, "1.png", "2.png", "3.png", "4.png", table=table))
    assert folder.class_names == ("MEL", "NV")
    assert folder.multi_label is several
    assert [image.split for image in folder.images] == ["train", "train", "val", "val"]


def test_a_table_finds_files_by_path_name_or_without_their_ending(tmp_path: Path) -> None:
    make(tmp_path, "one/1.2.3.png", "one/2.png", "two/A.PNG", "two/ü.png", "two/5.png")
    rows = ["1.2.3", "one\\2.png", "a", "u\u0308.png", str(tmp_path / "two/5.png")]
    make(tmp_path, table="file,label\n" + "\n".join(f"{row},{'xy'[n % 2]}" for n, row in enumerate(rows)))
    folder = read_folder(tmp_path)
    assert folder.problems == ()
    assert list(labels(folder)) == ["one/1.2.3.png", "one/2.png", "two/5.png", "two/A.PNG", "two/ü.png"]


def test_rows_and_files_that_do_not_belong_together(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "2.png", "3.png", "4.png", "5.png", "6.png")
    rows = ["1,x", "2,x", "2.png,x", "3,y", "4,y", "9,y", "../5.png,y", "/etc/6.png,y", "5,"]
    make(tmp_path, table="file,label\n" + "\n".join(rows))
    folder = read_folder(tmp_path)
    assert kinds(folder) == {
        "lines that may mean several images": 1,
        "lines for an image that has one before": 1,
        "lines without an image": 1,
        "lines that lead out of the folder": 2,
        "images without a label": 4,
        "classes with a single image": 1,
    }
    assert next(p for p in folder.problems if p.kind.what == "lines without an image").path == "line 7: 9"
    for choice, kept in (("copy", ("5.png", "6.png", "a/1.png", "b/1.png")), ("skip", ())):
        again = read_folder(tmp_path, Reading(unlabelled=choice))  # type: ignore[arg-type]
        assert again.unlabelled == kept
        assert len(again.problems) == 5
        assert again.others == ("metadata.csv",)


def test_folders_say_what_a_table_does_not(tmp_path: Path) -> None:
    make(
        tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", table="file_name,patient\n1,p\n2,p\n3,q\n4,p"
    )
    folder = read_folder(tmp_path)
    assert folder.splits == ("train", "test")
    assert folder.class_names == ("a", "b")
    assert folder.groups == {"p": {"train", "test"}, "q": {"test"}}
    assert read_folder(tmp_path, Reading(labels="folders")).groups == {}


def test_a_group_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    rows = ["1,x,train,p", "2,y,train,q", "3,x,test,p", "4,y,test,r", "5,y,test,"]
    make(tmp_path, *(f"{n}.png" for n in range(1, 6)), table="file,label,split,patient_id\n" + "\n".join(rows))
    (leak,) = read_folder(tmp_path).problems
    assert leak.kind.what == "groups in several splits"
    assert leak[1:] == ("p", "train, test")
    allowed = read_folder(tmp_path, Reading(allow_leak=True))
    assert allowed.problems == ()
    assert allowed.notes == ("1 groups are in several splits, which is allowed",)
    assert read_folder(tmp_path, Reading(group_column="none")).problems == ()
    assert read_folder(tmp_path, Reading(split_column="none")).problems == ()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file,label\n1,\xff", r"is not UTF-8 \(byte 13\); save it as CSV"),
        (b"file,label", "has only one line"),
        (b"", "has no line"),
        (b"file,label,label\n1,x,y", "has two columns 'label'"),
        (b"file,label\n1", "line 2 has 1 cell and the headings are 2"),
        (b"file,label\n1,x,y", "line 2 has 3 cells and the headings are 2; put quotes around what holds ','"),
        (b'file,label\n1,"x', "cannot be read as a table"),
        (b"file,label,split\n1,x,fold3", "line 2: column 'split' says 'fold3', which is neither train, val nor test; .*none"),
        (b"file,label,split\n1,x,val\n2,y,test", "has the splits val, test and no train"),
        (b"file,label\n1,x\n2,x", "all images have the class 'x'"),
        (b"file,contrast\n1,x\n2,y", r"no column of labels that is known \('file', 'contrast'\), .*--label_column"),
        (b"file,label\n8,x\n9,y", "no line of .* belongs to an image with a label"),
    ],
)
def test_tables_that_cannot_be_taken(tmp_path: Path, table: bytes, message: str) -> None:
    make(tmp_path, "1.png", "2.png", table=table)
    with pytest.raises(DataError, match=message) as refused:
        read_folder(tmp_path)
    assert "\n" not in str(refused.value)


def test_folders_that_cannot_be_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data=.*nothing is not there"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"data=.* holds no image; it is empty"):
        read_folder(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"data=.*a\.txt is no folder"):
        read_folder(tmp_path / "a.txt")
    with pytest.raises(DataError, match="holds no image; it has 1 other files"):
        read_folder(tmp_path)
    make(tmp_path, "1.png")
    with pytest.raises(DataError, match="1 images without labels; put them into a folder for each class, or name a table"):
        read_folder(tmp_path)
    make(tmp_path, "data/cat/1.png", "data/dog/1.png")
    with pytest.raises(
        DataError, match=r"all images have the class 'data', .* if the folders in it are the classes, give .*/data\."
    ):
        read_folder(tmp_path)
    with pytest.raises(DataError, match=r"labels=none.csv is not there"):
        read_folder(tmp_path, Reading(labels="none.csv"))


def test_a_class_with_one_image_is_named(tmp_path: Path) -> None:
    folder = read_folder(make(tmp_path, "a/1.png", "a/2.png", "b/1.png"))
    assert [(problem.kind.what, problem.path) for problem in folder.problems] == [("classes with a single image", "b")]


def test_links_are_taken_within_the_folder_alone(tmp_path: Path) -> None:
    make(tmp_path / "data", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    make(tmp_path, "outside.png", "more/3.png")
    for name, target in {"in": "a/1.png", "out": "../outside.png", "gone": "nothing", "folder": "a", "more": "../more"}.items():
        (tmp_path / "data/b" / f"{name}.png").symlink_to(tmp_path / "data" / target)
    folder = read_folder(tmp_path / "data")
    assert [image.path for image in folder.images if "in" in image.path] == ["b/in.png"]
    assert {problem.path: problem.why for problem in folder.problems} == {
        "b/folder.png": "to a folder",
        "b/gone.png": "to nothing",
        "b/more.png": "out of the folder",
        "b/out.png": "out of the folder",
    }


def test_odd_names(tmp_path: Path) -> None:
    odd = ["a b/x,y.png", 'a b/"q".png', "a b/new\nline.png", f"a b/{'l' * 251}.png", "ü/1.png", "ü/2.png"]
    make(tmp_path, *odd)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a b/\xff.png")).write_bytes(PNG)
    folder = read_folder(tmp_path)
    assert folder.problems == ()
    assert len(folder.images) == 7


def test_files_that_may_hold_images_are_told_of(tmp_path: Path) -> None:
    folder = read_folder(make(tmp_path, "a/1.png", "a/2.png", "b/1.nii.gz", "b/2.png", "all.zip", "paper.txt"))
    assert [image.path for image in folder.images] == ["a/1.png", "a/2.png", "b/1.nii.gz", "b/2.png"]
    assert folder.others == ("all.zip", "paper.txt")
    assert folder.notes == ("1 files that may hold the images, such as all.zip, would be published as they are",)


@pytest.mark.real_data
def test_owners_folders(real_data_root: Path) -> None:
    cells = read_folder(real_data_root / "pbc_folder")
    assert (len(cells.images), len(cells.class_names), cells.splits) == (880, 8, ("train", "test"))
    chest = read_folder(real_data_root / "owners/nih_chest_multilabel")
    assert (len(chest.images), len(chest.class_names), len(chest.groups)) == (1000, 14, 264)
    assert sum(not image.labels for image in chest.images) == 499
    assert kinds(chest) == {"groups in several splits": 30, "images without a label": 2}
    slices = read_folder(real_data_root / "owners/ct_png16_derived")
    assert slices.problems == ()
    assert slices.class_names == ("contrast", "native")
