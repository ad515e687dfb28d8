"""How much work a run is, before it has run: steps of which network on which images, and what stays on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salm_lightning.data import MEDMNIST
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.combined import MAX_PER_CLASS
from salm_lightning.data.datamodule import default_batch_size
from salm_lightning.noise import methods
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.runs.trainers import check_interval
from salm_lightning.runs.training import Training

_PGD_STEPS = 10
"""K_a, in the loop and in the last pass (Appendix B.2)."""


@dataclass(frozen=True)
class Network:
    """What the time of a step depends on; the number of classes hardly matters.

    Attributes:
        arch: Architecture.
        width: Factor on its width.
        channels: 1 or 3.
        size: Height and width of the images.
        batch_size: Images per step.
    """

    arch: str
    width: float
    channels: int
    size: int
    batch_size: int


@dataclass(frozen=True)
class Work:
    """Steps of a network, each on a batch.

    Attributes:
        network: The network.
        training: Optimiser steps.
        gradient: PGD steps.
        reading: Forward passes of what is only measured.
        release: Bytes of the release that is written.
    """

    network: Network
    training: int = 0
    gradient: int = 0
    reading: int = 0
    release: int = 0


def generator_work(settings: Mapping[str, Any], dataset: Dataset) -> Work:
    """Return the work of a noise generator from its options of ``fit``, all of them given."""
    model, steps = settings["model"]["init_args"], settings["trainer"]["max_steps"]
    method = _method(model["method"])
    sizes, batch_size = _sizes(dataset), _batch_size(settings, dataset)
    network = _network(model["source"], model["width"], dataset, batch_size)
    last = method.last_pass_steps if model["last_pass_steps"] is None else model["last_pass_steps"]
    trains, perturbs = method.trains_source_on is not None, method.trains_source_on == "protected"
    return Work(
        network,
        training=steps * trains,
        gradient=steps * model["pgd_steps"] * perturbs + last * -(-sizes["train"] // batch_size) * trains,
        reading=_validations(settings) * -(-sizes["val"] // batch_size) * trains,
        release=sum(sizes.values()) * network.channels * dataset.size**2,
    )


def victim_work(settings: Mapping[str, Any], dataset: Dataset) -> Work:
    """Return the work of a victim from its options of ``fit``, all of them given."""
    model, sizes = settings["model"]["init_args"], _sizes(dataset)
    batch_size = _batch_size(settings, dataset)
    network = _network(model["arch"], model["width"], dataset, batch_size)
    read = _validations(settings) * (sizes["val"] + sizes["test"]) + sizes["test"]
    return Work(network, training=settings["trainer"]["max_steps"], reading=-(-read // batch_size))


def classwise_works(
    dataset: Dataset, support: str | None, num_support: int, classes: int, training: Training
) -> tuple[Work, ...]:
    """Return the work of protecting a dataset class by class, and of the two victims.

    Args:
        dataset: The dataset.
        support: MedMNIST name of the support classes' dataset; ``None`` is an image folder.
        num_support: Number of support classes.
        classes: Number of classes to protect.
        training: How generators and victims are trained.
    """
    sizes, info, batch_size = _sizes(dataset), MEDMNIST[dataset.name], default_batch_size(dataset.size)
    beside = MAX_PER_CLASS if support is None else INFO[support]["n_samples"]["train"] // len(MEDMNIST[support].class_names)
    images = sizes["train"] // info.num_classes + num_support * beside
    part = Work(
        _network(training.source, training.width, dataset, batch_size),
        training=training.steps,
        gradient=_PGD_STEPS * (training.steps + -(-images // batch_size)),
        release=images * info.channels * dataset.size**2,
    )
    looks = -(-training.victim_steps // check_interval(training.victim_steps))
    victim = Work(
        _network(training.victim, training.width, dataset, batch_size),
        training=training.victim_steps,
        reading=looks * -(-(sizes["val"] + sizes["test"]) // batch_size),
        release=sum(sizes.values()) * info.channels * dataset.size**2 // 2,  # one release, two victims
    )
    return (part,) * classes + (victim,) * 2


def _method(option: Any) -> methods.Method:
    """Return the method that an option of ``fit`` names."""
    build: type[methods.Method] = getattr(methods, option["class_path"].rpartition(".")[2])
    return build(**option["init_args"])


def _batch_size(settings: Mapping[str, Any], dataset: Dataset) -> int:
    given: int | None = settings["data"]["init_args"]["batch_size"]
    return default_batch_size(dataset.size) if given is None else given


def _network(arch: str, width: float, dataset: Dataset, batch_size: int) -> Network:
    return Network(arch, width, MEDMNIST[dataset.name].channels, dataset.size, batch_size)


def _sizes(dataset: Dataset) -> Mapping[str, int]:
    sizes: Mapping[str, int] = INFO[dataset.name]["n_samples"]
    return sizes


def _validations(settings: Mapping[str, Any]) -> int:
    """Return how often the clean images are measured while training."""
    steps, interval = settings["trainer"]["max_steps"], settings["trainer"]["val_check_interval"]
    return int(-(-steps // interval))
