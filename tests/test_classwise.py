"""Class-wise combination: support classes from elsewhere, the noise of one class at a time, all put into one release."""

from __future__ import annotations

import gc
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import write_fake_npz
from PIL import Image

from salm_lightning.data import MEDMNIST, SPLITS, NpzDataModule, SyntheticDataModule, arrays, datamodule
from salm_lightning.data.combined import ClassWithSupport, fit_images, support_of, support_of_folder
from salm_lightning.data.mapped import Scratch
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.files import cache_root
from salm_lightning.main import main
from salm_lightning.release import Manifest
from salm_lightning.release.parts import Parts, parts_folder

SHORT = (
    "--batch_size 16 --method.percent 20 --training.steps 3 --training.victim_steps 3 --training.width 0.125 "
    "--training.accelerator cpu --out out"
)


pytestmark = pytest.mark.usefixtures("workplace")


def _folder(root: Path, counts: dict[str, int], shape: tuple[int, int] = (40, 60)) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


def _classwise(arguments: str) -> int:
    return main(["classwise", *shlex.split(arguments)])


def test_fitted_images_agree_with_pillow() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    resized = np.stack([np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in images])
    assert np.abs(fit_images(images, 28, 3).astype(int) - resized).max() <= 1
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.abs(fit_images(images, 64, 1).astype(int) - grey).max() <= 1
    assert np.array_equal(fit_images(grey, 64, 3), np.repeat(grey[..., None], 3, axis=3))


def test_the_class_comes_first_and_support_follows() -> None:
    target = SyntheticDataModule(num_classes=3, train_size=30, val_size=9, test_size=9)
    support, names = support_of(
        SyntheticDataModule(num_classes=5, channels=1, train_size=40, val_size=10, test_size=10), 2, seed=0
    )
    combined = ClassWithSupport(target, 1, support, names)
    train, own = combined.split("train"), target.split("train")
    mine = own.images[own.labels[:, 0] == 1]
    assert np.array_equal(train.images[: len(mine)], mine)
    assert train.labels[: len(mine)].max() == 0
    assert sorted(np.unique(train.labels[len(mine) :])) == [1, 2]
    assert combined.num_classes == 3
    assert len(names) == 2
    assert len(train) == len(mine) + 16


def test_large_images_lie_in_files_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is read and scaled block by block; here nothing fits."""
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    write_fake_npz(Path("bloodmnist.npz"), MEDMNIST["bloodmnist"], (300, 16, 16))
    write_fake_npz(Path("breastmnist.npz"), replace(MEDMNIST["breastmnist"], size=14), (150, 6, 6))
    photos = _folder(Path("photos"), {"cat": 12, "dog": 5})

    def combine(scratch: Scratch, folder: bool) -> ClassWithSupport:
        of_folder = support_of_folder(photos, 28, None, 0, scratch)
        support = of_folder if folder else support_of(NpzDataModule("breastmnist.npz"), None, 0)
        return ClassWithSupport(NpzDataModule("bloodmnist.npz"), 2, *support)

    for folder in (False, True):
        whole = combine(Scratch(), folder)
        with monkeypatch.context() as small:
            for place in (arrays, datamodule):
                small.setattr(place, "RESIDENT_LIMIT", 0)
            mapped = combine(scratch := Scratch(0), folder)
            for name in SPLITS:
                assert isinstance(mapped.split(name).images, np.memmap)
                assert np.array_equal(mapped.split(name).images, whole.split(name).images)
                assert np.array_equal(mapped.split(name).labels, whole.split(name).labels)
        assert list(cache_root().glob(".scratch-*"))
        del mapped, scratch
        gc.collect()
        assert not list(cache_root().glob(".scratch-*")), "the files go with what made them"


def test_support_classes_are_drawn_with_the_seed() -> None:
    data = SyntheticDataModule(num_classes=8, train_size=16, val_size=8, test_size=8)
    names = [support_of(data, 3, seed)[1] for seed in (0, 0, 1, 2)]
    assert names[0] == names[1]
    assert len(set(names)) > 1


def test_image_folder() -> None:
    splits, names = support_of_folder(_folder(Path("photos"), {"cat": 12, "dog": 5}), 28, None, 0, Scratch())
    assert names == ("cat", "dog")
    assert {name: len(split) for name, split in splits.items()} == {"train": 10 + 3, "val": 2, "test": 2}
    assert splits["train"].images.shape[1:] == (28, 28, 3)
    assert sorted(np.unique(splits["val"].labels)) == [0, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: support_of_folder(_folder(Path("few"), {"cat": 2}), 28, None, 0, Scratch()), DataError, "'cat' has 2 images"),
        (
            lambda: support_of_folder(_folder(Path("two"), {"a": 3, "b": 3}), 28, 3, 0, Scratch()),
            ConfigurationError,
            "num_support=3",
        ),
        (lambda: support_of_folder(Path.cwd(), 28, None, 0, Scratch()), DataError, "one subfolder"),
    ],
)
def test_bad_support(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_two_classes_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = write_fake_npz(Path("bloodmnist.npz"), MEDMNIST["bloodmnist"], (64, 16, 16))
    _folder(Path("photos"), {"cat": 20, "dog": 20})
    command = f'bloodmnist photos --classes "[basophil, 3]" {SHORT}'
    assert _classwise(command) == 0
    printed = capsys.readouterr().out
    assert "[1/2] basophil among 2 support classes" in printed
    assert "recall" in printed
    assert "majority class" in printed
    labels = arrays["train_labels"][:, 0]
    released = NpzDataModule("out/protected/bloodmnist.npz").split("train").images
    changed = (released != arrays["train_images"]).reshape(64, -1).any(axis=1)
    assert np.array_equal(changed, np.isin(labels, [0, 3]))
    for number in (0, 3):
        part = np.load(f"out/class-{number}/protected/bloodmnist-class{number}.npz")["train_images"]
        assert np.array_equal(released[labels == number], part[: (labels == number).sum()])
    assert Manifest.read("out/protected").settings["support_classes"] == ["cat", "dog"]
    assert main(["verify", "out/protected", "--source", "bloodmnist.npz"]) == 0
    capsys.readouterr()

    left = Parts(parts_folder(Path("out/class-0/protected")), "by a kill before they were removed", 8, 4, (28, 28, 3))
    left.save(0, arrays["train_images"][:4])
    assert _classwise(command) == 0, "what is finished is shown again"
    assert not left.folder.exists()
    assert "recall" in capsys.readouterr().out
    assert _classwise(f"{command} --overwrite true --proof false") == 0
    assert "basophil: done before" in capsys.readouterr().out
    assert _classwise(f"{command} --proof false --method.percent 30") == 2
    assert "out=out holds a result with other settings (method.percent is 20.0 there and 30.0 here)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bloodmnist photos --classes [basofil]", "did you mean 'basophil'"),
        ("bloodmnist photos --classes []", "classes is empty"),
        ("chestmnist bloodmnist", "several labels per image"),
        ("bloodmnist chestmnist", "several labels per image"),
        ("bloodmnist nowhere", "support='nowhere'"),
        ("bloodmnist bloodmnist --num_support 9", "num_support=9"),
        ("bloodmnist bloodmnist --training.steps 0", "steps=0"),
    ],
)
def test_bad_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bloodmnist", "chestmnist"):
        write_fake_npz(Path(f"{name}.npz"), MEDMNIST[name], (16, 8, 8))
    assert _classwise(f"{arguments} --training.accelerator cpu") == 2
    assert message in capsys.readouterr().err
    assert not Path("lightning_logs").exists()
