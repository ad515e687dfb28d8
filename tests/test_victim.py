"""VictimModule against a plain PyTorch loop and ``medmnist.Evaluator``; its history; resuming within an epoch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fakes import as_tensor, training_batches, write_fake_npz
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from medmnist import Evaluator
from oracles import Recorder, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.optim import SGD

from salm_lightning.callbacks.checkpoint import RunCheckpoint, save_run
from salm_lightning.countermeasures import Cutout
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.errors import DivergedError
from salm_lightning.modules import VictimModule
from salm_lightning.noise.transforms import CropFlip

SIZE, SAMPLES, BATCH, STEPS, SEED = 16, 72, 16, 20, 5
"""An epoch has 4 batches, and 8 images are left over."""

SETS = {
    Task.MULTI_CLASS: ("pathmnist", 9, 3),
    Task.BINARY: ("breastmnist", 2, 1),
    Task.ORDINAL: ("retinamnist", 5, 3),
    Task.MULTI_LABEL: ("chestmnist", 14, 1),
}


def make_data(folder: Path, task: Task = Task.MULTI_CLASS, sizes: tuple[int, int, int] = (SAMPLES, 24, 40)) -> NpzDataModule:
    name, classes, channels = SETS[task]
    info = DatasetInfo(name, task, tuple(map(str, range(classes))), channels, SIZE)
    write_fake_npz(folder / f"{name}.npz", info, sizes)
    return NpzDataModule(folder / f"{name}.npz", task, batch_size=BATCH, seed=SEED)


def make_module(data: NpzDataModule, lr: float = 0.05, kind: type[VictimModule] = VictimModule, **arguments: Any) -> VictimModule:
    settings = {"width": 0.125, "seed": SEED, "optimizer": lambda p: SGD(p, lr=lr, momentum=0.9, weight_decay=5e-4)} | arguments
    return kind(data.num_classes, data.channels, data.image_size, data.task, **settings)


def evaluate(module: VictimModule, data: NpzDataModule, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels of a split, computed without the module's own loop."""
    with np.load(data.source_path, allow_pickle=False) as archive:
        images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    network = copy.deepcopy(module.network.network).eval()
    with torch.inference_mode():
        logits = network((as_tensor(images) - 0.5) / 0.25)
    return (logits.sigmoid() if data.task is Task.MULTI_LABEL else logits.softmax(1)).numpy(), labels


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_training_equals_a_plain_loop(tmp_path: Path, task: Task) -> None:
    data = make_data(tmp_path, task)
    module = make_module(data)
    network = copy.deepcopy(module.network.network)
    trainer = make_trainer(tmp_path, STEPS)
    trainer.fit(module, datamodule=data)
    losses = oracles.train_victim(network, training_batches(data, STEPS), SEED, lr=0.05, milestones=[8, 16])
    assert isinstance(trainer.logger, Recorder)
    np.testing.assert_allclose(trainer.logger.values("train/loss"), losses, rtol=0, atol=5e-6)
    weights = module.network.network.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}")
    np.testing.assert_allclose(trainer.logger.values("train/lr")[::5], [0.05, 0.05, 0.005, 0.005], rtol=1e-6)
    np.testing.assert_allclose(trainer.logger.values("train/lr")[-1], 0.0005, rtol=1e-6)


