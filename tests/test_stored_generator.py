"""Images that arrive later: protected by the noise generator of an earlier result, without a training, or refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import write_fake_npz
from PIL import Image
from torch.nn.functional import cross_entropy

from salm_lightning.callbacks.saved import read_checkpoint
from salm_lightning.data import MEDMNIST
from salm_lightning.data.arrays import to_tensor
from salm_lightning.files import file_sha256
from salm_lightning.main import main
from salm_lightning.models import Architecture
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import SALM
from salm_lightning.release import Manifest
from salm_lightning.release.folder_manifest import FolderManifest

SHORT = "--width 0.125 --batch_size 8 --accelerator cpu --proof false"
CHECKPOINT = "generator/checkpoints/step=40.ckpt"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with its generator, and images of the same kind that arrive later."""
    folder = tmp_path_factory.mktemp("first")
    for seed, name in enumerate(("mine", "later")):
        write_fake_npz(folder / f"{name}.npz", MEDMNIST["bloodmnist"], (24, 8, 8), seed=seed)
    words = f"protect {folder}/mine.npz --out {folder}/result {SHORT} --steps 40 --source_learning_rate 0.1 --method.percent 40 --seed 5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALM_STATE_DIR", str(tmp_path_factory.getbasetemp() / "state"))  # those of the tests are not set yet
        patch.setattr("salm_lightning.runs.estimate._PATIENCE", 0.0)
        assert main(shlex.split(words)) == 0
    return folder


@pytest.fixture
def work(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with all that."""
    shutil.copytree(first, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def protect(words: str) -> int:
    return main(["protect", *shlex.split(f"{words} --generator result --out new --batch_size 8 --accelerator cpu --proof false")])


def test_later_images_get_noise_that_the_stored_source_model_has_made(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NoiseGeneratorModule, "training_step", lambda *_: pytest.fail("nothing is trained"))
    assert protect("later.npz") == 0
    assert "with the generator of result" in capsys.readouterr().out
    manifest, before = Manifest.read(work / "new/protected"), Manifest.read(work / "result/protected")
    assert manifest.settings["generator"] == file_sha256(work / "result" / CHECKPOINT)
    assert "generator" not in before.settings
    assert manifest.settings == before.settings | {"generator": manifest.settings["generator"]}
    assert (manifest.settings["method"]["percent"], manifest.settings["seed"]) == (40, 5)
    assert not list(work.glob("new/**/*.ckpt"))
    assert main(["verify", "new/protected", "--source", "later.npz"]) == 0

    # As plain torch has it: the noise follows the gradient of the source model in the checkpoint downwards, which drawn noise does not.
    network = Architecture.parse("cnn").build(8, 3, 28, 0.125).eval()
    state = read_checkpoint(work / "result" / CHECKPOINT)["state_dict"]
    network.load_state_dict({name.removeprefix("source."): value for name, value in state.items() if name.startswith("source.")})
    with np.load("later.npz") as file:
        clean, labels = file["train_images"], torch.from_numpy(file["train_labels"][:, 0].astype(np.int64))
    with np.load("new/protected/later.npz") as file:
        protected = file["train_images"]
    rng = np.random.default_rng(0)
    drawn = np.clip(clean + rng.integers(-8, 9, clean.shape), 0, 255).astype(np.uint8)
    images = (to_tensor(clean).float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(network(images), labels), images)
    downwards = -gradient.sign().flatten().numpy()
    follows, random = (
        np.corrcoef(downwards, (to_tensor(noisy).float() - to_tensor(clean)).flatten().numpy())[0, 1]
        for noisy in (protected, drawn)
    )
    assert follows > 0.03  # chance gives 0.004
    assert abs(random) < 0.015


def test_what_the_generator_settles_is_not_asked_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ("--steps 7", "steps=7: that of generator=result is 40"),
        ("--width 0.5", "width=0.5: that of generator=result is 0.125"),
        ("--seed 1", "seed=1: that of generator=result is 5"),
        ("--source_model resnet18", "source_model=resnet18: that of generator=result is cnn"),
        ("--method EM", "method=em: generator=result was made with salm"),
        ("--method.percent 30", "method=salm: generator=result was made with salm"),
    ):
        assert protect(f"later.npz {words}") == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (work / "new").exists()
    assert protect("later.npz --steps 40 --width 0.125 --seed 5 --source_model cnn --method.percent 40") == 0


def test_what_does_not_fit_is_refused_before_any_work(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(work / "pathmnist.npz", MEDMNIST["pathmnist"], (18, 9, 9))
    write_fake_npz(work / "grey.npz", MEDMNIST["organamnist"], (22, 11, 11))
    arrays = dict(np.load("later.npz"))
    np.savez(work / "large.npz", **{k: v.repeat(2, 1).repeat(2, 2) if k.endswith("images") else v for k, v in arrays.items()})
    for words, said in (
        ("pathmnist.npz", "it knows 8 classes, they come with 8, which it does not know"),
        ("grey.npz", "it sees 3 channel(s), they have 1"),
        ("large.npz", "its working size is 28 pixels, theirs 56"),
    ):
        assert protect(words) == 2
        error = capsys.readouterr().err
        assert f"generator=result does not fit {words}: " in error
        assert said in error
        assert len(error.splitlines()) == 1
    assert main(shlex.split("protect later.npz --generator nowhere --out new")) == 2
    assert "generator=nowhere is no result of salm-cli protect" in capsys.readouterr().err
    (work / "result" / CHECKPOINT).write_bytes(b"x")
    assert protect("later.npz") == 2
    assert "generator=result cannot be used: " in capsys.readouterr().err
    (work / "result" / CHECKPOINT).unlink()
    assert protect("later.npz") == 2
    assert "generator=result holds no checkpoint" in capsys.readouterr().err
    assert not (work / "new").exists()


@pytest.mark.parametrize("out", ["result", "result/more", ".", "linked"])
def test_a_result_never_takes_the_place_of_its_generator(out: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "linked").symlink_to("result")
    before = {path: path.stat().st_mtime_ns for path in sorted(work.rglob("*"))}
    words = f"protect later.npz --generator result --out {out} --overwrite true --batch_size 8 --accelerator cpu --proof false"
    assert main(shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert f"out={out} and generator=result are the same result, or lie in each other" in error
    assert len(error.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in sorted(work.rglob("*"))} == before


def test_an_archive_fits_the_generator_of_named_classes_by_their_numbers(work: Path) -> None:
    """MedMNIST's datasets have names for their classes, and BloodMNIST's kind of labels, or RetinaMNIST's, is not in a file."""
    record = json.loads((work / "result/protect.json").read_text())
    record["identity"]["dataset"] |= {"class_names": list("abcdefgh"), "task": "ordinal-regression"}
    (work / "result/protect.json").write_text(json.dumps(record))
    assert protect("later.npz") == 0


def test_a_class_that_somebody_else_names_is_not_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "evil.py").write_text("raise SystemExit('run')")
    record = json.loads((work / "result/protect.json").read_text())
    record["identity"]["source_model"] = {"class_path": "evil.Net", "init_args": {}}
    (work / "result/protect.json").write_text(json.dumps(record))
    assert protect("later.npz") == 2
    assert "which is code, and its protect.json was written elsewhere" in capsys.readouterr().err
    record["identity"] |= {"source_model": "cnn", "method": {"name": "evil.Method"}}
    (work / "result/protect.json").write_text(json.dumps(record))
    assert protect("later.npz") == 2
    assert "which is none of this version's" in capsys.readouterr().err


