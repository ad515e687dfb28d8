"""A folder of DICOM files: patients are groups, one range in units over files that are rescaled in several ways, identifiers, proof."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from test_folder_release import BOUND, SETTINGS, failed, noisy
from test_formats_dicom import dicom, quiet, read

from salm_lightning.data import FolderDataModule
from salm_lightning.data.folder import read_folder
from salm_lightning.data.survey import survey
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.main import main
from salm_lightning.release.folder import write_folder
from salm_lightning.release.folder_manifest import FolderManifest, read_records

__all__ = ["quiet"]
RNG = np.random.default_rng(2)
SLOPES = ((1.0, -1024.0), (0.5, 0.0), (2.0, 100.0))
WINDOW = {"WindowCenter": "40", "WindowWidth": "511"}  # of 510 units: -215.5 to 294.5


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Two classes of 6 slices of 6 patients, in three scales of the same units."""
    root = tmp_path / "slices"
    for number in range(12):
        slope, intercept = SLOPES[number % 3]
        units = RNG.integers(-200, 280, (24, 20)) + 20 * (number % 2)
        stored = np.rint((units - intercept) / slope).astype("i2")
        stored[0] = -2000
        dicom(
            root / "ab"[number % 2] / f"{number}.dcm",
            stored,
            **WINDOW,
            RescaleSlope=str(slope),
            RescaleIntercept=str(intercept),
            PatientID=f"patient {number // 2}",
            SeriesInstanceUID=f"1.2.3.{number // 4}",
        )
        path = root / "ab"[number % 2] / f"{number}.dcm"
        data = pydicom.dcmread(path)
        data.PixelPaddingValue = -2000
        data["PixelPaddingValue"].VR = "SS"
        data.save_as(path)
    report = pydicom.dcmread(root / "a/0.dcm")
    del report.PixelData
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.save_as(root / "report.dcm")
    return root


def test_units_are_one_range_and_each_file_has_its_bound(slices: Path, tmp_path: Path) -> None:
    data = FolderDataModule(slices, size=20, protects="all").load()
    assert data.working.values == (-215.5, 294.5)
    assert data.units == "HU"
    assert data.survey.folder.others == ("report.dcm",)
    assert len(data.survey.folder.groups) == 6
    parts = {data.survey.folder.images[row].group for row in data.rows("test")}
    assert not parts & {data.survey.folder.images[row].group for row in data.only_train().rows("train")}
    for row, image in enumerate(data.survey.folder.images):  # without scaling in one direction a model sees the very units
        units = pydicom.dcmread(slices / image.path).pixel_array[1:].astype(float)
        slope, intercept = SLOPES[int(Path(image.path).stem) % 3]
        seen = np.clip((units * slope + intercept + 215.5) / 2, 0, 255)
        assert abs(seen.mean() - data.working.images[row][1:].mean()) < 2
    manifest = write_folder(tmp_path / "out", data, noisy(data), SETTINGS, BOUND, "first", secret=b"secret")
    assert (manifest.range, manifest.units, manifest.uids, manifest.bound) == ((-215.5, 294.5), "HU", "new", 32)
    bounds = {record.file: record for record in read_records(tmp_path / "out") if record.format == "DICOM"}
    for path, record in bounds.items():
        slope = SLOPES[int(Path(path).stem) % 3][0]
        change = np.abs(read(tmp_path / "out/protected" / path).astype(int) - read(slices / path))
        assert record.bound == 16 / slope
        assert 0 < change.max() == record.largest <= record.bound
        assert record.kept_out == 20
        assert not change[0, 0].any()
    assert failed(tmp_path / "out", slices) == []
    series = {}
    for path in bounds:
        before, after = pydicom.dcmread(slices / path), pydicom.dcmread(tmp_path / "out/protected" / path)
        assert series.setdefault(before.SeriesInstanceUID, after.SeriesInstanceUID) == after.SeriesInstanceUID
        assert before.StudyInstanceUID == after.StudyInstanceUID
    assert len(set(series.values())) == 3
    text = (tmp_path / "out/release/manifest.json").read_text() + (tmp_path / "out/release/files.csv").read_text()
    assert "1.2.3." not in text
    assert b"secret".hex() not in text


