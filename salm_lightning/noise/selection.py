"""Which training samples are protected, where not all of them are."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import DatasetInfo
from salm_lightning.data.batches import permutation, random_words
from salm_lightning.errors import ConfigurationError, look_up, require


@dataclass(frozen=True)
class Selection:
    """The samples that carry noise; the others stay clean (paper: Section 7.2 and Appendix D.1).

    A smaller ``percent`` with the same seed selects a subset of what a larger one selects.

    Args:
        classes: Names or numbers of the classes to protect; ``None`` is all of them. With several labels per image, the images
            that show any of them.
        percent: Share of their samples, more than 0 to 100, the same of every class.
        seed: Settles which ones.

    Raises:
        ConfigurationError: ``percent`` is out of range, or ``classes`` is empty.
    """

    classes: list[int | str] | None = None
    percent: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        require("percent", self.percent, 0 < self.percent <= 100, "give more than 0 and at most 100, such as 80")
        if self.classes is not None and not self.classes:
            raise ConfigurationError("classes=[] selects nothing; name a class, or leave it out to protect all.")

    def mask(self, labels: NDArray[np.integer], info: DatasetInfo) -> NDArray[np.bool_]:
        """Say of each training sample, whose labels are integer ``[N, L]`` as stored, whether it is selected.

        Returns:
            Boolean ``[N]``: of each class, or of each combination of labels, ``percent / 100 * n`` samples, rounded up or down at
            random.

        Raises:
            ConfigurationError: There is no such class, or nothing is selected.
        """
        candidates: NDArray[np.bool_] = np.ones(len(labels), dtype=bool)
        if self.classes is not None:
            numbers = [class_number(name, info) for name in self.classes]
            candidates = np.isin(labels[:, 0], numbers) if labels.shape[1] == 1 else np.asarray(labels[:, numbers].any(axis=1))
        selected = np.zeros(len(labels), dtype=bool)
        order = permutation(len(labels), self.seed, "selection")
        _, strata = np.unique(labels, axis=0, return_inverse=True)
        for stratum in np.unique(strata[candidates]):
            members = order[(strata == stratum)[order] & candidates[order]]
            # Rounded up or down at random: of many rare combinations of labels, rounding to nearest takes all or none.
            fraction = int(random_words(1, self.seed, "selection share", int(stratum))[0]) / 2**64
            places = np.arange(len(members)) + fraction
            selected[members[places < self.percent / 100 * len(members)]] = True
        if not selected.any():
            raise ConfigurationError(f"selection {asdict(self)} selects none of the {len(labels)} training samples; select more.")
        return selected


def class_number(name: int | str, info: DatasetInfo) -> int:
    """Return the number of a class given by number or name.

    Raises:
        ConfigurationError: There is no such class.
    """
    if isinstance(name, str):
        return info.class_names.index(look_up("class", name, info.class_names))
    if not 0 <= name < info.num_classes:
        raise ConfigurationError(f"class={name} does not exist; {info.name} has the classes 0 to {info.num_classes - 1}.")
    return name
