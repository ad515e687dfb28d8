"""What the noise looks like, in TensorBoard, while it is being made."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchvision.utils import make_grid

from salm_lightning.data.base import Batch
from salm_lightning.errors import require

_SMALLEST_SIDE = 112
_PER_ROW = 4


class NoisePictures(Callback):
    """Writes grids ``pictures/{clean,noise,mask,protected}`` of the first images of a batch to TensorBoard.

    The noise is shown as ``0.5 + delta / (2 radius)``: grey is untouched, black and white are the bound. Small images are
    enlarged by whole factors without smoothing. A module that keeps no pictures, and any other logger, is left alone.

    One that does has ``pictures_wanted``, set before each training step; when True the step fills ``last_pictures``: ``images``
    ``[B, C, H, W]`` in [0, 1], ``delta`` ``[B, C, H, W]`` in [-radius, radius], ``mask`` ``[B, 1 or C, H, W]`` (0 and 1, or a saliency of 0
    and above), all float tensors, and ``radius``, a float in the unit of the images. They are emptied once written.

    Args:
        every_n_steps: Steps between two grids; the last step of a fit gets one as well.
        max_images: Images in a grid.

    Raises:
        ConfigurationError: One of them is less than 1.
    """

    def __init__(self, every_n_steps: int = 500, max_images: int = 8) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_images", max_images)):
            require(f"NoisePictures: {name}", value, value >= 1, "give 1 or more, or remove the callback for no pictures")
        self.every_n_steps = every_n_steps
        self.max_images = max_images

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Tell the module whether this step's tensors are wanted."""
        if hasattr(pl_module, "pictures_wanted"):
            step = trainer.global_step + 1
            due = step % self.every_n_steps == 0 or step == trainer.max_steps
            pl_module.pictures_wanted = due and _logger(trainer) is not None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Write the grids of a step whose tensors were wanted."""
        logger = _logger(trainer)
        if logger is None or not getattr(pl_module, "pictures_wanted", False):
            return
        pl_module.pictures_wanted = False
        for name, images in _pictures(pl_module.last_pictures, self.max_images).items():
            logger.experiment.add_image(f"pictures/{name}", image_grid(images), trainer.global_step)
        pl_module.last_pictures = {}  # a batch at 224 pixels takes hundreds of megabytes


def image_grid(images: Tensor) -> Tensor:
    """Lay images out in rows of four, each enlarged by a whole factor to at least 112 pixels a side, without smoothing.

    Args:
        images: Float ``[B, 1 or 3, H, W]``; values outside [0, 1] are clipped.

    Returns:
        uint8 ``[3, height, width]`` on the CPU, with white lines between the images.
    """
    factor = max(1, -(-_SMALLEST_SIDE // images.shape[-1]))
    large = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    grid = make_grid(large.float().clamp(0, 1), nrow=_PER_ROW, padding=2, pad_value=1.0)
    return cast(Tensor, (grid * 255).round().to(torch.uint8).cpu())


def _logger(trainer: Trainer) -> TensorBoardLogger | None:
    """Return the TensorBoard logger if this is the rank that writes."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _pictures(tensors: dict[str, Tensor | float], count: int) -> dict[str, Tensor]:
    images, delta, mask = (torch.as_tensor(tensors[name])[:count].detach().float() for name in ("images", "delta", "mask"))
    radius = float(tensors["radius"])
    peak = mask.amax(dim=(1, 2, 3), keepdim=True)
    return {
        "clean": images,
        "noise": 0.5 + delta / (2 * radius) if radius > 0 else torch.full_like(delta, 0.5),
        "mask": mask / torch.where(peak > 0, peak, 1.0),
        "protected": (images + delta).clamp(0, 1),
    }
