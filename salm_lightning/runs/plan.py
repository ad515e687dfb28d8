"""What a result costs, said before it is begun."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

from salm_lightning.console import say
from salm_lightning.data import SPLITS, ImageDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.models import Architecture
from salm_lightning.modules.schedule import automatic_updates
from salm_lightning.noise.methods import Method
from salm_lightning.runs.effort import Training
from salm_lightning.runs.estimate import Estimator, Network, Work
from salm_lightning.runs.trainers import check_interval

_DAY = 86400.0
_PGD_STEPS = 10
"""K_a of the fresh loop."""


def generator_work(training: Training, method: Method, images: ImageDataModule, sizes: Mapping[str, int] | None = None) -> Work:
    """Return the work of a noise generator and its last pass.

    Args:
        training: How it is trained.
        method: How the noise is made.
        images: The images.
        sizes: How many there are in each split, if not those of ``images``, which then need not be loaded.
    """
    sizes = sizes or _sizes_of(images)
    width, steps, _ = training.lengths
    if method.trains_source_on is None:
        steps = 0
    updates: int | Literal["auto"] = _PGD_STEPS if training.loop == "fresh" else training.updates_per_visit
    if updates == "auto":
        updates = automatic_updates(sizes["train"], max(1, steps), images.batch_size)
    if method.trains_source_on != "protected":
        updates = 0
    train, val = (math.ceil(sizes[name] / images.batch_size) for name in ("train", "val"))
    snapshot = updates and training.loop == "persistent" and method.noise_per == "sample"
    stored = sum(sizes.values()) + (sizes["train"] if snapshot else 0)
    return Work(
        Network(Architecture.parse(training.source_model), width, images.channels, images.image_size, images.batch_size),
        training=steps,
        gradient=(steps * updates + method.last_pass_steps * train) * method.eot_samples,
        reading=_looks(steps) * val,
        bytes=stored * images.channels * images.image_size**2,
        keeps_weights=bool(steps),
    )


def victim_work(training: Training, images: ImageDataModule, sizes: Mapping[str, int] | None = None) -> Work:
    """Return the work of a victim; the arguments are those of :func:`generator_work`."""
    sizes = sizes or _sizes_of(images)
    width, _, steps = training.lengths
    val, test = (math.ceil(sizes[name] / images.batch_size) for name in ("val", "test"))
    network = Network(Architecture.parse(training.victim), width, images.channels, images.image_size, images.batch_size)
    return Work(network, training=steps, reading=_looks(steps) * (val + test) + test)


def _sizes_of(images: ImageDataModule) -> dict[str, int]:
    return {name: len(images.split(name)) for name in SPLITS}


def _looks(steps: int) -> int:
    """Return how often the clean images are measured in a training."""
    return math.ceil(steps / check_interval(steps))


def announce(training: Training, proof: bool, works: Sequence[Work], yes: bool) -> None:
    """Say how long the works take here and what they leave, and ask whether to begin if that is long and a person is watching.

    Args:
        training: How models are trained.
        proof: Whether victims are.
        works: What is left to do.
        yes: Never ask.

    Raises:
        ConfigurationError: The answer is no.
    """
    estimator = Estimator(training.accelerator, training.precision)
    seconds, size = estimator.seconds(works), estimator.bytes(works)
    takes = f"{timedelta(seconds=round(seconds))} here, estimated from a few steps, and {size / 1e6:.0f} MB of disk"
    say(f"{training.describe(proof)}.\nThis takes about {takes}.")
    watched = sys.stdin.isatty() and sys.stdout.isatty()
    if seconds > _DAY and watched and not yes and input("Begin? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigurationError("nothing was begun; --effort quick or normal takes less time, and --yes begins without asking.")
