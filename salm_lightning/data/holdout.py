"""Which images of a folder are held out to measure on: drawn with a seed, of every class its share, whole patients alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.batches import permutation
from salm_lightning.data.folder import ImageFolder
from salm_lightning.errors import DataError


def holdout(folder: ImageFolder, share: float, seed: int, twins: Iterable[tuple[int, int]] = ()) -> NDArray[np.bool_]:
    """Return which images are held out, boolean ``[N]``.

    Of each class about ``share`` is, at least one and never all, as far as groups leave a choice; for several labels an image each label
    counts, and having none. The images of a group stay together, and so do twins, pairs of images with the same pixels.

    Raises:
        DataError: The groups leave nothing to hold out, or nothing to train on.
    """
    counts, unit_of = _counts(folder, twins)
    totals = counts.sum(axis=0)
    wanted = np.where(totals > 1, np.maximum(1, np.rint(share * totals)), 0)
    taken, have = np.zeros(len(counts), bool), np.zeros(len(totals))
    order = permutation(len(counts), seed, "holdout")
    for label in np.argsort(totals, kind="stable"):  # the rarest first: others have more to choose from
        with_label = [unit for unit in order if counts[unit, label] and not taken[unit]]
        for strict in (True, False):
            for unit in with_label if strict else sorted(with_label, key=lambda unit: counts[unit].sum()):
                after = have + counts[unit]
                enough = have[label] >= (wanted[label] if strict else min(1, wanted[label]))
                too_many = (after >= np.where(totals > 1, totals, totals + 1)).any() or (strict and after[label] > wanted[label])
                if not (enough or too_many or taken[unit]):
                    taken[unit], have = True, after
    if not taken.any() or taken.all():
        raise DataError(
            f"{folder.root}: patients, and identical pictures, stay together, and leave nothing to hold out; give more of them, or "
            "--group_column none."
        )
    return taken[unit_of]


def _counts(folder: ImageFolder, twins: Iterable[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how often each label, and none, occurs in each unit that stays together, ``[units, labels + 1]``, and each image's unit."""
    parent = list(range(len(folder.images)))

    def first(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    members: dict[str, list[int]] = defaultdict(list)
    for number, image in enumerate(folder.images):
        if image.group:
            members[image.group].append(number)
    for number, other in [*((number, group[0]) for group in members.values() for number in group[1:]), *twins]:
        parent[first(number)] = first(other)
    _, unit_of = np.unique([first(number) for number in range(len(parent))], return_inverse=True)
    counts = np.zeros((unit_of.max() + 1, len(folder.class_names) + 1), np.int64)
    for unit, image in zip(unit_of, folder.images, strict=True):
        for label in image.labels or (len(folder.class_names),):
            counts[unit, label] += 1
    return counts, unit_of
