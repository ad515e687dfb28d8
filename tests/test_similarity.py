"""What is measured per image, against the libraries that define it."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score
from torchmetrics.functional.image import structural_similarity_index_measure

from salm_lightning.audit.results import Extremes
from salm_lightning.audit.shown import grey
from salm_lightning.audit.similarity import HASHES, Similarity, normalised_mutual_information, resize, summarise

LIBRARY = {"ahash": imagehash.average_hash, "phash": imagehash.phash, "dhash": imagehash.dhash}


def pairs(size: int = 28, channels: int = 3, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and their noisy copies; the fourth pair is equal, the fifth one of one level each."""
    rng = np.random.default_rng(size)
    coarse = rng.integers(0, 256, (count, 5, 5, channels), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(image.squeeze()).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse]
    original = np.stack(large)
    protected = np.clip(original.astype(int) + rng.integers(-8, 9, original.shape), 0, 255).astype(np.uint8)
    protected[3] = original[3]
    original[4], protected[4] = 100, 108
    return original, protected


@pytest.mark.parametrize("size", [8, 28, 33, 64, 224])
def test_hashes_are_those_of_the_library(size: int) -> None:
    rng = np.random.default_rng(0)
    images = np.concatenate([grey(pairs(size)[1]), rng.integers(0, 256, (5, size, size), dtype=np.uint8)])
    for name, bits in HASHES.items():
        expected = np.stack([LIBRARY[name](Image.fromarray(image)).hash.ravel() for image in images])
        np.testing.assert_array_equal(bits(images), expected, err_msg=name)


@pytest.mark.parametrize(("height", "width"), [(8, 9), (32, 32), (50, 3)])
def test_resizing_is_pillows(height: int, width: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, 19, 40), dtype=np.uint8)
    expected = [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)) for image in images]
    np.testing.assert_array_equal(resize(images, height, width), np.stack(expected))


def test_grey_is_pillows() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 7, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grey(images), [np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert grey(images[..., 0]) is not images
    np.testing.assert_array_equal(grey(images[..., 0]), images[..., 0])


def test_mutual_information_is_scikit_learns() -> None:
    before, after = (grey(images).copy() for images in pairs())
    after[5] = 7  # no information
    after[6] = 255 - before[6]  # the same information
    found = normalised_mutual_information(before, after)
    expected = [normalized_mutual_info_score(a.ravel(), b.ravel()) for a, b in zip(before, after, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[4] == 1.0
    assert (found[5], found[6]) == pytest.approx((0.0, 1.0), abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_measure_per_image(channels: int) -> None:
    original, protected = pairs(channels=channels)
    meter = Similarity()
    meter.update(original[:5], protected[:5])
    meter.update(original[5:], protected[5:])
    found = meter.per_image()

    a, b = (images.reshape(12, 28, 28, channels) for images in (original, protected))
    difference = np.abs(b.astype(int) - a)
    changed = difference.any(axis=-1).reshape(12, -1)
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / (difference.astype(float) ** 2).mean(axis=(1, 2, 3)))
    tensors = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in (b, a))
    levels = [np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images]) for images in (original, protected)]
    hashes = {
        name: [1 - (hashed(Image.fromarray(x)) - hashed(Image.fromarray(y))) / 64 for x, y in zip(*levels, strict=True)]
        for name, hashed in LIBRARY.items()
    }
    expected = {
        "ssim": structural_similarity_index_measure(*tensors, data_range=1.0, reduction="none").numpy(),
        "psnr": psnr,
        **hashes,
        "nmi": [normalized_mutual_info_score(x.ravel(), y.ravel()) for x, y in zip(*levels, strict=True)],
        "linf": difference.max(axis=(1, 2, 3)),
        "l0": changed.sum(axis=1),
        "changed_share": changed.mean(axis=1),
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5 if name == "psnr" else 1e-9, err_msg=name)
    assert np.isinf(found["psnr"][3])


def test_four_numbers_of_a_measure() -> None:
    values, rows = np.array([0.5, 0.9, 0.1, 0.7, 0.3]), np.array([10, 20, 30, 40, 50])
    low = summarise(values, rows, high_is_bad=False)
    assert low == Extremes(pytest.approx(0.5), pytest.approx(0.14), 0.1, 30)
    high = summarise(values, rows, high_is_bad=True)
    assert high == Extremes(pytest.approx(0.5), pytest.approx(0.86), 0.9, 20)


def test_what_is_not_finite_stays_out() -> None:
    found = summarise(np.array([np.inf, 30.0, 32.0]), np.array([4, 5, 6]), high_is_bad=False)
    assert found is not None
    assert (found.mean, found.worst, found.worst_index) == (31.0, 30.0, 5)
    assert summarise(np.array([np.inf]), np.array([4]), high_is_bad=False) is None