def test_identifiers_may_be_kept_and_verify_tells(slices: Path, tmp_path: Path) -> None:
    data = FolderDataModule(slices, size=16, protects="all").load()
    assert write_folder(tmp_path / "out", data, noisy(data), SETTINGS, BOUND, "first").uids == "keep"
    assert failed(tmp_path / "out", slices) == []
    manifest = tmp_path / "out/release/manifest.json"
    manifest.write_text(manifest.read_text().replace('"keep"', '"new"'))
    assert failed(tmp_path / "out", slices) == ["identifiers"]


def test_ranges_by_word_and_by_number(slices: Path) -> None:
    with pytest.raises(ConfigurationError, match="range=window"):
        FolderDataModule(slices.parent / "slices", range="windows")
    data = FolderDataModule(slices, range="data").load()
    units = []
    for path in sorted(slices.rglob("?/*.dcm")):
        one = pydicom.dcmread(path)
        units.append(one.pixel_array[1:].ravel() * float(one.RescaleSlope) + float(one.RescaleIntercept))
    np.testing.assert_allclose(data.working.values, np.percentile(np.concatenate(units), (0.5, 99.5)), atol=3)
    assert FolderDataModule(slices, range="-160:239.5").load().working.values == (-160, 239.5)
    assert FolderDataModule(slices, range="-160:239.5").load().describe()["folder"]["range"] == "-160:239.5"


def test_the_widest_window_of_most_counts(slices: Path) -> None:
    odd = pydicom.dcmread(slices / "a/0.dcm")
    odd.WindowWidth = "65535"
    odd.save_as(slices / "a/0.dcm")
    assert FolderDataModule(slices).load().working.values == (-215.5, 294.5)


def test_what_stands_in_the_way(slices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slices / "DICOMDIR").write_bytes(b"")
    other = pydicom.dcmread(slices / "a/2.dcm")
    other.PatientID, other.BurnedInAnnotation = "patient 9", "YES"
    other.save_as(slices / "a/copy.dcm")
    (slices / "b/copy.dcm").write_bytes((slices / "b/1.dcm").read_bytes())
    assert main(["inspect", str(slices)]) == 2
    said = capsys.readouterr().out
    assert "Indexes of DICOM files (DICOMDIR), which no longer fit them afterwards: 1" in said
    assert "DICOM files with the SOPInstanceUID of another: 1" in said
    assert "a/copy.dcm (as a/2.dcm)" in said
    assert "1 images say that text is burned into them" in said
    for line in (
        "Modality     CT",
        "Stored as    MONOCHROME2",
        "-215.5 to 294.5; a model sees -215.5 to 294.5",
        "Patients     7",
    ):
        assert line in said
    with pytest.raises(DataError, match="cannot be protected as it is"):
        FolderDataModule(slices)


def test_patients_in_two_splits_are_named(slices: Path) -> None:
    for split, number in (("train", 0), ("test", 1)):
        for name in "ab":
            (slices / split / name).mkdir(parents=True, exist_ok=True)
            for path in sorted((slices / name).glob("*.dcm")):
                if int(path.stem) // 6 == number or (split == "test" and path.stem == "0"):
                    (slices / split / name / f"{path.stem}.dcm").write_bytes(path.read_bytes())
    root = slices.parent / "splits"
    root.mkdir()
    for split in ("train", "test"):
        (slices / split).rename(root / split)
    found = survey(read_folder(root), patients=True)
    assert [problem.path for problem in found.problems if problem.kind.what == "groups in several splits"] == ["patient 0"]
    assert not [one for one in survey(read_folder(root), patients=False).problems if one.kind.what == "groups in several splits"]


