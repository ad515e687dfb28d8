"""DICOM: pixels within the bound by two readers, every other element as it was but for those that have to change, or a refusal."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage
from salm_lightning.data.formats.dicom_elements import Elements

CHANGES = {
    *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "FileMetaInformationGroupLength"),
    *("ImageType", "SOPInstanceUID", "SeriesInstanceUID", "DerivationDescription", "PhotometricInterpretation"),
    *("PlanarConfiguration", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelData", "IconImageSequence"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
}
SECRET = b"of a test"
RNG = np.random.default_rng(5)

EACH_SYNTAX = (
    *("CT_small.dcm", "MR_small_implicit.dcm", "ExplVR_BigEnd.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"),
    *("MR_small_jp2klossless.dcm", "SC_rgb_gdcm_KY.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle_16bit_2frame.dcm"),
    *("emri_small_RLE.dcm", "eCT_Supplemental.dcm", "color-pl.dcm", "SC_rgb_small_odd_big_endian.dcm"),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Pydicom warns of what is odd in its own files."""
    logging.getLogger("pydicom").disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dicom(path: Path, pixels: np.ndarray, bits: int | None = None, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Path:
    """Write pixels ``[H, W]`` or ``[H, W, 3]`` with pydicom."""
    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    data.SOPClassUID = meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = "1.2.3", "1.2.3.4", "somebody"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY"]
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if pixels.ndim == 3 else (1, "MONOCHROME2")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = pixels.itemsize * 8
    data.BitsStored = bits or pixels.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data.PixelData = content + bytes(len(content) % 2)
    data["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    data.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def slice_of(dtype: str = "u2", low: int = 0, high: int = 4096, shape: tuple[int, ...] = (24, 20)) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def protected(path: Path, target: Path, radius: int = 8, secret: bytes = SECRET) -> tuple[np.ndarray, formats.Written]:
    """Protect a file with noise that reaches the radius, and return the pixels that were asked for."""
    known, before, still = formats.facts(path), formats.read(path), formats.pixels_and_kept(path)[1]
    noise = RNG.integers(-radius, radius + 1, known.shape).astype(np.int32)
    asked = formats.added(before, noise, known, still)
    return asked, formats.write(path, asked, target, radius, secret)


def read(path: Path) -> np.ndarray:
    """Return the pixels as pydicom reads them, ``[pages, H, W, C]``."""
    array = pydicom.dcmread(path).pixel_array
    known = formats.facts(path)
    return array.reshape(known.shape)


def elements_that_differ(before: Path, after: Path) -> set[str]:
    """Return by name which elements differ, as pydicom reads them, raw where it leaves them so."""
    one, other = pydicom.dcmread(before), pydicom.dcmread(after)
    found = set()
    for first, second in ((one, other), (one.file_meta, other.file_meta)):
        for tag in first.keys() | second.keys():
            item, new = (data.get_item(tag) if tag in data else None for data in (first, second))
            if tag.element == 0:
                continue
            if item is None or new is None or item.value != new.value:
                found.add(pydicom.datadict.keyword_for_tag(tag) or str(tag))
    return found


def seen_by_another_reader(path: Path) -> np.ndarray | None:
    """Return the pixels as SimpleITK has them; ``None`` if it cannot read the file."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError:
        return None


def complaints(path: Path) -> set[str]:
    """Return the errors of Debian's ``dciodvfy``, an independent check of the standard's rules."""
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}


def syntax_uid(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)


def prove(path: Path, target: Path) -> None:
    """Protect a file, and compare it with the original in every way there is."""
    asked, written = protected(path, target)
    before, known = formats.read(path), formats.facts(path)
    stored = read(target)
    np.testing.assert_array_equal(stored, asked)
    assert written.largest == np.abs(stored.astype(int) - before).max() <= 8
    assert written.noise_kept == 1
    if "JPEG" not in known.detail or "lossless" in known.detail:
        np.testing.assert_array_equal(before, read(path))
    assert elements_that_differ(path, target) <= CHANGES
    assert any("TransferSyntaxUID" in one for one in written.changed) is (syntax_uid(path) != syntax_uid(target))
    assert formats.unexplained(path, target) == []
    one, other = pydicom.dcmread(path), pydicom.dcmread(target)
    assert UID(other.SOPInstanceUID).is_valid
    assert other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID != one.get("SOPInstanceUID")
    assert other.get("SeriesInstanceUID") != one.get("SeriesInstanceUID") or "SeriesInstanceUID" not in one
    assert other.ImageType[0].strip() in ("DERIVED", "MIXED")
    assert "salm-lightning" in other.DerivationDescription
    if one.file_meta.TransferSyntaxUID not in (
        other.file_meta.TransferSyntaxUID,
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
    ):
        assert other.LossyImageCompression == "01"
    clean, noisy = seen_by_another_reader(path), seen_by_another_reader(target)
    assert clean is None or noisy is not None
    if clean is not None and noisy is not None and clean.size == before.size and "YBR_F" not in one.PhotometricInterpretation:
        change = (noisy.astype(float) - clean) / (known.scale[0] if clean.dtype.kind == "f" else 1)
        expected = asked.astype(float) - before
        sign = -1 if one.PhotometricInterpretation == "MONOCHROME1" else 1  # which that reader turns over
        if not (known.detail == "RLE" and known.bits > 8 and known.channels == 3):  # whose bytes it puts together wrongly
            np.testing.assert_allclose(sign * change.reshape(before.shape), expected, atol=1e-4)
    if shutil.which("dciodvfy"):
        assert complaints(target) <= complaints(path)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian's dicom3tools)")
def test_the_rules_of_the_standard_are_asked_of_another_program() -> None:
    """Without it the tests of each file say nothing of them."""
    assert complaints(files_of_pydicom()["emri_small_RLE.dcm"])


def files_of_pydicom() -> dict[str, Path]:
    """Return the files that pydicom and pydicom-data bring along, by a name that tells them apart."""
    import data_store

    roots = (Path(pydicom.__file__).parent / "data/test_files", Path(data_store.__file__).parent / "data")
    return {str(path.relative_to(root)): path for root in roots for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", EACH_SYNTAX)
def test_each_syntax_is_proven_by_two_readers(name: str, tmp_path: Path) -> None:
    prove(files_of_pydicom()[name], tmp_path / "a.dcm")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_file_of_pydicom_is_proven_or_refused_by_name(tmp_path: Path) -> None:
    proven, refused, wrong = [], {}, {}
    for name, path in files_of_pydicom().items():
        if path.read_bytes()[128:132] != b"DICM":
            continue
        try:
            prove(path, tmp_path / "a.dcm")
            proven.append(name)
        except UnsupportedImage as error:
            refused[name] = str(error)
            assert str(path) in refused[name]
            assert "\n" not in refused[name]
        except AssertionError as error:
            wrong[name] = str(error)
    images = {name: reason for name, reason in refused.items() if "without pixels" not in reason and "DICOMDIR" not in reason}
    print(f"{len(proven)} files proven, {len(images)} images refused, {len(refused) - len(images)} others")
    for name, reason in images.items():
        print(f"{name}: {reason.split(' ', 1)[1]}")
    assert not wrong
    assert (len(proven), len(images), len(refused) - len(images)) == (123, 40, 67)


@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16), ("i1", 8)])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_values_stay_within_the_bits_that_are_stored(dtype: str, bits: int, syntax: str, tmp_path: Path) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype[0] == "i" else (0, 2**bits)
    pixels = slice_of(dtype, low, high)
    pixels[:4], pixels[4:8] = low, high - 1
    path = dicom(tmp_path / "a.dcm", pixels, bits, syntax)
    known = formats.facts(path)
    assert (known.bits, known.signed, known.limits) == (bits, dtype[0] == "i", (low, high - 1))
    np.testing.assert_array_equal(formats.read(path)[0, ..., 0], pixels)
    asked, _ = protected(path, tmp_path / "b.dcm")
    np.testing.assert_array_equal(read(tmp_path / "b.dcm"), asked)
    assert (asked.min(), asked.max()) == (low, high - 1)


@pytest.mark.parametrize(("dtype", "value", "stored"), [("i2", -2000, -2000), ("u2", 0, 0)])
def test_padding_keeps_its_value_and_none_is_made(dtype: str, value: int, stored: int, tmp_path: Path) -> None:
    pixels = slice_of(dtype, stored, stored + 6)
    path = dicom(tmp_path / "a.dcm", pixels, SmallestImagePixelValue=0, LargestImagePixelValue=0, PixelPaddingValue=0)
    content = bytearray(path.read_bytes())
    at = content.index(bytes.fromhex("28002001")) + 8
    content[at : at + 2] = (value % 2**16).to_bytes(2, "little")  # 63536 is -2000 (PS3.3, C.7.5.1.1.2)
    path.write_bytes(content)
    assert formats.facts(path).instance.padding == (stored, stored)  # type: ignore[union-attr]
    np.testing.assert_array_equal(formats.pixels_and_kept(path)[1][0], pixels == stored)  # type: ignore[index]
    protected(path, tmp_path / "b.dcm")
    after = read(tmp_path / "b.dcm")[0, ..., 0]
    np.testing.assert_array_equal(after == stored, pixels == stored)
    assert (after != pixels).any()
    data = pydicom.dcmread(tmp_path / "b.dcm")
    image = after[after != stored]
    wrapped = [np.array(data[name].value).astype(dtype) for name in ("SmallestImagePixelValue", "LargestImagePixelValue")]
    assert wrapped == [image.min(), image.max()]


def test_outside_of_ultrasound_regions_nothing_changes(tmp_path: Path) -> None:
    regions = []
    for left, top, right, bottom in ((2, 3, 9, 12), (8, 10, 14, 20)):
        region = Dataset()
        region.RegionLocationMinX0, region.RegionLocationMinY0 = left, top
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = right, bottom
        regions.append(region)
    path = dicom(tmp_path / "a.dcm", slice_of("u1", 20, 200, (24, 20, 3)), SequenceOfUltrasoundRegions=Sequence(regions))
    inside = np.zeros((24, 20), bool)
    inside[3:13, 2:10] = inside[10:21, 8:15] = True
    np.testing.assert_array_equal(formats.pixels_and_kept(path)[1][0], ~inside)  # type: ignore[index]
    protected(path, tmp_path / "b.dcm")
    changed = (read(path) != read(tmp_path / "b.dcm")).any(axis=-1)[0]
    assert changed[inside].mean() > 0.9
    assert not changed[~inside].any()


def test_an_empty_list_of_regions_keeps_nothing_out(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", slice_of("u1", 20, 200), SequenceOfUltrasoundRegions=Sequence([]))
    assert formats.pixels_and_kept(path)[1] is None
    assert protected(path, tmp_path / "b.dcm")[1].largest == 8


def test_a_sequence_may_be_read_as_often_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its elements are counted once, so that many frames are no damage."""
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.3.9"
    path = dicom(tmp_path / "a.dcm", slice_of(), 12, ReferencedImageSequence=Sequence([reference] * 10))
    monkeypatch.setattr("salm_lightning.data.formats.dicom_elements._MOST", 60)
    elements = Elements(path.read_bytes())
    assert [len(elements.items(elements.data[0x00081140])) for _ in range(9)] == [10] * 9


def test_bits_that_are_not_stored_are_kept(tmp_path: Path) -> None:
    """Older files hold an overlay in them."""
    words = slice_of("u2", 100, 4000) | np.where(RNG.random((24, 20)) < 0.2, np.uint16(0x8000), np.uint16(0))
    path = dicom(tmp_path / "a.dcm", words, 12)
    protected(path, tmp_path / "b.dcm")
    before, after = (np.frombuffer(pydicom.dcmread(one).PixelData, "<u2") for one in (path, tmp_path / "b.dcm"))
    np.testing.assert_array_equal(before & 0xF000, after & 0xF000)
    assert (before != after).any()


@pytest.mark.parametrize(
    ("elements", "window", "scale"),
    [
        ({"WindowCenter": "40", "WindowWidth": "400"}, (-160, 239), (1, 0)),
        ({"WindowCenter": ["000010", "-0550"], "WindowWidth": ["000400", "01800"]}, (-1450, 349), (1, 0)),
        ({"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"}, (-160, 240), (1, 0)),
        ({"RescaleSlope": "001.000000E+00", "RescaleIntercept": "-01.024000E+03"}, None, (1, -1024)),
        ({"RescaleSlope": "0.684", "RescaleIntercept": "200", "RescaleType": "OD"}, None, (0.684, 200)),
    ],
)
def test_windows_and_rescale_are_read_as_the_standard_says(
    elements: dict[str, Any], window: tuple[float, float] | None, scale: tuple[float, float], tmp_path: Path
) -> None:
    path = dicom(tmp_path / "a.dcm", slice_of(), 12, **elements)
    known = formats.facts(path)
    assert known.instance is not None
    assert (known.instance.window, known.scale) == (window, scale)
    assert known.instance.units == elements.get("RescaleType", "HU")
    protected(path, tmp_path / "b.dcm")
    for name in elements:
        before, after = (pydicom.dcmread(one).get_item(name).value for one in (path, tmp_path / "b.dcm"))
        assert before == after


def test_pictures_of_the_original_are_left_out(tmp_path: Path) -> None:
    icon = Dataset()
    icon.BitsAllocated, icon.PixelData = 8, bytes(64)
    path = dicom(tmp_path / "a.dcm", slice_of(), 12, IconImageSequence=Sequence([icon]))
    data = pydicom.dcmread(path)
    picture = b"\xff\xd8\xff\xe0" + bytes(range(40)) + b"\xff\xd9"
    data.private_block(0x0029, "maker", create=True).add_new(1, "OB", picture)
    data.save_as(path)
    assert formats.facts(path).thumbnails == 2
    _, written = protected(path, tmp_path / "b.dcm")
    assert "(0088,0200) IconImageSequence is gone" in written.changed
    assert formats.unexplained(path, tmp_path / "b.dcm") == []
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert "IconImageSequence" not in after
    assert not any(after[0x0029, 0x1001].value[4:])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_icons_within_sequences_become_zeros(syntax: str, tmp_path: Path) -> None:
    icon, middle, reference = Dataset(), Dataset(), Dataset()
    picture = bytes(range(100, 164))
    icon.BitsAllocated, icon.PixelData = 8, picture
    icon["PixelData"].VR = "OB"
    middle.IconImageSequence = Sequence([icon, icon])
    reference.ReferencedSOPInstanceUID, reference.PurposeOfReferenceCodeSequence = "1.2.3.9", Sequence([middle])
    path = dicom(tmp_path / "a.dcm", slice_of(), 12, syntax, ReferencedImageSequence=Sequence([reference]))
    assert path.read_bytes().count(picture) == formats.facts(path).thumbnails == 2
    _, written = protected(path, tmp_path / "b.dcm")
    assert any("(0008,1140)" in one for one in written.changed)
    assert formats.unexplained(path, tmp_path / "b.dcm") == []
    after = pydicom.dcmread(tmp_path / "b.dcm").ReferencedImageSequence[0]
    assert after.ReferencedSOPInstanceUID == "1.2.3.9"
    icons = after.PurposeOfReferenceCodeSequence[0].IconImageSequence
    assert [one.PixelData for one in icons] == [bytes(64)] * 2


def test_identifiers_are_of_the_secret_alone_and_may_stay(tmp_path: Path) -> None:
    first, second = (dicom(tmp_path / f"{name}.dcm", slice_of(), 12) for name in "ab")
    made: dict[int, tuple[str, str]] = {}
    noise = RNG.integers(-8, 9, formats.facts(first).shape).astype(np.int32)
    for number, (path, secret) in enumerate(
        [(first, SECRET), (first, SECRET), (second, SECRET), (first, b"another"), (first, b"")]
    ):
        asked = formats.added(formats.read(path), noise, formats.facts(path), None)
        formats.write(path, asked, tmp_path / f"out{number}.dcm", 8, secret)
        data = pydicom.dcmread(tmp_path / f"out{number}.dcm")
        made[number] = (data.SOPInstanceUID, data.SeriesInstanceUID)
        assert formats.unexplained(path, tmp_path / f"out{number}.dcm") == []
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]
    assert made[0][1] == made[2][1] != "1.2.3.4"  # one series stays one
    assert not set(made[0]) & set(made[3])
    assert made[4] == (pydicom.dcmread(first).SOPInstanceUID, "1.2.3.4")
    formats.write(first, formats.read(first), tmp_path / "copy.dcm", 8, SECRET)
    other = pydicom.dcmread(tmp_path / "copy.dcm")
    assert other.SOPInstanceUID != made[0][0]  # two images never share one
    assert other.SeriesInstanceUID == made[0][1]


def test_what_else_was_changed_is_found(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", slice_of(), 12, PatientName="A^B")
    protected(path, tmp_path / "b.dcm")
    for name, value, found in (
        ("PatientName", "C^D", "element (0010,0010) differs"),
        ("ImageType", ["ORIGINAL", "PRIMARY"], "(0008,0008) ImageType differs"),
        ("SOPInstanceUID", "1.2.3", "identifier 1.2.3 is none that could have been given"),
    ):
        data = pydicom.dcmread(tmp_path / "b.dcm")
        setattr(data, name, value)
        data.save_as(tmp_path / "c.dcm")
        assert found in formats.unexplained(path, tmp_path / "c.dcm")


def spoilt(change: dict[str, Any], cut: slice = slice(None)) -> bytes:
    path = Path(get_testdata_file("CT_small.dcm"))  # type: ignore[arg-type]
    data = pydicom.dcmread(path)
    for name, value in change.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream)
    return stream.getvalue()[cut]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelData": None}, "is a DICOM file without pixels; take it"),
        (
            {"PixelData": bytes(1000)},
            "is cut off, or has another size than it says (it has 1,000 bytes of pixels and needs 32,768)",
        ),
        ({"PixelData": bytes(40000)}, "has more pixels than it says"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has a palette"),
        ({"PhotometricInterpretation": "CMYK"}, "has colours that are CMYK"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "has 32 bits a value"),
        ({"BitsAllocated": 8, "BitsStored": 4, "HighBit": 3}, "has 16 levels"),
        ({"HighBit": 14}, "has bits at a rare place"),
        ({"FloatPixelData": bytes(16)}, "holds floating-point numbers"),
        ({"RescaleSlope": "0"}, "is damaged (its rescale slope is 0"),
        ({"RescaleSlope": "1e-320"}, "is damaged (its rescale slope is 9.9"),
        ({"RescaleIntercept": "1e300"}, "is damaged (its rescale slope is 1, its intercept 1e+300)"),
        ({"NumberOfFrames": "0003"}, "is cut off"),
        ({"Rows": 0}, "has no pixels"),
        ({"Rows": 60000, "Columns": 60000}, "has 60000 x 60000 pixels"),
    ],
)
def test_what_is_not_taken_is_refused_in_one_line(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(spoilt(change))
    with pytest.raises(UnsupportedImage) as error:
        formats.facts(path)
    assert str(error.value).startswith(f"{path} {reason}")
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DICOMDIR", "is a DICOMDIR, an index of other files"),
        ("image_dfl.dcm", "is deflated as a whole"),
        ("MR_truncated.dcm", "is cut off"),
        ("ExplVR_LitEndNoMeta.dcm", "is a DICOM file without its preamble, by its content"),
        ("JPGExtended.dcm", "is coded as JPEG extended with 12 bits"),
        ("meta_missing_tsyntax.dcm", "does not say how it is coded"),
        ("emri_small_jpeg_2k_lossless_too_short.dcm", "is cut off"),
        ("liver_1frame.dcm", "has 1 bits a value"),
        ("rtdose.dcm", "has 32 bits a value"),
    ],
)
def test_files_as_they_occur_are_refused_by_name(name: str, reason: str) -> None:
    path = next(path for key, path in files_of_pydicom().items() if Path(key).name == name)
    with pytest.raises(UnsupportedImage) as error:
        formats.facts(path)
    assert str(error.value).startswith(f"{path} {reason}")


@pytest.mark.parametrize(("name", "module"), [("CT_small.dcm", "pydicom"), ("MR_small_jpeg_ls_lossless.dcm", "jpeg_ls")])
def test_a_decoder_that_is_not_there_is_named_before_anything_is_decoded(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "salm_lightning.data.formats.dicom_syntaxes.find_spec", lambda wanted: None if wanted == module else find_spec(wanted)
    )
    with pytest.raises(UnsupportedImage, match=r"for which a decoder is missing; run pip install 'salm-lightning\[dicom\]'"):
        formats.facts(files_of_pydicom()[name])
