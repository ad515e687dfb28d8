"""NoiseGeneratorModule against a plain PyTorch loop; alignment, rounding and coverage of what it releases."""

from __future__ import annotations

import copy
import io
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import oracles
import pytest
import torch
from fakes import as_tensor, training_batches, write_fake_npz
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from oracles import Recorder, make_trainer
from torch import Tensor
from torch.optim import SGD

from salm_lightning.callbacks import progress_bar
from salm_lightning.callbacks.checkpoint import save_run
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.data.base import Batch
from salm_lightning.data.loaders import DeviceReader
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.modules import FractionalStepLR, NoiseGeneratorModule
from salm_lightning.noise.methods import SALM, Method, Perturbation, Random
from salm_lightning.noise.pgd import FP16_SCALE, Objective, frozen, release_images
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release import verify_release
from salm_lightning.runs.generation import generate

SIZE, SAMPLES, BATCH, STEPS, SEED = 16, 64, 16, 20, 3


def make_data(
    folder: Path, channels: int = 3, samples: int = SAMPLES, multi_label: bool = False, **arguments: Any
) -> NpzDataModule:
    """Write a small dataset and open it."""
    task = Task.MULTI_LABEL if multi_label else Task.MULTI_CLASS
    name = arguments.pop("name", "small")
    info = DatasetInfo(name, task, tuple("abc"), channels, SIZE)
    write_fake_npz(folder / f"{name}.npz", info, (samples, 12, 9), seed=arguments.pop("content", 0))
    return NpzDataModule(folder / f"{name}.npz", **({"batch_size": BATCH, "chunk_size": 24, "seed": SEED} | arguments))


def make_module(data: NpzDataModule, method: Method | None = None, **arguments: Any) -> NoiseGeneratorModule:
    settings = {"width": 0.125, "seed": SEED, "optimizer": lambda p: SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4)} | arguments
    return NoiseGeneratorModule(
        method or SALM(percent=10), data.num_classes, data.channels, data.image_size, data.task, **settings
    )


def read(folder: Path, name: str = "small") -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def stored(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the snapshot's int8 noise by global index, read without the package."""
    noise = np.zeros(shape, dtype=np.int8)
    (snapshot,) = (folder / "checkpoints" / "noise").iterdir()
    noise[np.load(snapshot / "rank=0.indices.npy")] = np.load(snapshot / "rank=0.noise.npy")
    return noise


# Training ----------------------------------------


@pytest.mark.parametrize(
    ("loop", "channels", "multi_label", "percent", "eot", "batch_norm", "as_rgb"),
    [
        ("persistent", 3, False, 10.0, 1, "running", False),
        ("persistent", 1, True, 30.0, 2, "running", False),
        ("persistent", 1, False, 10.0, 1, "batch", True),
        ("fresh", 3, False, 10.0, 1, "running", False),
        ("fresh", 1, False, 100.0, 1, "running", False),
    ],
)
def test_training_equals_a_plain_loop(
    tmp_path: Path,
    loop: Literal["persistent", "fresh"],
    channels: int,
    multi_label: bool,
    percent: float,
    eot: int,
    batch_norm: Literal["running", "batch"],
    as_rgb: bool,
) -> None:
    data = make_data(tmp_path, channels, multi_label=multi_label)
    module = make_module(
        data, SALM(percent, eot_samples=eot), loop=loop, updates_per_visit=2, pgd_steps=2, batch_norm=batch_norm, as_rgb=as_rgb
    )
    network = copy.deepcopy(module.source.network)
    trainer = make_trainer(tmp_path, STEPS)
    trainer.fit(module, datamodule=data)
    losses, noise = oracles.train_generator(
        network, training_batches(data, STEPS), SAMPLES, loop == "persistent", radius=8, step_size=1.6, seed=SEED, updates=2, eot=eot,
        percent=None if percent == 100 else percent, lr=0.02, milestones=[8, 16], batch_norm=batch_norm, as_rgb=as_rgb,
    )  # fmt: skip
    assert isinstance(trainer.logger, Recorder)
    np.testing.assert_allclose(trainer.logger.values("train/source_loss"), losses, rtol=0, atol=5e-6)
    weights = module.source.network.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}")
    np.testing.assert_allclose(trainer.logger.values("train/lr"), [0.02] * 8 + [0.002] * 8 + [0.0002] * 4, rtol=1e-6)
    if loop == "persistent":
        trainer.save_checkpoint(tmp_path / "checkpoints" / "step=20.ckpt")
        np.testing.assert_array_equal(stored(tmp_path, tuple(noise.shape)), noise.numpy())
        assert (noise != 0).flatten(1).any(1).all()
    else:
        assert module.save_noise() is None


