"""``salm-cli protect``: from images to a protected copy with a first proof, on a few tiny images."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_npz
from lightning.pytorch import LightningModule

from salm_lightning.data import MEDMNIST, SyntheticDataModule
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.release import Manifest
from salm_lightning.runs.summary import verdict

OUT = Path("out")
SHORT = "--out out --steps 2 --victim_steps 2 --width 0.125 --batch_size 8 --accelerator cpu"


@pytest.fixture(autouse=True)
def _mine(workplace: None, tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", MEDMNIST["breastmnist"], (20, 8, 10))


def _protect(arguments: str) -> int:
    return main(["protect", *shlex.split(arguments)])


@pytest.mark.filterwarnings("ignore:.*MD5.*")
def test_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("bloodmnist.npz"), MEDMNIST["bloodmnist"], (20, 8, 10))
    assert _protect(f"bloodmnist {SHORT} --victim_steps 11 --method.percent 20 --seed 3") == 0
    shown = capsys.readouterr().out
    for number, text in enumerate(("making the noise: salm, 2 steps", "victim on the clean", "victim on the protected"), 1):
        assert f"[{number}/3] " in shown
        assert text in shown

    manifest = Manifest.read(OUT / "protected")
    assert manifest.settings["method"]["percent"] == 20
    assert manifest.settings["seed"] == 3
    assert (manifest.settings["optimizer"]["class"], manifest.settings["optimizer"]["lr"]) == ("SGD", 0.02)
    assert manifest.settings["lr_scheduler"]["fractions"] == [0.4, 0.8]
    original = np.load("bloodmnist.npz", allow_pickle=False)
    released = np.load(OUT / "protected/bloodmnist.npz", allow_pickle=False)
    change = released["train_images"].astype(int) - original["train_images"]
    assert 1 <= np.abs(change).max() <= 8
    assert np.array_equal(released["test_images"], original["test_images"])

    clean, protected = (json.loads((OUT / f"victim-{name}/results.json").read_text()) for name in ("clean", "protected"))
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:5]] for line in shown.splitlines() if "│" in line
    }
    for name, results in (("clean images", clean), ("protected images", protected)):
        test = results["test"]
        assert results["steps"] == 11  # validated every 2 steps
        assert {name: results["history"]["last"][name] for name in ("acc", "auc", "balanced_acc")} == {
            name: test[name] for name in ("acc", "auc", "balanced_acc")
        }
        assert rows[name] == [f"{test['acc']:.1%}", f"{test['auc']:.3f}", f"{test['balanced_acc']:.1%}"]
    shares = np.bincount(original["test_labels"][:, 0]) / len(original["test_labels"])
    assert rows["majority class (no model)"] == [f"{shares.max():.1%}", "0.500", "12.5%"]
    assert rows["largest change (l-inf)"][0] == f"{np.abs(change).max()} of 255 (bound 8)"
    assert rows["images covered"][0] == "20 of 20"
    assert "Time taken:        0:00:" in shown

    assert (
        shown.index("width 0.125, 2 steps for the noise with cnn, 11 for each victim")
        < shown.index("This takes about")
        < shown.index("[1/3]")
    )
    verdicts = ("Nothing is shown:", "Protected, as far as", "Not protected:")
    assert sum(text in shown for text in verdicts) == 1
    assert "the clean validation and test images, too, 18 of 38" in shown
    assert 'medmnist.BloodMNIST("train", root="out/protected", download=False)' in shown
    record = json.loads((OUT / "protect.json").read_text())
    assert record["status"] == "done"
    assert record["seconds"] > 0
    for name in ("Check it:", "Report on it:"):
        (command,) = [line.partition("salm-cli ")[2] for line in shown.splitlines() if line.startswith(name)]
        assert main(shlex.split(command)) == 0
    assert "compared with" in capsys.readouterr().out
    assert f"Attack it:         salm-cli audit out/protected --source {Path.cwd()}/bloodmnist.npz" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_victim_trains_ends_with_its_exit_code(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning alone would end the process with 1 after Ctrl-C."""
    handlers = [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(VictimModule, "on_train_batch_start", lambda *_: os.kill(os.getpid(), number))
    assert _protect(f"mine.npz {SHORT}") == 128 + number
    assert "interrupted; repeat the command" in capsys.readouterr().err
    assert [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)] == handlers


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, module: type[LightningModule], step: int, seen: list[int]) -> None:
    """Have somebody end the program once, when a training comes to a step; ``seen`` gets the steps of all trainings."""

    def count(self: LightningModule, *_: object) -> None:
        seen.append(self.global_step)
        if self.global_step == step and seen.count(step) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "on_train_batch_start", count)


