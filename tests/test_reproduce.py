"""``salm-cli reproduce``: the paper's numbers, the targets, and runs at toy size or with a stand-in for the fit."""

from __future__ import annotations

import csv
import json
import re
import shlex
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import pretend_fit, write_fake_npz
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from salm_lightning.audit.pictures import Album
from salm_lightning.data import MEDMNIST, MedMNISTDataModule
from salm_lightning.data.datamodule import default_batch_size
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.main import main
from salm_lightning.release import Manifest
from salm_lightning.reproduce import drawings, paper
from salm_lightning.reproduce.cells import AccuracyOn, Cell, ClassOwners, Recipe, Result, accuracy
from salm_lightning.reproduce.owners import ClassByClass
from salm_lightning.reproduce.pages import save
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.reproduce.targets import TARGETS, gap, with_gaps
from salm_lightning.reproduce.victims import Victims
from salm_lightning.runs import estimate
from salm_lightning.runs.estimate import Estimator, Network, Unit, Work
from salm_lightning.runs.record import FAILED
from salm_lightning.sweep import runners
from salm_lightning.sweep.job import Job

pytestmark = pytest.mark.usefixtures("workplace")
TOY = "--scale 0.0004 --width 0.125 --accelerator cpu --out out"  # 2 generator steps, 8 victim steps
SETUP = "scale=0.0004,width=0.125,precision=32-true,seeds=0"
BLOOD = Dataset("bloodmnist")


def reproduce(arguments: str) -> int:
    return main(["reproduce", *shlex.split(f"{arguments} {TOY}")])


def lines() -> list[dict[str, str]]:
    with Path("out/reproduce.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that ran, each with the artefacts of a fit instead of the fit."""
    ran: list[str] = []

    def pretend(job: Job, *_: Any, **__: Any) -> None:
        ran.append(job.name)
        model = job.settings["model"]["init_args"]
        clean, cropped = job.needs is None, model.get("countermeasure") is not None
        pretend_fit(job, acc=(0.9 if clean else 0.4) - cropped * (0.1 if clean else 0.15) + job.settings["seed_everything"] / 100)

    monkeypatch.setattr(runners, "work", pretend)
    monkeypatch.setattr(runners.Local, "pause", 0.001)
    return ran


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: MedMNISTDataModule) -> None:
        raise DataError(f"{data.source_path}: no such file, and it cannot be downloaded (no connection).")

    monkeypatch.setattr(MedMNISTDataModule, "_download", fail)


@pytest.fixture
def blood() -> dict[str, np.ndarray]:
    return write_fake_npz(Path("bloodmnist.npz"), MEDMNIST["bloodmnist"], (40, 16, 16))


# The paper's numbers ----------------------------------------------------------------------------------------------------------

TYPED = [  # read off the text of the paper: target, dataset, method, what, number
    ("table1", "pathmnist", "clean", "", 90.7),
    ("table1", "chestmnist", "em", "", 78.7),
    ("table1", "bloodmnist", "salm", "", 7.1),
    ("table1", "tissuemnist", "sp", "", 7.3),
    ("table1", "pathmnist_224", "tap", "", 70.8),
    ("table1", "chestmnist_224", "salm", "", 25.4),
    ("table2", "pathmnist", "clean", "densenet121, K = 10", 96.4),
    ("table2", "dermamnist", "salm", "resnet18, K = 30", 4.0),
    ("table2", "octmnist", "salm", "densenet121, K = 30", 30.0),
    ("table2", "chestmnist_224", "salm", "vgg11, K = 10", 27.3),
    ("table3", "pathmnist", "em", "median", 7.2),
    ("table3", "octmnist", "clean", "median", 79.6),
    ("table3", "dermamnist", "salm", "gaussian", 40.6),
    ("table3", "chestmnist_224", "sp", "mean", 58.2),
    ("table4", "pathmnist", "sp", "cropped protected", 12.3),
    ("table4", "pathmnist", "em", "clean", 90.6),
    ("table6", "pathmnist", "clean", "K = 50, 0 % protected", 91.5),
    ("table6", "pathmnist", "salm", "K = 10, 60 % protected, clean part only", 87.2),
    ("table6", "pathmnist", "salm", "K = 30, 80 % protected, mixed", 89.2),
    ("table6", "pathmnist", "salm", "K = 50, 100 % protected", 10.3),
    ("table8", "octmnist_224", "em", "", 14.6),
    ("table8", "organamnist_224", "salm", "", 82.1),
    ("fig2", "pathmnist", "em", "left, last step", 13.5),
    ("fig2", "dermamnist", "salm", "right, K = 30", 4.0),
    ("fig3", "retinamnist_224", "salm", "", 0.4),
    ("fig5", "pathmnist", "salm", "20 % clean", 89.2),
    ("fig5", "pathmnist", "salm", "both", 88.3),
    ("case7.1", "dermamnist", "salm", "melanoma among pathmnist", 9.9),
    ("case7.1", "dermamnist", "salm", "melanoma among general images", 8.1),
    ("cased2", "dermamnist", "salm", "each class among bloodmnist", 10.3),
]


