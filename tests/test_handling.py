"""What T does to images before it crops them, against Pillow, libjpeg and a derivative that is written down by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from salm_lightning.errors import ConfigurationError
from salm_lightning.noise import handling
from salm_lightning.noise.methods import SALM
from salm_lightning.noise.transforms import CropFlip


def blobs(count: int, channels: int = 3, size: int = 28, seed: int = 0) -> Tensor:
    """Return smooth images of whole levels, as photographs are, in [0, 1]."""
    coarse = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (interpolate(0.2 + 0.6 * coarse, size, mode="bilinear") * 255).round() / 255


def levels(image: Tensor) -> np.ndarray[Any, Any]:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()


def test_grey_is_pillows() -> None:
    images = blobs(3)
    expected = np.stack([np.asarray(Image.fromarray(levels(image)).convert("L")) for image in images])
    made = handling.grey(images)
    assert torch.equal(made[:, 0], made[:, 2])
    assert np.abs(made[:, 1].numpy() * 255 - expected).max() < 0.51
    assert handling.grey(images[:, :1]) is not made
    assert torch.equal(handling.grey(images[:, :1]), images[:, :1])


@pytest.mark.parametrize("kernel", handling.KERNELS)
@pytest.mark.parametrize("share", handling.SHARES)
def test_scaling_is_pillows(kernel: str, share: float) -> None:
    ways = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}
    image, small = blobs(1, 1)[0, 0], round(28 * share)
    if kernel == "area" and share != 0.5:
        pytest.skip("Pillow's box weighs parts of pixels, an area's window takes them whole")
    scaled = Image.fromarray(image.numpy()).resize((small, small), ways[kernel]).resize((28, 28), Image.Resampling.BILINEAR)
    made = handling.resized(image[None, None], share, kernel)[0, 0]
    np.testing.assert_allclose(made.numpy(), np.asarray(scaled), atol=2e-3)


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_about_that_of_the_codec(quality: int, channels: int) -> None:
    images = blobs(8, channels)
    coded = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(levels(image)).save(stream, "JPEG", quality=quality, subsampling=2)
        coded.append(np.asarray(Image.open(stream)).reshape(28, 28, channels).transpose(2, 0, 1))
    expected = np.stack(coded).astype(float)
    errors = np.abs(handling.jpeg(images, quality).numpy() * 255 - expected)
    # A codec rounds colours, transforms and what it returns to whole numbers; without half the colours' resolution it is 3 levels.
    assert errors.mean() < (0.5 if channels == 1 else 1.5)


def test_jpeg_is_that_of_float32_under_any_precision() -> None:
    images = blobs(4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = CropFlip(0, flip=False, grey=1, jpeg=1, resize=1)(images, torch.arange(4), 0, "eot")
    assert torch.equal(mixed, CropFlip(0, flip=False, grey=1, jpeg=1, resize=1)(images, torch.arange(4), 0, "eot"))


def test_the_gradient_of_jpeg_vanishes_where_nothing_can_change() -> None:
    """A flat image of level v has the coefficient 8 (v - 128), whose step is 16 at quality 50."""
    for above in (0.0, 0.2, 0.9, 1.0, 2.0):
        image = torch.full((1, 1, 16, 16), (128 + above) / 255, requires_grad=True)
        (gradient,) = torch.autograd.grad(handling.jpeg(image, 50).sum(), image)
        value = above / 2
        assert gradient.sum().item() == pytest.approx(256 * 3 * (value - round(value)) ** 2, rel=1e-3, abs=1e-3)


def test_the_settings_of_a_subclass_are_kept() -> None:
    class Blurred(CropFlip):
        def __init__(self, blur: float) -> None:
            super().__init__()
            self.blur = blur

    assert SALM(transform=Blurred(3.0)).settings()["transform"] == {"padding": None, "flip": True, "blur": 3.0}


def test_shares_of_the_samples_are_handled_whatever_their_batch() -> None:
    images, indices = blobs(400, 3, 16), torch.arange(400)
    plain = CropFlip(0, flip=False)(images, indices, 0, "eot", 3)
    assert torch.equal(plain, images)
    for given in ({"grey": 0.25}, {"jpeg": 0.25, "quality": 20}, {"resize": 0.25}):
        transform = CropFlip(0, flip=False, **given)  # type: ignore[arg-type]
        made = transform(images, indices, 0, "eot", 3)
        changed = (made != images).flatten(1).any(dim=1)
        assert 70 < int(changed.sum()) < 130
        assert torch.allclose(transform(images[7:90:3], indices[7:90:3], 0, "eot", 3), made[7:90:3], atol=1e-6)
    everything = CropFlip(0, flip=False, grey=1, jpeg=1, quality=20)(images[:4], indices[:4], 0, "eot")
    assert torch.allclose(everything, handling.jpeg(handling.grey(images[:4]), 20), atol=1e-6)


def test_gradients_pass_and_settings_say_what_is_on() -> None:
    images = blobs(6).requires_grad_(True)
    view = CropFlip(grey=0.5, jpeg=0.5, resize=0.5)(images, torch.arange(6), 0, "eot")
    (gradient,) = torch.autograd.grad((view**2).sum(), images)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.flatten(1).any(dim=1).all())
    assert CropFlip().settings() == {"padding": None, "flip": True}
    robust = SALM(transform=CropFlip(grey=0.25, jpeg=0.5))
    assert robust.settings()["transform"] == {"padding": None, "flip": True, "grey": 0.25, "jpeg": 0.5, "quality": 10}


@pytest.mark.parametrize(
    ("given", "named"), [({"grey": 1.5}, "grey=1.5"), ({"jpeg": -0.1}, "jpeg=-0.1"), ({"quality": 0}, "quality=0")]
)
def test_values_out_of_range_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        CropFlip(**given)
