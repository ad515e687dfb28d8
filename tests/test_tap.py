"""TAP: its targets, steps and restarts against a plain loop, in training, in the last pass and over the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fakes import as_tensor, training_batches, write_fake_npz
from oracles import make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from salm_lightning.data import MEDMNIST, DatasetInfo, NpzDataModule, Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import TAP
from salm_lightning.noise.pgd import Objective, Samples, frozen
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release import Manifest
from salm_lightning.runs.generation import generate

CLASSES, SEED = 4, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network(channels: int = 3, gain: float = 1.0) -> nn.Sequential:
    """Return a fixed smooth classifier of images of 12 x 12."""
    layers = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 144, CLASSES))
    for seed, parameter in enumerate(layers.parameters()):
        parameter.data = gain * 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return layers


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample."""
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none")


def plain_tap(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    steps: int,
    step_size: float,
    targeted: bool,
    restarts: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """Return the noise and the final loss of every restart, ``[restarts, B, ...]``, written from the paper."""
    images, labels, indices = batch
    aim = labels
    if targeted:
        aim = 1 - labels if labels.is_floating_point() else torch.tensor([(y + 1) % CLASSES for y in labels.tolist()])
    ends, losses = [], []
    for restart in range(restarts):
        counters = (restart,) if restart else ()
        delta = oracles.start_noise(images, indices, 8, SEED, *counters)
        for step in range(steps):
            leaf = delta.clone().requires_grad_(True)
            view = oracles.crop_flip(images + leaf, indices, padding, SEED, "last", restart * steps + step, 0)
            (gradient,) = torch.autograd.grad(loss_of(model(view).float(), aim).sum(), leaf)
            move = -step_size if targeted else step_size
            delta = (delta + move / 255 * gradient.sign()).clamp(-8 / 255, 8 / 255)
            delta = torch.minimum(torch.maximum(delta, -images), 1 - images)
        view = oracles.crop_flip(images + delta, indices, padding, SEED, "last", restarts * steps, 0)
        with torch.no_grad():
            losses.append(loss_of(model(view).float(), aim))
        ends.append(delta)
    return torch.stack(ends), torch.stack(losses)


def objective(model: nn.Module, images: Tensor, labels: Tensor, padding: int = 2, **setting: Any) -> Objective:
    task = Task.MULTI_LABEL if labels.is_floating_point() else Task.MULTI_CLASS
    indices = torch.arange(20, 20 + len(images))
    return Objective(
        model, Samples(images, labels, indices, task, CLASSES, SEED), CropFlip(padding, padding > 0), "last", **setting
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("restarts", [1, 3])
def test_pgd_equals_a_plain_loop(multi_label: bool, targeted: bool, restarts: int) -> None:
    # In double precision: the sign of a gradient that is zero but for rounding depends on the processor.
    model, images = network().eval().double(), draw(16, 3, 12, 12).double()
    labels = (draw(16, CLASSES, seed=2) > 0.5).float() if multi_label else torch.arange(16) % CLASSES
    goal = objective(model, images, labels)
    method = TAP(step_size=1.6, targeted=targeted, restarts=restarts)
    with frozen(model):
        made = method.improve(images, method.start(images, goal.samples.indices, SEED), goal, 8).delta
    ends, losses = plain_tap(model, (images, labels, goal.samples.indices), 8, 1.6, targeted, restarts, 2)
    chosen = (losses if targeted else -losses).argmin(0)
    assert restarts == 1 or len(chosen.unique()) > 1
    torch.testing.assert_close(made, ends[chosen, torch.arange(16)], rtol=0, atol=1e-6)
    assert goal.samples.labels is labels  # what the objective is asked for later is not the targets


def test_targets_are_the_next_class_and_the_opposite_labels() -> None:
    model, images, labels = network().eval(), draw(8, 3, 12, 12), torch.arange(8) % CLASSES
    goal = objective(model, images, labels, padding=0)
    made = TAP(step_size=2).improve(images, torch.zeros_like(images), goal, 10).delta
    logits = [model(images + noise).log_softmax(1) for noise in (torch.zeros_like(made), made)]
    gain = (logits[1] - logits[0]).detach()
    rows = torch.arange(8)
    assert (gain[rows, (labels + 1) % CLASSES] > 0.05).all()
    several = (draw(8, CLASSES, seed=2) > 0.5).float()
    made = TAP(step_size=2).improve(images, torch.zeros_like(images), objective(model, images, several, padding=0), 10).delta
    moved = (model(images + made) - model(images)).detach()
    assert ((moved > 0) == (several == 0)).float().mean() > 0.85


def test_untargeted_noise_raises_the_loss_of_the_own_class() -> None:
    model, images, labels = network().eval(), draw(8, 3, 12, 12), torch.arange(8) % CLASSES
    goal = objective(model, images, labels, padding=0)
    made = TAP(step_size=2, targeted=False).improve(images, torch.zeros_like(images), goal, 10).delta
    assert (loss_of(model(images + made), labels) > loss_of(model(images), labels)).all()


def test_a_normal_start_is_that_of_its_authors() -> None:
    """The radius is its standard deviation, and what lies beyond is clipped: the share 2 (1 - Phi(1)) of the values."""
    images, indices = torch.full((40, 3, 12, 12), 0.5), torch.arange(40)
    made = TAP(start="normal").start(images, indices, SEED, 1)
    assert float(made.abs().max()) == pytest.approx(8 / 255)
    assert (made.abs() * 255 > 7.999).float().mean().item() == pytest.approx(0.3173, abs=0.01)
    inside = made[made.abs() * 255 < 7.999] * 255 / 8
    assert inside.mean().item() == pytest.approx(0, abs=0.02)
    assert inside.square().mean().item() == pytest.approx(
        0.2911, abs=0.01
    )  # the variance of a normal number within one deviation
    assert torch.equal(made[7:9], TAP(start="normal").start(images[7:9], indices[7:9], SEED, 1))
    assert not torch.equal(made, TAP(start="normal").start(images, indices, SEED, 2))
    assert torch.equal(TAP().start(images, indices, SEED), oracles.start_noise(images, indices, 8, SEED))


def test_further_restarts_never_end_worse() -> None:
    model, images, labels = network().eval(), draw(32, 3, 12, 12), torch.arange(32) % CLASSES
    goal, targets = objective(model, images, labels, padding=0), (torch.arange(32) + 1) % CLASSES
    ends = []
    for restarts in (1, 4):
        method = TAP(step_size=1, restarts=restarts)
        ends.append(
            loss_of(model(images + method.improve(images, method.start(images, goal.samples.indices, 0), goal, 2).delta), targets)
        )
    assert (ends[1] <= ends[0]).all()
    assert (ends[1] < ends[0]).any()


def test_losses_are_those_of_each_sample_averaged_over_the_transforms() -> None:
    model, images, labels = network().eval(), draw(6, 3, 12, 12), torch.arange(6) % CLASSES
    goal = objective(model, images, labels)
    goal.eot_samples, delta = 3, draw(6, 3, 12, 12, seed=1) / 30
    views = [oracles.crop_flip(images + delta, goal.samples.indices, 2, SEED, "last", 7, number) for number in range(3)]
    expected = torch.stack([loss_of(model(view), labels) for view in views]).mean(0)
    torch.testing.assert_close(goal.losses(delta, 7), expected.detach(), rtol=1e-5, atol=1e-6)
    assert not goal.losses(delta, 7).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sure_source_model_still_moves_every_image(dtype: torch.dtype) -> None:
    """Wrong targets have a huge loss; a gradient of NaN would have the sign 0 and leave the start as it is."""
    model, images = network(gain=30.0).eval(), draw(8, 3, 12, 12)
    labels = (model(images).argmin(1) - 1) % CLASSES  # the next class is the least likely one
    goal = objective(model, images, labels, padding=0, half=dtype is torch.float16)
    assert goal.towards((labels + 1) % CLASSES).losses(torch.zeros_like(images), 0).min() > 50
    zero = torch.zeros_like(images)
    exact = TAP().improve(images, zero, objective(model, images, labels, padding=0), 20).delta
    with frozen(model), torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
        made = TAP().improve(images, zero, goal, 20).delta
    assert (exact.abs() > 10 * 0.064 / 255).float().mean() > 0.8
    assert (made.sign() == exact.sign()).float().mean() > 0.9
    assert (made.abs() > 10 * 0.064 / 255).float().mean() > 0.8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"step_size": 0}, r"step_size=0 is out of range"),
        ({"step_size": 9}, r"step_size=9 is out of range"),
        ({"start": "zero"}, r"start='zero'"),
        ({"restarts": 0}, r"restarts=0 is out of range; give 1 or more"),
        ({"radius": 0}, r"radius=0 is out of range"),
    ],
)
def test_bad_arguments_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TAP(**setting)


