"""Whether segmentation still sees the same in protected images (paper: Fig. 3 and its text, which names 0.4 % of the pixels)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salm_lightning.audit.shown import grey
from salm_lightning.data.arrays import to_tensor
from salm_lightning.errors import ConfigurationError, did_you_mean
from salm_lightning.files import expanded

_BATCH = 32
_TORCHSCRIPT = "torchscript"
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Segmenter(Protocol):
    """Anything that segments images; results call it by its name."""

    name: str

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return a class per pixel, 0 for the background, ``[B, H, W]``, of images ``[B, H, W]`` or ``[B, H, W, 3]``."""
        ...


class Otsu:
    """Otsu's threshold on the grey levels of each image; the darker side, such as stained cells, is the foreground."""

    name = "otsu"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return 1 for the foreground, ``[B, H, W]``."""
        from skimage.filters import threshold_otsu

        return np.stack([image <= threshold_otsu(image) for image in grey(images)]).astype(np.int64)


class Vessels:
    """Dark, thin structures, such as the vessels of a fundus: Sato's ridge filter, then Otsu's threshold on its response.

    It looks at the green channel, where vessels have the most contrast, and leaves out the black surround with a margin, whose edge is
    the strongest ridge of all.
    """

    name = "vessels"
    _sigmas = (1.0, 2.0)  # pixels: half the width of vessels
    _dark = 10  # grey levels up to which a pixel belongs to the surround
    _margin = 3  # pixels

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return 1 for vessels, ``[B, H, W]``."""
        green = images if images.ndim == 3 else images[..., 1]
        return np.stack([self._segment(image) for image in green]).astype(np.int64)

    def _segment(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        from skimage.filters import sato, threshold_otsu
        from skimage.morphology import disk, erosion

        inside = erosion(image > self._dark, disk(self._margin), mode="max")
        if not inside.any():
            return np.zeros(image.shape, dtype=bool)
        response = sato(image / 255, sigmas=self._sigmas, black_ridges=True, mode="reflect")
        vessels: NDArray[np.bool_] = inside & (response > threshold_otsu(response[inside]))
        return vessels


class SegmentationNetwork:
    """A trained segmentation network.

    Args:
        network: Takes float images ``[B, C, H, W]`` in [0, 1] and returns logits ``[B, K, H, W]``, or a mapping with them under ``out``,
            as torchvision's networks do. One channel of logits is a foreground, several are classes of which the first is the background.
        name: What results call it.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network.eval()
        self.name = name

    def __getstate__(self) -> dict[str, Any]:
        """Let it pass between processes; TorchScript does not by itself."""
        return {"name": self.name} if isinstance(self.network, torch.jit.ScriptModule) else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state if "network" in state else vars(open_segmenter(state["name"])))

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return a class per pixel, ``[B, H, W]``."""
        device = next(self.network.parameters(), torch.empty(0)).device
        batches = to_tensor(images).split(_BATCH)  # type: ignore[no-untyped-call]
        return torch.cat([self._segment(batch.to(device).float() / 255).cpu() for batch in batches]).numpy()

    def _segment(self, images: Tensor) -> Tensor:
        try:
            output = self.network(images)
        except RuntimeError as error:  # such as other channels than it was trained with
            reason = str(error).strip().splitlines()[-1]
            raise ConfigurationError(f"segmenter={self.name} does not take images {list(images.shape)}: {reason}") from error
        logits: Tensor = output["out"] if isinstance(output, dict) else output
        if logits.ndim != 4 or logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
            raise ConfigurationError(
                f"segmenter={self.name}: it returned {list(logits.shape)} for images {list(images.shape)}; "
                "logits [B, K, H, W] of the same height and width are needed."
            )
        return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def open_segmenter(name: str) -> Segmenter:
    """Return a segmenter by name.

    Args:
        name: ``otsu``, ``vessels``, ``ARCH:PATH`` for a state dict of one of ``torchvision.models.segmentation``, such as
            ``deeplabv3_resnet50:weights.pth``, or ``torchscript:PATH`` for a TorchScript file, which is code: it can do whatever its user
            can, so that it is run only where it is called so.

    Raises:
        ConfigurationError: It is none of these, or the file cannot be read.
    """
    classical: dict[str, type[Otsu] | type[Vessels]] = {"otsu": Otsu, "vessels": Vessels}
    if name in classical:
        return classical[name]()
    from torchvision.models import list_models, segmentation

    arch, colon, weights = name.partition(":")
    architectures: list[str] = list_models(module=segmentation)
    if not colon and Path(name).is_file():
        raise ConfigurationError(
            f"segmenter={name} is a file: give ARCH:{name} for a state dict of one of torchvision's networks; or, for a TorchScript file, "
            f"which runs the code of whoever made it, torchscript:{name} if you trust them."
        )
    if not colon or arch not in (_TORCHSCRIPT, *architectures):
        raise ConfigurationError(
            f"segmenter={name!r} is neither otsu, nor vessels, nor ARCH:PATH with a state dict, nor {_TORCHSCRIPT}:PATH"
            f"{did_you_mean(arch, [*classical, _TORCHSCRIPT, *architectures]) or '.'} Architectures: {', '.join(architectures)}."
        )
    path = expanded(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch advises other formats to those who write files
            script = arch == _TORCHSCRIPT
            network = torch.jit.load(str(path), map_location="cpu") if script else _torchvision(arch, path)  # type: ignore[no-untyped-call]
        return SegmentationNetwork(network, name)
    except Exception as error:  # torch raises almost anything at files that are not its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(
            f"segmenter={name}: {path} cannot be read ({reason}). Give ARCH:PATH with a state dict "
            f"(torch.save(model.state_dict(), PATH)), or {_TORCHSCRIPT}:PATH (torch.jit.save)."
        ) from error


def compare_masks(before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Compare the segmentations of originals and protected images: a class per pixel, 0 for the background, ``[B, H, W]``.

    Returns:
        Per image, in [0, 1]: ``changed_share``, the share of pixels of another class; ``dice``, twice the foreground pixels of equal
        class over the foreground pixels of both (1 where neither has any).
    """
    before, after = before.reshape(len(before), -1), after.reshape(len(after), -1)
    equal = before == after
    foreground = (before > 0).sum(1) + (after > 0).sum(1)
    shared = (equal & (before > 0)).sum(1)
    dice = np.where(foreground > 0, 2 * shared / np.maximum(foreground, 1), 1.0)
    return {"changed_share": 1.0 - equal.mean(1), "dice": dice}


def _torchvision(arch: str, path: Path) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.transforms import v2

    state = torch.load(path, map_location="cpu", weights_only=True)
    heads = [tensor for key, tensor in state.items() if key.startswith("classifier.") and key.endswith(".weight")]
    auxiliary = any(key.startswith("aux_classifier.") for key in state)
    network = get_model(arch, weights=None, weights_backbone=None, num_classes=len(heads[-1]), aux_loss=auxiliary)
    network.load_state_dict(state)
    return nn.Sequential(v2.RGB(), v2.Normalize(**_IMAGENET), network)