def test_an_interrupted_training_of_the_noise_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    short = f"mine.npz {SHORT} --steps 20 --proof false"
    assert _protect(f"{short} --out whole") == 0
    seen: list[int] = []
    _interrupt_at(monkeypatch, NoiseGeneratorModule, 13, seen)
    assert _protect(short) == 143
    assert not (OUT / "protected").exists()
    assert _protect(short) == 0
    assert seen == [*range(14), *range(14, 20)]
    assert (OUT / "protected/mine.npz").read_bytes() == Path("whole/protected/mine.npz").read_bytes()


def test_an_interrupted_proof_goes_on_with_the_victim_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    _interrupt_at(monkeypatch, VictimModule, 1, seen)
    assert _protect(f"mine.npz {SHORT}") == 143
    assert seen == [0, 1]
    assert json.loads((OUT / "protect.json").read_text())["status"] == "interrupted"
    assert _protect(f"mine.npz {SHORT} --seed 1") == 2
    assert "out=out holds a result with other settings (seed is 0 there and 1 here)" in capsys.readouterr().err
    assert _protect(f"mine.npz {SHORT}") == 0
    shown = capsys.readouterr().out
    assert "[1/3] the noise: done before" in shown
    assert "majority class (no model)" in shown
    assert seen == [0, 1, 0, 1], "the interrupted victim had taken its last step"
    results = OUT / "victim-protected/results.json"
    results.write_text(results.read_text().replace('"acc": ', '"acc": 1'))  # by somebody else
    assert _protect(f"mine.npz {SHORT}") == 0
    assert "[2/3] a victim on the clean images: done before" in capsys.readouterr().out
    assert seen == [0, 1, 0, 1, 0, 1]
    made = (OUT / "protected/mine.npz").stat().st_mtime_ns
    assert _protect(f"mine.npz {SHORT}") == 0, "what is finished is shown again"
    assert "majority class (no model)" in capsys.readouterr().out
    assert len(seen) == 6
    assert (OUT / "protected/mine.npz").stat().st_mtime_ns == made


def test_a_replacement_that_was_interrupted_is_not_taken_for_what_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _protect(f"mine.npz {SHORT} --proof false") == 0
    old = Manifest.read(OUT / "protected")
    seen: list[int] = []
    _interrupt_at(monkeypatch, NoiseGeneratorModule, 1, seen)
    again = f"mine.npz {SHORT} --steps 4 --proof false --method.percent 20"
    assert _protect(f"{again} --overwrite true") == 143
    assert Manifest.read(OUT / "protected") == old, "it stays until the new one stands"
    assert _protect(again) == 0
    assert seen == [0, 1, 2, 3]
    assert Manifest.read(OUT / "protected").settings["method"]["percent"] == 20
    assert _protect(again) == 0, "what is finished is shown again"
    assert len(seen) == 4


