"""Class-wise EM against a plain loop; what it releases, refuses, resumes and lends to other images."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fakes import as_tensor, training_batches, write_fake_npz
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from oracles import make_trainer
from processes import run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from salm_lightning.data import MEDMNIST, DatasetInfo, NpzDataModule, Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import EM, SALM
from salm_lightning.release import Manifest, verify_release
from salm_lightning.runs.generation import generate

SIZE, SAMPLES, STEPS, SEED, CLASSES = 16, 48, 8, 3, 3
RADIUS, UNIT = 8 / 255, 8 / 255 / 127


def make_data(folder: Path, name: str = "small", content: int = 0) -> NpzDataModule:
    info = DatasetInfo(name, Task.MULTI_CLASS, tuple("abc"), 3, SIZE)
    arrays = write_fake_npz(folder / f"{name}.npz", info, (SAMPLES, 12, 9), seed=content)
    arrays["train_images"][:6] = np.array([0, 255] * 3, np.uint8)[:, None, None, None]  # noise on them is clipped
    np.savez(folder / f"{name}.npz", **arrays)
    return NpzDataModule(folder / f"{name}.npz", batch_size=16, chunk_size=20, seed=SEED)


def make_module(method: EM | None = None, **arguments: Any) -> NoiseGeneratorModule:
    sgd = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    settings = {"width": 0.125, "seed": SEED, "optimizer": lambda p: SGD(p, **sgd), "updates_per_visit": 2} | arguments
    return NoiseGeneratorModule(method or EM(noise_per="class"), CLASSES, 3, SIZE, **settings)


def read(folder: Path, name: str = "small") -> tuple[Tensor, Tensor]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        return as_tensor(archive["train_images"]), torch.from_numpy(archive["train_labels"][:, 0].astype(np.int64))


def stored(folder: Path) -> Tensor:
    """Return the snapshot's noise of each class, int8, read without the package."""
    (snapshot,) = (folder / "checkpoints" / "noise").iterdir()
    assert np.load(snapshot / "rank=0.indices.npy").tolist() == list(range(CLASSES))
    return torch.from_numpy(np.load(snapshot / "rank=0.noise.npy"))