@pytest.mark.parametrize(("target", "dataset", "method", "what", "number"), TYPED)
def test_numbers_are_those_of_the_paper(target: str, dataset: str, method: str, what: str, number: float) -> None:
    found = [cell for cell in TARGETS[target].choose([dataset], None) if (cell.method, cell.what) == (method, what)]
    assert found
    assert {cell.paper for cell in found} == {number}


def test_similarity_has_the_paper_s_five_measures() -> None:
    found = {(cell.method, cell.unit): cell.paper for cell in TARGETS["table5"].choose(None, None)}
    assert len(found) == 20
    assert [found["salm", name] for name in ("ssim", "ahash", "phash", "dhash", "nmi")] == [94.4, 77.9, 89.4, 77.2, 44.7]
    assert [found[method, "nmi"] for method in ("tap", "em", "sp")] == [42.7, 42.9, 99.9]


@pytest.mark.parametrize(
    ("target", "cells", "numbers"),
    [
        ("table1", 14 * 5, 14 * 5), ("table2", 4 * 4 * 2 * 2, 64), ("table3", 4 * 3 * 5, 60), ("table4", 4 * 4, 16),
        ("table5", 20, 20), ("table6", 3 * 10, 30), ("table8", 10 * 5, 50),
        ("fig2", 4 + 4 * 11, 4 + 4 * 3), ("fig3", 2, 2), ("fig5", 3, 2), ("fig6", 4, 0), ("fig7", 8, 0),
        ("case7.1", 8, 4), ("cased2", 6, 6),
    ],
)  # fmt: skip
def test_every_cell_is_there(target: str, cells: int, numbers: int) -> None:
    """Every number of a table has a cell, and no two cells are the same."""
    found = TARGETS[target].choose(None, None)
    assert len(found) == cells
    assert sum(cell.paper is not None for cell in found) == numbers
    assert len({(cell.dataset, cell.method, cell.what, cell.unit) for cell in found}) == cells


def test_every_target_of_the_issue_is_known() -> None:
    assert list(TARGETS) == [
        "table1", "table2", "table3", "table4", "table5", "table6", "table8",
        "fig2", "fig3", "fig5", "fig6", "fig7", "case7.1", "cased2",
    ]  # fmt: skip


@pytest.mark.parametrize("file", sorted((Path(paper.__file__).parent / "numbers").glob("*.csv")), ids=lambda path: path.stem)
def test_every_file_of_numbers_names_its_source(file: Path) -> None:
    first, *_ = file.read_text().splitlines()
    assert first.startswith("# arXiv 2403.10573v1, ")
    if file.stem == "text":
        assert all(line["source"].startswith(("Section ", "Appendix ")) for line in paper.table("text"))
    else:
        assert "Table " + file.stem.removeprefix("table").partition("_")[0] in first


def test_a_dataset_that_the_paper_lacks_has_no_number() -> None:
    for target in ("table2", "table3", "table4", "table5", "table6"):
        assert {cell.paper for cell in TARGETS[target].choose(["bloodmnist"], None)} == {None}


# What is run ------------------------------------------------------------------------------------------------------------------


