"""What Lightning offers and cannot work here: refused by name, before any work."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from salm_lightning.cli.composition import Setting
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.modules import NoiseGeneratorModule, VictimModule

_GENERATOR = NoiseGeneratorModule.__name__
_OWN_STEPS = "the noise generator takes each step of its source model by itself, one for every batch. Remove it"
_TUNED = "it trains before the training, for a model that has other arguments. Remove it, and choose the value yourself"
_ONE_PASS = "it takes several passes for each step, and a step is one here. Choose SGD, Adam, AdamW or another optimiser"
_ALL_CHUNKS = "the last pass makes every image of the release. Remove it; a quick rehearsal is --trainer.fast_dev_run true"
LIMITS = ("limit_train_batches", "limit_test_batches", "limit_predict_batches")


def _lacks_gpu(value: Any) -> bool:
    return value in ("gpu", "cuda") and not (torch.cuda.is_available() or (value == "gpu" and torch.backends.mps.is_available()))


def _named(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


REFUSED: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    ("trainer.accelerator", _lacks_gpu, "", "this machine has none that torch can use. Give --trainer.accelerator cpu"),
    ("trainer.barebones", bool, "", "it leaves out logs, checkpoints and measurements, which a run is for. Remove it"),
    *(
        (f"trainer.{name}", lambda value: value == 0 and value is not False, "", "out of range. Give 1 or more")
        for name in ("max_steps", "val_check_interval", "check_val_every_n_epoch", "max_epochs", *LIMITS)
    ),
    ("trainer.limit_predict_batches", lambda value: value is not None, _GENERATOR, _ALL_CHUNKS),
    ("trainer.accumulate_grad_batches", lambda value: value != 1, _GENERATOR, _OWN_STEPS),
    ("trainer.gradient_clip_val", lambda value: value not in (None, 0), _GENERATOR, _OWN_STEPS),
    ("trainer.callbacks", _named("GradientAccumulationScheduler", "StochasticWeightAveraging"), _GENERATOR, _OWN_STEPS),
    ("trainer.callbacks", _named("BatchSizeFinder"), _GENERATOR, _TUNED),
    ("trainer.callbacks", _named("LearningRateFinder"), "", _TUNED),
    ("trainer.callbacks", _named("BackboneFinetuning", "ModelPruning"), "", "it is for other models than these. Remove it"),
    (
        "trainer.callbacks",
        lambda value: value == "DeviceStatsMonitor" and find_spec("psutil") is None,
        "",
        "it reads the processor's figures with psutil, which is not installed. Run: pip install psutil",
    ),
    ("model.optimizer", _named("LBFGS"), "", _ONE_PASS),
    (
        "model.lr_scheduler",
        _named("ReduceLROnPlateau"),
        "",
        "it waits for a measure, and schedules step with every batch here. Choose FractionalStepLR, CosineAnnealingLR or another one",
    ),
)
"""Option, the values that are refused, the module for which they are (any, where it is empty), and why and the way out."""


def refuse(settings: Setting, runs_here: bool = True) -> None:
    """Refuse with a ConfigurationError what cannot work, of a command's settings; what this machine lacks only if it is to run them."""
    model = _plain(settings.find("model") or Setting())
    for option, is_refused, module, reason in REFUSED:
        setting = settings.find(option)
        if setting is None or module not in ("", model) or (is_refused is _lacks_gpu and not runs_here):
            continue
        for value in setting.value if isinstance(setting.value, list) else [setting.value]:
            plain = _plain(Setting.of(value))
            if is_refused(plain):
                raise ConfigurationError(f"{setting.origin}={plain}: {reason}.")


def check_monitors(trainer: Trainer, module: LightningModule) -> None:
    """Refuse with a ConfigurationError a callback that waits for a measure that the module never logs."""
    if isinstance(module, VictimModule):
        names = [*(f"{split}/{name}" for split in ("val", "test_curve") for name in module.scalars), "train/loss", "train/lr"]
    elif isinstance(module, NoiseGeneratorModule):
        own = ("source_loss", "source_acc", "pixels_touched", "delta_mean", "delta_max", "lr")
        names = ["val/clean_acc", "val/clean_balanced_acc", *(f"train/{name}" for name in own)]
    else:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if monitor := getattr(callback, "monitor", None):
            look_up(f"{type(callback).__name__}: monitor", monitor, names)


def check_share_of_test(trainer: Trainer, module: LightningModule, data: ImageDataModule) -> None:
    """Refuse a share of the test split that is less than a batch, which Lightning would do when the victim is trained.

    Raises:
        ConfigurationError: It is less.
    """
    share = trainer.limit_test_batches
    if isinstance(module, VictimModule) and isinstance(share, float):
        batches = -(-len(data.split("test")) // data.batch_size)
        if int(share * batches) == 0:
            raise ConfigurationError(
                f"--trainer.limit_test_batches={share} is less than one of {batches} batches; give a larger one."
            )


def _plain(setting: Setting) -> Any:
    """Return a value as YAML reads it; of a class the short name."""
    value = yaml.safe_load(setting.value) if isinstance(setting.value, str) else setting.value
    return value.rpartition(".")[2] if isinstance(value, str) else value
