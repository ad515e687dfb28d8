"""The tables, figures and case studies of the paper, one small object each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from operator import itemgetter
from typing import Any

import yaml

from salm_lightning.data import MEDMNIST, Task
from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.noise.selection import class_number
from salm_lightning.reproduce import drawings
from salm_lightning.reproduce.cells import CLEAN, AccuracyOn, Cell, ClassOwners, Experiment, Result, trained
from salm_lightning.reproduce.owners import ClassByClass
from salm_lightning.reproduce.paper import figure, table
from salm_lightning.reproduce.settings import METHODS, Dataset, Settings
from salm_lightning.reproduce.victims import MEASURES, Releases, Victims, segmentation, similarity
from salm_lightning.runs.record import DONE

_ALL = (CLEAN, *METHODS)
_ARCHITECTURES = ("vgg11", "resnet18", "resnet50", "densenet121")
_ELSEWHERE = ("dermamnist", "octmnist", "chestmnist_224")
"""Datasets of Fig. 2 whose learning curves the paper does not show."""
_THREE_CLASSES = ("cancer-associated stroma", "colorectal adenocarcinoma epithelium", "lymphocytes")
_GAP_OF = ("clean", "cropped_clean", "protected", "cropped_protected")
"""Columns of Table 4 that the Gap is made of."""


@dataclass(frozen=True)
class Target:
    """A table, figure or case study.

    Attributes:
        title: What it shows, and where it stands.
        datasets: The paper's.
        cells: Yields the cells of a dataset.
        experiment: How they are measured.
        notes: What the paper leaves open, and how it is read here.
        derive: Adds what follows from measured cells.
        draw: Writes the figure.
    """

    title: str
    datasets: Sequence[str]
    cells: Callable[[Dataset], Iterator[Cell]]
    experiment: Callable[[Sequence[Cell], Settings], Experiment] = Victims
    notes: Sequence[str] = ()
    derive: Callable[[Sequence[Result]], list[Result]] = list
    draw: Callable[..., None] | None = None

    def choose(self, datasets: Iterable[str] | None, methods: Iterable[str] | None) -> list[Cell]:
        """Return the cells of some datasets, by default the paper's, and methods, by default all; the clean ones always.

        Datasets have MedMNIST's names, with ``_224`` for the larger size; methods are ``tap``, ``em``, ``sp`` and ``salm``, in any case.

        Raises:
            ConfigurationError: A name is not known, or the target does not have it.
        """
        names = self.datasets if datasets is None else dict.fromkeys(datasets)
        cells = [cell for name in names for cell in self.cells(Dataset.named(name))]
        if not cells:
            raise ConfigurationError("datasets=[] names no dataset; leave it out for the paper's.")
        if methods is None:
            return cells
        known = dict.fromkeys(cell.method for cell in cells if cell.method != CLEAN)
        wanted = {CLEAN, *(look_up("methods", name.lower(), known) for name in methods)}
        return [cell for cell in cells if cell.method in wanted]


def _by_method(table_name: str, dataset: Dataset) -> Iterator[Cell]:
    for method in _ALL:
        yield Cell(dataset, method, "", figure(table_name, method, dataset=dataset), trained(method))


def _architectures(dataset: Dataset) -> Iterator[Cell]:
    for percent, arch, method in itertools.product((10, 30), _ARCHITECTURES, (CLEAN, "salm")):
        paper = figure("table2_architectures", method, dataset=dataset, k=percent, model=arch)
        recipe = trained(method, percent, victim__model__arch=arch)
        yield Cell(dataset, method, f"{arch}, K = {percent}", paper, recipe)


def _filters(dataset: Dataset) -> Iterator[Cell]:
    for name, method in itertools.product(("mean", "median", "gaussian"), _ALL):
        recipe = trained(method, victim__model__countermeasure={"class_path": name.capitalize()})
        yield Cell(dataset, method, name, figure("table3_filters", method, dataset=dataset, filter=name), recipe)


def _cropping(dataset: Dataset) -> Iterator[Cell]:
    for method, column in itertools.product(METHODS, _GAP_OF):
        paper = figure("table4_cropping", column, dataset=dataset, method=method)
        crop = {"class_path": "CenterCrop"} if column.startswith("cropped") else None
        recipe = trained(CLEAN if column.endswith(CLEAN) else method, victim__model__countermeasure=crop)
        yield Cell(dataset, method, column.replace("_", " "), paper, recipe)


def gap(clean: float, cropped_clean: float, protected: float, cropped_protected: float) -> float:
    """Return the change of the protected accuracy by cropping, less the change of the clean accuracy by cropping (Section 5).

    More than 0, the paper's upward arrow, is protection that cropping takes away. The paper: "We calculate the difference in test
    accuracy on the protected data before and after cropping. To minimize the impact of cropping itself on performance, we add the
    difference in test accuracy on the clean data before and after cropping."
    """
    return (cropped_protected - protected) - (cropped_clean - clean)


def with_gaps(results: Sequence[Result]) -> list[Result]:
    """Return Table 4's results with the Gap after the four numbers that it is made of."""
    printed = {line["method"]: (1 if line["arrow"] == "up" else -1) * float(line["gap"]) for line in table("table4_cropping")}
    found = []
    for start in range(0, len(results), len(_GAP_OF)):
        parts = results[start : start + len(_GAP_OF)]
        first, undone = parts[0].cell, next((part for part in parts if part.status != DONE), None)
        cell = Cell(first.dataset, first.method, "gap", None if first.paper is None else printed[first.method], unit="gap")
        result = Result(cell, tuple(map(gap, *(part.values for part in parts))), parts[0].seeds)
        found += [*parts, Result(cell, (), undone.seeds, undone.status, undone.reason) if undone else result]
    return found