def test_an_unfinished_result_of_other_settings_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupt_at(monkeypatch, NoiseGeneratorModule, 1, [])
    assert _protect(f"mine.npz {SHORT} --proof false") == 143
    assert _protect(f"mine.npz {SHORT} --proof false --method.percent 20") == 2
    assert "out=out holds a result with other settings (method.percent is 10.0 there and 20.0 here)" in capsys.readouterr().err
    assert _protect(f"mine.npz {SHORT} --proof false --method.percent 20 --overwrite true") == 0
    assert Manifest.read(OUT / "protected").settings["method"]["percent"] == 20


def test_without_proof_and_never_over_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert _protect(f"mine.npz {SHORT} --method EM --proof false") == 0
    shown = capsys.readouterr().out
    assert "[1/1] making the noise: em" in shown
    assert "victim" not in shown
    assert "clean images" not in shown
    assert {path.name for path in OUT.iterdir()} == {".lock", ".protected.parts", "generator", "protect.json", "protected"}
    archive = OUT / "protected/mine.npz"
    before = (archive.read_bytes(), archive.stat().st_mtime_ns)

    assert _protect(f"mine.npz {SHORT} --method Random --proof false") == 2
    message = capsys.readouterr().err
    assert "out=out" in message
    assert "--overwrite true" in message
    assert (archive.read_bytes(), archive.stat().st_mtime_ns) == before

    foreign = OUT / "protected/notes.txt"
    foreign.write_text("mine")
    capsys.readouterr()
    assert _protect(f"mine.npz {SHORT} --method EM --proof false --overwrite true") == 2
    refused = capsys.readouterr()
    assert "not a protected dataset" in refused.err
    assert "training" not in refused.out + refused.err  # before any work
    foreign.unlink()

    assert _protect(f"mine.npz {SHORT} --method Random --proof false --overwrite true") == 0
    assert Manifest.read(OUT / "protected").settings["method"]["name"] == "random"


def test_what_is_published_is_chosen_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["breastmnist"], (20, 8, 10), train_names=np.arange(20), test_names=np.arange(10))
    assert _protect(f"mine.npz {SHORT} --publish train") == 0
    shown = capsys.readouterr().out
    assert "It publishes:      the training images alone" in shown
    assert "Unchanged in it:   train_names, arrays of the original file" in shown
    assert set(np.load(OUT / "protected/mine.npz", allow_pickle=False)) == {"train_images", "train_labels", "train_names"}
    assert json.loads((OUT / "victim-protected/results.json").read_text())["steps"] == 2
    assert _protect(f"mine.npz {SHORT}") == 2
    assert "(publish is 'train' there and 'all' here)" in capsys.readouterr().err


def test_noise_that_images_share_is_named_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert _protect(f"mine.npz {SHORT} --method EM --method.noise_per class --updates_per_visit 1 --proof false") == 0
    assert "Its noise:         em, one pattern for each class: " in capsys.readouterr().out


def test_options_from_a_file_give_way_to_the_command_line() -> None:
    Path("my.yaml").write_text(
        "data: synthetic\nmethod: {class_path: SALM, init_args: {percent: 30, step_size: 4}}\nproof: false\n"
    )
    assert _protect(f"mine.npz --config my.yaml {SHORT} --method.percent 40") == 0
    manifest = Manifest.read(OUT / "protected")
    assert manifest.dataset["name"] == "mine"
    assert (manifest.settings["method"]["percent"], manifest.settings["method"]["step_size"]) == (40, 4)