def test_the_number_of_last_pass_steps_is_the_methods_own() -> None:
    assert NoiseGeneratorModule(TAP(), 3, width=0.125).last_pass_steps == 250
    assert NoiseGeneratorModule(TAP(), 3, width=0.125, last_pass_steps=7).settings()["last_pass_steps"] == 7
    with pytest.raises(ConfigurationError, match=r"last_pass_steps=0 .* tap makes none before the last pass.* 250"):
        NoiseGeneratorModule(TAP(), 3, width=0.125, last_pass_steps=0)


def test_the_source_model_is_trained_on_clean_images_and_the_last_pass_equals_a_plain_loop(tmp_path: Path) -> None:
    info = DatasetInfo("small", Task.MULTI_CLASS, tuple("abcd"), 3, 16)
    arrays = write_fake_npz(tmp_path / "small.npz", info, (48, 12, 9))
    data = NpzDataModule(tmp_path / "small.npz", batch_size=16, chunk_size=24, seed=SEED)
    sgd = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    module = NoiseGeneratorModule(
        TAP(step_size=0.5), CLASSES, 3, 16, width=0.125, seed=SEED, optimizer=lambda p: SGD(p, **sgd), last_pass_steps=3
    )
    plain = copy.deepcopy(module.source.network)
    trainer = make_trainer(tmp_path, 8)
    trainer.fit(module, datamodule=data)
    losses = oracles.train_victim(plain, training_batches(data, 8), SEED, 0.02, [3, 6], purpose="source")
    np.testing.assert_allclose(trainer.logger.values("train/source_loss"), losses, rtol=0, atol=5e-6)
    assert trainer.logger.values("train/delta_max") == [0.0] * 8
    assert module.save_noise() is None

    release = generate(trainer, module, data)
    images, labels = as_tensor(arrays["train_images"]), torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    plain.eval()
    made = [
        plain_tap(
            lambda views: plain((views - 0.5) / 0.25), (images[part], labels[part], torch.arange(48)[part]), 3, 0.5, True, 1, 4
        )[0][0]
        for part in (slice(0, 24), slice(24, 48))
    ]
    expected = ((images + torch.cat(made)).clamp(0, 1) * 255).round()
    with np.load(release / "small.npz") as archive:
        released = (as_tensor(archive["train_images"]) * 255).round()
    assert (released == expected).float().mean() > 0.999


def test_over_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(TAP, "last_pass_steps", property(lambda self: 2))  # 250 take a while
    short = ["--model.width", "0.125", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    for name in ("breastmnist", "chestmnist"):
        write_fake_npz(Path(f"{name}.npz"), MEDMNIST[name], (20, 8, 10))
        fit = ["fit", "--config", "method/tap.yaml", "--data", "NpzDataModule", "--data.path", f"{name}.npz", "--run", name]
        assert main([*fit, "--data.task", MEDMNIST[name].task, *short]) == 0
        release = Path("lightning_logs") / name / "protected"
        assert main(["verify", str(release), "--source", f"{name}.npz"]) == 0
        manifest = Manifest.read(release)
        assert manifest.settings["method"]["name"] == "tap"
        assert manifest.settings["last_pass_steps"] == 2
        assert 7 <= manifest.measured.linf <= 8
        assert not (release.parent / "checkpoints" / "noise").exists()
    protect = ["protect", "breastmnist.npz", "--method", "TAP", "--steps", "2", "--width", "0.125", "--accelerator", "cpu"]
    assert main([*protect, "--proof", "false", "--out", "out"]) == 0
    assert Manifest.read("out/protected").settings["method"]["step_size"] == 0.064
