"""Pixels that keep their values: found in masks and boxes, without noise in training as in files, proven on what is stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from test_folder_release import BOUND, SETTINGS, failed, noisy, save, smooth

from salm_lightning.audit.file_pairs import FilePairs
from salm_lightning.audit.pictures import Album, read_album
from salm_lightning.audit.quality import _draw_kept
from salm_lightning.data import FolderDataModule, formats
from salm_lightning.data.base import Batch
from salm_lightning.data.folder import read_folder
from salm_lightning.data.keep_out import Box, mask_of, masked_by
from salm_lightning.data.survey import survey
from salm_lightning.data.tables import Reading
from salm_lightning.data.working import touching
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.masks import Score, top_percent_mask
from salm_lightning.noise.methods import EM, SALM, TAP
from salm_lightning.release.folder import write_folder
from salm_lightning.release.folder_manifest import read_records
from salm_lightning.release.noisy_file import native_noise
from salm_lightning.release.protected_folder import original_folder
from salm_lightning.release.verify_folder import verify_folder

RNG = np.random.default_rng(8)


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """Two classes of 8 images, each with a mask beside it whose lesion is white, in modes that people use."""
    root = tmp_path / "lesions"
    for number in range(16):
        pixels = smooth(30 + number, 41)
        pixels[..., 1] += RNG.integers(0, 9, pixels.shape[:2], np.uint8)
        path = save(root / "ab"[number % 2] / f"{number}.{('png', 'tif')[number % 4 > 2]}", pixels)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[5:12, 8:20] = 255
        picture = Image.fromarray(mask).convert(("L", "1", "P", "RGBA")[number % 4])
        picture.save(path.with_name(f"{number}_mask.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "a/turned.jpg", smooth(24, 40), exif=exif)
    turned = np.zeros((40, 24), np.uint8)
    turned[:10] = 1
    save(root / "a/turned_mask.png", turned)
    return root


def lesion(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        mask = np.zeros((file.height, file.width), bool)
    mask[5:12, 8:20] = True
    return mask


def written(root: Path, result: Path, **options: object) -> FolderDataModule:
    data = FolderDataModule(root, size=16, protects="all", **options).load()  # type: ignore[arg-type]
    write_folder(result, data, noisy(data), SETTINGS, BOUND, "first")
    return data


@pytest.mark.parametrize(
    ("path", "pattern", "image"),
    [
        ("a/1_mask.png", "*_mask.png", "a/1"),
        ("a/benign (1)_mask_1.png", "*_mask*.png", "a/benign (1)"),
        ("a/mask-1.png", "mask-*.png", "a/1"),
        ("a/1.png", "*_mask.png", None),
        ("a/_mask.png", "*_mask.png", None),
        ("a/1_mask.png", None, None),
        ("a/1_m_x_m_y.png", "*_m*_m*.png", "a/1"),
        ("a/1_m.png", "*_m*m.png", None),
        ("a/mask-.png", "mask-*.png", None),
        ("a/" + "x" * 200, "*" * 30 + "Z", None),
        ("a/" + "x" * 200, "*x" * 90 + "Z", None),
    ],
)
@pytest.mark.timeout(5)
def test_a_mask_is_told_by_its_name(path: str, pattern: str | None, image: str | None) -> None:
    assert masked_by(path, pattern) == image


@pytest.mark.parametrize(("native", "size"), [((37, 50), 16), ((64, 64), 16), ((10, 12), 16), ((16, 16), 16)])
def test_a_working_pixel_is_kept_if_its_noise_would_touch_one_that_is(native: tuple[int, int], size: int) -> None:
    still = np.zeros((1, *native), bool)
    still[0, 3:5, 4:9] = still[0, -1, -1] = True
    kept = touching(still, size)[0]
    facts = formats.Facts("PNG", *native, 1, 8)
    touched = np.zeros((size, size), bool)
    for row, column in np.ndindex(size, size):
        noise = np.zeros((1, size, size), np.int16)
        noise[0, row, column] = 30000  # so that the smallest weight is seen
        touched[row, column] = native_noise(noise, facts, "bilinear", 1000.0, 10**9)[0, ..., 0][still[0]].any()
    np.testing.assert_array_equal(kept, touched)


@pytest.mark.parametrize("score", list(Score))
def test_k_percent_are_of_the_pixels_that_are_free(score: Score) -> None:
    gradient = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    free = torch.ones(5, 1, 8, 8)
    free[1, :, :4], free[2, :, :, 1:], free[3] = 0, 0, 0
    mask = top_percent_mask(gradient, 10, score, free)
    values = {Score.ELEMENT: gradient.abs(), Score.SIGNED: gradient.sum(1, keepdim=True)}.get(
        score, gradient.abs().sum(1, keepdim=True)
    )
    for one, scores, allowed in zip(mask.numpy(), values.numpy(), free.expand_as(values).numpy() > 0, strict=True):
        places = allowed.sum()
        count = min(places, max(1, round(places / 10)))
        expected = np.zeros(scores.size)
        expected[np.argsort(np.where(allowed, -scores, np.inf).ravel(), kind="stable")[:count]] = 1
        np.testing.assert_array_equal(one.ravel(), expected)


def test_masks_beside_images_are_none_of_them_and_their_pixels_stay(lesions: Path, tmp_path: Path) -> None:
    data = written(lesions, tmp_path / "out", masks="*_mask.png")
    assert len(data.survey.folder.images) == 17
    assert "17 of 17 images have regions that keep their values" in data.survey.notes
    for image in data.survey.folder.images:
        before, after = formats.read(lesions / image.path), formats.read(tmp_path / "out/protected" / image.path)
        changed = (before != after).any(axis=-1)[0]
        mask = np.zeros(changed.shape, bool)
        if image.path == "a/turned.jpg":  # whose mask is of the image as it is seen
            mask[:, :10] = True
        else:
            mask = lesion(lesions / image.path)
        assert not changed[mask].any()
        assert changed[~mask].mean() > (0.1 if image.path == "a/turned.jpg" else 0.3)
    assert failed(tmp_path / "out", lesions) == []
    assert (tmp_path / "out/protected/a/0_mask.png").read_bytes() == (lesions / "a/0_mask.png").read_bytes()
    kept = {record.file: record.kept_out for record in read_records(tmp_path / "out")}
    assert (kept["a/0.png"], kept["a/turned.jpg"], kept["a/0_mask.png"]) == (84, 240, 0)
    mask = np.zeros((30, 41), np.uint8)
    mask[:20] = 255
    save(lesions / "a/0_mask.png", mask)
    assert "kept pixels" in failed(tmp_path / "out", lesions)


def test_a_folder_of_masks_and_a_table_of_boxes(lesions: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for path in lesions.rglob("*_mask.png"):
        (masks / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.move(path, masks / path.parent.name / path.name.replace("_mask", ""))
    written(lesions, tmp_path / "out", keep_out=str(masks))
    found = {check.name: check for check in verify_folder(tmp_path / "out", lesions)}
    assert "give with --keep_out what the result was made with" in found["kept pixels"].detail
    assert all(check.ok for check in verify_folder(tmp_path / "out", lesions, keep_out=str(masks)))
    (tmp_path / "boxes.csv").write_text("file,x,y,width,height\na/0.png,8,5,12,7\n0.png,0,0,2,1\nb/1,0,0,41,31\n")
    written(lesions, tmp_path / "boxed", keep_out=str(tmp_path / "boxes.csv"))
    records = {record.file: record for record in read_records(tmp_path / "boxed")}
    assert [records[name].kept_out for name in ("a/0.png", "b/1.png", "a/2.png")] == [86, 41 * 31, 0]
    assert records["b/1.png"].largest == 0
    assert all(check.ok for check in verify_folder(tmp_path / "boxed", lesions, keep_out=str(tmp_path / "boxes.csv")))
    text = (tmp_path / "boxed/release/manifest.json").read_text()
    assert "boxes.csv" not in text


def test_a_mask_is_for_all_images_of_its_name(lesions: Path, tmp_path: Path) -> None:
    shutil.copy(lesions / "a/0.png", lesions / "a/0.jpg")
    mask = lesions / "a/0_mask.png"
    assert {
        path for path, regions in read_folder(lesions, Reading(masks="*_mask.png")).kept_out.regions.items() if mask in regions
    } == {
        "a/0.jpg",
        "a/0.png",
    }
    (tmp_path / "masks/a").mkdir(parents=True)
    shutil.copy(mask, tmp_path / "masks/a/0.bmp")
    apart = read_folder(lesions, Reading(keep_out=str(tmp_path / "masks"), unlabelled="skip")).kept_out
    assert set(apart.regions) == {"a/0.jpg", "a/0.png"}


def test_masks_behind_links_stand_in_the_way(lesions: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks/a"
    masks.mkdir(parents=True)
    shutil.copy(lesions / "a/0_mask.png", masks / "0.png")
    (masks / "2.png").symlink_to(lesions / "a/2_mask.png")
    folder = read_folder(lesions, Reading(masks="*_mask.png", keep_out=str(tmp_path / "masks")))
    assert [(problem.path, problem.why) for problem in folder.problems] == [(str(masks / "2.png"), "out of the folder")]


def test_verify_finds_a_kept_pixel_that_changed(lesions: Path, tmp_path: Path) -> None:
    data = written(lesions, tmp_path / "out", masks="*_mask.png")
    path = tmp_path / "out/protected/a/0.png"
    with Image.open(path) as file:
        pixels = np.array(file)
    pixels[6, 9] += 1
    save(path, pixels)
    assert "kept pixels" in failed(tmp_path / "out", lesions)
    assert data.working.kept is not None


def test_what_was_kept_is_drawn_for_the_report(lesions: Path, tmp_path: Path, workplace: None) -> None:
    pairs = FilePairs(tmp_path / "out", written(lesions, tmp_path / "out", masks="*_mask.png"))
    positions = pairs.with_kept_pixels(4)
    assert len(positions) == 4
    for position in positions:
        if pairs.file(position) != "a/turned.jpg":
            np.testing.assert_array_equal(pairs.kept(position), lesion(lesions / pairs.file(position)))
    album = Album(tmp_path / "audit")
    _draw_kept(album, pairs)
    (entry,) = read_album(tmp_path / "audit")
    assert entry["file"] == "pictures/kept.png"
    assert "--keep_out" not in entry["caption"]


def test_boxes_are_drawn_by_who_knows_them(lesions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes, others = tmp_path / "boxes.csv", tmp_path / "others.csv"
    boxes.write_text("file,x,y,width,height\na/0.png,8,5,12,7\n")
    others.write_text("file,x,y,width,height\na/0.png,8,5,12,8\n")
    result = tmp_path / "out"
    written(lesions, result, masks="*_mask.png", keep_out=str(boxes))
    pairs = FilePairs(result, original_folder(result, str(lesions), keep_out=str(boxes)))
    (place,) = [place for place in pairs.with_kept_pixels(99) if pairs.file(place) == "a/0.png"]
    expected = lesion(lesions / "a/0.png")
    expected[5:12, 8:20] = True
    np.testing.assert_array_equal(pairs.kept(place), expected)
    for known, drawn in ((str(boxes), False), (None, True)):
        album = Album(tmp_path / "audit")
        _draw_kept(album, FilePairs(result, original_folder(result, str(lesions), keep_out=known)))
        assert ("--keep_out" in read_album(tmp_path / "audit")[0]["caption"]) is drawn
    command = ["quality", str(result), "--source", str(lesions), "--keep_out", str(others)]
    assert main(command) == 2
    assert f"keep_out={others} is not what {result} was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: save(root / "a/0_mask.png", np.zeros((9, 9), np.uint8)), "Masks of another size than their image: 1"),
        (lambda root: save(root / "a/none_mask.png", np.zeros((9, 9), np.uint8)), "Masks and boxes without an image: 1"),
        (lambda root: (root / "a/0_mask.png").write_bytes(b"no picture"), "Masks that cannot be read: 1"),
    ],
)
def test_masks_that_do_not_fit_stand_in_the_way(
    spoil: object, said: str, lesions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(lesions)  # type: ignore[operator]
    assert main(["inspect", str(lesions), "--masks", "*_mask.png"]) == 2
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a/0.png,40,0,2,1", "boxes outside of their image"),
        ("a/0.png,0,30,1,1", "boxes outside of their image"),
        ("a/0.png,-1,0,2,1", "boxes that are none"),
        ("a/0.png,0,0,0,1", "boxes that are none"),
        ("a/0.png,0.5,0,2,1", "boxes that are none"),
        ("a/99.png,0,0,2,1", "masks and boxes without an image"),
    ],
)
def test_boxes_that_do_not_fit_stand_in_the_way(line: str, said: str, lesions: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"file,x,y,width,height\n{line}\n")
    reading = Reading(masks="*_mask.png", keep_out=str(tmp_path / "boxes.csv"))
    assert [problem.kind.what for problem in survey(read_folder(lesions, reading)).problems] == [said]


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (Reading(masks="mask"), r"masks=mask has no \*"),
        (Reading(masks="*_lesion.png"), r"masks=\*_lesion.png keeps nothing out"),
        (Reading(keep_out="nowhere"), "keep_out=nowhere is not there"),
        (Reading(keep_out="~nosuchuser/x"), "~nosuchuser/x: "),
        (Reading(keep_out="lesions/a"), "keep_out=lesions/a lies in the folder"),
    ],
)
def test_words_that_cannot_work_are_refused(
    reading: Reading, said: str, lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=said):
        read_folder(lesions, reading)


def test_boxes_are_of_the_image_as_it_is_seen() -> None:
    facts = formats.Facts("JPEG", 24, 40, 3, 8, orientation=6)
    mask = mask_of([Box(0, 0, 24, 10)], facts)
    assert mask is not None
    assert mask[0, :, :10].all()
    assert not mask[0, :, 10:].any()


class Watch(Callback):
    """Notes what each step gives the source model, and the last pass the release."""

    def __init__(self) -> None:
        self.released: dict[int, np.ndarray] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.released |= {int(index): image.numpy() for index, image in zip(outputs.indices, outputs.images, strict=True)}


@pytest.mark.parametrize("method", [SALM(), SALM(mask="strict"), SALM(project=True), EM(), TAP()], ids=lambda one: one.name)
def test_the_generator_has_no_noise_where_pixels_are_kept(
    method: SALM | TAP, lesions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FolderDataModule(lesions, size=16, masks="*_mask.png", batch_size=8).load()
    facts = {"num_classes": 2, "channels": 3, "image_size": 16, "task": data.task}
    module = NoiseGeneratorModule(method, **facts, source="cnn", width=0.1, last_pass_steps=3)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    improve = NoiseGeneratorModule._improve

    def noted(self: NoiseGeneratorModule, *args: object) -> object:
        noise = improve(self, *args)  # type: ignore[arg-type]
        seen.append((noise.delta, args[1].samples.free))  # type: ignore[attr-defined]
        return noise

    monkeypatch.setattr(NoiseGeneratorModule, "_improve", noted)
    watch = Watch()
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch], enable_progress_bar=False
    )
    trainer.fit(module, datamodule=data)
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert seen
    for delta, free in seen:
        assert 0 < free.mean() < 1
        assert not (delta * (1 - free)).any()
        assert delta.any()
    rows, kept = data.rows("train"), data.working.kept
    assert kept is not None
    assert len(watch.released) == len(rows)
    for index, image in watch.released.items():
        change = image != np.moveaxis(data.working.images[rows[index]], -1, 0)
        assert not change[:, kept[rows[index]]].any()
        assert change.any()
        if isinstance(method, SALM) and method.mask == "strict":
            free_pixels = int((~kept[rows[index]]).sum())
            assert change.any(axis=0).sum() <= max(1, round(free_pixels / 10))


@pytest.mark.slow
def test_a_kept_pixel_never_changes_in_a_thousand_files(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(1000):
        size = tuple(RNG.integers(16, 60, 2))
        pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
        path = save(root / "ab"[number % 2] / f"{number}.{('png', 'tif')[number % 2]}", pixels)
        save(path.with_name(f"{number}_mask.png"), (RNG.random(size) < RNG.random()).astype(np.uint8) * 255)
    written(root, tmp_path / "out", masks="*_mask.png")
    total = 0
    for path in sorted(root.rglob("*_mask.png")):
        original = next(one for one in path.parent.glob(f"{path.stem.removesuffix('_mask')}.*"))
        with Image.open(original) as file, Image.open(tmp_path / "out/protected" / original.relative_to(root)) as other:
            change = (np.asarray(file) != np.asarray(other)).any(axis=-1)
        with Image.open(path) as file:
            mask = np.asarray(file) > 0
        assert not change[mask].any()
        total += int(mask.sum())
    print(f"{total:,} pixels kept in 1,000 files")
    assert failed(tmp_path / "out", root) == []


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_pixels_of_a_jpeg_keep_their_values_whatever_its_sampling(subsampling: int, tmp_path: Path) -> None:
    pixels = smooth(64, 80)
    pixels[..., 1] += RNG.integers(0, 40, pixels.shape[:2], np.uint8)
    path = save(tmp_path / "a.jpg", pixels, subsampling=subsampling, quality=90)
    known, before = formats.facts(path), formats.read(path)
    still = np.zeros(known.shape[:3], bool)
    still[0, 15:17, 31:40], still[0, 48, 64] = True, True
    free = formats.without_noise(known, still)
    noise = RNG.choice(np.int32([-8, 8]), known.shape)
    asked = formats.added(before, noise, known, free)
    written = formats.write(path, asked, tmp_path / "b.jpg", 8, still=still)
    after = formats.read(tmp_path / "b.jpg")
    assert not (before != after)[still].any()
    assert written.changed_share > 0.2
    with pytest.raises(ValueError, match="pixels that have to keep their values change"):
        formats.write(path, formats.added(before, noise, known, None), tmp_path / "c.jpg", 8, still=still)