@pytest.mark.parametrize(
    ("steps", "samples", "updates"), [(20, 64, 6), (4, 64, 10), (1000, 64, 1), (120, 64, 1), (100, 64, 2), (60, 33, 2)]
)
def test_auto_updates_per_visit(tmp_path: Path, steps: int, samples: int, updates: int) -> None:
    assert updates == min(10, max(1, math.ceil(30 * samples / (steps * BATCH))))
    data, method = make_data(tmp_path, samples=samples), Stamp()
    make_trainer(tmp_path, steps, callbacks=[StopAfter(2)]).fit(make_module(data, method), datamodule=data)
    assert method.seen == [updates, updates]


@pytest.mark.parametrize(("loop", "expected"), [("persistent", 4), ("fresh", 7)])
def test_each_loop_takes_its_own_number_of_steps(tmp_path: Path, loop: Any, expected: int) -> None:
    data, method = make_data(tmp_path), Stamp()
    module = make_module(data, method, loop=loop, updates_per_visit=4, pgd_steps=7)
    make_trainer(tmp_path, 2).fit(module, datamodule=data)
    assert method.seen == [expected] * 2


def test_auto_updates_and_the_schedule_follow_epochs_as_they_follow_steps(tmp_path: Path) -> None:
    """Two epochs of four batches are eight steps: 30 * 64 / (8 * 16) = 15 updates, of which ten are made."""
    made = []
    for length in ({"max_steps": 8}, {"max_epochs": 2, "max_steps": -1}, {"max_epochs": 2, "max_steps": 5000}):
        data = make_data(tmp_path)
        module, trainer = make_module(data), make_trainer(tmp_path, 8, **{"max_epochs": -1} | length)
        trainer.fit(module, datamodule=data)
        assert module.trained is not None
        made.append((trainer.global_step, module.trained["updates_per_visit"], trainer.optimizers[0].param_groups[0]["lr"]))
    assert made == [(8, 10, pytest.approx(0.0002))] * 3


def test_nothing_is_logged_where_no_step_is(tmp_path: Path) -> None:
    data, logger = make_data(tmp_path), Recorder()
    trainer = make_trainer(tmp_path, 2, log_every_n_steps=0, logger=logger)
    trainer.fit(make_module(data), datamodule=data)
    assert trainer.global_step == 2
    assert not logger.values("train/source_loss")


