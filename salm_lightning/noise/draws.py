"""Counter-based random numbers: each draw is a pure function of a seed, a purpose and counters.

Nothing here touches torch's global generators, which Lightning does not save: a run that is interrupted anywhere and resumed
draws exactly what the uninterrupted run would have drawn, on any number of ranks. The mixing function is SplitMix64
(Steele, Lea and Flood, 2014) in wrapping 64-bit integer arithmetic, which is the same on every device.
"""

from __future__ import annotations

import math
import zlib

from salm_lightning.tensors import Tensor, torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the two's complement reading of a 64-bit word, the only one that an int64 tensor takes."""
    return value - (1 << 64) if value >> 63 else value


def _mix_int(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK
    return word ^ (word >> 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift logically; torch's ``>>`` on int64 copies the sign bit."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)) * _signed(_MULTIPLIER_1)
    words = (words ^ _shift_right(words, 27)) * _signed(_MULTIPLIER_2)
    return words ^ _shift_right(words, 31)


def fold(seed: int, purpose: str, *counters: int) -> int:
    """Fold the run's seed, the name of what is drawn, and counters (step, pass, draw), whose order matters, into one 64-bit key.

    The name keeps streams apart that share their counters, such as ``"start"`` and ``"transform"``.
    """
    key = _mix_int((seed + _GOLDEN) & _MASK)
    for part in (zlib.crc32(purpose.encode()), *counters):
        key = _mix_int((key + _GOLDEN * (part + 1)) & _MASK)
    return key


def uniform(key: int, indices: Tensor, numel: int) -> Tensor:
    """Draw ``numel`` uniform numbers for each sample, from a key of :func:`fold`.

    They are float32 of shape ``[B, numel]`` in [0, 1), on the device of ``indices``; multiples of 2^-24. The draw of a sample depends on
    its global index, int64 ``[B]``, and not on its batch.
    """
    sample_keys = _mix(indices * _signed(_GOLDEN) + _signed(key))
    element = torch.arange(1, numel + 1, device=indices.device) * _signed(_GOLDEN)
    words = _mix(sample_keys[:, None] + element[None, :])
    return _shift_right(words, 40).float() * 2.0**-24


def integers(key: int, indices: Tensor, numel: int, high: int) -> Tensor:
    """Draw ``numel`` integers in ``[0, high)`` for each sample, int64 of shape ``[B, numel]``."""
    return (uniform(key, indices, numel) * high).long()


def normal(key: int, indices: Tensor, numel: int) -> Tensor:
    """Draw ``numel`` standard normal numbers for each sample (Box and Muller, 1958), float64 of shape ``[B, numel]``."""
    first, second = uniform(key, indices, 2 * numel).double().chunk(2, dim=1)
    return (-2 * (-first).log1p()).sqrt() * (2 * math.pi * second).cos()