def test_the_default_folder_names_data_and_method() -> None:
    assert _protect(f"mine.npz {SHORT.replace('--out out', '')} --method Random --proof false") == 0
    assert Path("lightning_logs/mine-random/protected/mine.npz").is_file()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            ".",
            ["data=. holds no image that is taken", "such as mine.npz", "an .npz archive in MedMNIST's layout is taken by its"],
        ),
        ("missing.npz", ["missing.npz"]),
        ("text.npz", ["text.npz"]),
    ],
)
def test_what_is_not_taken(data: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.npz").write_text("no archive")
    assert _protect(f"{data} {SHORT}") == 2
    message = capsys.readouterr().err
    assert message.startswith("salm-cli: error: ")
    assert [text for text in expected if text not in message] == []
    assert not OUT.exists()


@pytest.mark.parametrize("option", ["uids=keep", "protect=train"])
def test_what_is_for_folders_is_refused_for_others(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _protect(f"synthetic {SHORT} --{option}") == 2
    assert f"{option} is for folders of images, and data=synthetic is none." in capsys.readouterr().err
    assert not OUT.exists()


def test_size_is_refused_for_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["bloodmnist"], (16, 8, 8))
    assert _protect(f"mine.npz --size 64 {SHORT}") == 2
    assert "size=64 is for MedMNIST names" in capsys.readouterr().err


def test_drawn_data_have_the_size_asked_for() -> None:
    assert _protect(f"synthetic --size 32 {SHORT} --method SP --proof false") == 0
    assert Manifest.read(OUT / "protected").info.size == 32


def test_ordered_classes_have_a_kappa_in_the_proof(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_npz(Path("retinamnist.npz"), MEDMNIST["retinamnist"], (16, 10, 10))
    assert _protect(f"retinamnist --root . {SHORT} --method Random") == 0
    shown = capsys.readouterr().out
    assert "weighted kappa" in shown
    kappa = json.loads((OUT / "victim-clean/results.json").read_text())["test"]["kappa"]
    assert f"{kappa:.3f}" in shown


def _results(**figures: tuple[float, float]) -> dict[str, dict[str, Any]]:
    return {
        name: {"majority": 0.25, "test": {key: values[place] for key, values in figures.items()}}
        for place, name in enumerate(("clean", "protected"))
    }


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (
            _results(acc=(0.247, 0.248), balanced_acc=(0.25, 0.25)),
            "Nothing is shown: the model trained on the clean images learned next",
        ),
        (
            _results(acc=(0.85, 0.40), balanced_acc=(0.85, 0.40)),
            "Protected, as far as one model trained without any countermeasure",
        ),
        (_results(acc=(0.85, 0.40), balanced_acc=(0.85, 0.40)), "keeps 25% of what"),
        (
            _results(acc=(0.85, 0.60), balanced_acc=(0.85, 0.40)),
            "Not protected: the model trained on the protected images keeps 58% of",
        ),
        (_results(acc=(0.85, 0.20), balanced_acc=(0.85, 0.10)), "keeps 0% of what"),
    ],
)
def test_a_proof_ends_in_words(results: dict[str, dict[str, Any]], expected: str) -> None:
    assert expected in verdict(results, SyntheticDataModule(num_classes=4))


def test_source_models_and_victims_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_nets.py").write_text(
        "from torch import nn\n\n\nclass Tiny(nn.Sequential):\n"
        "    def __init__(self, num_classes: int, channels: int, hidden: int = 4) -> None:\n"
        "        conv = nn.Conv2d(channels, hidden, 3)\n"
        "        super().__init__(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, num_classes))\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    assert _protect(f"mine.npz {SHORT} --source_model my_nets.Tiny --source_model.hidden 6 --victim my_nets.Tiny") == 0
    assert Manifest.read(OUT / "protected").settings["source"] == {"class_path": "my_nets.Tiny", "init_args": {"hidden": 6}}
    assert json.loads((OUT / "victim-clean/results.json").read_text())["victim"]["arch"] == {
        "class_path": "my_nets.Tiny",
        "init_args": {},
    }
    assert json.loads((OUT / "protect.json").read_text())["identity"]["source_model"]["init_args"] == {"hidden": 6}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_protects() -> None:
    """Minutes: what `make demo` shows, and docs/results.md promises of every seed, at its real length."""
    assert _protect("--config quickstart.yaml --out out") == 0
    clean, protected = (
        json.loads((OUT / f"victim-{name}/results.json").read_text())["test"]["acc"] for name in ("clean", "protected")
    )
    assert clean >= 0.9
    assert protected <= clean / 2