def _similarity(dataset: Dataset) -> Iterator[Cell]:
    for method, name in itertools.product(METHODS, MEASURES):
        paper = figure("table5_similarity", name, dataset=dataset, method=method)
        yield Cell(dataset, method, "", paper, trained(method), itemgetter(name), name)


def _mixes(dataset: Dataset) -> Iterator[Cell]:
    for percent, share in itertools.product((10, 30, 50), range(0, 101, 20)):
        parts = (("mixed", "all"), ("clean_part_only", "clean")) if 0 < share < 100 else (("mixed", ""),)
        for column, part in parts:
            paper = figure("table6_sample_mix", column, dataset=dataset, k=percent, percent_protected=share)
            what = f"K = {percent}, {share} % protected" + (f", {column.replace('_', ' ')}" if part else "")
            recipe = trained("salm", percent, **(_part(share, part) if part else {})) if share else trained(CLEAN)
            yield Cell(dataset, "salm" if share else CLEAN, what, paper, recipe)


def _curves_and_percents(dataset: Dataset) -> Iterator[Cell]:
    """Yield the left half for the paper's dataset, or one that is none of the paper's, and the right half."""
    if str(dataset) not in _ELSEWHERE:
        for method in (CLEAN, "tap", "em", "salm"):
            paper = figure("table1_methods", method, dataset=dataset)
            yield Cell(dataset, method, f"{drawings.LEFT}, last step", paper, trained(method))
    for percent in (0, 5, *range(10, 100, 10)):
        method, known = "salm" if percent else CLEAN, percent or 10
        paper = figure("table2_architectures", method, dataset=dataset, k=known, model="resnet18")
        yield Cell(dataset, method, f"{drawings.RIGHT}, K = {percent}", paper, trained(method, known))


def _mix_of_80(dataset: Dataset) -> Iterator[Cell]:
    paper = {
        part: figure("table6_sample_mix", column, dataset=dataset, k=10, percent_protected=80)
        for part, column in (("clean", "clean_part_only"), ("all", "mixed"))
    }
    for what, part in (("20 % clean", "clean"), ("80 % protected", "protected"), ("both", "all")):
        yield Cell(dataset, "salm", what, paper.get(part), trained("salm", **_part(80, part)))


def _confusion(dataset: Dataset) -> Iterator[Cell]:
    numbers, names = _three(dataset), MEDMNIST[dataset.name].class_names
    recipe = trained("salm", generator__model__selection={"classes": list(numbers)})
    others = tuple(sorted(set(range(len(names))) - set(numbers)))
    for name, part in [(names[number], (number,)) for number in numbers] + [("all other classes", others)]:
        yield Cell(dataset, "salm", f"only three classes protected: {name}", None, recipe, AccuracyOn(part), "recall")