def test_the_loss_is_logged_at_the_wanted_interval(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    every, sometimes = make_trainer(tmp_path, 12), make_trainer(tmp_path, 12, log_every_n_steps=3)
    for trainer in (every, sometimes):
        trainer.fit(make_module(data), datamodule=data)
    assert isinstance(every.logger, Recorder)
    assert isinstance(sometimes.logger, Recorder)
    at = {step: row["train/loss"] for step, row in every.logger.rows if "train/loss" in row}
    logged = {step: row["train/loss"] for step, row in sometimes.logger.rows if "train/loss" in row}
    # Each value is the loss of the step that it stands at; the intervals reach over the ends of epochs.
    assert list(logged) == [2, 5, 8, 11]
    assert logged == {step: at[step] for step in logged}


@pytest.mark.parametrize("task", SETS)
def test_test_metrics_equal_the_medmnist_evaluator(tmp_path: Path, task: Task) -> None:
    data = make_data(tmp_path, task)
    module = make_module(data)
    trainer = make_trainer(tmp_path, 6)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    scores, labels = evaluate(module, data, "test")
    expected = Evaluator(SETS[task][0], "test", root=str(tmp_path)).evaluate(scores)
    assert module.result is not None
    assert module.result["acc"] == pytest.approx(expected.ACC, abs=1e-6)
    assert module.result["auc"] == pytest.approx(expected.AUC, abs=1e-6)
    assert isinstance(trainer.logger, Recorder)
    assert trainer.logger.values("test/acc") == [pytest.approx(expected.ACC, abs=1e-6)]
    if task is Task.MULTI_LABEL:
        recall = ((scores > 0.5) & (labels > 0)).sum(0) / (labels > 0).sum(0)
    else:
        guessed, truth = scores.argmax(1), labels[:, 0]
        recall = np.array([(guessed == c)[truth == c].mean() for c in range(data.num_classes)])
        counts = np.zeros((data.num_classes, data.num_classes), dtype=int)
        np.add.at(counts, (truth, guessed), 1)
        assert module.result["confusion"] == counts.tolist()
        assert module.result["balanced_acc"] == pytest.approx(recall.mean(), abs=1e-6)
    np.testing.assert_allclose(module.result["recall"], recall, atol=1e-6)
    logged = [trainer.logger.values(f"test_recall/{name}")[0] for name in data.info.class_names]
    np.testing.assert_allclose(logged, recall, atol=1e-6)


def test_validation_during_training_measures_both_clean_splits(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    module = make_module(data)
    trainer = make_trainer(tmp_path, 6, limit_val_batches=1.0, val_check_interval=3, check_val_every_n_epoch=None)
    trainer.fit(module, datamodule=data)
    assert isinstance(trainer.logger, Recorder)
    for split, key in (("val", "val"), ("test", "test_curve")):
        scores, labels = evaluate(module, data, split)
        values = trainer.logger.values(f"{key}/acc")
        assert len(values) == 2
        assert values[-1] == pytest.approx((scores.argmax(1) == labels[:, 0]).mean(), abs=1e-6)
        assert {f"{key}/{name}" for name in ("acc", "auc", "balanced_acc")} <= {
            name for _, row in trainer.logger.rows for name in row
        }
    assert module.history["last"]["acc"] == pytest.approx(trainer.logger.values("test_curve/acc")[-1], abs=1e-7)
    assert module.history["last"]["step"] == 6


@pytest.mark.parametrize(
    ("interval", "lengths", "expected"),
    [
        (3, {"max_steps": 7}, [3, 6, 7]),
        (3, {"max_steps": 6}, [3, 6]),
        (100, {"max_steps": 5}, [5]),
        (3, {"max_steps": -1, "max_epochs": 2}, [3, 6, 8]),
        (3, {"max_steps": 3, "accumulate_grad_batches": 2}, [1, 3]),  # after batches 3 and 6
    ],
)
def test_the_final_model_is_validated_once(tmp_path: Path, interval: int, lengths: dict[str, int], expected: list[int]) -> None:
    data = make_data(tmp_path)
    module = make_module(data)
    settings = {"max_epochs": -1, "limit_val_batches": 1.0, "val_check_interval": interval, "check_val_every_n_epoch": None}
    trainer = make_trainer(tmp_path, 0, **(settings | lengths), log_every_n_steps=2)
    steps = []
    original = module.on_validation_epoch_end
    module.on_validation_epoch_end = lambda: (original(), steps.append(trainer.global_step))  # type: ignore[assignment,method-assign]
    trainer.fit(module, datamodule=data)
    assert steps == expected
    assert trainer.val_check_batch == interval
    trainer.test(module, datamodule=data, verbose=False)
    assert module.result is not None
    last = module.history["last"]
    assert last["step"] == trainer.global_step
    assert [last[name] for name in ("acc", "auc", "balanced_acc")] == [
        module.result[name] for name in ("acc", "auc", "balanced_acc")
    ]
    assert isinstance(trainer.logger, Recorder)
    logged = [step for step, row in trainer.logger.rows if "train/loss" in row]
    assert logged == [step for step in range(trainer.global_step) if step % 2 == 1]  # and no old value at the last step


class Scripted(VictimModule):
    """A victim whose measured accuracies are given."""

    script: list[tuple[float, float]]

    def _finish(self, name: str) -> dict[str, Tensor]:
        self.meters[name].reset()
        val, test = self.script[0] if name == "val" else self.script.pop(0)
        acc = torch.tensor(val if name == "val" else test)
        return {"acc": acc, "auc": acc / 2, "balanced_acc": acc / 4}


@pytest.mark.parametrize("sanity", [0, -1])
def test_history_keeps_last_best_on_val_and_peak(tmp_path: Path, sanity: int) -> None:
    curve = [(0.25, 0.5), (0.75, 0.25), (0.5, 0.625), (0.75, 0.375), (0.5, 0.625), (0.25, 0.125)]  # (val, test)
    data = make_data(tmp_path)
    module = make_module(data, kind=Scripted)
    assert isinstance(module, Scripted)
    module.script = [(1.0, 1.0)] * (sanity != 0) + curve  # what the check before training measures does not count
    make_trainer(
        tmp_path,
        len(curve),
        num_sanity_val_steps=sanity,
        limit_val_batches=1.0,
        val_check_interval=1,
        check_val_every_n_epoch=None,
    ).fit(module, datamodule=data)

    def entry(step: int) -> dict[str, float]:
        val, test = curve[step - 1]
        return {"step": step, "val_acc": val, "acc": test, "auc": test / 2, "balanced_acc": test / 4}

    # The first of equals stands: a later one would choose by looking at the test split.
    assert module.history == {"last": entry(6), "best_on_val": entry(2), "peak": entry(3)}


def test_several_labels_are_stopped_by_auc(tmp_path: Path) -> None:
    module = VictimModule(3, task=Task.MULTI_LABEL, width=0.125)
    for acc, auc in ((0.9, math.nan), (0.9, 0.6), (0.8, 0.7), (0.95, 0.65)):
        module._remember({"acc": acc, "auc": auc}, {"acc": acc, "auc": auc})
    assert module.history["best_on_val"]["auc"] == 0.7
    assert module.history["peak"]["acc"] == 0.95


class Crash(Callback):
    """Stop a run as a crash would, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("crash")


@pytest.mark.parametrize(("saved", "arch"), [(6, "resnet18"), (5, "vgg11"), (8, "resnet18"), (6, "dropout")])
def test_resuming_within_an_epoch_equals_an_uninterrupted_run(tmp_path: Path, saved: int, arch: str) -> None:
    data = make_data(tmp_path)
    validate = {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}

    def run(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None) -> tuple[VictimModule, Trainer]:
        module = make_module(data, arch="resnet18" if arch == "dropout" else arch)
        if arch == "dropout":  # as in torchvision's VGG for 224 px
            module.network.network = torch.nn.Sequential(*module.network.network.children())
            module.network.network[-1] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), module.network.network[-1])
        trainer = make_trainer(folder, 14, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **validate)
        own = NpzDataModule(data.source_path, batch_size=BATCH, seed=SEED)
        trainer.fit(module, datamodule=own, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return module, trainer

    whole, first = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "resumed", RunCheckpoint(every_n_steps=saved), Crash(saved + 2))
    torch.manual_seed(99)  # the global generators have no part in it
    resumed, second = run(tmp_path / "resumed", ckpt_path=tmp_path / "resumed" / "checkpoints" / f"step={saved}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for before, after in zip(first.optimizers[0].state.values(), second.optimizers[0].state.values(), strict=True):
        assert torch.equal(before["momentum_buffer"], after["momentum_buffer"])
    assert whole.history == resumed.history
    assert whole.history["last"]["step"] == 14
    assert isinstance(first.logger, Recorder)
    assert isinstance(second.logger, Recorder)
    losses = [trainer.logger.values("train/loss") for trainer in (first, second)]
    assert losses[0][saved:] == losses[1]


def test_layers_with_dropout_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path)
    looks = []
    for steps in (2, 9):
        module, calls = make_module(data), 0
        original = type(module.network).modules

        def counted(network: torch.nn.Module, original: Any = original) -> Any:
            nonlocal calls
            calls += 1
            return original(network)

        with monkeypatch.context() as patch:
            patch.setattr(type(module.network), "modules", counted)
            make_trainer(tmp_path, steps).fit(module, datamodule=data)
        looks.append(calls)
    assert looks[0] == looks[1] > 0, looks


def test_predictions_are_probabilities_with_labels_and_indices(tmp_path: Path) -> None:
    for task in (Task.MULTI_CLASS, Task.MULTI_LABEL):
        data = make_data(tmp_path, task)
        module = make_module(data)
        made = make_trainer(tmp_path, 1).predict(module, datamodule=data)
        assert made is not None
        joined = {key: torch.cat([part[key] for part in made])[:SAMPLES] for key in ("probabilities", "labels", "indices")}
        scores, labels = evaluate(module, data, "train")
        assert joined["indices"].tolist() == list(range(SAMPLES))
        np.testing.assert_allclose(joined["probabilities"], scores, atol=1e-5)
        np.testing.assert_array_equal(joined["labels"].numpy().reshape(SAMPLES, -1), labels)


def test_divergence_is_an_error_and_not_a_silent_run(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    with pytest.raises(DivergedError, match="training has diverged"):
        make_trainer(tmp_path, 10).fit(make_module(data, lr=1e20), datamodule=data)


def test_settings_tell_victims_apart() -> None:
    made = [
        str(VictimModule(3, **arguments).settings())
        for arguments in (
            {"width": 0.125},
            {"width": 0.25},
            {"width": 0.125, "transform": CropFlip(2)},
            {"width": 0.125, "seed": 1},
            {"width": 0.125, "as_rgb": True},
        )
    ]
    assert len(set(made)) == 5


def test_tensorboard_has_the_settings_beside_the_last_values_and_no_picture_twice(tmp_path: Path) -> None:
    data, module = make_data(tmp_path), make_module(make_data(tmp_path), countermeasure=Cutout(0.25))
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    trainer = make_trainer(tmp_path, 4, logger=logger, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    save_run(trainer)
    saved = next((tmp_path / "run/checkpoints").glob("*.ckpt"))
    again = TensorBoardLogger(tmp_path, name="", version="run")
    make_trainer(tmp_path, 4, logger=again).test(make_module(data), data, ckpt_path=saved, weights_only=True, verbose=False)
    again.finalize("success")

    log = EventAccumulator(str(tmp_path / "run")).Reload()
    (picture,) = log.Images("test/confusion")
    assert picture.step == 4
    written = log.PluginTagToContent("hparams")
    settings = HParamsPluginData.FromString(written["_hparams_/session_start_info"]).session_start_info.hparams
    assert settings["arch"].string_value == "resnet18"
    assert settings["countermeasure.share"].number_value == 0.25
    assert settings["optimizer.lr"].number_value == 0.05
    metrics = HParamsPluginData.FromString(written["_hparams_/experiment"]).experiment.metric_infos
    assert {"val/acc", "test/acc", "test/balanced_acc"} <= {info.name.tag for info in metrics} <= set(log.Tags()["scalars"])
