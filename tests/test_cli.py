"""The main path through ``salm-cli``: generator, release, victim, predictions, resuming, and what stands in the way."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fakes import as_tensor, write_fake_npz
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from salm_lightning.data import MEDMNIST, SyntheticDataModule
from salm_lightning.main import main
from salm_lightning.metrics import confusion_image
from salm_lightning.modules import VictimModule
from salm_lightning.release import Manifest

ROOT = Path(__file__).parent.parent
DATA = "--data SyntheticDataModule --data.size 16 --data.train_size 20 --data.val_size 8 --data.test_size 10 --data.chunk_size 16"
SHORT = "--model.width 0.125 --trainer.accelerator cpu --trainer.max_steps 2 --data.batch_size 8"
GENERATOR = f"--model NoiseGeneratorModule --model.method SALM {DATA} {SHORT}"
VICTIM = f"--model VictimModule {DATA} {SHORT}"
RUN = Path("lightning_logs/g")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("COLUMNS", "200")


def _run(arguments: str) -> int:
    return main(shlex.split(arguments))


def _files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    return {name for name in found if not name.endswith(".lock")}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", "protect", "sweep", "verify"):
        assert re.search(rf"^  {name} +\w.*\.$", shown, flags=re.MULTILINE), name
    assert main([]) == 2
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(("command", "expected"), [("protect", "MedMNIST name, an .npz file"), ("verify", "original .npz")])
def test_help_of_a_command_describes_its_arguments(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert expected in " ".join(capsys.readouterr().out.split())


def test_fit_names_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Generator, then what its summary names: verify, a victim; then what the victim's summary names: predict."""
    assert _run(f"fit {GENERATOR} --trainer.log_every_n_steps 1 --run g") == 0
    assert _files(RUN) == {
        "config.yaml",
        "hparams.yaml",
        "checkpoints/step=2.ckpt",
        "checkpoints/noise/step=2/rank=0.noise.npy",
        "checkpoints/noise/step=2/rank=0.indices.npy",
        "protected/synthetic.npz",
        "protected/manifest.json",
        "protected/datamodule.yaml",
        ".protected.parts/announced",
    }
    shown = capsys.readouterr()
    named = re.findall(r"salm-cli (\w+ .*)", shown.out)
    assert [command.split()[0] for command in named] == ["verify", "audit", "report", "fit"]
    assert f"Protected dataset: {RUN}/protected" in shown.out
    assert "8 of 255 (bound 8)" in shown.out
    assert "20 of 20" in shown.out
    _expect_pictures_and_curves_of_noise(RUN)
    assert _run(named[0]) == 0
    capsys.readouterr()

    short = "--model.width 0.125 --trainer.accelerator cpu --trainer.max_steps 2 --trainer.log_every_n_steps 1 --run v"
    assert _run(f"{named[3]} {short}") == 0
    shown = capsys.readouterr()
    results = json.loads(Path("lightning_logs/v/results.json").read_text())
    assert results["test"]["acc"] == pytest.approx(results["history"]["last"]["acc"])
    for text in ("after the last step", "peak over training", "majority class", "Run folder: lightning_logs/v"):
        assert text in shown.out
    _expect_pictures_and_curves_of_a_victim(Path("lightning_logs/v"), results)

    (named_next,) = re.findall(r"salm-cli (predict .*)", shown.out)
    assert _run(named_next) == 0
    predictions = np.load("lightning_logs/v/predictions.npz", allow_pickle=False)
    assert predictions["probabilities"].shape == (10, 4)
    assert predictions["probabilities"].sum(axis=1) == pytest.approx(np.ones(10), abs=1e-5)
    labels = np.load(RUN / "protected/synthetic.npz", allow_pickle=False)["test_labels"][:, 0]
    assert np.array_equal(predictions["labels"], labels)
    accuracy = (predictions["probabilities"].argmax(axis=1) == labels).mean()
    assert accuracy == pytest.approx(results["test"]["acc"])

    capsys.readouterr()
    assert _run("test --config lightning_logs/v/config.yaml --ckpt_path lightning_logs/v") == 0
    assert "after the last step" in capsys.readouterr().out
    assert json.loads(Path("lightning_logs/v/results.json").read_text())["test"] == results["test"]


