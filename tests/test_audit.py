"""``salm-cli audit``: real victims on a few tiny images for what only they show, and a stand-in for them everywhere else."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from fakes import write_fake_npz
from oracles import make_trainer
from torch import Tensor, nn
from torch.optim import SGD

from salm_lightning import commands
from salm_lightning.audit import audit
from salm_lightning.audit.choices import PRESETS, choose_countermeasures, text_of
from salm_lightning.audit.results import (
    NONE,
    Attempt,
    AuditedRelease,
    AuditResult,
    Confusion,
    Figures,
    Unfinished,
    Verdict,
    VictimCurve,
    Word,
    audit_folder,
)
from salm_lightning.audit.trials import Battery, Deadline, OutOfTimeError, Store, Trial, name_of, parse_budget, plan, title_of
from salm_lightning.audit.verdict import attempts_of, judge
from salm_lightning.commands.audit import read_countermeasures
from salm_lightning.countermeasures import (
    JPEG,
    AdversarialTraining,
    CenterCrop,
    Countermeasure,
    FineTune,
    LogisticRegression,
    Mean,
    MedMNISTRecipe,
    TrainingStep,
)
from salm_lightning.data import DatasetInfo, NpzDataModule, SyntheticDataModule, Task
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.main import main
from salm_lightning.metrics import majority_baseline
from salm_lightning.metrics.learned import floors_of
from salm_lightning.models import Architecture
from salm_lightning.modules import VictimModule
from salm_lightning.release import PoisonedDataModule, write_release
from salm_lightning.runs.record import DONE, Run
from salm_lightning.runs.victims import VictimSettings
from salm_lightning.sealed import write_sealed

CARELESS, UNTRIED = "protects only against careless training", "holds against careless training, more was not tried"
INFO = DatasetInfo("tiny", Task.MULTI_CLASS, ("0", "1", "2"), 3, 16)
RESNET18, VGG11 = (Architecture.parse(name) for name in ("resnet18", "vgg11"))
VICTIM = VictimSettings(RESNET18, width=0.125, steps=3)
SHORT = "--width 0.125 --victim_steps 3 --batch_size 8 --accelerator cpu"
OUT = Path("audit")


class Diverging(Countermeasure):
    """Training that leads nowhere."""

    def loss(self, step: TrainingStep) -> Tensor:
        return super().loss(step) * float("nan")


class Stopping(Countermeasure):
    """Somebody ends the program while it trains."""

    def loss(self, step: TrainingStep) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(step)


def make_release(folder: str, source: Path = Path("tiny.npz"), seed: int = 1) -> None:
    data = NpzDataModule(source)
    images = data.split("train").images.astype(int)
    noise = np.random.default_rng(seed).integers(-8, 9, images.shape)
    protected = np.clip(images + noise, 0, 255).astype(np.uint8)
    write_release(folder, data, [protected], {"method": {"name": "salm"}, "seed": 0}, {"norm": "linf", "radius": 8})


@pytest.fixture(autouse=True)
def _place(workplace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    write_fake_npz(tmp_path / "tiny.npz", INFO, (30, 9, 13))
    make_release("protected")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the victims that were trained, each in no time; a protected one is right half as often as a clean one."""
    titles: list[str] = []

    def train(trial: Trial, images: Any, *_: Any) -> tuple[Run, Any]:
        titles.append(trial.title)
        record = fake(trial.identity, 0.8 if trial.trained_on == "clean" else 0.4)
        record.results["title"] = title_of(trial.victim.countermeasure)
        return record, SimpleNamespace(countermeasure=trial.victim.countermeasure, network=nn.Linear(1, 1))

    monkeypatch.setattr(Trial, "train", train)
    monkeypatch.setattr("salm_lightning.audit.run.draw_audit", lambda *_: None)
    return titles


def fake(identity: dict[str, Any], acc: float, best: float | None = None, seconds: float = 60.0) -> Run:
    """Return a victim with this accuracy after the last step, and another one at the best validation accuracy."""
    test = {"acc": acc, "auc": acc, "balanced_acc": acc, "confusion": [[1] * 3] * 3}
    early = {**test, "acc": acc if best is None else best, "balanced_acc": acc if best is None else best}
    data = {"task": "multi-class", "class_names": list("abc")}
    results = {"test": test, "history": {"best_on_val": early, "peak": early}, "majority": 0.2, "data": data}
    shown = {"title": identity["countermeasure"]["name"], "curve": {"steps": [3], "test_acc": [acc]}}
    return Run(identity, DONE, "", seconds, {**shown, **results})


def run(arguments: str = "", release: str = "protected") -> int:
    return main(["audit", release, *shlex.split(f"{SHORT} {arguments}")])


