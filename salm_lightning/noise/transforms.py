"""The transform T of the paper: a random crop and a horizontal flip, drawn for each sample, differentiable, in one gather.

Generator and victims share it. A crop of a zero-padded image and a flip only move pixels, so the gradient is the opposite move:
backward is the same gather with mirrored offsets, without scatter or atomic additions, hence deterministic on every device. Noise that is
to last through more than that meets more before the crop; it is off by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from salm_lightning.errors import ConfigurationError, require
from salm_lightning.noise.draws import fold, uniform
from salm_lightning.tensors import Tensor


class CropFlip:
    """Random crop with zero padding, then a random horizontal flip, per sample.

    With the other keys, noise is made to last through what users may do to images: a share of the samples, drawn anew each time, is
    made grey, coded as JPEG or scaled before it is cropped, one after the other.

    Args:
        padding: Pixels of black border on each side; ``None`` takes 4 at 28 px and the same share (size / 8 up to 64 px, 28 at 224 px)
            at larger sizes, once the size is known.
        flip: Whether to mirror half of the samples.
        grey: Probability that an image is made grey, 0 to 1. With 1 and noise that starts from zero the noise is grey, too.
        jpeg: Probability that it is coded as JPEG, 0 to 1.
        quality: Quality of that, 1 (worst) to 100.
        resize: Probability that it is scaled down to a half or three quarters by one of three kernels, and up again, 0 to 1.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        padding: int | None = None,
        flip: bool = True,
        grey: float = 0.0,
        jpeg: float = 0.0,
        quality: int = 10,
        resize: float = 0.0,
    ) -> None:
        if padding is not None and padding < 0:
            raise ConfigurationError(f"padding={padding} is negative; give 0 or more pixels, or leave it out for the default.")
        for name, value in (("grey", grey), ("jpeg", jpeg), ("resize", resize)):
            require(name, value, 0 <= value <= 1, "it is a probability: give 0 (never) to 1 (always)")
        require("quality", quality, 1 <= quality <= 100, "give 1 (worst) to 100, such as 10")
        self.padding = padding
        self.flip = flip
        self.grey, self.jpeg, self.quality, self.resize = grey, jpeg, quality, resize

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON values, those of a subclass among them, without what is off."""
        off = [name for name in ("grey", "jpeg", "resize") if not getattr(self, name)]
        return {name: value for name, value in vars(self).items() if name not in (*off, *(["quality"] if "jpeg" in off else []))}

    def __call__(self, images: Tensor, indices: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
        """Return the transformed batch, same shape and dtype; differentiable in ``images``.

        Args:
            images: ``[B, C, H, W]``.
            indices: Global sample indices ``[B]``; with the seed, the purpose and the counters they settle the draw.
            seed: The run's seed.
            purpose: Name of the stream of draws, such as ``"eot"``.
            *counters: Step, pass and draw numbers.
        """
        from salm_lightning.noise.windows import CutWindows

        padding = default_padding(images.shape[-1]) if self.padding is None else self.padding
        key = fold(seed, purpose, *counters)
        draws = uniform(key, indices, 3)
        offsets = (draws[:, :2] * (2 * padding + 1)).long()
        flips = draws[:, 2] >= (0.5 if self.flip else 1)
        handled = self._handled(images, indices, key) if self.grey or self.jpeg or self.resize else images
        transformed: Tensor = CutWindows.apply(handled, offsets[:, 0], offsets[:, 1], flips, padding)
        return transformed

    def _handled(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Return images of which some are grey, some coded, and some scaled."""
        from salm_lightning.noise import handling

        draws = uniform(fold(key, "handling"), indices, 4)
        images = _where(images, draws[:, 0] < self.grey, handling.grey)
        images = _where(images, draws[:, 1] < self.jpeg, lambda some: handling.jpeg(some, self.quality))
        ways = [(share, kernel) for share in handling.SHARES for kernel in handling.KERNELS]
        drawn = (draws[:, 3] * len(ways)).long()
        for number, (share, kernel) in enumerate(ways):
            chosen = (draws[:, 2] < self.resize) & (drawn == number)
            images = _where(images, chosen, lambda some, share=share, kernel=kernel: handling.resized(some, share, kernel))  # type: ignore[misc]
        return images


def _where(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the images that are chosen, ``[B]``, and no others."""
    rows = chosen.nonzero()[:, 0]
    return images.index_copy(0, rows, change(images[rows])) if len(rows) else images


def default_padding(size: int) -> int:
    """Return the crop's padding in pixels for an image size: the paper's 4 at 28 px and 28 at 224 px, an eighth between."""
    return 4 if size <= 32 else size // 8
