"""The tables, figures and case studies of the paper, one small object each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from salm_lightning.data import MEDMNIST, Task
from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.noise.selection import class_number
from salm_lightning.reproduce import drawings
from salm_lightning.reproduce.cells import CLEAN, AccuracyOn, Cell, ClassOwners, Experiment, Result, trained
from salm_lightning.reproduce.owners import ClassByClass
from salm_lightning.reproduce.paper import figure, table
from salm_lightning.reproduce.settings import METHODS, Dataset
from salm_lightning.reproduce.victims import MEASURES, Segmented, Similar, Victims
from salm_lightning.runs.record import DONE

_ALL = (CLEAN, *METHODS)
_ARCHITECTURES = ("vgg11", "resnet18", "resnet50", "densenet121")
_PATH = ("pathmnist",)
_FOUR = ("pathmnist", "dermamnist", "octmnist", "chestmnist_224")
_THREE_CLASSES = ("cancer-associated stroma", "colorectal adenocarcinoma epithelium", "lymphocytes")
_GAP_OF = ("clean", "cropped_clean", "protected", "cropped_protected")
"""Columns of Table 4 that the Gap is made of."""


@dataclass(frozen=True)
class Target:
    """A table, figure or case study.

    Attributes:
        title: What it shows, and where it stands.
        datasets: The paper's.
        cells: Returns the cells of a dataset.
        experiment: How they are measured.
        notes: What the paper leaves open, and how it is read here.
        derive: Adds what follows from measured cells.
        draw: Writes the figure.
    """

    title: str
    datasets: tuple[str, ...]
    cells: Callable[[Dataset], list[Cell]]
    experiment: type[Experiment] = Victims
    notes: tuple[str, ...] = ()
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


def _by_method(title: str, name: str, *notes: str) -> Target:
    def cells(dataset: Dataset) -> list[Cell]:
        return [Cell(dataset, method, "", figure(name, method, dataset=dataset), trained(method)) for method in _ALL]

    return Target(title, tuple(line["dataset"].lower() for line in table(name)), cells, notes=notes)


def _architectures(dataset: Dataset) -> list[Cell]:
    cells = []
    for percent, arch, method in itertools.product((10, 30), _ARCHITECTURES, (CLEAN, "salm")):
        paper = figure("table2_architectures", method, dataset=dataset, k=percent, model=arch)
        recipe = trained(method, percent, victim__model__arch=arch)
        cells.append(Cell(dataset, method, f"{arch}, K = {percent}", paper, recipe))
    return cells


def _filters(dataset: Dataset) -> list[Cell]:
    cells = []
    for name, method in itertools.product(("mean", "median", "gaussian"), _ALL):
        recipe = trained(method, victim__model__countermeasure={"class_path": name.capitalize()})
        cells.append(Cell(dataset, method, name, figure("table3_filters", method, dataset=dataset, filter=name), recipe))
    return cells


def _cropping(dataset: Dataset) -> list[Cell]:
    cells = []
    for method, column in itertools.product(METHODS, _GAP_OF):
        paper = figure("table4_cropping", column, dataset=dataset, method=method)
        crop = {"class_path": "CenterCrop"} if column.startswith("cropped") else None
        recipe = trained(CLEAN if column.endswith(CLEAN) else method, victim__model__countermeasure=crop)
        cells.append(Cell(dataset, method, column.replace("_", " "), paper, recipe))
    return cells


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


def _similarity(dataset: Dataset) -> list[Cell]:
    cells = []
    for method, name in itertools.product(METHODS, MEASURES):
        paper = figure("table5_similarity", name, dataset=dataset, method=method)
        cells.append(Cell(dataset, method, "", paper, trained(method), itemgetter(name), name))
    return cells


def _mixes(dataset: Dataset) -> list[Cell]:
    cells = []
    for percent, share in itertools.product((10, 30, 50), range(0, 101, 20)):
        parts = (("mixed", "all"), ("clean_part_only", "clean")) if 0 < share < 100 else (("mixed", ""),)
        for column, part in parts:
            paper = figure("table6_sample_mix", column, dataset=dataset, k=percent, percent_protected=share)
            what = f"K = {percent}, {share} % protected" + (f", {column.replace('_', ' ')}" if part else "")
            recipe = trained("salm", percent, **(_part(share, part) if part else {})) if share else trained(CLEAN)
            cells.append(Cell(dataset, "salm" if share else CLEAN, what, paper, recipe))
    return cells


def _curves_and_percents(dataset: Dataset) -> list[Cell]:
    """Return the left half for the paper's dataset, or one that is none of the paper's, and the right half."""
    cells = []
    if str(dataset) not in _FOUR[1:]:
        for method in (CLEAN, "tap", "em", "salm"):
            paper = figure("table1_methods", method, dataset=dataset)
            cells.append(Cell(dataset, method, f"{drawings.LEFT}, last step", paper, trained(method)))
    for percent in (0, 5, *range(10, 100, 10)):
        method, known = "salm" if percent else CLEAN, percent or 10
        paper = figure("table2_architectures", method, dataset=dataset, k=known, model="resnet18")
        cells.append(Cell(dataset, method, f"{drawings.RIGHT}, K = {percent}", paper, trained(method, known)))
    return cells


def _mix_of_80(dataset: Dataset) -> list[Cell]:
    paper = {
        part: figure("table6_sample_mix", column, dataset=dataset, k=10, percent_protected=80)
        for part, column in (("clean", "clean_part_only"), ("all", "mixed"))
    }
    return [
        Cell(dataset, "salm", what, paper.get(part), trained("salm", **_part(80, part)))
        for what, part in (("20 % clean", "clean"), ("80 % protected", "protected"), ("both", "all"))
    ]


def _confusion(dataset: Dataset) -> list[Cell]:
    numbers, names = _three(dataset), MEDMNIST[dataset.name].class_names
    recipe = trained("salm", generator__model__selection={"classes": list(numbers)})
    others = tuple(sorted(set(range(len(names))) - set(numbers)))
    parts = [(names[number], (number,)) for number in numbers] + [("all other classes", others)]
    return [
        Cell(dataset, "salm", f"only three classes protected: {name}", None, recipe, AccuracyOn(part), "recall")
        for name, part in parts
    ]


def _three_classes(dataset: Dataset) -> list[Cell]:
    numbers, cells = _three(dataset), []
    for arch, method in itertools.product(_ARCHITECTURES, (CLEAN, "salm")):
        recipe = trained(method, victim__model__arch=arch, generator__model__selection={"classes": list(numbers)})
        cells.append(Cell(dataset, method, arch, None, recipe, AccuracyOn(numbers), "accuracy on the three classes"))
    return cells


def _melanoma(dataset: Dataset) -> list[Cell]:
    if str(dataset) != "dermamnist":
        raise ConfigurationError(f"datasets={dataset}: this is about dermamnist alone; leave it out.")
    number, cells = class_number("melanoma", MEDMNIST[dataset.name]), []
    for support, key, shown in (("pathmnist", "case7.1_medical", "pathmnist"), (None, "case7.1_general", "general images")):
        for method, paper in ((CLEAN, None), ("salm", figure("text", "value", key=key))):
            recipe, what = ClassOwners(support, ("melanoma",), 9, method == CLEAN), f"melanoma among {shown}"
            cells.append(Cell(dataset, method, what, paper, recipe))
            cells.append(Cell(dataset, method, what, paper, recipe, AccuracyOn((number,)), "recall of melanoma"))
    return cells


def _every_class(dataset: Dataset) -> list[Cell]:
    mean = figure("text", "value", key="cased2") if str(dataset) == "dermamnist" else None
    paper = {CLEAN: figure("table1_methods", CLEAN, dataset=dataset), "salm": mean}
    cells = []
    for support, method in itertools.product(("pathmnist", "bloodmnist", None), (CLEAN, "salm")):
        recipe = ClassOwners(support, None, 5, method == CLEAN)
        cells.append(Cell(dataset, method, f"each class among {support or 'general images'}", paper[method], recipe))
    return cells


def _masks(dataset: Dataset) -> list[Cell]:
    paper = figure("text", "value", key="fig3") if dataset.size == 224 else None
    return [Cell(dataset, "salm", "", paper, trained("salm"), itemgetter("changed_share"), "pixels segmented otherwise")]


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


_READING_OF_CLASSES = (
    "The paper speaks of 'clean test accuracy'. Where only melanoma carries noise, that cannot be the accuracy on all test images "
    "(67 % of them are melanocytic nevi), so its number stands beside the accuracy and beside the recall of melanoma."
)
_FIRST_THREE = "The figure has no numbers in the text. With another dataset, its first three classes are protected."
TARGETS: Mapping[str, Target] = {
    "table1": _by_method(
        "Table 1: accuracy of RN-18 by method",
        "table1_methods",
        "The paper's drops for PathMNIST at 224 px (70.8, ↓21.9) belong to a clean accuracy of 92.7, and not 90.9 as it prints.",
    ),
    "table2": Target(
        "Table 2: accuracy by architecture, noise made with RN-18",
        _FOUR,
        _architectures,
        notes=("Clean victims do not depend on K; the paper prints others for each K.",),
    ),
    "table3": Target("Table 3: accuracy after low-pass filters of the training images", _FOUR, _filters),
    "table4": Target(
        "Table 4: accuracy before and after cropping the training images",
        _PATH,
        _cropping,
        derive=with_gaps,
        notes=(
            "Gap: the change of the protected accuracy by cropping, less that of the clean one; more than 0 is protection that cropping "
            "takes away. The paper's own columns give -4.5, -4.1, +0.3 and -1.2; it prints 4.5 ↓, 4.1 ↓, 0.2 ↑ and, "
            "with the other sign, 1.2 ↑, and its text takes the downward arrows for a loss of protection.",
            "The paper does not say how much is cut off: the middle 75 % of each side is kept.",
        ),
    ),
    "table5": Target(
        "Table 5: similarity of protected images and originals",
        _PATH,
        _similarity,
        Similar,
        notes=("The paper does not name the dataset; Table 4 beside it is on PathMNIST.",),
    ),
    "table6": Target("Table 6: accuracy by share of protected samples", _PATH, _mixes),
    "table8": _by_method("Table 8: accuracy of RN-18 by method at 224 px", "table8_methods_224"),
    "fig2": Target(
        "Fig. 2: learning curves by method (left), and accuracy by K (right)",
        _FOUR,
        _curves_and_percents,
        draw=drawings.fig2,
        notes=("The figure has no numbers; those beside ours are its settings' in Tables 1 and 2.",),
    ),
    "fig3": Target(
        "Fig. 3: pixels of a segmentation that change",
        ("bloodmnist_224", "retinamnist_224"),
        _masks,
        Segmented,
        notes=(
            "The paper names neither the dataset nor the segmentation model. Here: Otsu's threshold, and for fundus images Sato's ridge "
            "filter for vessels.",
        ),
    ),
    "fig5": Target(
        "Fig. 5: learning curves on 20 % clean, 80 % protected and all samples (left), and t-SNE of them (right)",
        _PATH,
        _mix_of_80,
        draw=drawings.fig5,
        notes=("The figure has no numbers; those beside ours are its settings' in Table 6.",),
    ),
    "fig6": Target(
        "Fig. 6: predictions of RN-18 where three classes are protected",
        _PATH,
        _confusion,
        draw=drawings.fig6,
        notes=(_FIRST_THREE,),
    ),
    "fig7": Target(
        "Fig. 7: accuracy on the three classes, clean and protected",
        _PATH,
        _three_classes,
        draw=drawings.fig7,
        notes=(_FIRST_THREE,),
    ),
    "case7.1": Target(
        "Section 7.1: melanoma protected by an owner who has nothing else of the dataset",
        ("dermamnist",),
        _melanoma,
        ClassByClass,
        (_READING_OF_CLASSES, "Support classes: all nine of PathMNIST, or nine of the folder of general images."),
    ),
    "cased2": Target(
        "Appendix D.2: every class protected by an owner of its own",
        ("dermamnist",),
        _every_class,
        ClassByClass,
        (
            "The paper draws five support classes from PathMNIST, BloodMNIST and CIFAR-10 and prints one number: here five of each in "
            "turn. CIFAR-10 is the folder of general images.",
        ),
    ),
}
"""What can be reproduced, by the name that the command line has for it."""