def written() -> dict[str, Any]:
    audit: dict[str, Any] = json.loads((OUT / "audit.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    return audit


def trials(**images: Any) -> list[Trial]:
    identities = images or {"protected": {"sha256": "p"}, "clean": {"sha256": "c"}}
    return plan(identities, VICTIM, 8, [Countermeasure(), Mean()], [RESNET18], [0], cross=True)  # type: ignore[arg-type]


# Real victims -----------------------------------------------------------------------------------------------------------------


def test_an_audit_from_release_to_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--source tiny.npz --countermeasures '[none, mean]' --seeds '[0, 1]'") == 0
    shown = capsys.readouterr().out
    audit = written()
    assert audit["release"] == {
        "name": "tiny",
        "method": "salm",
        "archive_sha256": file_sha256("protected/tiny.npz"),
        "source_sha256": file_sha256("tiny.npz"),
    }
    labels = np.load("tiny.npz")["test_labels"]
    assert audit["majority"] == majority_baseline(labels, Task.MULTI_CLASS, 3)
    assert audit["chance_balanced"] == pytest.approx(1 / 3)
    assert [(row["title"], row["seeds"]) for row in audit["rows"]] == [
        ("none", [0, 1]),
        ("early stopping", [0, 1]),
        ("mean", [0, 1]),
    ]
    with (OUT / "audit.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(list((OUT / "cells").glob("*.json"))) + len(list(Path("cache/twins").glob("*.json"))) == 8
    for row in (audit["rows"][0], audit["rows"][2]):
        for trained_on in ("protected", "clean"):
            own = [line for line in lines if (line["countermeasure"], line["trained_on"]) == (row["title"], trained_on)]
            assert [int(line["seed"]) for line in own] == row["seeds"]
            for key, column in (("acc", "accuracy"), ("balanced_acc", "balanced_accuracy"), ("peak_acc", "peak_accuracy")):
                assert [float(line[column]) for line in own] == row[trained_on][key]
        assert row["drop"] == pytest.approx(np.mean(row["clean"]["acc"]) - np.mean(row["protected"]["acc"]))
        spread = f"{100 * np.mean(row['protected']['acc']):.1f} ± {100 * np.std(row['protected']['acc'], ddof=1):.1f}"
        for text in (shown, (OUT / "audit.md").read_text()):
            assert re.search(rf"{row['title']}.*{spread}", text)
    assert [row["worst"] for row in audit["rows"]].count(True) == 1
    assert (OUT / "audit.md").read_text().count("**" + max(audit["rows"], key=lambda row: row["worst"])["title"] + "**") == 1
    assert audit["verdict"]["word"] in shown
    read = AuditResult.read(OUT, audit["release"]["archive_sha256"])
    assert read is not None
    assert json.loads(json.dumps(read.to_json())) == {key: value for key, value in audit.items() if key != "seal"}, (
        "the report reads what the audit wrote"
    )
    curve = next(c for c in audit["curves"] if (c["trained_on"], c["countermeasure"], c["seed"]) == ("protected", "mean", 1))
    assert curve["steps"] == [1, 2, 3]
    assert curve["test_acc"][-1] == audit["rows"][2]["protected"]["acc"][1]
    assert max(curve["test_acc"]) == audit["rows"][2]["protected"]["peak_acc"][1]
    assert np.sum(audit["confusion"]["protected"]) == np.sum(audit["confusion"]["clean"]) == len(labels)
    assert "GPU available" not in shown

    quality = json.loads((OUT / "quality.json").read_text())
    assert quality["images"] == 30
    assert quality["readable"]["clean_acc"] == pytest.approx(accuracy_of_twin(), abs=1e-6)
    assert {picture["file"] for picture in json.loads((OUT / "pictures.json").read_text())["pictures"]} >= {
        "pictures/battery.png"
    }


def test_from_python_an_audit_prints_nothing_and_returns_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"width": 0.125, "victim_steps": 3, "batch_size": 8, "accelerator": "cpu", "quality": False}
    result = audit("protected", "tiny.npz", countermeasures=[Mean()], archs=["ResNet18"], **given)
    assert capsys.readouterr() == ("", "")
    assert result == AuditResult.read(OUT, file_sha256("protected/tiny.npz"))
    assert [(row.title, row.arch, row.seeds) for row in result.rows] == [
        *(("none", "resnet18", (0,)), ("early stopping", "resnet18", (0,))),
        ("mean", "resnet18", (0,)),
    ]
    assert result.rows[0].clean is not None
    assert result.verdict.word in get_args(Word)
    assert sorted(path.name for path in (OUT / "tensorboard").iterdir()) == sorted(
        [
            "pictures",
            *(f"{kind}_{tried}_resnet18_seed-0_3-steps" for kind in ("protected", "clean") for tried in ("none", "mean")),
        ]
    )
    with pytest.raises(ConfigurationError, match="countermeasures='finetune' needs settings"):
        audit("protected", countermeasures=["finetune"], **given)


class Squeezed(nn.Module):
    """A victim from outside."""

    def __init__(self, num_classes: int, channels: int, hidden: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, hidden), nn.Linear(hidden, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


def test_victims_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{Squeezed.__module__}.Squeezed"
    wide = {"class_path": path, "init_args": {"hidden": 6}}
    arguments = f"--source tiny.npz --countermeasures none --quality false --archs '[{path}, {json.dumps(wide)}, LINEAR]'"
    assert run(f"{arguments} --budget 0.001s") == 0  # gone before the second victim begins
    (command,) = [
        each["command"] for each in written()["skipped"] if each["arch"] == "squeezed-hidden=6" and each["trained_on"] == "clean"
    ]
    assert main(shlex.split(command)[1:]) == 0
    assert "clean, none, squeezed-hidden=6" in capsys.readouterr().out
    assert run(arguments) == 0
    result = written()
    assert [row["arch"] for row in result["rows"] if row["title"] == "none"] == ["squeezed", "squeezed-hidden=6", "linear"]
    assert result["settings"]["archs"] == [{"class_path": path, "init_args": {}}, wide, "linear"]
    networks = [
        json.loads(record.read_text())["identity"]["network"] for record in (OUT / "cells").glob("*squeezed-hidden*.json")
    ]
    assert networks == [wide]


def test_fine_tuning_from_a_checkpoint_is_tied_to_its_content() -> None:
    def keep(seed: int) -> None:
        weights = VictimModule(3, 3, 16, width=0.125, seed=seed).state_dict()
        torch.save({"state_dict": weights}, "victim.ckpt")

    tuning = "--countermeasures '[{class_path: FineTune, init_args: {checkpoint: victim.ckpt}}]' --quality false"
    keep(5)
    assert run(tuning) == 0
    first = {path.name for path in (OUT / "cells").glob("protected-finetune-*.json")}
    assert len(first) == 1
    assert run(tuning) == 0
    assert {path.name for path in (OUT / "cells").glob("protected-finetune-*.json")} == first
    keep(6)
    assert run(tuning) == 0
    assert len(list((OUT / "cells").glob("protected-finetune-*.json"))) == 2, "another victim under the same name"


def accuracy_of_twin() -> float:
    """Return the accuracy on the original training images of the first clean twin, from its file."""
    (record,) = Path("cache/twins").glob("clean-none-resnet18-0-*.json")
    data = NpzDataModule("tiny.npz", batch_size=30)
    module = VictimModule(3, 3, 16, width=0.125).eval()
    module.network.load_state_dict(torch.load(record.with_suffix(".pt"), weights_only=True))
    batch = next(iter(data.train_dataloader()))
    return float((module(batch.images.float() / 255).argmax(1) == batch.labels).float().mean())


def test_a_victim_equals_one_that_is_trained_without_the_audit(tmp_path: Path) -> None:
    data = PoisonedDataModule("protected", batch_size=8)
    trial = Trial("protected", {}, replace(VICTIM, countermeasure=Mean(), seed=3, steps=7), 8)
    record, _ = trial.train(data, tmp_path / "logs", [], "cpu")

    own = PoisonedDataModule("protected", batch_size=8, seed=3)
    module = VictimModule(
        3, 3, 16, width=0.125, countermeasure=Mean(), seed=3, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)
    )
    trainer = make_trainer(tmp_path, 7)
    trainer.fit(module, datamodule=own)
    trainer.test(module, datamodule=own, verbose=False)
    assert module.result is not None
    for name in ("acc", "auc", "confusion"):
        assert record.results["test"][name] == module.result[name]


def test_a_failed_victim_stops_no_other_and_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--countermeasures '[test_audit.Diverging, mean]' --quality false"
    for _ in range(2):
        assert run(arguments) == 1
        assert "FAILED: The weights are not finite" in capsys.readouterr().out
        audit = written()
        assert [row["title"] for row in audit["rows"]] == ["none", "early stopping", "mean"]
        assert [(victim["countermeasure"], victim["reason"][:27]) for victim in audit["skipped"]] == [
            ("diverging", "The weights are not finite ")
        ]


def test_a_signal_leaves_a_state_from_which_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("--countermeasures '[none, test_audit.Stopping]'") == 128 + signal.SIGTERM
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert "The same command goes on" in capsys.readouterr().out
    assert [(row["title"], row["seeds"]) for row in written()["rows"]] == [("none", [0]), ("early stopping", [0])]
    assert [victim["countermeasure"] for victim in written()["skipped"]] == ["stopping"]
    assert run("--countermeasures '[none, mean]'") == 0
    assert "2 victims, of which 1 are done" in capsys.readouterr().out


# What is trained, and what is not trained again -------------------------------------------------------------------------------


def test_nothing_runs_twice(trained: list[str]) -> None:
    first = ["protected, none", "clean, none", "protected, mean", "clean, mean"]
    arguments = "--source tiny.npz --quality false --countermeasures [mean]"
    assert run(arguments) == 0
    assert trained == [f"{name}, resnet18, seed 0" for name in first]
    before = written()
    assert run(arguments) == 0
    assert len(trained) == 4
    assert written() == before
    assert before["seconds"] == 4 * 60

    make_release("other", seed=2)
    assert run(f"{arguments} --out other-audit", "other") == 0
    assert trained[4:] == ["protected, none, resnet18, seed 0", "protected, mean, resnet18, seed 0"], "twins are shared"

    assert run(f"{arguments} --countermeasures [jpeg]") == 0
    assert [row["title"] for row in written()["rows"]] == ["none", "early stopping", "jpeg quality 10", "mean"], (
        "earlier victims stay"
    )
    assert all(row["clean"] is not None for row in written()["rows"])
    assert run(f"{arguments} --victim_steps 4") == 0
    assert [row["title"] for row in written()["rows"]] == ["none", "early stopping", "mean"], "but not those of another length"


def test_victims_that_were_trained_elsewhere_are_trained_again(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "--source tiny.npz --quality false --countermeasures none"
    with monkeypatch.context() as of_the_maker:
        of_the_maker.setenv("SALM_STATE_DIR", "another machine")
        assert run(f"{arguments} --countermeasures [mean]") == 0
    assert len(trained) == 4
    assert run(arguments) == 0
    assert len(trained) == 6
    assert [row["title"] for row in written()["rows"]] == ["none", "early stopping"], "and those that nobody asked for left out"
    (ours,) = (OUT / "cells").glob("protected-none-*.json")
    ours.write_text(ours.read_text().replace('"acc": 0.4', '"acc": 0.1'))
    assert run(arguments) == 0
    assert trained[6:] == ["protected, none, resnet18, seed 0"]
    assert written()["rows"][0]["protected"]["acc"] == [0.4]


def test_a_name_stands_for_all_that_a_result_depends_on(tmp_path: Path) -> None:
    trial = Trial("protected", {"sha256": "a"}, replace(VICTIM, countermeasure=JPEG(quality=50)), 8)

    def victim(**changed: Any) -> Trial:
        return replace(trial, victim=replace(trial.victim, **changed))

    others = [
        replace(trial, trained_on="clean"),
        replace(trial, images={"sha256": "b"}),
        victim(countermeasure=JPEG(quality=51)),
        victim(countermeasure=Countermeasure()),
        victim(arch=VGG11),
        victim(seed=1),
        replace(trial, batch_size=9),
        victim(width=9.0),
        victim(steps=9),
        victim(precision="bf16-mixed"),
    ]
    names = [name_of(other.identity) for other in (trial, *others)]
    assert len(set(names)) == len(names)
    assert names[0] == name_of(victim(countermeasure=JPEG(quality=50)).identity)
    assert names[0].startswith("protected-jpeg-resnet18-0-")

    store = Store(tmp_path)
    path = store.path(trial.identity)
    path.write_text("{}")
    assert store.read(trial.identity) is None
    fake(others[0].identity, 0.5).write(path)
    assert store.read(trial.identity) is None, "a file under a wrong name"
    fake(trial.identity, 0.5).write(path)
    assert store.read(trial.identity) == fake(trial.identity, 0.5)


def test_the_most_telling_victims_come_first() -> None:
    images: Any = {"protected": {"sha256": "p"}, "clean": {"sha256": "c"}}
    countermeasures = [Countermeasure(), Mean()]
    planned = [trial.title for trial in plan(images, VICTIM, 8, countermeasures, [RESNET18, VGG11], [0, 1], cross=False)]
    assert planned[:6] == [
        "protected, none, resnet18, seed 0",
        "clean, none, resnet18, seed 0",
        "protected, none, vgg11, seed 0",
        "clean, none, vgg11, seed 0",
        "protected, mean, resnet18, seed 0",
        "clean, mean, resnet18, seed 0",
    ]
    assert len(planned) == 12
    assert len(plan(images, VICTIM, 8, countermeasures, [RESNET18, VGG11], [0, 1], cross=True)) == 16


def test_countermeasures_by_name_class_and_settings() -> None:
    given = ["jpeg", "JPEG", "Jpeg", {"class_path": "jpeg", "init_args": {"quality": 50}}, "none", "test_audit.Diverging"]
    chosen = choose_countermeasures(read_countermeasures(given), INFO)
    assert [each.settings() for each in chosen[1:3]] == [{"name": "jpeg", "quality": 10}, {"name": "jpeg", "quality": 50}]
    assert type(chosen[0]) is Countermeasure
    assert type(chosen[3]).__name__ == "Diverging"
    assert len(chosen) == 4
    again = read_countermeasures([yaml.safe_load(text_of(each)) for each in chosen])
    assert [(type(each), each.settings()) for each in again] == [(type(each), each.settings()) for each in chosen]
    for preset in PRESETS.values():
        assert len(choose_countermeasures(preset.countermeasures, INFO)) == 1 + len(preset.countermeasures)
    full = [title_of(each) for each in choose_countermeasures(PRESETS["full"].countermeasures, INFO)]
    assert {title.split()[0] for title in full} == {
        *("none", "mean", "median", "gaussian", "centercrop", "jpeg", "grey", "bitdepth", "resample", "cutout", "mixup", "cutmix"),
        *("strongaugment", "uerasermax", "adversarialtraining", "orthogonalprojection", "totalvariation"),
        *("noaugment", "medmnistrecipe", "adamwrecipe", "logisticregression", "randomforest", "nearestneighbours", "hogsvm"),
    }  # fmt: skip
    assert [title for title in full if title.startswith("jpeg")] == ["jpeg quality 10", "jpeg quality 50", "jpeg quality 90"]
    assert sum(title.startswith("adversarialtraining radius") for title in full) == 2
    assert any(title.startswith("adversarialtraining radius 4 ") for title in full)


def test_titles_tell_countermeasures_apart() -> None:
    countermeasures = [Countermeasure(), JPEG(50), AdversarialTraining(radius=4), CenterCrop(), CenterCrop(on_test=True)]
    assert [title_of(countermeasure) for countermeasure in countermeasures] == [
        "none",
        "jpeg quality 50",
        "adversarialtraining radius 4 pgd steps 7",
        "centercrop share 0.75",
        "centercrop share 0.75 on test",
    ]


def test_grey_images_are_not_made_grey(trained: list[str]) -> None:
    write_fake_npz(Path("grey.npz"), replace(INFO, name="grey", channels=1), (30, 9, 13))
    make_release("grey-release", Path("grey.npz"))
    assert run("--quick", "grey-release") == 0
    names = sorted(title.split(", ")[1].split()[0] for title in trained)
    assert names == ["jpeg", "logisticregression", "medmnistrecipe", "none", "resample"]


def test_drawn_originals_are_drawn_again(trained: list[str]) -> None:
    data = SyntheticDataModule(num_classes=3, size=16, train_size=20, val_size=8, test_size=10, seed=4)
    settings = {"method": {"name": "sp"}, "seed": 4}
    write_release("drawn", data, [data.split("train").images], settings, {"norm": "linf", "radius": 8})
    assert run("--source synthetic --countermeasures [none] --quality false", "drawn") == 0
    assert written()["rows"][0]["clean"] is not None
    settings["seed"] = 5
    write_release("drawn", data, [data.split("train").images], settings, {"norm": "linf", "radius": 8}, overwrite=True)
    assert run("--source synthetic", "drawn") == 2


# Time -------------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_budget_is_listed_with_a_command(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--source tiny.npz --quality false --countermeasures '[none, {class_path: JPEG, init_args: {quality: 50}}]'"
    assert run(f"{arguments} --budget 59s") == 0  # a victim takes 60 seconds, as the first one shows
    # What another countermeasure takes is not known from it: JPEG starts once.
    assert trained == ["protected, none, resnet18, seed 0", "protected, jpeg quality 50, resnet18, seed 0"]
    skipped = written()["skipped"]
    assert [(victim["trained_on"], victim["countermeasure"]) for victim in skipped] == [
        ("clean", "none"),
        ("clean", "jpeg quality 50"),
    ]
    assert "about 0:01:00" in skipped[0]["reason"]
    assert written()["verdict"]["word"] == "not judged"
    assert skipped[1]["command"] in (OUT / "audit.md").read_text()
    words = shlex.split(skipped[1]["command"])
    assert words[:2] == ["salm-cli", "audit"]
    assert main(words[1:]) == 0
    assert written()["skipped"] == []
    assert sorted(trained[2:]) == ["clean, jpeg quality 50, resnet18, seed 0", "clean, none, resnet18, seed 0"]


def test_estimates_follow_the_most_similar_victims(tmp_path: Path) -> None:
    images: Any = {"protected": {}, "clean": {}}
    planned = plan(images, VICTIM, 8, [Countermeasure(), Mean()], [RESNET18, VGG11], [0], cross=True)
    stores: Any = {"protected": Store(tmp_path), "clean": Store(tmp_path)}
    battery = Battery(planned, {}, stores, tmp_path, lambda trial: 20.0)
    assert battery.remaining() == 8 * 20
    by_title = {trial.title: trial for trial in planned}
    for title, seconds in (("protected, none, resnet18", 10.0), ("protected, mean, resnet18", 30.0)):
        identity = by_title[f"{title}, seed 0"].identity
        battery.records[name_of(identity)] = fake(identity, 0.5, seconds=seconds)
    assert battery.remaining() == 10 + 30 + 4 * 20


@pytest.mark.parametrize(("left", "seen"), [(1049.0, 11), (1051.0, 20)])
def test_a_victim_that_is_too_slow_is_given_up_after_some_steps(left: float, seen: int) -> None:
    clock: Iterator[float] = iter([0.0, 50.0, 150.0])  # 50 seconds for the first step, then 10 for each
    deadline = Deadline(left, lambda: next(clock))
    trainer: Any = SimpleNamespace(global_step=0, max_steps=101)
    with pytest.raises(OutOfTimeError) if seen < 20 else nullcontext() as caught:
        while trainer.global_step < 20:
            trainer.global_step += 1
            deadline.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert trainer.global_step == seen
    assert caught is None or caught.value.expected == 1050


def test_the_first_victim_is_given_up_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--victim_steps 100000000 --countermeasures none --budget 1h") == 0
    (victim,) = written()["skipped"]
    assert re.fullmatch(r"no time left within the budget: it takes about \d+ days?, [\d:]+", victim["reason"])
    assert written()["rows"] == []
    assert "[1/1] protected, none, resnet18, seed 0: SKIPPED" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


# The verdict ------------------------------------------------------------------------------------------------------------------

FLOORS = {"acc": 0.2, "balanced_acc": 0.2}


def rows(plain: float, mean: float, clean: float | None = 1.0, best: float | None = None, floors: Any = FLOORS) -> list[Attempt]:
    records = []
    for trial in trials():
        treated = trial.victim.countermeasure.name == "mean"
        acc = clean if trial.trained_on == "clean" else mean if treated else plain
        if acc is not None:
            records.append(fake(trial.identity, acc, best if not treated and trial.trained_on == "protected" else None))
    return attempts_of(records, floors)


@pytest.mark.parametrize(
    ("figures", "word", "broken_by", "worst"),
    [
        # Half of the way from 0.2 to 1 is 0.6.
        ({"plain": 0.61, "mean": 0.3}, "does not protect", ["none (resnet18)", "early stopping (resnet18)"], "none"),
        ({"plain": 0.59, "mean": 0.61}, CARELESS, ["mean (resnet18)"], "mean"),
        ({"plain": 0.3, "mean": 0.4, "best": 0.9}, CARELESS, ["early stopping (resnet18)"], "early stopping"),
        ({"plain": 0.3, "mean": 0.59}, "protects", [], "mean"),
        ({"plain": 0.05, "mean": 0.1}, "protects", [], "mean"),
        ({"plain": 0.3, "mean": 0.2, "clean": None}, "not judged", [], "none"),
        ({"plain": 0.25, "mean": 0.2, "clean": 0.29}, "not judged", [], "none"),
    ],
)  # fmt: skip
def test_verdicts(figures: dict[str, Any], word: str, broken_by: list[str], worst: str) -> None:
    made = rows(**figures)
    verdict = judge(made, FLOORS, ["a limit"])
    assert (verdict.word, list(verdict.broken_by)) == (word, broken_by)
    assert [row.title for row in made if row.worst] == [worst]
    assert verdict.not_covered == ("a limit",)
    assert word != CARELESS or broken_by[0] in verdict.text


@pytest.mark.parametrize(("twin", "word"), [(None, UNTRIED), (0.59, UNTRIED), (0.61, "protects")])
def test_a_release_protects_only_if_something_was_tried_that_could_have_broken_it(twin: float | None, word: str) -> None:
    plain, clean, treated, treated_twin = trials()
    records = [fake(plain.identity, 0.3), fake(clean.identity, 1.0), fake(treated.identity, 0.3)]
    assert judge(attempts_of(records[:2], FLOORS), FLOORS, []).word == UNTRIED
    records += [] if twin is None else [fake(treated_twin.identity, twin)]
    assert judge(attempts_of(records, FLOORS), FLOORS, []).word == word


def test_what_is_kept_is_the_larger_share_of_both_measures() -> None:
    """The victim never beats the most common class, and yet tells classes apart half as well as its twin."""
    protected, clean = trials()[:2]
    weak, strong = fake(protected.identity, 0.6), fake(clean.identity, 0.8)
    weak.results["test"]["balanced_acc"] = 0.5
    row = attempts_of([weak, strong], {"acc": 0.6, "balanced_acc": 0.2})[0]
    assert row.kept == pytest.approx((0.5 - 0.2) / (0.8 - 0.2))


def test_several_labels_are_judged_by_auc() -> None:
    assert floors_of(Task.MULTI_LABEL, 14, 0.95) == {"auc": 0.5}
    made = rows(0.7, 0.55, clean=0.8, floors={"auc": 0.5})
    assert judge(made, {"auc": 0.5}, []).word == "does not protect"


@pytest.mark.parametrize(
    ("tried", "word", "said"),
    [
        (MedMNISTRecipe(), "does not protect", "Trained in an ordinary way (medmnistrecipe), resnet18 reaches"),
        (
            LogisticRegression(),
            CARELESS,
            "or takes no network, gets around it (more than 50% counts as learned): logisticregression",
        ),
    ],
)
def test_recipes_are_ordinary_and_models_that_are_no_networks_are_a_way_around(
    tried: Countermeasure, word: str, said: str
) -> None:
    images: Any = {"protected": {"sha256": "p"}, "clean": {"sha256": "c"}}
    planned = plan(images, VICTIM, 8, [Countermeasure(), tried], [RESNET18], [0], cross=True)
    reached = {("protected", "none"): 0.3, ("clean", "none"): 0.8, ("protected", tried.name): 0.7, ("clean", tried.name): 1.0}
    made = attempts_of([fake(trial.identity, reached[trial.trained_on, trial.kind[1]]) for trial in planned], FLOORS)
    verdict = judge(made, FLOORS, [])
    assert verdict.word == word
    assert said in verdict.text
    # The best ordinary twin is what there is to learn.
    assert next(row.kept for row in made if row.countermeasure == NONE) == pytest.approx(
        0.1 / (0.8 if made[-1].is_ordinary else 0.6)
    )


def test_countermeasures_that_ruin_clean_images_too_are_named() -> None:
    protected, clean, treated, twin = trials()
    for reached, told in ((0.59, True), (0.61, False)):
        records = [fake(trial.identity, acc) for trial, acc in ((protected, 0.2), (clean, 1.0), (treated, 0.3), (twin, reached))]
        verdict = judge(attempts_of(records, FLOORS), FLOORS, [])
        assert ["mean (resnet18)" in limit for limit in verdict.not_covered] == [True] * told


def test_seeds_that_are_missing_leave_gaps() -> None:
    images: Any = {"protected": {"sha256": "p"}, "clean": {"sha256": "c"}}
    planned = plan(images, VICTIM, 8, [Countermeasure()], [RESNET18], [0, 1], cross=True)
    row = attempts_of([fake(trial.identity, acc) for trial, acc in zip(planned, (0.3, 0.9, 0.5), strict=False)], FLOORS)[0]
    assert row.clean is not None
    assert (row.seeds, row.protected.acc, row.clean.acc) == ((0, 1), (0.3, 0.5), (0.9, None))
    assert row.drop == pytest.approx(0.6)  # of the one seed that both have


# The file of results --------------------------------------------------------------------------------------------------------

FIGURES = Figures(*[(0.6, None)] * 5)
RESULT = AuditResult(
    release=AuditedRelease("tiny", "salm", "a1"),
    settings={"width": 0.125, "seeds": [0, 1]},
    majority=0.5,
    chance_balanced=0.25,
    rows=(Attempt("none", "none", {"name": "none"}, "resnet18", (0, 1), FIGURES, FIGURES, drop=-0.1, kept=1.2, worst=True),),
    skipped=(Unfinished("mean", "vit", 1, "clean", "too long", "salm-cli audit", "skipped"),),
    verdict=Verdict(
        "holds against careless training, more was not tried", "text", ("none (resnet18)",), ("a limit",), {"kept_limit": 0.5}
    ),
    confusion=Confusion(((3, 1), (2, 2)), None, ("left", "right")),
    curves=(VictimCurve("clean", "vit", 0, "none", (5, 10), (0.4, 0.5)),),
    seconds=3.5,
)


def edited(path: str, value: Any) -> dict[str, Any]:
    """Return the JSON of a result with another value at a path such as ``rows.0.title``; ``...`` takes it away."""
    values: Any = json.loads(json.dumps(RESULT.to_json()))
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = functools.reduce(lambda inner, key: inner[key], parents, values)
    place[last] = value
    if value is ...:
        del place[last]
    return values  # type: ignore[no-any-return]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert AuditResult.read(tmp_path, "a1") is None
    RESULT.write(tmp_path)
    assert AuditResult.read(tmp_path, "a1") == RESULT
    write_sealed(tmp_path / "audit.json", edited("skipped.0.status", ...) | {"of a later version": 1})
    read = AuditResult.read(tmp_path, "a1")
    assert read is not None
    assert read.skipped[0].status == "open"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format_version", 2, "has format_version=2, this version of salm_lightning reads 1"),
        ("release.archive_sha256", "b2", "audit.json is about another release (archive_sha256='b2'"),
        ("release", ..., "audit.json lacks 'release'"),
        ("majority", 1.2, "audit.json: majority must be a number from 0 to 1, it is 1.2"),
        ("rows", {}, "audit.json: rows must be a list, it is {}"),
        ("rows.0", None, "audit.json: rows[0] must be an object, it is None"),
        ("rows.0.title", 3, "audit.json: rows[0].title must be a text, it is 3"),
        ("rows.0.worst", 1, "audit.json: rows[0].worst must be true or false, it is 1"),
        ("rows.0.kept", "1", "audit.json: rows[0].kept must be a number, it is '1'"),
        ("rows.0.seeds.0", True, "audit.json: rows[0].seeds[0] must be a whole number from 0, it is True"),
        ("rows.0.seeds.0", 0.0, "audit.json: rows[0].seeds[0] must be a whole number from 0, it is 0.0"),
        ("rows.0.clean.acc", [0.5], "audit.json: rows[0].clean.acc must have a number for each of the 2 seeds, it has 1"),
        ("verdict.word", "fine", "audit.json: verdict.word='fine' must be one of: protects, "),
        ("verdict.word", [], "audit.json: verdict.word=[] must be one of: protects, "),
        ("confusion.protected", [[1, 2]], "audit.json: confusion.protected must have 2 rows and columns"),
        ("confusion.protected.0.1", -1, "audit.json: confusion.protected[0][1] must be a whole number from 0, it is -1"),
        ("curves.0.trained_on", "cleann", "audit.json: curves[0].trained_on='cleann' must be one of: protected, clean."),
        ("settings", [], "audit.json: settings must be an object, it is []"),
        ("seconds", 10**400, "audit.json: seconds must be a number, it is 1000"),
    ],
)
def test_a_result_of_wrong_values_is_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    write_sealed(tmp_path / "audit.json", edited(path, value))
    with pytest.raises(ReleaseError, match=re.escape(message)):
        AuditResult.read(tmp_path, "a1")


@pytest.mark.parametrize("text", ["", "[" * 10**5, '{"majority": NaN}', "3"])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(ReleaseError, match=r"audit\.json.*make it again"):
        AuditResult.read(tmp_path, "a1")


def test_names_in_a_release_are_shown_and_not_obeyed(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path("protected/manifest.json")
    manifest.write_text(manifest.read_text().replace('"name": "salm"', r'"name": "[/red]\u001b[2J"'))
    assert run("--countermeasures none") == 0
    assert r"([/red]\x1b[2J)" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "protected"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [".lock", "tensorboard", "cells", "pictures", "audit.json", "tensorboard/deep"])
@pytest.mark.parametrize("command", ["audit", "quality"])
def test_links_of_a_delivered_folder_lead_nowhere(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: list[str]
) -> None:
    """``audit/tensorboard`` was once a way into somebody's home."""
    home = tmp_path / "home"
    for place in ("pictures", "protected_none_resnet18_seed-0_3-steps"):
        (home / place).mkdir(parents=True)
        (home / place / "events.out.tfevents.1").write_text("mine")
    before = sorted(home.rglob("*"))
    (OUT / name).parent.mkdir(parents=True)
    (OUT / name).symlink_to(home)
    assert main([command, "protected", "--source", "tiny.npz", *(shlex.split(SHORT) if command == "audit" else [])]) == 2
    assert f"{OUT / name} is a link that leads out of {OUT}; remove it" in capsys.readouterr().err
    shutil.rmtree(OUT)
    OUT.symlink_to(home)
    for command in ("audit", "quality", "report"):
        assert main([command, "protected", *([] if command == "report" else ["--source", "tiny.npz"])]) == 2
        assert f"{OUT} is a link, which whoever made the release may have laid" in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before
    assert trained == []


@pytest.mark.filterwarnings("ignore:.*MD5.*")
def test_nothing_is_deleted_that_no_run_has_made(tmp_path: Path) -> None:
    mine = tmp_path / "home/tensorboard/pictures/thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["quality", "protected", "--source", "tiny.npz", "--out", "home"]) == 0
    assert mine.read_text() == "mine"


# Errors -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("--countermeasures [jpg]", ["countermeasures='jpg'", "did you mean 'jpeg'"]),
        ("--countermeasures jpg", ["countermeasures='jpg'", "did you mean 'jpeg'"]),
        ("--countermeasures '[{class_path: JPEG, init_args: {qualty: 3}}]'", ["qualty", "did you mean 'quality'"]),
        ("--countermeasures '[{class_path: JPEG, init_args: {quality: 300}}]'", ["quality=300 is out of range"]),
        ("--countermeasures [3]", ["countermeasures"]),
        ("--archs [resnet19]", ["archs='resnet19'", "did you mean 'resnet18'"]),
        ("--archs []", ["archs is empty"]),
        ("--seeds []", ["seeds is empty"]),
        ("--seeds [-1]", ["seeds=-1 is out of range"]),
        ("--width 0", ["width=0.0 is out of range"]),
        ("--victim_steps 0", ["victim_steps=0 is out of range"]),
        ("--batch_size 0", ["batch_size=0 is too small"]),
        ("--budget 30", ["budget='30'", "30m"]),
        ("--quick --preset paper", ["contradict"]),
        ("--preset papr", ["--preset=papr", "did you mean 'paper'"]),
        ("--source other.npz", ["source=other.npz is not what", "its SHA-256 is", "that of the original, tiny.npz, is"]),
        ("--source missing.npz", ["missing.npz: no such file"]),
        ("--source tiny.npz --segmenter nothing", ["nothing"]),
        (
            "--source tiny.npz --segmenter torchscript:many.pt",
            ["segmenter=torchscript:many.pt does not take images [1, 3, 16, 16]"],
        ),
        ("--accelerator gpuu", ["accelerator=gpuu", "Give auto, cpu or gpu"]),
        ("--out protected/audit", ["out=protected/audit lies in the release"]),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments: str, fragments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("other.npz"), INFO, (30, 9, 13), seed=7)
    if "many.pt" in arguments:
        torch.jit.script(nn.Conv2d(5, 1, 1)).save("many.pt")
    assert main(["audit", "protected", *shlex.split(arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("salm-cli: error: ")
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert not OUT.exists()


def test_a_damaged_release_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    archive = Path("protected/tiny.npz")
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert run() == 2
    assert "is not what was released" in capsys.readouterr().err


def test_the_commands_of_the_page_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs/audit.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    taken: list[dict[str, Any]] = []

    @functools.wraps(commands.function_of("audit"))
    def read(**given: Any) -> int:
        taken.append(given)
        return 0

    monkeypatch.setattr(commands, "function_of", lambda _: read)
    for line in lines:
        assert line[0] == "salm-cli"
        assert main(line[1:]) == 0
    assert [each.name for each in read_countermeasures(taken[1]["countermeasures"])] == ["grey", "jpeg"]


class Tuning(Countermeasure):
    """Trained as fine-tuning is."""

    optimizer = FineTune.optimizer


def test_what_trains_a_victim_belongs_to_architecture_and_countermeasure() -> None:
    data, rates = PoisonedDataModule("protected"), {}
    for arch in (RESNET18, Architecture.parse("vit")):
        for each in (Countermeasure(), Tuning()):
            trial = Trial("protected", {}, replace(VICTIM, arch=arch, countermeasure=each), 8)
            built: Any = trial.victim.module(data).build_optimizer([nn.Parameter(torch.zeros(1))])
            named = trial.identity["optimizer"]
            rates[arch.name, each.name] = (type(built).__name__, built.defaults["lr"], named and named["init_args"]["lr"])
            assert arch.name == "vit" or (built.defaults["momentum"], built.defaults["weight_decay"]) == (0.9, 5e-4)
    assert rates == {
        ("resnet18", "countermeasure"): ("SGD", 0.1, None),
        ("vit", "countermeasure"): ("AdamW", 0.001, 0.001),
        ("resnet18", "tuning"): ("SGD", 0.01, 0.01),
        ("vit", "tuning"): ("AdamW", 0.001, 0.001),
    }


def test_the_default_folder_is_beside_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit_folder(Path("runs/protected"), None) == Path("runs/audit")
    assert audit_folder(Path("protected"), Path("elsewhere")) == Path("elsewhere")
    monkeypatch.chdir("protected")
    assert audit_folder(Path(), None) == Path.cwd().parent / "audit"