def test_settings_are_the_paper_s() -> None:
    settings = Settings()
    for dataset, steps, batch_size in ((Dataset("pathmnist"), 5000, 128), (Dataset("pathmnist", 224), 3000, 64)):
        generator = settings.generator(dataset)
        assert generator["trainer"]["max_steps"] == steps
        assert generator["data"]["init_args"] == {"name": "pathmnist"}
        assert default_batch_size(dataset.size) == batch_size
        assert generator["model"]["init_args"] == {"method": "SALM", "loop": "fresh", "width": 1.0}
    assert settings.victim()["trainer"]["max_steps"] == 20000
    tenth = Settings(scale=0.1, width=0.5)
    assert tenth.generator(Dataset("pathmnist"))["trainer"]["max_steps"] == 500
    assert tenth.victim()["trainer"]["max_steps"] == 2000
    assert tenth.victim()["model"]["init_args"] == {"width": 0.5}


def _planned(target: str, methods: list[str] | None = None, count: int | None = None) -> list[tuple[Cell, Job]]:
    cells = TARGETS[target].choose(["bloodmnist"], methods)[:count]
    experiment = TARGETS[target].experiment(cells, Settings(0.0004, 0.125, out=Path("out")))
    assert isinstance(experiment, Victims)
    return [(cell, rows[0]) for cell, rows in zip(cells, experiment.victims, strict=True)]


def test_mixes_train_on_the_part_that_the_table_names(blood: object) -> None:
    planned = _planned("table6", count=3)
    found = []
    for cell, job in planned:
        needs = job.needs and job.needs.settings["model"]["init_args"]
        part = job.settings["data"]["init_args"].get("part")
        found.append((cell.what, needs and (needs["method"]["init_args"]["percent"], needs["selection"]["percent"]), part))
    assert found == [
        ("K = 10, 0 % protected", None, None),
        ("K = 10, 20 % protected, mixed", (10.0, 20.0), "all"),
        ("K = 10, 20 % protected, clean part only", (10.0, 20.0), "clean"),
    ]
    assert planned[1][1].needs is planned[2][1].needs


def test_tables_share_their_runs(blood: object) -> None:
    """Table 1's victims are the uncropped ones of Table 4."""
    names = {target: {job.name for _, job in _planned(target, ["sp"])} for target in ("table1", "table4")}
    assert len(names["table1"]) == 2
    assert names["table1"] < names["table4"]
    assert len(names["table4"]) == 4


def test_a_filter_is_a_countermeasure_of_clean_and_protected_victims(blood: object) -> None:
    for cell, job in _planned("table3", ["sp"], 2):
        countermeasure = job.settings["model"]["init_args"]["countermeasure"]["class_path"]
        assert (cell.what, countermeasure.rpartition(".")[2]) == ("mean", "Mean")
        assert (job.needs is None) == (cell.method == "clean")


def test_three_classes_of_pathmnist_are_protected() -> None:
    recipe = TARGETS["fig6"].choose(None, None)[0].recipe
    assert isinstance(recipe, Recipe)
    (chosen,) = recipe.options.values()
    names = [MEDMNIST["pathmnist"].class_names[number] for number in chosen["classes"]]
    assert names == ["cancer-associated stroma", "colorectal adenocarcinoma epithelium", "lymphocytes"]


def test_support_classes_are_the_paper_s() -> None:
    recipes = dict.fromkeys(str(cell.recipe) for cell in TARGETS["case7.1"].choose(None, ["salm"]) if cell.method == "salm")
    assert list(recipes) == [str(ClassOwners(support, ("melanoma",), 9)) for support in ("pathmnist", None)]
    found = {cell.recipe for cell in TARGETS["cased2"].choose(None, None) if cell.method == "salm"}
    assert found == {ClassOwners(support, None, 5) for support in ("pathmnist", "bloodmnist", None)}