def test_a_scale_that_leaves_no_noise_is_refused(slices: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    one = pydicom.dcmread(slices / "a/0.dcm")
    one.RescaleSlope = "100"
    one.save_as(slices / "a/0.dcm")
    assert main(["protect", str(slices), "--out", "out", "--yes", "true"]) == 2
    assert "leaves no noise in a/0.dcm: 8/255 of it are less than one of its levels, which is 100" in capsys.readouterr().err


def test_protect_and_verify_from_the_command_line(slices: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    fast = "--size 16 --width 0.1 --steps 2 --batch_size 8 --accelerator cpu --source_model cnn --method em --proof false"
    Path("boxes.csv").write_text("file,x,y,width,height\na/0.dcm,3,4,5,6\n")
    assert main(["protect", str(slices), "--out", "out", *fast.split(), "--keep_out", "boxes.csv"]) == 0
    said = capsys.readouterr().out
    assert "8/255 of -215.5 to 294.5 HU" in " ".join(said.split())
    assert main(["verify", "out", "--source", str(slices), "--keep_out", "boxes.csv"]) == 0
    assert "new ones of 12 DICOM images in 3 series" in " ".join(capsys.readouterr().out.split())
    secret = Path("out/generator/identifiers.json")
    assert secret.stat().st_mode & 0o077 == 0
    first = pydicom.dcmread("out/protected/a/0.dcm").SOPInstanceUID
    assert main(["verify", "out", "--source", str(slices)]) == 1
    assert "give with --keep_out what the result was made with" in " ".join(capsys.readouterr().out.split())
    assert first != pydicom.dcmread(slices / "a/0.dcm").SOPInstanceUID
    assert FolderManifest.read(Path("out")).uids == "new"


def test_a_secret_that_others_wrote_makes_no_identifiers(
    slices: Path, workplace: None, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = "--size 16 --width 0.1 --steps 2 --batch_size 8 --accelerator cpu --proof false"
    assert main(["protect", str(slices), "--out", "out", *fast.split(), "--method", "random"]) == 0

    def later(out: str) -> tuple[str, set[str]]:
        assert main(["protect", str(slices), "--out", out, "--generator", "out", *fast.split()]) == 0
        found = {str(pydicom.dcmread(path).SeriesInstanceUID) for path in Path(out, "protected").rglob("?/*.dcm")}
        return capsys.readouterr().out, found

    first = {str(pydicom.dcmread(path).SeriesInstanceUID) for path in Path("out/protected").rglob("?/*.dcm")}
    assert later("again")[1] == first
    for number, content in enumerate(('{"secret": ""}', '{"secret": "zz"}', f'{{"secret": "{"0" * 64}"}}')):
        Path("out/generator/identifiers.json").write_text(content)
        said, series = later(f"later-{number}")
        assert "identifiers.json was written elsewhere, and is not used" in " ".join(said.split())
        assert not series & (first | {f"1.2.3.{number}" for number in range(3)})
        assert Path(f"later-{number}/generator/identifiers.json").stat().st_mode & 0o077 == 0
        assert main(["verify", f"later-{number}", "--source", str(slices)]) == 0


def test_copies_and_files_without_an_identifier_verify(slices: Path, tmp_path: Path) -> None:
    for number in (1, 3):
        one = pydicom.dcmread(slices / f"b/{number}.dcm")
        del one.SOPInstanceUID, one.file_meta.MediaStorageSOPInstanceUID
        one.save_as(slices / f"b/{number}.dcm", enforce_file_format=False)
    shutil.copy(slices / "a/0.dcm", slices / "a/copy.dcm")
    data = FolderDataModule(slices, size=16, protects="all").load()
    same = [np.clip(data.working.images.astype(np.int16) + 4, 0, 255).astype(np.uint8)]  # copies stay copies
    write_folder(tmp_path / "out", data, same, SETTINGS, BOUND, "first", secret=b"secret")
    after = [pydicom.dcmread(tmp_path / "out/protected/a" / name).SOPInstanceUID for name in ("0.dcm", "copy.dcm")]
    assert after[0] == after[1]
    assert failed(tmp_path / "out", slices) == []