def test_auto_updates_need_a_training_length(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    module = make_module(data, lr_scheduler=partial(FractionalStepLR, total_steps=8))
    message = r"updates_per_visit='auto' needs the training length: give trainer.max_steps .* max_time alone does not tell it"
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(tmp_path, -1, max_time={"minutes": 1}).fit(module, datamodule=data)


def test_what_is_logged(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    module = make_module(data, SALM(percent=10, start="zero"), updates_per_visit=1)
    trainer = make_trainer(
        tmp_path, 9, log_every_n_steps=2, limit_val_batches=1.0, val_check_interval=4, check_val_every_n_epoch=None
    )
    trainer.fit(module, datamodule=data)
    log = trainer.logger
    assert isinstance(log, Recorder)
    names = {"source_loss", "source_acc", "pixels_touched", "delta_mean", "delta_max", "lr"}
    assert {f"train/{name}" for name in names} | {"val/clean_acc", "val/clean_balanced_acc"} <= {
        key for _, row in log.rows for key in row
    }
    assert [step for step, row in log.rows if "train/source_loss" in row] == [1, 3, 5, 7]
    assert all(len(log.values(f"train/{name}")) == 4 for name in names)
    assert len(log.values("val/clean_acc")) == 3
    # From a zero start one step touches exactly K percent, by the step size.
    assert log.values("train/pixels_touched")[0] == pytest.approx(26 / 256)
    assert log.values("train/delta_max")[0] == pytest.approx(1.6 / 255)
    assert 0 < log.values("train/delta_mean")[0] <= 1.6 / 255 * 26 / 256
    assert max(log.values("train/delta_max")) <= 8 / 255 * 1.0001
    assert all(0 <= value <= 1 for key in ("train/source_acc", "val/clean_acc") for value in log.values(key))


@pytest.mark.parametrize("last_pass_steps", [0, 3])
def test_strictly_sparse_noise_is_counted_on_the_stored_bytes(tmp_path: Path, last_pass_steps: int) -> None:
    data = make_data(tmp_path)
    module = make_module(data, SALM(percent=10, mask="strict", step_size=4), last_pass_steps=last_pass_steps)
    trainer = make_trainer(tmp_path, 8)
    trainer.fit(module, datamodule=data)
    release = generate(trainer, module, data)
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["bound"]["max_changed_pixels"] == round(0.1 * SIZE**2)
    assert manifest["settings"]["updates_per_visit"] == "auto"
    assert manifest["settings"]["training"] == {"steps": 8, "batch_size": BATCH, "precision": "32-true", "updates_per_visit": 10}
    changed = (read(release)["train_images"] != read(tmp_path)["train_images"]).any(-1).sum((1, 2))
    assert 0 < changed.max() <= 26
    assert all(check.ok for check in verify_release(release, tmp_path / "small.npz"))
    text = (
        (release / "manifest.json").read_text().replace('"max_changed_pixels": 26', f'"max_changed_pixels": {changed.max() - 1}')
    )
    (release / "manifest.json").write_text(text)
    assert any(
        f"an image has {changed.max()} changed pixels" in check.detail
        for check in verify_release(release, tmp_path / "small.npz")
    )


def test_validation_is_on_clean_images(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    module = make_module(data, updates_per_visit=1)
    trainer = make_trainer(tmp_path, 6, limit_val_batches=1.0, val_check_interval=6, check_val_every_n_epoch=None)
    trainer.fit(module, datamodule=data)
    arrays = read(tmp_path)
    with torch.inference_mode():
        guessed = module.source.eval()(as_tensor(arrays["val_images"])).argmax(1).numpy()
    assert isinstance(trainer.logger, Recorder)
    assert trainer.logger.values("val/clean_acc") == [pytest.approx((guessed == arrays["val_labels"][:, 0]).mean())]


# The last pass ----------------------------------------


class Stamp(Method):
    """A method whose noise tells the image that it was made for: its grey sum modulo 17, minus 8, everywhere."""

    seen: list[int]

    def __init__(self) -> None:
        super().__init__(radius=8)
        object.__setattr__(self, "seen", [])

    def settings(self) -> dict[str, Any]:
        return {"name": "stamp", "radius": self.radius}

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        return torch.zeros_like(images)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        if steps:  # the last pass takes none here: the stored noise is released
            self.seen.append(steps)
            delta = stamps(images).expand_as(images) / 255
        return Perturbation(delta, torch.ones_like(delta[:, :1]))


def stamps(images: Tensor) -> Tensor:
    """Return a whole number from -8 to 8 for each image, ``[N, 1, 1, 1]``."""
    return (images * 255).round().sum((1, 2, 3), keepdim=True) % 17 - 8


class StopAfter(Callback):
    """Stop a fit after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_gets_its_own_noise(tmp_path: Path, channels: int) -> None:
    # 50 images in shuffled batches of 8 (which drop two per epoch) and chunks of 24 (which do not divide 50).
    data = make_data(tmp_path, channels, samples=50, batch_size=8)
    module = make_module(data, Stamp(), updates_per_visit=1, last_pass_steps=0)
    trainer = make_trainer(tmp_path, 30)
    trainer.fit(module, datamodule=data)
    folder = generate(trainer, module, data)
    before, after = read(tmp_path), read(folder)
    images = as_tensor(before["train_images"])
    noise = stamps(images)
    assert len(noise.unique()) > 10
    assert noise.min() < -5
    expected = ((images * 255).round() + noise).clamp(0, 255)
    assert after["train_images"].shape == before["train_images"].shape
    assert torch.equal((as_tensor(after["train_images"]) * 255).round(), expected)
    for name in ("train_labels", "val_images", "val_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize(
    ("channels", "loop", "multi_label"), [(3, "persistent", False), (1, "persistent", True), (3, "fresh", False)]
)
def test_the_last_pass_equals_plain_pgd_from_the_stored_noise(
    tmp_path: Path, channels: int, loop: Any, multi_label: bool
) -> None:
    data = make_data(tmp_path, channels, samples=50, multi_label=multi_label)
    module = make_module(data, SALM(percent=10), loop=loop, updates_per_visit=2, pgd_steps=2, last_pass_steps=3)
    trainer = make_trainer(tmp_path, 12)
    trainer.fit(module, datamodule=data)
    folder = generate(trainer, module, data)
    before, after = read(tmp_path), read(folder)
    images = as_tensor(before["train_images"])
    labels = torch.from_numpy(before["train_labels"].astype(np.int64))
    labels = labels.float() if multi_label else labels[:, 0]
    if loop == "persistent":
        noise = torch.from_numpy(stored(tmp_path, tuple(images.shape))).float() * (8 / 255 / 127)
    else:
        noise = oracles.start_noise(images, torch.arange(50), 8, SEED)
    network = copy.deepcopy(module.source.network).eval()
    made = [
        oracles.masked_pgd(
            lambda views: network((views - 0.5) / 0.25), (images[part], labels[part], torch.arange(50)[part]), noise[part], 3,
            radius=8, step_size=1.6, percent=10, seed=SEED, purpose="last",
        )
        for part in (slice(0, 24), slice(24, 48), slice(48, 50))
    ]  # fmt: skip
    expected = ((images + torch.cat(made)).clamp(0, 1) * 255).round()
    released = (as_tensor(after["train_images"]) * 255).round()
    # Another batch size in the tail may flip a sign that hangs on the last bit.
    assert (released == expected).float().mean() > 0.999
    assert (released == expected).flatten(1).float().mean(1).min() > 0.99
    change = released - (images * 255).round()
    assert change.abs().max() == 8
    assert (change < 0).float().mean() > 0.2
    assert (change > 0).float().mean() > 0.2
    bad = [check for check in verify_release(folder, data.source_path) if not check.ok]
    assert not bad
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["coverage"] == {"samples": 50, "written": 50, "selected": 50, "selection": None}


def test_no_pixels_release_the_clean_bytes(tmp_path: Path) -> None:
    data = make_data(tmp_path, samples=50)
    module, trainer = make_module(data, SALM(percent=0)), make_trainer(tmp_path, 3)
    trainer.fit(module, datamodule=data)
    np.testing.assert_array_equal(read(generate(trainer, module, data))["train_images"], read(tmp_path)["train_images"])


def test_random_noise_needs_no_training(tmp_path: Path) -> None:
    data = make_data(tmp_path, samples=50)
    module = make_module(data, Random())
    trainer = make_trainer(tmp_path, 3)
    folder = generate(trainer, module, data, tmp_path / "out")
    images = as_tensor(read(tmp_path)["train_images"])
    expected = ((images + oracles.start_noise(images, torch.arange(50), 8, SEED)) * 255).round()
    assert torch.equal((as_tensor(read(folder)["train_images"]) * 255).round(), expected)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_protects_other_images_from_a_random_start(tmp_path: Path) -> None:
    data, other = make_data(tmp_path, samples=32), make_data(tmp_path, samples=24, name="later", content=9)
    module = make_module(data, SALM(percent=10), updates_per_visit=1, last_pass_steps=0)
    trainer = make_trainer(tmp_path, 4)
    trainer.fit(module, datamodule=data)
    generate(trainer, module, data, tmp_path / "first")  # the module has opened the noise of the first images
    folder = generate(trainer, module, other, tmp_path / "second", ckpt_path=next((tmp_path / "checkpoints").glob("*.ckpt")))
    images = as_tensor(read(tmp_path, "later")["train_images"])
    expected = ((images + oracles.start_noise(images, torch.arange(24), 8, SEED)) * 255).round()
    assert torch.equal((as_tensor(read(folder, "later")["train_images"]) * 255).round(), expected)


def test_prediction_right_after_a_fit_starts_from_the_noise_in_memory(tmp_path: Path) -> None:
    data, other = make_data(tmp_path, samples=50), make_data(tmp_path, samples=24, name="later", content=9)
    module = make_module(data, SALM(percent=10), updates_per_visit=2, last_pass_steps=0)
    trainer = make_trainer(tmp_path, 5)

    def predicted(on: NpzDataModule) -> torch.Tensor:
        made = trainer.predict(module, on)
        assert made is not None
        return torch.cat([chunk.images for chunk in made])[: len(on.split("train"))].float()

    def from_random(name: str) -> torch.Tensor:
        images = as_tensor(read(tmp_path, name)["train_images"])
        return ((images + oracles.start_noise(images, torch.arange(len(images)), 8, SEED)) * 255).round().clamp(0, 255)

    assert torch.equal(predicted(data), from_random("small"))  # nothing is trained yet
    trainer.fit(module, datamodule=data)
    in_memory = predicted(data)
    released = as_tensor(read(generate(trainer, module, data))["train_images"]) * 255
    assert torch.equal(in_memory, released.round())
    assert not torch.equal(in_memory, from_random("small"))
    assert torch.equal(predicted(other), from_random("later"))
    assert torch.equal(predicted(data), in_memory)


def test_noise_in_a_memory_map_is_resumed_and_released_alike_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_bytes, maps = SAMPLES * 3 * SIZE**2, Path("/proc/self/maps")
    releases, left = [], []
    for mapped, limit in ((False, noise_bytes), (True, noise_bytes - 1)):
        monkeypatch.setattr("salm_lightning.noise.store.HOST_LIMIT", limit)
        folder = tmp_path / str(limit)
        data, first = make_data(folder), make_trainer(folder, 3)
        first.fit(make_module(data), datamodule=data)
        module, trainer = make_module(data), make_trainer(folder, 7)
        trainer.fit(module, datamodule=data, ckpt_path=save_run(first))
        assert not maps.exists() or (str(folder / "checkpoints") in maps.read_text()) is mapped
        releases.append(read(generate(trainer, module, data))["train_images"])
        left.append({str(path.relative_to(folder)) for path in folder.rglob("*")})
    np.testing.assert_array_equal(*releases)
    assert left[0] == left[1]
    assert "checkpoints/noise/step=7/rank=0.noise.npy" in left[0]


def test_a_resumed_run_says_that_its_learning_rate_is_another(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(make_module(data), datamodule=data)
    path = tmp_path / "checkpoints" / "step=2.ckpt"
    trainer.save_checkpoint(path)
    module, resumed = make_module(data, optimizer=lambda p: SGD(p, lr=0.5)), make_trainer(tmp_path, 4)
    with pytest.warns(UserWarning, match=r"the optimiser goes on as it was saved. optimizer: .*'lr': 0.02.*'lr': 0.5.* now"):
        resumed.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    assert isinstance(resumed.logger, Recorder)
    assert resumed.logger.values("train/lr")[0] == pytest.approx(0.002)  # past 0.4 of 4 steps


def test_a_checkpoint_is_not_resumed_on_other_images(tmp_path: Path) -> None:
    data, other = make_data(tmp_path), make_data(tmp_path, name="later", content=9)
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(make_module(data), datamodule=data)
    path = tmp_path / "checkpoints" / "step=2.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(ConfigurationError, match="trained on other images than later"):
        make_trainer(tmp_path, 4).fit(make_module(other), datamodule=other, ckpt_path=path, weights_only=True)
    (path.parent / "noise" / "step=2" / "rank=0.noise.npy").unlink()
    with pytest.raises(ReleaseError, match="is missing"):
        make_trainer(tmp_path, 4).fit(make_module(data), datamodule=data, ckpt_path=path, weights_only=True)


class Screen(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variables", "shown"), [({}, True), ({"CI": "true"}, False), ({"TERM": "dumb"}, False)])
def test_writing_the_release_shows_its_progress_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shown: bool
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    data = make_data(tmp_path, samples=50)
    for enabled in (True, False):
        trainer = make_trainer(tmp_path, 1, enable_progress_bar=enabled, callbacks=[progress_bar()] * enabled)
        monkeypatch.setattr(sys, "stdout", Screen())
        generate(trainer, make_module(data, Random()), data, tmp_path / f"bar-{enabled}")
        assert ("Measuring and writing" in sys.stdout.getvalue()) == (shown and enabled)  # type: ignore[attr-defined]
        assert ("100%" in sys.stdout.getvalue()) == (shown and enabled)  # type: ignore[attr-defined]


# Precision ----------------------------------------


def watched(module: NoiseGeneratorModule) -> list[tuple[str, torch.dtype, torch.dtype]]:
    """Return a list that fills up with each pass of the source model: its kind, and the types of what goes in and comes out."""
    passes: list[tuple[str, torch.dtype, torch.dtype]] = []
    module.source.register_forward_hook(
        lambda source, given, made: passes.append(("source" if source.training else "pgd", given[0].dtype, made.dtype))
    )
    return passes


def on_a_gpu(*values: Any) -> Any:
    return pytest.param(*values, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")])


@pytest.mark.parametrize(
    ("accelerator", "precision", "low"),
    [
        ("cpu", "32-true", torch.float32),
        ("cpu", "bf16-mixed", torch.bfloat16),
        on_a_gpu("cuda", "bf16-mixed", torch.bfloat16),
        on_a_gpu("cuda", "16-mixed", torch.float16),
    ],
)
def test_the_source_model_runs_in_the_precision_of_the_trainer_and_the_noise_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str, precision: Any, low: torch.dtype
) -> None:
    """A fit and its last pass, on the loader that keeps the images on the device."""
    data = make_data(tmp_path, samples=50, resident="device")
    module = make_module(data, SALM(percent=10), updates_per_visit=2, last_pass_steps=3, width=0.0625)
    passes, noise, improve = watched(module), [], module._improve

    def noted(*args: Any) -> Perturbation:
        noise.append(improve(*args))
        return noise[-1]

    monkeypatch.setattr(module, "_improve", noted)
    before = copy.deepcopy(module.state_dict())
    trainer = make_trainer(tmp_path, 6, accelerator=accelerator, precision=precision)
    trainer.fit(module, datamodule=data)
    assert isinstance(data.train_dataloader().read, DeviceReader)
    assert [kind for kind, _, _ in passes] == ["pgd", "pgd", "source"] * 6
    folder = generate(trainer, module, data)
    assert [kind for kind, _, _ in passes[18:]] == ["pgd"] * 3 * 3  # chunks of 24, 24 and 2
    assert {(given, made) for _, given, made in passes} == {(torch.float32, low)}

    assert len(noise) == 6 + 3
    assert {tensor.dtype for made in noise for tensor in made} == {torch.float32}
    assert {made.delta.device.type for made in noise} == {accelerator}
    assert module.noise.store is not None
    indices = torch.from_numpy(module.noise.store.indices)
    kept = module.noise.store.get(indices, torch.zeros(50, 3, SIZE, SIZE))
    assert kept.dtype == torch.float32
    assert kept.flatten(1).any(1).all()
    assert float(kept.abs().max()) <= 8 / 255 * 1.0001

    after = module.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert any(not torch.equal(after[name].cpu(), before[name]) for name, _ in module.named_parameters())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["training"]["precision"] == precision
    change = read(folder)["train_images"].astype(int) - read(tmp_path)["train_images"]
    assert 4 < np.abs(change).max() <= 8
    assert all(check.ok for check in verify_release(folder, data.source_path))


@pytest.mark.parametrize("purpose", ["eot", "last"])
@pytest.mark.parametrize(("precision", "scale"), [("32-true", 1.0), ("bf16-mixed", 1.0), ("16-mixed", FP16_SCALE)])
def test_the_input_gradient_is_scaled_in_fp16_alone(tmp_path: Path, purpose: str, precision: str, scale: float) -> None:
    """The Trainer's word for the precision decides; without the scale small gradients are lost, and nothing else would tell."""
    data = make_data(tmp_path)
    module = make_module(data)
    images = as_tensor(read(tmp_path)["train_images"][:6])
    batch = Batch(images, torch.arange(6) % 3, torch.arange(6))
    module.trainer = SimpleNamespace(precision=precision, datamodule=data)
    gradient = module._input_gradient(module._samples(batch), purpose, 0)
    assert gradient.half is (precision == "16-mixed")
    plain = replace(gradient, half=False)
    zero = torch.zeros_like(images)
    with frozen(module.source):
        torch.testing.assert_close(gradient(zero, 0), plain(zero, 0) * scale)


# Rounding to the bytes of the release ----------------------------------------


@pytest.mark.parametrize("radius", [1.0, 2.5, 8.0, 8.9])
def test_release_rounds_and_stays_within_the_bound(radius: float) -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (6, 3, 20, 20), generator=generator)
    grey[0], grey[1] = 0, 255
    delta = (torch.rand(grey.shape, generator=generator) * 2 - 1) * radius / 255
    made = release_images(grey / 255, delta, radius)
    assert made.dtype == torch.uint8
    exact = grey.double() + delta.double() * 255
    rounded = np.clip(np.rint(exact.numpy()), 0, 255)
    limit = math.floor(radius)
    expected = np.clip(rounded, grey.numpy() - limit, grey.numpy() + limit)
    away_from_ties = np.abs(exact.numpy() % 1 - 0.5) > 1e-3
    np.testing.assert_array_equal(made.numpy()[away_from_ties], expected[away_from_ties])
    change = made.int() - grey
    assert change.abs().max() == limit
    assert change[2:].min() == -limit  # negative noise is kept ...
    assert change[0].min() == 0  # ... except below black
    assert change[1].max() == 0


def test_release_rounds_to_the_nearest_grey_level_and_does_not_truncate() -> None:
    images = torch.full((1, 1, 1, 6), 100 / 255)
    delta = torch.tensor([0.4, 0.6, -0.4, -0.6, 7.7, -7.7]).view(1, 1, 1, 6) / 255
    assert release_images(images, delta, 8).flatten().tolist() == [100, 101, 100, 99, 108, 92]


def test_release_of_no_noise_is_every_grey_level_itself() -> None:
    images = (torch.arange(256, dtype=torch.uint8).to(torch.float32) / 255).view(1, 1, 16, 16)
    assert release_images(images, torch.zeros_like(images), 8).flatten().tolist() == list(range(256))


# Arguments ----------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates_per_visit": 0}, "updates_per_visit=0 is out of range; give 1 or more, or 'auto'"),
        ({"updates_per_visit": "often"}, "updates_per_visit='often' is out of range"),
        ({"pgd_steps": 0}, "pgd_steps=0 is out of range"),
        ({"last_pass_steps": -1}, "last_pass_steps=-1 is negative"),
        ({"loop": "persistant"}, r"loop='persistant' is not known; did you mean 'persistent'\?"),
        ({"source": "resnet20"}, r"source='resnet20' is not known; did you mean 'resnet50'\?"),
        ({"method": SALM(step_size=0.06)}, r"step_size=0.06 is below the resolution of stored noise \(radius / 127 = 0.063\)"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NoiseGeneratorModule(**({"method": SALM(), "num_classes": 3, "width": 0.125} | arguments))


def test_steps_at_the_resolution_and_small_steps_in_the_fresh_loop_are_taken() -> None:
    NoiseGeneratorModule(SALM(step_size=8 / 127), 3, width=0.125)
    NoiseGeneratorModule(SALM(step_size=0.01), 3, width=0.125, loop="fresh")


def test_settings_are_json_and_tell_runs_apart() -> None:
    def settings(**arguments: Any) -> str:
        return json.dumps(NoiseGeneratorModule(**({"method": SALM(), "num_classes": 3, "width": 0.125} | arguments)).settings())

    variants: list[dict[str, Any]] = [
        {}, {"method": SALM(percent=20)}, {"method": SALM(transform=CropFlip(2))}, {"loop": "fresh"}, {"updates_per_visit": 3},
        {"pgd_steps": 5}, {"last_pass_steps": 0}, {"seed": 1}, {"source": "vgg11"}, {"width": 0.25},
        {"as_rgb": True}, {"batch_norm": "batch"},
        {"optimizer": lambda p: SGD(p, lr=0.01)}, {"lr_scheduler": lambda o: FractionalStepLR(o, (0.5,))},
    ]  # fmt: skip
    assert len({settings(**variant) for variant in variants}) == len(variants)