def plain_loop(network: nn.Module, batches: Any, updates: int) -> tuple[list[float], Tensor]:
    """Train noise per class and the source model with nothing but PyTorch; return the losses and the int8 noise."""

    def forward(images: Tensor) -> Tensor:
        return network(((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last))

    draws = oracles.uniform(oracles.fold(SEED, "start"), range(CLASSES), 3 * SIZE * SIZE)
    noise = list((2 * torch.from_numpy(draws).view(CLASSES, 3, SIZE, SIZE) - 1) * RADIUS)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], gamma=0.1)
    kept, losses = torch.zeros(CLASSES, 3, SIZE, SIZE, dtype=torch.int8), []
    for step, (images, labels, indices) in enumerate(batches):
        network.eval()
        for update in range(updates):
            gradients = []
            for image, label, index in zip(images, labels.tolist(), indices, strict=True):  # one image at a time
                delta = ((image + noise[label]).clamp(0, 1) - image)[None].requires_grad_(True)
                view = oracles.crop_flip(image[None] + delta, index[None], 4, SEED, "eot", step, update, 0)
                gradients.append(torch.autograd.grad(F.cross_entropy(forward(view), torch.tensor([label])), delta)[0][0])
            for number in set(labels.tolist()):
                mean = torch.stack([g for g, label in zip(gradients, labels.tolist(), strict=True) if label == number]).mean(0)
                noise[number] = (noise[number] - 1.6 / 255 * mean.sign()).clamp(-RADIUS, RADIUS)
        network.train()
        view = oracles.crop_flip((images + torch.stack(noise)[labels]).clamp(0, 1), indices, 4, SEED, "source", step)
        loss = F.cross_entropy(forward(view), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        for number in set(labels.tolist()):
            kept[number] = (noise[number] / UNIT).round().clamp(-127, 127).to(torch.int8)
            noise[number] = kept[number].float() * UNIT
    return losses, kept


def test_training_equals_a_plain_loop_and_the_release_is_the_stored_noise(tmp_path: Path) -> None:
    data, module = make_data(tmp_path), make_module()
    network, trainer = copy.deepcopy(module.source.network), make_trainer(tmp_path, STEPS)
    trainer.fit(module, datamodule=data)
    losses, noise = plain_loop(network, training_batches(data, STEPS), 2)
    np.testing.assert_allclose(trainer.logger.values("train/source_loss"), losses, rtol=0, atol=2e-4)
    release = generate(trainer, module, data)
    kept = stored(tmp_path)
    assert (kept == noise).float().mean() > 0.99  # a sum in another order may turn the sign of a gradient that is nearly 0
    assert len(kept.flatten(1).unique(dim=0)) == CLASSES

    images, labels = read(tmp_path)
    expected = ((images + (kept.float() * UNIT)[labels]).clamp(0, 1) * 255).round()
    assert torch.equal((read(release)[0] * 255).round(), expected)
    grey = ((images > 8.5 / 255) & (images < 246.5 / 255)).all(dim=1, keepdim=True)
    change = expected - (images * 255).round()
    for number in range(CLASSES):  # over the chunks of 20, 20 and 8: one noise where nothing is clipped
        mine, free = change[labels == number], grey[labels == number].expand(-1, 3, -1, -1)
        highest, lowest = torch.where(free, mine, -99).amax(0), torch.where(free, mine, 99).amin(0)
        assert torch.equal(highest[highest > -99], lowest[highest > -99])
    assert not [check for check in verify_release(release, data.source_path) if not check.ok]
    manifest = Manifest.read(release)
    assert manifest.settings["last_pass_steps"] == 0
    assert manifest.settings["method"]["noise_per"] == "class"


def test_auto_updates_count_the_classes(tmp_path: Path) -> None:
    data, module = make_data(tmp_path), make_module(updates_per_visit="auto")
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(module, datamodule=data)
    assert module._updates == 3  # ceil(30 * 3 / (2 * 16)); for 48 samples it would be 10


class StopAfter(Callback):
    """Stop a fit after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def test_a_resumed_run_ends_with_the_same_noise(tmp_path: Path) -> None:
    noises = []
    for name, stop in (("whole", STEPS), ("halves", 4)):
        folder = tmp_path / name
        folder.mkdir()
        data, path = make_data(folder), folder / "checkpoints" / "step.ckpt"
        trainer = make_trainer(folder, STEPS, callbacks=[StopAfter(stop)])
        trainer.fit(make_module(), datamodule=data)
        trainer.save_checkpoint(path)
        if stop < STEPS:
            trainer = make_trainer(folder, STEPS)
            trainer.fit(make_module(), datamodule=make_data(folder), ckpt_path=path, weights_only=True)
            assert trainer.global_step == STEPS
            (folder / "checkpoints" / "noise" / "step=4").rename(folder / "old")
            trainer.save_checkpoint(path)
        noises.append(stored(folder))
    assert torch.equal(*noises)


def test_the_noise_of_a_class_goes_onto_other_images_of_it(tmp_path: Path) -> None:
    data, other = make_data(tmp_path), make_data(tmp_path, "later", content=9)
    module, trainer = make_module(), make_trainer(tmp_path, 4)
    trainer.fit(module, datamodule=data)
    generate(trainer, module, data, tmp_path / "first")
    release = generate(trainer, module, other, tmp_path / "second", ckpt_path=next((tmp_path / "checkpoints").glob("*.ckpt")))
    images, labels = read(tmp_path, "later")
    expected = ((images + (stored(tmp_path).float() * UNIT)[labels]).clamp(0, 1) * 255).round()
    assert torch.equal((read(release, "later")[0] * 255).round(), expected)


@pytest.mark.parametrize("trained", ["class", "sample"])
def test_noise_per_class_is_not_taken_for_noise_per_sample(tmp_path: Path, trained: Any) -> None:
    data, methods = make_data(tmp_path), {"class": EM(noise_per="class"), "sample": EM()}
    trainer, path = make_trainer(tmp_path, 2), tmp_path / "checkpoints" / "step=2.ckpt"
    trainer.fit(make_module(methods.pop(trained)), datamodule=data)
    trainer.save_checkpoint(path)
    (other,) = methods.values()
    with pytest.raises(ConfigurationError, match=f"holds noise for each {trained}, and noise_per='{other.noise_per}'"):
        generate(make_trainer(tmp_path, 2), make_module(other), data, tmp_path / "out", ckpt_path=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": Task.MULTI_LABEL}, "noise_per='class' needs one class per image, and a multi-label image"),
        ({"loop": "fresh"}, "noise_per='class' keeps a noise for each class, which loop='fresh' does not"),
        ({"last_pass_steps": 10}, r"last_pass_steps=10 would give the images of a class noise that differs .* leave it out"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_module(**arguments)
    make_module(EM(), **arguments)
    with pytest.raises(ConfigurationError, match=r"noise_per='classes' is not known; did you mean 'class'\?"):
        EM(noise_per="classes")  # type: ignore[arg-type]


def test_noise_per_sample_is_what_it_was() -> None:
    assert EM().noise_per == SALM().noise_per == "sample"
    assert (EM().last_pass_steps, EM(noise_per="class").last_pass_steps) == (10, 0)
    images = torch.zeros(2, 3, 8, 8)
    assert EM().start(images, torch.arange(2), 0).min() >= 0
    assert EM(noise_per="class").start(images, torch.arange(2), 0).min() < -7 / 255
    assert not EM(noise_per="class", start="zero").start(images, torch.arange(2), 0).any()


def test_over_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    for name in ("bloodmnist", "chestmnist"):
        write_fake_npz(Path(f"{name}.npz"), MEDMNIST[name], (40, 8, 10))
    fit = ["fit", "--config", "method/em_classwise.yaml", "--data", "NpzDataModule", "--data.batch_size", "16", "--data.chunk_size",
           "16", "--model.width", "0.125", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]  # fmt: skip
    assert main([*fit, "--data.path", "bloodmnist.npz", "--run", "blood"]) == 0
    assert main(["verify", "lightning_logs/blood/protected", "--source", "bloodmnist.npz"]) == 0
    predict = [
        "predict",
        "--config",
        "lightning_logs/blood/config.yaml",
        "--ckpt_path",
        "lightning_logs/blood",
        "--release",
        "again",
    ]
    assert main(predict) == 0
    names = ("bloodmnist.npz", "manifest.json")
    assert all(
        (Path("again") / name).read_bytes() == (Path("lightning_logs/blood/protected") / name).read_bytes() for name in names
    )
    capsys.readouterr()
    assert main([*fit, "--data.path", "chestmnist.npz", "--run", "chest"]) == 2
    assert "noise_per='class' needs one class per image" in capsys.readouterr().err


def test_more_than_one_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_fake_npz(Path("a.npz"), MEDMNIST["breastmnist"], (40, 8, 10))
    fit = ["fit", "--config", "method/em_classwise.yaml", "--data", "NpzDataModule", "--data.path", "a.npz", "--data.batch_size", "16",
           "--model.width", "0.125", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]  # fmt: skip
    assert run(fit, tmp_path / "log", ranks=2) == [2, 2]
    assert "noise_per='class' trains on one device" in (tmp_path / "log.0").read_text()