def scans(root: Path, depth: type, high: int) -> None:
    rng = np.random.default_rng(high)
    for number in range(12):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, high, (20, 20)).astype(depth)).save(path)


def test_folders_are_read_as_the_generator_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scans(tmp_path / "deep", np.uint16, 3000)
    scans(tmp_path / "deeper", np.uint16, 2000)
    scans(tmp_path / "shallow", np.uint8, 255)
    assert main(shlex.split(f"protect deep --out result --size 16 --steps 2 --range 0:2500 {SHORT}")) == 0
    assert protect("deeper") == 0
    manifest, before = FolderManifest.read(tmp_path / "new"), FolderManifest.read(tmp_path / "result")
    assert (manifest.range, manifest.bound, manifest.dataset["size"]) == (before.range, before.bound, 16) == ((0, 2500), 78, 16)
    assert manifest.settings["generator"] == file_sha256(next((tmp_path / "result/generator/checkpoints").glob("*.ckpt")))
    assert main(["verify", "new", "--source", "deeper"]) == 0
    shutil.rmtree("new")
    for words, said in (
        ("shallow", "(Read as generator=result needs it.)"),
        ("deeper --range 0:2000", "it sees the range 0:2500, theirs is 0:2000"),
        ("deeper --size 20", "its working size is 16 pixels, theirs 20"),
    ):
        capsys.readouterr()
        assert protect(words) == 2
        assert said in capsys.readouterr().err


def test_later_noise_begins_with_the_mean_noise_of_the_class(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step of the last pass that is what is released; the means are NumPy's, of the noise beside the checkpoint."""
    monkeypatch.setattr(SALM, "last_pass_steps", 0)
    assert protect("later.npz") == 0
    snapshot = work / "result/generator/checkpoints/noise/step=40"
    indices, noise = (np.load(snapshot / f"rank=0.{name}.npy") for name in ("indices", "noise"))
    with np.load("mine.npz") as file:
        labels = file["train_labels"][indices, 0]
    means = np.stack([noise[labels == label].mean(axis=0) for label in range(8)]) * 8 / 127
    with np.load("later.npz") as file, np.load("new/protected/later.npz") as made:
        expected = file["train_images"] + means[file["train_labels"][:, 0]].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(made["train_images"], np.clip(expected, 0, 255), atol=0.51)  # rounded to bytes
    assert np.abs(means).max() > 1
