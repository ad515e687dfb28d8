"""How much of what there is to learn a victim has learned: from knowing nothing, 0, to an ordinary victim on the originals, 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from salm_lightning.data.base import Task

KEPT_LIMIT = 0.5
"""Share that a victim may keep of what a clean one learns, and still count as kept from learning.

0 is knowing nothing, 1 an ordinary victim on the originals. Half is where a model becomes more of a tool than of a guess: of 95 % on eight
balanced classes a victim must not get beyond 54 %."""
LEARNED = 0.1
"""How far above knowing nothing the clean twin has to be for a measure to be judged; below, chance decides what is kept."""
MEASURES = {"acc": "accuracy", "balanced_acc": "balanced accuracy", "auc": "AUC"}
"""Names of what is judged, in words."""


def floors_of(task: Task, num_classes: int, majority: float) -> dict[str, float]:
    """Return the measures that are judged and what knowing nothing brings.

    Accuracy alone would let imbalanced data pass: a model can stay below the most common class's share and yet tell classes apart,
    so balanced accuracy counts too, and the larger share of the two is what a victim keeps. Of several labels per image both say
    next to nothing, as most labels are absent; the AUC stands for them. ``majority`` is the accuracy of always giving the most common
    answer.
    """
    if task is Task.MULTI_LABEL:
        return {"auc": 0.5}
    return {"acc": majority, "balanced_acc": 1 / num_classes}


@dataclass(frozen=True)
class Scale:
    """From knowing nothing to what an ordinary victim on the originals knows.

    Attributes:
        floors: Measures that are judged, and what knowing nothing brings; see :func:`floors_of`.
        reached: What the victim on the originals reaches, for each measure in which it has learned something.
    """

    floors: Mapping[str, float]
    reached: Mapping[str, float]

    @classmethod
    def of(cls, floors: Mapping[str, float], clean: Mapping[str, float]) -> Scale:
        """Return the scale from some floors to what a clean victim reaches."""
        return cls(floors, {name: clean[name] for name, floor in floors.items() if clean[name] - floor >= LEARNED})

    def kept(self, reached: Mapping[str, float | None]) -> float | None:
        """Return the share of what there is to learn that a victim has: of the measures the largest; None without any."""
        known = {name: value for name in self.reached if (value := reached.get(name)) is not None}
        shares = ((value - self.floors[name]) / (self.reached[name] - self.floors[name]) for name, value in known.items())
        return max(shares, default=None)