@pytest.mark.slow
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_can_be_planned(target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(estimate, "_PATIENCE", 0.0)
    assert reproduce(f"{target} --dry_run true") == 0
    shown = capsys.readouterr().out
    assert re.search(r"\b0 of \d+ runs are done", shown)
    assert not Path("out").exists()


# What is measured -------------------------------------------------------------------------------------------------------------


def test_the_gap_of_the_paper_s_own_rows() -> None:
    """By hand: TAP (12.7 - 26.5) - (81.9 - 91.2) = -4.5, and so on; the paper rounds SP's 0.3 down and turns SALM's sign."""
    found = {
        line["method"]: round(
            gap(*(float(line[name]) for name in ("clean", "cropped_clean", "protected", "cropped_protected"))), 1
        )
        for line in paper.table("table4_cropping")
    }
    assert found == {"tap": -4.5, "em": -4.1, "sp": 0.3, "salm": -1.2}
    printed = {line["method"]: (float(line["gap"]), line["arrow"]) for line in paper.table("table4_cropping")}
    assert printed == {"tap": (4.5, "down"), "em": (4.1, "down"), "sp": (0.2, "up"), "salm": (1.2, "up")}
    for method in ("tap", "em"):
        assert printed[method] == (-found[method], "down")
    assert abs(found["sp"] - printed["sp"][0]) < 0.11
    assert abs(found["salm"]) == printed["salm"][0]


def test_gaps_follow_their_four_cells() -> None:
    cells = TARGETS["table4"].choose(None, ["em"])
    values = [(90.0, 92.0), (80.0, 84.0), (30.0, 31.0), (25.0, 22.0)]
    results = [Result(cell, numbers, 2) for cell, numbers in zip(cells, values, strict=True)]
    *_, last = with_gaps(results)
    assert (last.cell.unit, last.cell.paper) == ("gap", -4.1)
    assert last.values == (5.0, -1.0)
    assert last.difference == pytest.approx(2.0 + 4.1)
    *_, last = with_gaps([*results[:3], Result(cells[3], (25.0,), 2, FAILED, "it fell over")])
    assert (last.values, last.status, last.reason) == ((), FAILED, "it fell over")


def test_accuracy_on_some_classes() -> None:
    confusion = [[8, 1, 1], [2, 6, 12], [0, 5, 15]]
    assert AccuracyOn((0, 1))({"confusion": confusion}) == pytest.approx(100 * (8 + 6) / (10 + 20))
    assert AccuracyOn((2,))({"confusion": confusion}) == pytest.approx(75.0)
    assert AccuracyOn((0, 1)).constant({"confusion": confusion}) == pytest.approx(100 * 20 / 30)
    assert accuracy({"acc": 0.625}) == 62.5


def test_differences_and_spread() -> None:
    result = Result(Cell(BLOOD, "em", paper=30.5), (40.0, 42.0, 47.0), 3)
    assert (result.ours, result.difference) == (43.0, 12.5)
    assert result.spread == pytest.approx(13**0.5)
    assert Result(Cell(BLOOD, "em", paper=30.5)).difference is None
    assert Result(Cell(BLOOD, "em"), (40.0,)).difference is None


def test_lines_of_other_targets_and_settings_stay() -> None:
    def line(method: str, value: float, target: str = "table1", scale: float = 1.0) -> str:
        result = Result(Cell(BLOOD, method, paper=30.5), (value,), majority=20.0)
        return save(target, [result], Settings(scale, out=Path("out")))

    line("em", 50.0)
    line("sp", 51.0)
    line("em", 52.0, scale=0.1)
    line("em", 53.0, "table8")
    section = line("em", 54.0)
    assert [(row["target"], row["method"], row["scale"], row["ours"]) for row in lines()] == [
        ("table1", "sp", "1", "51"), ("table1", "em", "0.1", "52"), ("table1", "em", "1", "54"), ("table8", "em", "1", "53"),
    ]  # fmt: skip
    page = Path("out/reproduce.md").read_text()
    assert page.count("## Table 1") == 2
    assert section in page
    assert "+23.5" in section
    assert "+21.5" not in section


def test_a_table_with_its_majority_and_its_spread(
    blood: object, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = "table1 --datasets [bloodmnist] --methods [sp] --seeds [0,2]"
    assert reproduce(command) == 0
    clean, protected = lines()
    columns = ("paper", "ours", "done", "difference", "majority", "status")
    assert [clean[name] for name in columns] == ["95.8", "91", "2 of 2", "-4.8", "25", "done"]
    assert [protected[name] for name in columns] == ["30.5", "41", "2 of 2", "10.5", "25", "done"]
    assert float(clean["spread"]) == pytest.approx(2**0.5, rel=1e-5)
    printed = capsys.readouterr().out
    assert "Training steps: 0.0004 of the paper's; width of the models: 0.125 of theirs; 32-true" in printed
    assert "majority class (no model)" in printed
    assert len(pretended) == 2 * 3

    pretended.clear()
    assert reproduce(command) == 0
    assert pretended == [], "what is done is not made again"

    assert reproduce(command.replace("[0,2]", "[0]")) == 0
    assert [line["done"] for line in lines()] == ["2 of 2"] * 2 + ["1 of 1"] * 2, "the mean of both seeds stays"


def test_what_is_missing_or_fails_is_said_and_the_others_go_on(
    blood: object, offline: None, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend = runners.work

    def diverge(job: Job, *rest: Any) -> None:
        if not job.makes_release and job.needs is not None:
            job.note(FAILED, 1.0, "the loss is not finite")
        else:
            pretend(job, *rest)

    monkeypatch.setattr(runners, "work", diverge)
    assert reproduce("table1 --datasets [pathmnist,bloodmnist] --methods [sp]") == 1
    found = {(row["dataset"], row["method"]): row for row in lines()}
    assert {key: (row["ours"], row["status"]) for key, row in found.items()} == {
        ("pathmnist", "clean"): ("", "skipped"), ("pathmnist", "sp"): ("", "skipped"),
        ("bloodmnist", "clean"): ("90", "done"), ("bloodmnist", "sp"): ("", "failed"),
    }  # fmt: skip
    assert "pathmnist.npz: no such file, and it cannot be downloaded" in found["pathmnist", "sp"]["reason"]
    assert (found["pathmnist", "sp"]["paper"], found["pathmnist", "sp"]["difference"]) == ("12.2", "")
    printed = capsys.readouterr().out
    assert "- **failed**: bloodmnist sp: the loss is not finite" in printed
    assert "- **skipped**: pathmnist clean, pathmnist sp: " in printed
    assert "3 of 4 cells have no number" in printed
    assert reproduce("table1 --datasets pathmnist --methods SP --seeds 0") == 1, "nothing to run is no error of its own"


def test_case_studies_say_what_they_lack(offline: None) -> None:
    assert reproduce("case7.1") == 1
    assert {(row["what"], row["status"], row["paper"]) for row in lines() if row["method"] == "salm"} == {
        ("melanoma among pathmnist", "skipped", "9.9"), ("melanoma among general images", "skipped", "8.1"),
    }  # fmt: skip
    reasons = {row["what"]: row["reason"] for row in lines()}
    assert "--general FOLDER" in reasons["melanoma among general images"]
    assert "dermamnist.npz: no such file" in reasons["melanoma among pathmnist"]


def test_figures_are_drawn_of_what_has_finished(blood: object, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend = runners.work

    def with_curve(job: Job, *rest: Any) -> None:
        pretend(job, *rest)
        if not job.makes_release:
            pretend_fit(job, confusion=[[2 + (row == column) for column in range(8)] for row in range(8)])
            with SummaryWriter(job.folder) as writer:
                for step in (2, 4):
                    writer.add_scalar("test_curve/acc", step / 10, step)

    monkeypatch.setattr(runners, "work", with_curve)
    assert reproduce("fig6 --datasets [bloodmnist]") == 0
    assert {row["what"]: round(float(row["ours"]), 3) for row in lines() if row["target"] == "fig6"} == {
        f"only three classes protected: {name}": 17.647
        for name in ("basophil", "eosinophil", "erythroblast", "all other classes")
    }
    (picture,) = (Path("out") / SETUP / "pictures").iterdir()
    assert picture.name == "fig6-bloodmnist.png"
    assert f"![fig6-bloodmnist]({SETUP}/pictures/fig6-bloodmnist.png)" in Path("out/reproduce.md").read_text()
    assert np.asarray(Image.open(picture)).std() > 1
    board = EventAccumulator(str(Path("out") / SETUP / "tensorboard/pictures"), size_guidance={"images": 0}).Reload()
    assert board.Tags()["images"] == ["fig6-bloodmnist"]
    job = Job(Path("out"), next(path.parent.name for path in Path("out").glob("bloodmnist-*/events*")), {})
    assert drawings._learning_curve(job) == ([2.0, 4.0], pytest.approx([0.2, 0.4]))


def _victim(name: str, arch: str, **test: Any) -> Job:
    """A finished victim with a learning curve of two steps."""
    job = Job(Path("out"), name, {}, values={"arch": arch})
    pretend_fit(job, **test)
    with SummaryWriter(job.folder) as writer:
        for step in (1, 2):
            writer.add_scalar("test_curve/acc", test["acc"] * step / 2, step)
    return job


def _figures(target: str, cells: list[Cell], rows: list[list[Job]], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Draw a target's figure; return what each chart was given."""
    given: list[Any] = []
    for name in ("curves_figure", "percent_figure", "battery_figure"):
        chart = getattr(drawings, name)
        monkeypatch.setattr(drawings, name, lambda *parts, chart=chart: given.append(parts) or chart(*parts))
    draw = TARGETS[target].draw
    assert draw is not None
    draw(SimpleNamespace(cells=cells, victims=rows), Album(Path("out")))
    return given


def test_curves_by_method_and_accuracy_by_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = TARGETS["fig2"].choose(["bloodmnist"], None)
    rows = [[_victim(f"v{number}", "resnet18", acc=number / 20)] for number in range(len(cells))]
    rows[3] = []  # SALM's curve is missing
    curves, percents = _figures("fig2", cells, rows, monkeypatch)
    ((title, drawn),) = curves[0].items()
    assert (title, curves[1]) == ("bloodmnist", 0.25)
    assert [(curve.label, list(curve.steps), curve.accuracy[-1]) for curve in drawn] == [
        ("clean", [1, 2], 0.0), ("tap", [1, 2], pytest.approx(0.05)), ("em", [1, 2], pytest.approx(0.1)),
    ]  # fmt: skip
    assert percents[0] == {"bloodmnist": [(k, number / 20) for number, k in enumerate((0, 5, *range(10, 100, 10)), start=4)]}
    assert percents[1] == {"bloodmnist": 0.25}
    assert sorted(path.name for path in Path("out/pictures").iterdir()) == ["fig2-left-bloodmnist.png", "fig2-right.png"]


def test_bars_of_the_three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = TARGETS["fig7"].choose(["bloodmnist"], None)[:2]
    confusion = np.zeros((8, 8), int)
    confusion[:3] = [[4, 0, 0] + [0] * 5, [3, 1, 0] + [0] * 5, [0, 0, 2] + [6] + [0] * 4]
    rows = [
        [_victim(f"clean{seed}", "vgg11", acc=0.5, confusion=confusion.tolist()) for seed in (0, 1)],
        [_victim("protected", "vgg11", acc=0.5, confusion=np.eye(8, k=1, dtype=int).tolist())],
    ]
    ((bars, majority),) = _figures("fig7", cells, rows, monkeypatch)
    assert [(bar.label, list(bar.protected), list(bar.clean)) for bar in bars] == [("vgg11", [0.0], [7 / 16, 7 / 16])]
    assert majority == pytest.approx(8 / 16)


def test_clean_and_protected_rows_have_the_same_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 300)
    protected = np.random.default_rng(1).random(300) < 0.8
    clean_rows, protected_rows = drawings._same_classes(labels, protected)
    assert np.array_equal(labels[clean_rows], labels[protected_rows])
    assert not protected[clean_rows].any()
    assert protected[protected_rows].all()
    assert len(np.unique(clean_rows)) == len(clean_rows) == (~protected).sum()


# Estimates --------------------------------------------------------------------------------------------------------------------


def _costs(target: str) -> dict[str, Work]:
    """Plan a target of PathMNIST without its file; return the work of a run by its words, of the first run of each kind."""
    cells = TARGETS[target].choose(["pathmnist"], None)
    experiment = TARGETS[target].experiment(cells, Settings(out=Path("out"), download=False))
    assert isinstance(experiment, Victims)
    jobs = {job.name.rpartition("-")[0]: job for job in experiment.jobs(victim for row in experiment.victims for victim in row)}
    return {name: job.cost.works[0] for name, job in jobs.items() if job.cost}


def test_work_is_what_the_paper_s_settings_take() -> None:
    """PathMNIST has 89,996, 10,004 and 7,180 images: 704, 79 and 57 batches."""
    found = _costs("table1")
    network, size = Network("resnet18", 1.0, 3, 28, 128), 107180 * 3 * 28 * 28
    assert found["pathmnist-salm"] == Work(
        network, 5000, gradient=5000 * 10 + 10 * 704, reading=20 * 79, bytes=size, keeps_weights=True
    )
    assert found["pathmnist-tap"] == Work(
        network, training=5000, gradient=250 * 704, reading=20 * 79, bytes=size, keeps_weights=True
    )
    assert found["pathmnist-sp"] == Work(network, bytes=size)
    victim = Work(network, training=20000, reading=40 * (79 + 57) + 57, keeps_weights=True)
    assert found["pathmnist-salm-resnet18"] == found["pathmnist-clean-resnet18"] == victim


def test_work_of_owners() -> None:
    def works(target: str, support: str) -> tuple[Work, ...]:
        cells = TARGETS[target].choose(None, ["salm"])
        experiment = TARGETS[target].experiment(cells, Settings(out=Path("out"), download=False))
        assert isinstance(experiment, ClassByClass)
        cell = next(cell for cell in cells if isinstance(cell.recipe, ClassOwners) and cell.recipe.support == support)
        return experiment._cost(cell, 0).works

    part, *others = works("case7.1", "pathmnist")
    images = 7007 // 7 + 9 * (89996 // 9)
    assert (part.training, part.gradient) == (5000, 10 * (5000 + -(-images // 128)))
    assert [victim.training for victim in others] == [20000, 20000]
    assert len(works("cased2", "pathmnist")) == 9


def test_a_dry_run_shows_what_each_run_takes(
    blood: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Estimator, "unit", lambda *_: Unit(training=0.5, gradient=0.1, reading=0.0, weights=10**6))
    command = "reproduce fig3 --datasets [bloodmnist] --scale 0.1 --width 0.125 --accelerator cpu --out out --dry_run true"
    assert main(shlex.split(command)) == 0
    (run,) = [line.split() for line in capsys.readouterr().out.splitlines() if " open " in line]
    seconds = 500 * 0.5 + (500 * 10 + 10 * 94) * 0.1  # 11,959 training images are 94 batches
    assert run[3:6] == [str(timedelta(seconds=seconds)), f"{(17092 * 3 * 784 + 8e6) / 1e6:.0f}", "MB"]
    assert not Path("out").exists()


# Real runs --------------------------------------------------------------------------------------------------------------------


def _folder(root: Path) -> Path:
    for name in ("cat", "dog", "tree"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.slow
def test_melanoma_by_its_owner_alone(capsys: pytest.CaptureFixture[str], offline: None) -> None:
    write_fake_npz(Path("dermamnist.npz"), MEDMNIST["dermamnist"], (42, 14, 14))
    write_fake_npz(Path("pathmnist.npz"), MEDMNIST["pathmnist"], (27, 9, 9))
    command = f"case7.1 --general {_folder(Path('photos'))}"
    assert reproduce(command) == 0
    found = lines()
    assert len(found) == 8
    assert {row["status"] for row in found} == {"done"}
    for row in found:
        if row["method"] == "salm":
            assert float(row["difference"]) == pytest.approx(float(row["ours"]) - float(row["paper"]), abs=1e-3)
    folders = sorted(Path("out").glob("dermamnist-classwise-*"))
    assert [folder.name.rpartition("-")[0] for folder in folders] == [
        "dermamnist-classwise-general", "dermamnist-classwise-pathmnist",
    ]  # fmt: skip
    general, medical = (Manifest.read(folder / "protected").settings for folder in folders)
    assert general["support_classes"] == ["cat", "dog", "tree"]
    assert medical["support_classes"] == list(MEDMNIST["pathmnist"].class_names)
    assert (general["loop"], general["steps"], general["victim_steps"]) == ("fresh", 2, 8)
    shown = {(row["method"], row["measure"]): float(row["ours"]) for row in found if "pathmnist" in row["what"]}
    for name, method in (("clean", "clean"), ("protected", "salm")):
        test = json.loads((folders[1] / f"victim-{name}/results.json").read_text())["test"]
        assert shown[method, "accuracy"] == pytest.approx(100 * test["acc"], abs=1e-3)
        assert shown[method, "recall of melanoma"] == pytest.approx(100 * test["recall"][4], abs=1e-3)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("victim-*/*")}
    assert reproduce(command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("victim-*/*")} == before


@pytest.mark.slow
def test_cropping_from_the_command_line(blood: object, pretended: list[str]) -> None:
    assert reproduce("table4 --datasets [bloodmnist] --methods [sp]") == 0
    expected = {"clean": 90, "cropped clean": 80, "protected": 40, "cropped protected": 25, "gap": -5}
    assert {row["what"]: float(row["ours"]) for row in lines()} == pytest.approx(expected)


@pytest.mark.slow
def test_real_fits_of_the_mix(blood: object) -> None:
    assert reproduce("fig5 --datasets [bloodmnist]") == 0
    assert {row["status"] for row in lines()} == {"done"}
    assert sorted(path.name for path in (Path("out") / SETUP / "pictures").iterdir()) == [
        "fig5-left-bloodmnist.png", "fig5-right-bloodmnist.png",
    ]  # fmt: skip
    results = json.loads(next(Path("out").glob("*-salm-resnet18-*/results.json")).read_text())
    assert results["steps"] == 8


@pytest.mark.slow
def test_similarity_of_a_real_release(blood: dict[str, np.ndarray]) -> None:
    from skimage.metrics import structural_similarity

    assert reproduce("table5 --datasets [bloodmnist] --methods [sp]") == 0
    found = {row["measure"]: float(row["ours"]) for row in lines()}
    (release,) = Path("out").glob("*-sp-*/protected/bloodmnist.npz")
    protected = np.load(release, allow_pickle=False)["train_images"]
    expected = [
        structural_similarity(
            before / 255,
            after / 255,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for before, after in zip(blood["train_images"], protected, strict=True)
    ]
    assert found["ssim"] == pytest.approx(100 * np.mean(expected), abs=0.5)
    assert all(0 < found[name] <= 100 for name in ("ahash", "phash", "dhash", "nmi"))
    assert reproduce("fig3 --datasets [bloodmnist]") == 0
    assert 0 <= float(lines()[-1]["ours"]) <= 100


# Mistakes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("table9", "target='table9' is not known; did you mean 'table8'?"),
        ("table1 --datasets [pathmnits]", "datasets='pathmnits' is not known; did you mean 'pathmnist'?"),
        ("table1 --datasets []", "datasets=[] names no dataset"),
        ("table2 --methods [sp]", "methods='sp' is not known. Choices: salm."),
        ("table2 --methods SP", "methods='sp' is not known. Choices: salm."),
        ("case7.1 --datasets [bloodmnist]", "datasets=bloodmnist: this is about dermamnist alone"),
        ("fig6 --datasets [breastmnist]", "datasets=breastmnist does not do: three classes of at least four"),
        ("fig6 --datasets [chestmnist]", "datasets=chestmnist does not do: three classes of at least four"),
        ("table1 --seeds [1,1]", "seeds=[1, 1] has to name one or more seeds, each once"),
        ("table1 --seeds [-1]", "seeds=-1 is out of range"),
        ("table1 --workers 0", "workers=0 is out of range"),
        ("cased2 --general nowhere", "general=nowhere is no folder"),
        ("table1 --precision 8", "precision"),
    ],
)
def test_mistakes(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(arguments) == 2
    assert expected in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("settings", [{"scale": 0}, {"width": -1}, {"seeds": ()}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))}="):
        Settings(**settings)