def _three_classes(dataset: Dataset) -> Iterator[Cell]:
    numbers = _three(dataset)
    for arch, method in itertools.product(_ARCHITECTURES, (CLEAN, "salm")):
        recipe = trained(method, victim__model__arch=arch, generator__model__selection={"classes": list(numbers)})
        yield Cell(dataset, method, arch, None, recipe, AccuracyOn(numbers), "accuracy on the three classes")


def _melanoma(dataset: Dataset) -> Iterator[Cell]:
    if str(dataset) != "dermamnist":
        raise ConfigurationError(f"datasets={dataset}: this is about dermamnist alone; leave it out.")
    number = class_number("melanoma", MEDMNIST[dataset.name])
    for support, key, shown in (("pathmnist", "case7.1_medical", "pathmnist"), (None, "case7.1_general", "general images")):
        for method, paper in ((CLEAN, None), ("salm", figure("text", "value", key=key))):
            recipe, what = ClassOwners(support, ("melanoma",), 9, method == CLEAN), f"melanoma among {shown}"
            yield Cell(dataset, method, what, paper, recipe)
            yield Cell(dataset, method, what, paper, recipe, AccuracyOn((number,)), "recall of melanoma")


def _every_class(dataset: Dataset) -> Iterator[Cell]:
    mean = figure("text", "value", key="cased2") if str(dataset) == "dermamnist" else None
    paper = {CLEAN: figure("table1_methods", CLEAN, dataset=dataset), "salm": mean}
    for support, method in itertools.product(("pathmnist", "bloodmnist", None), (CLEAN, "salm")):
        recipe = ClassOwners(support, None, 5, method == CLEAN)
        yield Cell(dataset, method, f"each class among {support or 'general images'}", paper[method], recipe)


def _masks(dataset: Dataset) -> Iterator[Cell]:
    paper = figure("text", "value", key="fig3") if dataset.size == 224 else None
    yield Cell(dataset, "salm", "", paper, trained("salm"), itemgetter("changed_share"), "pixels segmented otherwise")


def _part(share: int, part: str) -> dict[str, Any]:
    """Return the options of a victim on a part of a dataset of which so many percent are protected."""
    return {"generator__model__selection": {"percent": share}, "victim__data__part": part}


def _three(dataset: Dataset) -> tuple[int, ...]:
    """Return the numbers of the paper's three classes, or the first three of another dataset."""
    info = MEDMNIST[dataset.name]
    if dataset.name == "pathmnist":
        return tuple(class_number(name, info) for name in _THREE_CLASSES)
    if info.task is Task.MULTI_LABEL or info.num_classes < 4:
        raise ConfigurationError(f"datasets={dataset} does not do: three classes of at least four are protected, one per image.")
    return (0, 1, 2)


_HOW: Mapping[str, Mapping[str, Any]] = {
    "table1": {"cells": partial(_by_method, "table1_methods")},
    "table2": {"cells": _architectures},
    "table3": {"cells": _filters},
    "table4": {"cells": _cropping, "derive": with_gaps},
    "table5": {"cells": _similarity, "experiment": partial(Releases, name="similarity", compare=similarity)},
    "table6": {"cells": _mixes},
    "table8": {"cells": partial(_by_method, "table8_methods_224")},
    "fig2": {"cells": _curves_and_percents, "draw": drawings.fig2},
    "fig3": {"cells": _masks, "experiment": partial(Releases, name="segmentation", compare=segmentation)},
    "fig5": {"cells": _mix_of_80, "draw": drawings.fig5},
    "fig6": {"cells": _confusion, "draw": drawings.fig6},
    "fig7": {"cells": _three_classes, "draw": drawings.fig7},
    "case7.1": {"cells": _melanoma, "experiment": ClassByClass},
    "cased2": {"cells": _every_class, "experiment": ClassByClass},
}
_WHAT: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    files("salm_lightning.reproduce").joinpath("targets.yaml").read_text(encoding="utf-8")
)
TARGETS: Mapping[str, Target] = {name: Target(**_WHAT[name], **how) for name, how in _HOW.items()}
"""What can be reproduced, by the name that the command line has for it."""
