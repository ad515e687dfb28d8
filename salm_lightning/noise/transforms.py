"""The transform T of the paper: a random crop and a horizontal flip, drawn for each sample, differentiable, in one gather.

Generator and victims share it. A crop of a zero-padded image and a flip only move pixels, so the gradient is the opposite move:
backward is the same gather with mirrored offsets, without scatter or atomic additions, hence deterministic on every device.
"""

from __future__ import annotations

from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.draws import fold, integers
from salm_lightning.tensors import Tensor


class CropFlip:
    """Random crop with zero padding, then a random horizontal flip, per sample.

    Args:
        padding: Pixels of black border on each side; ``None`` takes 4 at 28 px and the same share (size / 8 up to 64 px, 28 at 224 px)
            at larger sizes, once the size is known.
        flip: Whether to mirror half of the samples.

    Raises:
        ConfigurationError: ``padding`` is negative.
    """

    def __init__(self, padding: int | None = None, flip: bool = True) -> None:
        if padding is not None and padding < 0:
            raise ConfigurationError(f"padding={padding} is negative; give 0 or more pixels, or leave it out for the default.")
        self.padding = padding
        self.flip = flip

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
        offsets = integers(key, indices, 3, 2 * padding + 1)
        flips = integers(key, indices, 3, 2)[:, 2].bool() if self.flip else indices.new_zeros(indices.shape).bool()
        transformed: Tensor = CutWindows.apply(images, offsets[:, 0], offsets[:, 1], flips, padding)
        return transformed


def default_padding(size: int) -> int:
    """Return the crop's padding in pixels for an image size: the paper's 4 at 28 px and 28 at 224 px, an eighth between."""
    return 4 if size <= 32 else size // 8
