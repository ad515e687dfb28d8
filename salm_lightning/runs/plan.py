"""What a result costs, said before it is begun."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from salm_lightning.console import duration, say
from salm_lightning.data import SPLITS, ImageDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.models import Architecture
from salm_lightning.modules.schedule import automatic_updates
from salm_lightning.noise.methods import Method
from salm_lightning.runs.effort import Training
from salm_lightning.runs.estimate import Estimator, Files, Network, Work
from salm_lightning.runs.trainers import check_interval

_DAY = 86400.0
_PGD_STEPS = 10
"""K_a of the fresh loop."""


def noise_work(
    network: Network,
    sizes: Mapping[str, int],
    steps: int,
    looks: int,
    method: Method,
    loop: str,
    updates: int | Literal["auto"],
    last_pass_steps: int | None = None,
) -> Work:
    """Return the work of a noise generator and its last pass, the PGD steps of which are by default the method's.

    ``sizes`` are the images by split, ``looks`` how often the validation images are read in ``steps`` of training, and ``updates`` the PGD
    steps per visit of an image, or in the fresh loop per training step. A method without a training takes no steps.
    """
    if method.trains_source_on is None:
        steps = looks = 0
    if method.trains_source_on != "protected":
        updates = 0
    elif updates == "auto":
        updates = automatic_updates(sizes["train"], max(1, steps), network.batch_size)
    last = method.last_pass_steps if last_pass_steps is None else last_pass_steps
    train, val = (math.ceil(sizes[name] / network.batch_size) for name in ("train", "val"))
    snapshot = updates and loop == "persistent" and method.noise_per == "sample"
    return Work(
        network,
        training=steps,
        gradient=(steps * updates + last * train) * method.eot_samples,
        reading=looks * val,
        bytes=(sum(sizes.values()) + (sizes["train"] if snapshot else 0)) * network.channels * network.size**2,
        keeps_weights=bool(steps),
    )


def proof_work(network: Network, sizes: Mapping[str, int], steps: int, looks: int) -> Work:
    """Return the work of a victim and its test; the arguments are those of :func:`noise_work`."""
    val, test = (math.ceil(sizes[name] / network.batch_size) for name in ("val", "test"))
    return Work(network, training=steps, reading=looks * (val + test) + test)


def generator_work(training: Training, method: Method, images: ImageDataModule, sizes: Mapping[str, int] | None = None) -> Work:
    """Return the work of a noise generator on so many images a split; on all of them by default, which then have to be loaded."""
    updates = _PGD_STEPS if training.loop == "fresh" else training.lengths.updates_per_visit
    known = _known(training.lengths.source_model, training.lengths.steps, training, images, sizes)
    return noise_work(*known, method, training.loop, updates)


def only_last_pass(work: Work, gradients: int, images: ImageDataModule) -> Work:
    """Return what is left of the work of a noise generator that is trained already, with so many gradients an image."""
    chunks = math.ceil(len(images.split("train")) / work.network.batch_size)
    return work._replace(training=0, gradient=gradients * chunks, reading=0, keeps_weights=False)


def victim_work(training: Training, images: ImageDataModule, sizes: Mapping[str, int] | None = None) -> Work:
    """Return the work of a victim; the arguments are those of :func:`generator_work`."""
    return proof_work(*_known(training.victim, training.lengths.victim_steps, training, images, sizes))


def _known(
    arch: str | dict[str, Any], steps: int, training: Training, images: ImageDataModule, sizes: Mapping[str, int] | None
) -> tuple[Network, Mapping[str, int], int, int]:
    width = training.lengths.width
    network = Network(Architecture.parse(arch), width, images.channels, images.image_size, images.batch_size)
    sizes = sizes or {name: len(images.split(name)) for name in SPLITS}
    return network, sizes, steps, math.ceil(steps / check_interval(steps))


def announce(training: Training, proof: bool, works: Sequence[Work], yes: bool, further: Files = Files(0, 0)) -> None:  # noqa: B008 (a tuple)
    """Say how long what is left takes here and what it leaves; ask whether to begin if that is long, a person is watching, and not ``yes``.

    ``works`` are those of networks; ``further`` are files that are written beside them.

    Raises:
        ConfigurationError: The answer is no.
    """
    estimator = Estimator(training.accelerator, training.precision)
    seconds, size = estimator.seconds(works) + further.seconds, estimator.bytes(works) + further.bytes
    takes = f"{duration(seconds)} here, estimated from a few steps, and {size / 1e6:.0f} MB of disk"
    say(f"{training.describe(proof)}.\nThis takes about {takes}.")
    watched = sys.stdin.isatty() and sys.stdout.isatty()
    if seconds > _DAY and watched and not yes and input("Begin? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigurationError("nothing was begun; --effort quick or normal takes less time, and --yes begins without asking.")
