"""The Gap of Table 4: what cropping does to protection, without what it does to accuracy anyway (Section 5)."""

from __future__ import annotations

from collections.abc import Sequence

from salm_lightning.reproduce.cells import Cell, Result
from salm_lightning.reproduce.paper import table
from salm_lightning.runs.record import DONE

PARTS = ("clean", "cropped_clean", "protected", "cropped_protected")
"""Columns of Table 4 that the Gap is made of."""
_SIGNS = {"up": 1, "down": -1}


def gap(clean: float, cropped_clean: float, protected: float, cropped_protected: float) -> float:
    """Return the change of the protected accuracy by cropping, less the change of the clean accuracy by cropping.

    More than 0, the paper's upward arrow, is protection that cropping takes away. The paper: "We calculate the difference in test
    accuracy on the protected data before and after cropping. To minimize the impact of cropping itself on performance, we add the
    difference in test accuracy on the clean data before and after cropping."
    """
    return (cropped_protected - protected) - (cropped_clean - clean)


def with_gaps(results: Sequence[Result]) -> list[Result]:
    """Return Table 4's results with the Gap after the four numbers that it is made of."""
    groups = [results[start : start + len(PARTS)] for start in range(0, len(results), len(PARTS))]
    return [result for parts in groups for result in (*parts, _gap_of(parts))]


def _gap_of(parts: Sequence[Result]) -> Result:
    first = parts[0].cell
    printed = {line["method"]: _SIGNS[line["arrow"]] * float(line["gap"]) for line in table("table4_cropping")}
    cell = Cell(first.dataset, first.method, "gap", None if first.paper is None else printed[first.method], unit="gap")
    undone = next((part for part in parts if part.status != DONE), None)
    if undone is not None:
        return Result(cell, (), undone.seeds, undone.status, undone.reason)
    return Result(cell, tuple(map(gap, *(part.values for part in parts))), parts[0].seeds)
