"""Which pixels a step may change: exact top-K masks from the input gradient (paper: Section 3.3, Eq. 5)."""

from __future__ import annotations

from enum import StrEnum

from salm_lightning.tensors import Tensor, torch


class Score(StrEnum):
    """What is ranked; the paper's text and its equation differ (``docs/method.md``).

    Attributes:
        PIXEL: Sum over the channels of ``abs(g)``, one mask for all channels.
        ELEMENT: ``abs(g)``, every channel value by itself.
        SIGNED: Sum over the channels of ``g``, Eq. 5 to the letter.
    """

    PIXEL = "pixel"
    ELEMENT = "element"
    SIGNED = "signed"


def masked_count(percent: float, places: int) -> int:
    """Return how many of ``places`` a mask keeps: ``round(percent / 100 * places)``, at least one unless ``percent`` is 0."""
    return 0 if percent == 0 else max(1, round(percent / 100 * places))


def top_percent_mask(gradient: Tensor, percent: float, score: Score = Score.PIXEL, free: Tensor | None = None) -> Tensor:
    """Keep the top K percent of every image's pixels by its gradient.

    The count is exact for every image, ties and zero gradients included, because the largest are taken by rank and never by comparing
    with a threshold (paper: ``>=`` in Eq. 5, which selects everything where the gradient vanishes).

    Args:
        gradient: ``[B, C, H, W]``.
        percent: K, from 0 to 100.
        score: What is ranked.
        free: As :func:`keep_top` has it.

    Returns:
        Mask of 0 and 1 in the gradient's dtype, ``[B, 1, H, W]``, or ``[B, C, H, W]`` for ``Score.ELEMENT``.
    """
    if score is Score.ELEMENT:
        scores = gradient.abs()
    elif score is Score.SIGNED:
        scores = gradient.sum(dim=1, keepdim=True)
    else:
        scores = gradient.abs().sum(dim=1, keepdim=True)
    return keep_top(scores, percent, free)


def keep_top(scores: Tensor, percent: float, free: Tensor | None = None) -> Tensor:
    """Return a mask of exactly the ``percent`` largest scores of each sample, same shape and dtype as ``scores`` (``[B, ...]``).

    Where ``free`` (that can be expanded to the scores) is 0 nothing is kept, and the ``percent`` are of the others.
    """
    if free is not None:
        return _keep_top_of(scores, percent, free.expand_as(scores).reshape(len(scores), -1) > 0)
    flat = scores.reshape(len(scores), -1)
    kept = masked_count(percent, flat.shape[1])
    if kept == flat.shape[1]:
        return torch.ones_like(scores)
    places = flat.topk(kept, dim=1, sorted=False).indices
    return torch.zeros_like(flat).scatter_(1, places, 1.0).view(scores.shape)


def _keep_top_of(scores: Tensor, percent: float, free: Tensor) -> Tensor:
    """Keep the largest scores of each sample among those that are ``free``, boolean ``[B, places]``, of which each has its own number."""
    flat, places = scores.reshape(len(scores), -1), free.sum(dim=1)
    counts = torch.tensor([min(masked_count(percent, number), number) for number in places.tolist()], device=scores.device)
    order = flat.masked_fill(~free, -torch.inf).topk(int(counts.max()), dim=1).indices
    kept = torch.arange(order.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(flat).scatter_(1, order, kept.to(flat.dtype)).view(scores.shape)
