"""Segmenters find what is there to find, checkpoints are read as they were written, and masks are compared as defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torchvision.models import get_model

from salm_lightning.audit.segmentation import Otsu, SegmentationNetwork, Vessels, compare_masks, open_segmenter
from salm_lightning.errors import ConfigurationError


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return np.hypot(x, y) < radius


def test_otsu_finds_dark_cells() -> None:
    cell, rng = disc(28, 8), np.random.default_rng(0)
    images = np.stack([np.where(cell, 60, level)[..., None] + rng.integers(-9, 10, (28, 28, 3)) for level in (150, 220)])
    masks = Otsu()(images.astype(np.uint8))
    assert masks.shape == (2, 28, 28)
    np.testing.assert_array_equal(masks, np.stack([cell, cell]))


def test_vessels_are_found_and_the_black_surround_is_not() -> None:
    eye = disc(96, 44)
    image = np.where(eye[..., None], (180, 100, 40), 0)
    vessel = np.zeros((96, 96), dtype=bool)
    vessel[30:66, 47:49] = True
    image[vessel, 1] = 60
    mask = Vessels()(np.stack([image, 0 * image]).astype(np.uint8))
    assert mask[0][vessel].mean() > 0.9
    around = np.zeros_like(vessel)
    around[28:68, 45:51] = True
    assert not mask[0][~around].any()
    assert not mask[1].any()


class Darkness(nn.Module):
    """Logits of a foreground that is darker than a half; a class per channel if there are several."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        dark = 0.5 - images.mean(dim=1, keepdim=True)
        return {"out": dark if self.classes == 1 else torch.cat([-dark, dark, torch.full_like(dark, 0.4)], dim=1)}


@pytest.mark.parametrize(("classes", "expected"), [(1, [1, 1, 0, 0]), (3, [1, 2, 2, 0])])
def test_torchscript_files(tmp_path: Path, classes: int, expected: list[int]) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(Darkness(classes)).save(tmp_path / "model.pt")
    with pytest.raises(
        ConfigurationError, match=r"which runs the code of whoever made it, torchscript:.*model\.pt if you trust them"
    ):
        open_segmenter(str(tmp_path / "model.pt"))
    segmenter = open_segmenter(f"torchscript:{tmp_path}/model.pt")
    assert segmenter.name == f"torchscript:{tmp_path}/model.pt"
    images = np.repeat(np.array([[[0, 100], [140, 250]]], dtype=np.uint8), 70, axis=0)  # more than a batch
    np.testing.assert_array_equal(segmenter(images), np.tile(np.reshape(expected, (1, 2, 2)), (70, 1, 1)))


def test_state_dicts_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = get_model("deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    rgb = torch.from_numpy(np.repeat(images[:, None], 3, axis=1)).float() / 255
    normalised = (rgb - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        network(normalised)  # gives batch norm the statistics of something
        network.eval()
        network.classifier[4].bias -= network(normalised)["out"].mean(dim=(0, 2, 3))  # else one class is everywhere
        expected = network(normalised)["out"].argmax(1).numpy()
    assert len(np.unique(expected)) > 1
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    found = open_segmenter(f"deeplabv3_mobilenet_v3_large:{tmp_path}/weights.pth")(images)
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_segmenter(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"segmenter='otsuu' .* did you mean 'otsu'"):
        open_segmenter("otsuu")
    with pytest.raises(ConfigurationError, match="did you mean 'fcn_resnet50'"):
        open_segmenter("fcn_resnet5:weights.pth")
    (tmp_path / "text.pt").write_text("hello")
    for name in (f"torchscript:{tmp_path}/text.pt", f"fcn_resnet50:{tmp_path}/text.pt", f"fcn_resnet50:{tmp_path}/missing.pt"):
        with pytest.raises(ConfigurationError, match=r"segmenter=.*cannot be read .*torchscript:PATH"):
            open_segmenter(name)
    coarse = SegmentationNetwork(nn.Conv2d(1, 2, 3, stride=2), "coarse")
    with pytest.raises(ConfigurationError, match=r"segmenter=coarse: it returned \[1, 2, 3, 3\] for images \[1, 1, 8, 8\]"):
        coarse(np.zeros((1, 8, 8), np.uint8))


@pytest.mark.parametrize("classes", [2, 4])
def test_masks_are_compared_as_scikit_learn_does(classes: int) -> None:
    rng = np.random.default_rng(classes)
    before = rng.integers(0, classes, (6, 9, 9))
    after = np.where(rng.random(before.shape) < 0.2, rng.integers(0, classes, before.shape), before)
    after[0] = before[0]
    found = compare_masks(before, after)
    foreground = list(range(1, classes))
    for place, (a, b) in enumerate(zip(before, after, strict=True)):
        assert found["dice"][place] == pytest.approx(f1_score(a.ravel(), b.ravel(), labels=foreground, average="micro"))
        assert found["changed_share"][place] == pytest.approx((a != b).sum() / 81)
    assert (found["dice"][0], found["changed_share"][0]) == (1.0, 0.0)


def test_masks_without_foreground() -> None:
    nothing, something = np.zeros((1, 4, 4), np.int64), np.eye(4, dtype=np.int64)[None]
    assert compare_masks(nothing, nothing)["dice"] == [1.0]
    assert compare_masks(nothing, something)["dice"] == [0.0]
    assert compare_masks(something, nothing) == {"changed_share": [0.25], "dice": [0.0]}
