"""SP: linearly separable patches, without a model (Yu et al. 2022; paper: Section 4.1 and Appendix C.3)."""

from __future__ import annotations

from itertools import count
from typing import Literal

from salm_lightning.data.base import Task
from salm_lightning.errors import ConfigurationError, look_up, require
from salm_lightning.noise.draws import fold, integers, normal, uniform
from salm_lightning.noise.methods.base import Method, Perturbation, full_mask
from salm_lightning.noise.pgd import Objective, Samples
from salm_lightning.tensors import Tensor, torch

CLASS_SEP = 10.0
"""Half the side of the hypercube whose vertices are the classes' centres."""
_MOST_FEATURES = 1024  # a class has a matrix of their square
_DISTINCT_BITS = 30
"""``make_classification`` makes vertices differ in the last 30 coordinates at the latest."""


class SP(Method):
    """Square patches whose colours are a code of the class: a victim learns the code, which a linear model can read.

    The codes are distributed as those of the original, which are samples of ``sklearn.datasets.make_classification`` (one cluster per
    class, ``class_sep`` 10, no flipped labels, all features informative): every class has a vertex of a hypercube and a random matrix,
    and each sample is the vertex plus the matrix applied to standard normal numbers of its own. That function draws all samples of all
    classes from one generator, so that a sample would depend on how many there are and in which order; here vertices and matrices are
    drawn from counters for each class, and the normal numbers for each sample index. Hence imbalance, chunks, ranks and order do not
    matter, and nothing is held for more than a chunk. With several labels the codes of the positive ones are added up under the
    sample's one draw; an image without any has the code of one more class.

    Args:
        radius: Bound of the noise in units of 1/255; the noise is scaled to reach it before it is clipped to the range of images.
        norm: ``l2``: the root mean square over an image's values is at most ``radius`` (paper), which single values exceed;
            ``linf``: no value exceeds it. Both hold for the released bytes.
        patch: Side of a patch in pixels; ``None`` is 8 up to 32 px and a quarter of the image above.
    """

    trains_source_on = None

    def __init__(self, radius: float = 8.0, norm: Literal["l2", "linf"] = "l2", patch: int | None = None) -> None:
        super().__init__(radius)
        require("patch", patch, patch is None or patch >= 1, "give 1 or more pixels, or leave it out for the default")
        self.norm = look_up("norm", norm, ("l2", "linf"))
        self.patch = patch

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return no noise."""
        return images.new_zeros(images.shape)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Return the patches of each sample, whatever ``delta`` is.

        Raises:
            ConfigurationError: There are more classes than vertices, or too many patches.
        """
        side = images.shape[-1]
        patch = self.patch or (8 if side <= 32 else round(side / 4))
        rows, columns = (torch.arange(side, device=images.device) // patch for side in images.shape[2:])
        heights, widths = rows.bincount(), columns.bincount()
        features = images.shape[1] * len(heights) * len(widths)
        if features > _MOST_FEATURES:
            raise ConfigurationError(
                f"patch={patch} makes {features} patches (over the channels) of an image of {side} px, and a code of more than "
                f"{_MOST_FEATURES} needs too much memory; give a larger patch."
            )
        codes = _codes(objective.samples, features).view(-1, images.shape[1], len(heights), len(widths))
        if self.norm == "l2":
            area = heights[:, None] * widths
            size = ((codes.square() * area).sum(dim=(1, 2, 3), keepdim=True) / images[0].numel()).sqrt()
        else:
            size = codes.abs().amax(dim=(1, 2, 3), keepdim=True)
        noise = (self.radius_unit * codes / size).to(images.dtype)[:, :, rows][:, :, :, columns]
        return Perturbation(noise, full_mask(noise))


def _codes(samples: Samples, features: int) -> Tensor:
    """Return the code of each sample, float64 ``[B, features]``."""
    if samples.task == Task.MULTI_LABEL:
        weights = samples.labels.double()  # and one more code, for no label
        weights = torch.cat([weights, (weights.sum(dim=1, keepdim=True) == 0).double()], dim=1)
    else:
        weights = torch.nn.functional.one_hot(samples.labels, samples.num_classes).double()
    classes = torch.arange(weights.shape[1], device=weights.device)
    centres = CLASS_SEP * (2 * _vertices(samples.seed, len(classes), features).to(weights) - 1)
    matrices = 2 * uniform(fold(samples.seed, "patch matrix"), classes, features**2).double() - 1
    cloud = normal(fold(samples.seed, "patch cloud"), samples.indices, features)
    codes = centres + torch.einsum("bf,kfg->bkg", cloud, matrices.view(-1, features, features))
    return (weights[:, :, None] * codes).sum(dim=1)


def _vertices(seed: int, classes: int, features: int) -> Tensor:
    """Return distinct vertices of the unit hypercube, int64 ``[classes, features]``, each drawn again until it is new."""
    if classes > 2 ** min(features, _DISTINCT_BITS):
        raise ConfigurationError(
            f"{classes} classes need as many codes, and {features} patches (over the channels) have only {2**features}; give a smaller "
            "patch."
        )
    found: dict[tuple[int, ...], Tensor] = {}
    for number in range(classes):
        for attempt in count():
            vertex = integers(fold(seed, "patch vertex", attempt), torch.tensor([number]), features, 2)[0]
            if found.setdefault(tuple(vertex[-_DISTINCT_BITS:].tolist()), vertex) is vertex:
                break
    return torch.stack(list(found.values()))
