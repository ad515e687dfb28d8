"""Top-K masks against NumPy sorting, with exact counts under ties and zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from salm_lightning.noise.masks import Score, keep_top, masked_count, top_percent_mask

PERCENTS = [0, 0.01, 1, 5, 10, 33.3, 50, 99.9, 100]


def gradients(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def numpy_mask(gradient: Tensor, percent: float, score: Score) -> np.ndarray:
    """Mark the last places of an ascending argsort."""
    values = gradient.numpy().astype(np.float64)
    scores = {
        Score.PIXEL: lambda: np.abs(values).sum(1, keepdims=True),
        Score.ELEMENT: lambda: np.abs(values),
        Score.SIGNED: lambda: values.sum(1, keepdims=True),
    }[score]()
    flat = scores.reshape(len(scores), -1)
    count = 0 if percent == 0 else max(1, int(np.rint(percent / 100 * flat.shape[1])))
    mask = np.zeros_like(flat)
    for row, order in zip(mask, np.argsort(flat, axis=1), strict=True):
        row[order[len(order) - count :]] = 1
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("shape", [(6, 3, 28, 28), (5, 1, 13, 7)])
def test_masks_equal_numpy_sorting(percent: float, score: Score, shape: tuple[int, ...]) -> None:
    gradient = gradients(*shape)
    mask = top_percent_mask(gradient, percent, score)
    assert mask.dtype == gradient.dtype
    np.testing.assert_array_equal(mask.numpy(), numpy_mask(gradient, percent, score))


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("kind", ["zeros", "constant", "few values", "half zero", "one pixel"])
def test_counts_are_exact_under_ties(percent: float, score: Score, kind: str) -> None:
    gradient = {
        "zeros": lambda: torch.zeros(4, 3, 12, 12),
        "constant": lambda: torch.full((4, 3, 12, 12), -2.0),
        "few values": lambda: gradients(4, 3, 12, 12).round(),
        "half zero": lambda: gradients(4, 3, 12, 12) * (torch.arange(12) < 6),
        "one pixel": lambda: torch.zeros(4, 3, 12, 12).index_fill_(3, torch.tensor(5), 1.0),
    }[kind]()
    mask = top_percent_mask(gradient, percent, score)
    places = 432 if score is Score.ELEMENT else 144
    expected = 0 if percent == 0 else max(1, round(percent / 100 * places))
    assert mask.flatten(1).sum(1).tolist() == [expected] * 4
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    # What is kept is never below what is left out.
    scores = gradient.abs() if score is Score.ELEMENT else (gradient if score is Score.SIGNED else gradient.abs()).sum(1, True)
    kept = torch.where(mask > 0, scores, torch.inf).flatten(1).amin(1)
    left = torch.where(mask > 0, -torch.inf, scores).flatten(1).amax(1)
    assert (kept >= left).all()


def test_every_image_is_ranked_by_itself() -> None:
    gradient = gradients(3, 3, 8, 8) * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1, 1)
    assert top_percent_mask(gradient, 25).flatten(1).sum(1).tolist() == [16.0] * 3


def test_scores_rank_what_they_say() -> None:
    gradient = torch.zeros(1, 2, 1, 4)
    gradient[0, :, 0] = torch.tensor([[3.0, -5.0, 1.0, 0.0], [-3.0, 0.0, 1.5, 0.0]])
    assert top_percent_mask(gradient, 25, Score.PIXEL).flatten().tolist() == [1, 0, 0, 0]
    assert top_percent_mask(gradient, 25, Score.SIGNED).flatten().tolist() == [0, 0, 1, 0]
    assert top_percent_mask(gradient, 12.5, Score.ELEMENT).flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_shapes_and_shared_channels() -> None:
    gradient = gradients(2, 3, 6, 6)
    assert top_percent_mask(gradient, 10, Score.PIXEL).shape == (2, 1, 6, 6)
    assert top_percent_mask(gradient, 10, Score.SIGNED).shape == (2, 1, 6, 6)
    assert top_percent_mask(gradient, 10, Score.ELEMENT).shape == (2, 3, 6, 6)


def test_masks_of_half_precision_gradients_are_exact_too() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        mask = top_percent_mask(gradients(2, 3, 28, 28).to(dtype), 10)
        assert mask.dtype == dtype
        assert mask.float().flatten(1).sum(1).tolist() == [78.0, 78.0]


@pytest.mark.parametrize(
    ("percent", "places", "count"), [(10, 784, 78), (0, 784, 0), (100, 784, 784), (0.001, 784, 1), (50, 3, 2), (10, 50176, 5018)]
)
def test_counts(percent: float, places: int, count: int) -> None:
    assert masked_count(percent, places) == count


def test_keep_top_keeps_shape_and_takes_the_largest() -> None:
    mask = keep_top(torch.tensor([[[1.0, 4.0], [3.0, 2.0]], [[9.0, 0.0], [0.0, 8.0]]]), 50)
    assert mask.tolist() == [[[0, 1], [1, 0]], [[1, 0], [0, 1]]]