def _expect_pictures_and_curves_of_noise(run: Path) -> None:
    """What TensorBoard gets of a generator's two steps; the pictures are of the last one, and of its whole batch of eight."""
    log = EventAccumulator(str(run)).Reload()
    names = ("clean", "noise", "mask", "protected")
    assert {f"pictures/{name}" for name in names} == set(log.Tags()["images"])
    # Two rows of four images of 16 px, each pixel seven wide, with 2 px around every image.
    rows, columns = (
        np.concatenate([np.arange(2 + 114 * image, 114 * (image + 1), 7) for image in range(count)]) for count in (2, 4)
    )
    clean, noise, mask, protected = (_picture(log, f"pictures/{name}", 2)[rows][:, columns].astype(float) for name in names)
    given = SyntheticDataModule(size=16, train_size=20, val_size=8, test_size=10).split("train").images
    shown = clean.reshape(2, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4).reshape(8, 16, 16, 3)
    assert all((image == given).all(axis=(1, 2, 3)).any() for image in shown)
    delta = (noise / 255 - 0.5) * 2 * 8
    assert np.abs(protected - clean - delta).max() < 0.6  # both are rounded, the noise to a sixteenth
    assert delta.min() < -4
    assert delta.max() > 4
    assert (mask == 255).mean() == round(0.1 * 16**2) / 16**2
    assert set(np.unique(mask)) == {0, 255}

    curves = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    assert len(curves["train/pixels_touched"]) == len(curves["train/source_loss"]) == 2
    assert curves["train/images_per_second"][0] > 0
    for tag, pictured in {
        "train/delta_mean": np.abs(delta).mean() / 255,
        "train/delta_max": np.abs(delta).max() / 255,
        "train/pixels_touched": (np.abs(delta) > 0.5).any(axis=2).mean(),
    }.items():
        assert curves[tag][-1] == pytest.approx(pictured, rel=0.02), tag
    assert max(curves["train/delta_max"]) <= 8 / 255 * 1.0001
    # From 0.4 of two steps on a tenth.
    assert curves["train/lr"] == pytest.approx([0.1, 0.01])
    assert 0 <= curves["val/clean_acc"][-1] <= 1


def _expect_pictures_and_curves_of_a_victim(run: Path, results: dict[str, Any]) -> None:
    log = EventAccumulator(str(run)).Reload()
    assert log.Tags()["images"] == ["test/confusion"]
    found, confusion = results["test"], torch.tensor(results["test"]["confusion"])
    assert confusion.sum() == 10
    names = SyntheticDataModule(size=16).info.class_names
    assert np.array_equal(_picture(log, "test/confusion", 2), confusion_image(confusion, names).permute(1, 2, 0).numpy())
    curves = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    assert curves["train/images_per_second"][0] > 0
    assert curves["train/lr"] == pytest.approx([0.1, 0.01])
    assert min(curves["train/loss"]) > 0
    for name in ("acc", "auc", "balanced_acc"):
        assert curves[f"test/{name}"] == [pytest.approx(found[name])]
        assert curves[f"test_curve/{name}"][-1] == pytest.approx(found[name])
        assert 0 <= curves[f"val/{name}"][-1] <= 1


def _picture(log: EventAccumulator, tag: str, step: int) -> np.ndarray:
    """Return the only picture of a tag, ``[H, W, 3]``."""
    (event,) = log.Images(tag)
    assert event.step == step
    return np.array(Image.open(io.BytesIO(event.encoded_image_string)))


def test_saved_config_runs_again_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Unable to serialize.*")
        assert _run(f"fit {GENERATOR} --run g --model.optimizer.lr 0.05") == 0
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    settings = saved["model"]["init_args"]
    assert settings["optimizer"]["class_path"] == "torch.optim.SGD"
    assert settings["optimizer"]["init_args"]["lr"] == 0.05
    assert settings["lr_scheduler"]["init_args"] == {"fractions": [0.4, 0.8], "gamma": 0.1, "total_steps": None}
    assert settings["method"]["init_args"]["score"] == "pixel"
    assert "num_classes" not in settings

    again = f"fit --config {RUN}/config.yaml"
    assert _run(f"{again} --run again") == 0
    first, second = RUN / "protected/synthetic.npz", Path("lightning_logs/again/protected/synthetic.npz")
    assert first.read_bytes() == second.read_bytes()

    capsys.readouterr()
    assert _run(again) == 2
    assert f"{RUN} is in use. Go on with --ckpt_path {RUN}" in capsys.readouterr().err
    assert _run(f"{again} --ckpt_path {RUN} --trainer.max_steps 3") == 2
    assert "protected exists" in capsys.readouterr().err
    assert _run(f"{again} --ckpt_path {RUN} --trainer.max_steps 3 --overwrite true") == 0
    assert (RUN / "checkpoints/step=3.ckpt").is_file()

    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert (saved["ckpt_path"], saved["overwrite"], saved["trainer"]["max_steps"]) == (None, False, 3)
    assert _run(again) == 2, "a run that was replaced once must not be replaced again without being asked"


def test_predict_makes_the_same_release_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {GENERATOR} --run g") == 0
    before = (RUN / "config.yaml").read_bytes()
    assert _run(f"predict --config {RUN}/config.yaml --ckpt_path {RUN}/checkpoints/step=2.ckpt --release other") == 0
    assert Path("other/synthetic.npz").read_bytes() == (RUN / "protected/synthetic.npz").read_bytes()
    assert (RUN / "config.yaml").read_bytes() == before
    assert "Protected dataset: other" in capsys.readouterr().out

    assert _run(f"predict {GENERATOR} --release another") == 2
    assert "predict needs --ckpt_path" in capsys.readouterr().err
    assert _run(f"predict --config {RUN}/config.yaml --ckpt_path {RUN}") == 0, "it stands already"
    (RUN / "protected/synthetic.npz").write_bytes(b"damaged")
    assert _run(f"predict --config {RUN}/config.yaml --ckpt_path {RUN}") == 2
    assert "protected exists" in capsys.readouterr().err

    assert _run(f"test --config {RUN}/config.yaml --ckpt_path {RUN}") == 0
    assert "test/clean_acc" in capsys.readouterr().out


def test_predictions_are_the_checkpoints_probabilities_of_the_test_images() -> None:
    assert _run(f"fit {VICTIM} --run v --model.optimizer.lr 0.001") == 0
    assert _run(f"predict {VICTIM} --ckpt_path lightning_logs/v") == 0
    found = np.load("lightning_logs/v/predictions.npz", allow_pickle=False)["probabilities"]
    data = SyntheticDataModule(size=16, train_size=20, val_size=8, test_size=10)
    victim = VictimModule(data.num_classes, data.channels, data.image_size, width=0.125)
    victim.load_state_dict(torch.load("lightning_logs/v/checkpoints/step=2.ckpt", weights_only=True)["state_dict"])
    with torch.inference_mode():
        expected = victim.eval()(as_tensor(data.split("test").images)).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-4


def test_validate_measures_a_checkpoint_on_the_clean_validation_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {VICTIM} --data.val_size 40 --run v --model.optimizer.lr 0.001") == 0
    before = _files(Path("lightning_logs/v"))
    capsys.readouterr()
    assert _run("validate --config lightning_logs/v/config.yaml --ckpt_path lightning_logs/v") == 0
    shown = dict(re.findall(r"│ +val/(\w+) +│ +([\d.]+) +│", capsys.readouterr().out))

    data = SyntheticDataModule(size=16, train_size=20, val_size=40, test_size=10)
    victim = VictimModule(data.num_classes, data.channels, data.image_size, width=0.125)
    victim.load_state_dict(torch.load("lightning_logs/v/checkpoints/step=2.ckpt", weights_only=True)["state_dict"])
    val = data.split("val")
    with torch.inference_mode():
        scores = victim.eval()(as_tensor(val.images)).softmax(1).numpy()
    labels = val.labels[:, 0]
    right = scores.argmax(axis=1) == labels
    assert float(shown["acc"]) == pytest.approx(right.mean(), abs=1e-5)
    recalls = [right[labels == number].mean() for number in range(data.num_classes)]
    assert float(shown["balanced_acc"]) == pytest.approx(np.mean(recalls), abs=1e-5)
    assert float(shown["auc"]) == pytest.approx(_auc(labels, scores), abs=1e-5)
    assert _files(Path("lightning_logs/v")) == before


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of pairs of a class and the rest that the class's score orders rightly, mean over the classes."""
    areas = []
    for number, column in enumerate(scores.T):
        own, rest = column[labels == number][:, None], column[labels != number]
        areas.append((own > rest).mean() + (own == rest).mean() / 2)
    return float(np.mean(areas))


def test_validate_of_a_generator_measures_its_source_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {GENERATOR} --run g") == 0
    capsys.readouterr()
    assert _run(f"validate --config {RUN}/config.yaml --ckpt_path {RUN}") == 0
    assert "val/clean_balanced_acc" in capsys.readouterr().out


def test_print_config_shows_what_a_combination_amounts_to(capsys: pytest.CaptureFixture[str]) -> None:
    """It starts nothing, and what it prints is a config of the same run."""
    given = f"--config method/em.yaml --model.method.radius 4 {DATA} {SHORT} --run"
    with pytest.raises(SystemExit) as end:
        _run(f"fit {given} printed --print_config")
    assert end.value.code == 0
    assert not Path("lightning_logs").exists()
    shown = capsys.readouterr().out
    values = yaml.safe_load(shown)
    method = values["model"]["init_args"]["method"]
    assert method["class_path"].endswith(".EM")
    assert (method["init_args"]["radius"], method["init_args"]["step_size"]) == (4, 1.6)
    assert (values["trainer"]["max_steps"], values["trainer"]["val_check_interval"], values["seed_everything"]) == (2, 250, 0)
    Path("printed.yaml").write_text(shown)
    assert _run("fit --config printed.yaml") == 0
    assert _run(f"fit {given} typed") == 0
    made = [Path(f"lightning_logs/{name}/protected/synthetic.npz").read_bytes() for name in ("printed", "typed")]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("protect mine.npz --steps 7", {"data": "mine.npz", "steps": 7, "source_model": None}),
        ("classwise mine.npz pathmnist --num_support 3", {"data": "mine.npz", "support": "pathmnist", "num_support": 3}),
        ("sweep --workers 2", {"workers": 2, "clean": True}),
        ("reproduce case7.1 --scale 0.1", {"target": "case7.1", "scale": 0.1, "dry_run": False}),
        ("verify there", {"release": "there"}),
    ],
)
def test_print_config_of_the_other_commands(
    arguments: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        _run(f"{arguments} --print_config")
    assert end.value.code == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert {name: values[name] for name in expected} == expected
    assert list(Path().iterdir()) == []


def test_an_unknown_source_model_is_named_as_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {GENERATOR} --model.source resnet19") == 2
    assert "source='resnet19' is not known; did you mean 'resnet18'?" in capsys.readouterr().err


def test_random_noise_needs_no_training() -> None:
    assert _run(f"fit --model NoiseGeneratorModule --model.method Random {DATA} {SHORT} --run r") == 0
    manifest = Manifest.read(Path("lightning_logs/r/protected"))
    assert manifest.settings["method"]["name"] == "random"
    assert not Path("lightning_logs/r/checkpoints").exists()


def test_overwrite_replaces_runs_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {VICTIM} --run v") == 0
    old = {path.name for path in Path("lightning_logs/v").iterdir() if "tfevents" in path.name}
    assert _run(f"fit {VICTIM} --run v --overwrite true") == 0
    assert not old & {path.name for path in Path("lightning_logs/v").iterdir()}
    Path("lightning_logs/mine").mkdir()
    Path("lightning_logs/mine/notes.txt").write_text("mine")
    capsys.readouterr()
    assert _run(f"fit {VICTIM} --run mine --overwrite true") == 2
    assert "does not look like a run" in capsys.readouterr().err
    assert Path("lightning_logs/mine/notes.txt").read_text() == "mine"


def test_checkpoints_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(f"fit {VICTIM} --run v") == 0
    checkpoint = Path("lightning_logs/v/checkpoints/step=2.ckpt")
    Path("empty").mkdir()
    Path("text.ckpt").write_text("no checkpoint")
    Path("half.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    np.savez("arrays.ckpt", a=np.zeros(3))
    Path("arrays.ckpt.npz").rename("arrays.ckpt")
    capsys.readouterr()
    for path, expected in {
        "nowhere": "does not exist",
        "empty": "is a folder without checkpoints/step=N.ckpt",
        "text.ckpt": "is not a checkpoint",
        "half.ckpt": "is not a checkpoint, or only part of one",
        "arrays.ckpt": "is damaged, or no checkpoint of this program",
    }.items():
        assert _run(f"test {VICTIM} --ckpt_path {path}") == 2
        assert f"--ckpt_path {path} {expected}" in capsys.readouterr().err
    assert _run(f"test {VICTIM.replace('0.125', '0.25')} --ckpt_path lightning_logs/v") == 2
    assert "does not fit this VictimModule" in capsys.readouterr().err
    Path("my.yaml").write_text("ckpt_path: nowhere\n")
    assert _run(f"test {VICTIM} --config my.yaml") == 2
    assert "--ckpt_path nowhere does not exist" in capsys.readouterr().err


PROTECT = "protect tiny.npz --out out --steps 2 --victim_steps 2 --width 0.125 --batch_size 8 --accelerator cpu"


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(f"fit {GENERATOR} --run g", "salm_lightning.main"), (PROTECT, "pytorch_lightning")],
    ids=["fit", "protect"],
)
def test_quiet_about_what_says_nothing(arguments: str, other: str) -> None:
    """In a process of its own, because pytest has its own ideas about logging; `other` is imported after Lightning."""
    write_fake_npz(Path("tiny.npz"), MEDMNIST["breastmnist"], (20, 8, 10))
    program = f"import salm_lightning.main, {other}; raise SystemExit(salm_lightning.main.main())"
    command = [sys.executable, "-c", program, *shlex.split(arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    shown = ran.stdout + ran.stderr
    for noise in ("Tip: ", "weights_only", "TPU", "batch indices", "logging interval", "Warning", "Unable to serialize"):
        assert noise not in shown, shown
    assert "step 2/2, val/clean_acc" in shown


def test_a_run_calls_nothing_deprecated_and_knows_its_batch_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _run(f"fit {GENERATOR} --run g") == 0
        assert _run(f"verify {RUN}/protected") == 0
    shown = [str(warning.message) for warning in caught]
    assert [text for text in shown if "deprecated" in text or "batch indices" in text] == []


def test_fast_dev_run_leaves_nothing() -> None:
    assert _run(f"fit {GENERATOR} --trainer.fast_dev_run true") == 0
    assert list(Path().iterdir()) == []


def test_exit_codes_of_interruptions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One with a code comes from a RunCheckpoint, which has saved the state; Lightning's own has none."""
    cases = (
        (SIGTERMException(143), 143, "the state is saved"),
        (SIGTERMException(), 143, "repeat"),
        (KeyboardInterrupt(), 130, ""),
    )
    for error, code, words in cases:

        def interrupt(args: list[str], error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("salm_lightning.cli.fit.SalmCLI", interrupt)
        assert main(["fit"]) == code
        assert words in capsys.readouterr().err


def test_another_checkpoint_callback_does_not_replace_the_run_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    best = "--trainer.callbacks ModelCheckpoint --trainer.callbacks.filename best"
    assert _run(f"fit {VICTIM} --run 'a run' {best}") == 0
    (predict,) = re.findall(r"salm-cli (predict .*)", capsys.readouterr().out)
    assert _run(predict) == 0
    assert Path("lightning_logs/a run/predictions.npz").is_file()


def test_what_cannot_be_written_or_read_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert _run(f"fit {GENERATOR} --run g --release file/protected") == 2
    assert "file is no folder; name another one" in capsys.readouterr().err
    assert not (RUN / "checkpoints").exists(), "found before the training"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "lightning_logs")

    monkeypatch.setattr("salm_lightning.cli.fit.SalmCLI", refuse)
    assert main(["fit"]) == 2
    assert "salm-cli: error: [Errno 13] Permission denied: 'lightning_logs'" in capsys.readouterr().err


def test_every_task_that_is_listed_is_taken() -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["breastmnist"], (8, 4, 4))
    for task in ("multi-class", "binary-class", "ordinal-regression"):
        data = f"--data NpzDataModule --data.path mine.npz --data.task {task} --data.batch_size 4"
        assert _run(f"fit --model VictimModule {data} --trainer.accelerator cpu --trainer.fast_dev_run true") == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_fit_downloads_a_missing_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole command: nothing asks for the data before it had a chance to arrive."""

    def download(split: str, download: bool, root: str, size: int) -> None:
        write_fake_npz(Path(root) / "breastmnist.npz", MEDMNIST["breastmnist"], (16, 8, 8))

    monkeypatch.setattr("medmnist.BreastMNIST", download)
    monkeypatch.setenv("SALM_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    arguments = "--config method/salm.yaml --config dataset/breastmnist.yaml --model.width 0.125 --trainer.max_steps 1"
    assert main(["fit", *arguments.split(), "--trainer.accelerator", "cpu", "--run", "g"]) == 0
    assert (tmp_path / "data/breastmnist.npz").is_file()
    assert (tmp_path / "lightning_logs/g/protected/manifest.json").is_file()
