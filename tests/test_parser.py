"""What a user reads when the command line or a config file is wrong: one message that says which option, and the way out."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import yaml

from salm_lightning.cli.composition import Setting, compose
from salm_lightning.cli.messages import unknown
from salm_lightning.cli.parser import salm_error_behind
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.main import main

DATA = "--data SyntheticDataModule"
GENERATOR = f"fit --model NoiseGeneratorModule --model.method SALM {DATA}"
VICTIM = f"fit --model VictimModule {DATA}"

WRONG = [
    # No abbreviations, and typos in options at every level.
    (
        f"{VICTIM} --trainer.max_epoch 3",
        ["--trainer.max_epoch is not an option", "did you mean 'max_epochs'", "max_steps, max_time"],
    ),
    (f"{VICTIM} --runn x", ["--runn is not an option", "did you mean 'run'", "ckpt_path, data, model"]),
    (f"{VICTIM} --model.widht 3", ["--model.widht is not an option", "did you mean 'width'", "VictimModule options: arch"]),
    (f"{VICTIM} --model.init_args.widht=3", ["--model.widht is not an option", "did you mean 'width'"]),
    (
        f"{VICTIM} --data.trian_size 3",
        ["--data.trian_size is not an option", "did you mean 'train_size'", "SyntheticDataModule options"],
    ),
    (
        f"{GENERATOR} --model.method.percnt 3",
        ["--model.method.percnt is not an option", "did you mean 'percent'", "SALM options"],
    ),
    (
        f"{VICTIM} --model.optimizer.momentun 3",
        ["--model.optimizer.momentun", "did you mean 'momentum'", "SGD options: dampening"],
    ),
    # Typos in names.
    (
        "fitt",
        [
            "command='fitt' is not known",
            "did you mean 'fit'",
            "predict, inspect, protect, classwise, sweep, reproduce, verify, audit, quality, key, patch, restore, report",
        ],
    ),
    (
        "fit --model VictimModul",
        ["--model=VictimModul is not known", "did you mean 'VictimModule'", "NoiseGeneratorModule", "Choices: "],
    ),
    (
        f"fit --model NoiseGeneratorModule --model.method SALN {DATA}",
        ["--model.method=SALN", "did you mean 'SALM'", "EM, Random, SALM"],
    ),
    (f"fit --model NoiseGeneratorModule --model.method TPA {DATA}", ["--model.method=TPA", "did you mean 'TAP'", "SALM, SP, "]),
    ("protect synthetic --method SPP", ["--method=SPP", "did you mean 'SP'", "SALM, SP, "]),
    ("fit --model VictimModule --data MedMNISTDataModul", ["did you mean 'MedMNISTDataModule'", "PoisonedDataModule"]),
    ("fit --model VictimModule --data MedMNISTDataModule --data.name patmnist", ["did you mean 'pathmnist'", "tissuemnist"]),
    (f"{VICTIM} --model.arch resnet19", ["'resnet19' is not known", "did you mean 'resnet18'", "vgg11"]),
    (f"{VICTIM} --model.optimizer SGDD", ["--model.optimizer=SGDD", "did you mean 'SGD'", "AdamW"]),
    (f"{VICTIM} --trainer.callbacks Throughputt", ["--trainer.callbacks=Throughputt", "did you mean 'Throughput'"]),
    # Values.
    (f"{GENERATOR} --model.loop persistant", ["--model.loop=persistant: expected 'persistent', 'fresh'"]),
    (f"{GENERATOR} --model.method.score singed", ["--model.method.score=singed: expected", "Score"]),
    (f"{GENERATOR} --model.method.percent 101", ["percent=101.0 is out of range", "give 0 to 100"]),
    (f"{GENERATOR} --model.updates_per_visit autoo", ["--model.updates_per_visit=autoo: expected int or 'auto'"]),
    (f"{VICTIM} --model.width wide", ["--model.width=wide: expected float"]),
    (f"{VICTIM} --model.optimizer.lr high", ["--model.optimizer.lr=high: expected float"]),
    (f"{VICTIM} --trainer.max_steps many", ["--trainer.max_steps=many: expected int"]),
    (f"{VICTIM} --overwrite perhaps", ["--overwrite=perhaps: expected true or false."]),
    (f"{VICTIM} --trainer.precision bf17", ["--trainer.precision=bf17: expected", "bf16-mixed"]),
    (f"{GENERATOR} --trainer.precision 64-true", ["trainer.precision='64-true' is not known", "32-true, bf16-mixed, 16-mixed"]),
    (f"{VICTIM} --trainer.val_check_interval 0", ["--trainer.val_check_interval=0: out of range"]),
    (f"{VICTIM} --trainer.max_steps 0", ["--trainer.max_steps=0: out of range"]),
    (f"{VICTIM} --seed_everything 99999999999", ["seed_everything=99999999999 is out of range"]),
    (f"{VICTIM} --model.lr_scheduler StepLR", ["--model.lr_scheduler.step_size is missing"]),
    (VICTIM.replace("fit", "test"), ["test needs --ckpt_path: the folder of a run"]),
    (GENERATOR.replace("fit", "validate"), ["validate needs --ckpt_path"]),
    (f"{VICTIM} --trainer.accelerator gpuu", ["accelerator='gpuu'", "cpu"]),
    (f"{VICTIM} --trainer.accelerator tpu", ["torch_xla"]),
    ("reproduce table1 --accelerator tpu", ["accelerator=tpu", "Give auto, cpu or gpu"]),
    # Linked options.
    (f"{VICTIM} --model.num_classes 7", ["--model.num_classes cannot be set", "taken from the data"]),
    (f"{VICTIM} --model.init_args.task binary-class", ["--model.task cannot be set", "taken from the data"]),
    (f"{VICTIM} --data.seed 7", ["--data.seed cannot be set", "--seed_everything"]),
    # What is missing.
    (
        "fit",
        ["--data, --model is missing", "--config method/salm.yaml --config dataset/pathmnist.yaml"],
    ),
    ("fit --model VictimModule", ["--data is missing", "dataset/pathmnist.yaml"]),
    (f"fit --model NoiseGeneratorModule {DATA}", ["--model.method is missing"]),
    ("fit --model VictimModule --data MedMNISTDataModule", ["--data.name is missing"]),
    ("fit --model VictimModule --data PoisonedDataModule --data.root none", ["none is not a protected dataset", "manifest.json"]),
    # The order on the command line.
    (f"fit --model.width 0.5 --model VictimModule {DATA}", ["--model.width stands before --model", "give the class first"]),
    (
        f"fit --model.method.percent 5 --model NoiseGeneratorModule {DATA}",
        ["--model.method.percent stands before --model", "give the class first"],
    ),
    (f"{VICTIM} stray", ["unrecognized arguments: stray", "salm-cli fit --help"]),
    # Config files that are none.
    (
        f"{VICTIM} --config salm_patmnist.yaml",
        ["neither a file nor a shipped config", "did you mean 'salm_pathmnist.yaml'", "victim.yaml"],
    ),
    (f"{VICTIM} --config .", ["neither a file nor a shipped config"]),
    (f"{VICTIM} --config", ["expected one argument"]),
    # The other commands.
    ("protect", ["data is missing", "salm-cli protect pathmnist"]),
    ("protect synthetic --widht 3", ["--widht is not an option", "did you mean 'width'"]),
    ("protect synthetic --method.percnt 3", ["--method.percnt is not an option", "did you mean 'percent'"]),
    ("protect synthetic --method SALN", ["--method=SALN", "did you mean 'SALM'"]),
    ("protect synthetic --method.percent 120", ["percent=120.0 is out of range"]),
    ("protect synthetic --victim resnet19", ["victim='resnet19'", "did you mean 'resnet18'"]),
    ("protect synthetic --steps 0", ["steps=0 is out of range"]),
    ("protect synthetic --updates_per_visit 0", ["updates_per_visit=0 is out of range"]),
    ("protect synthetic --width 0", ["width=0.0 is out of range"]),
    ("protect synthetic --seed -1", ["seed=-1 is out of range", "4294967295"]),
    ("protect synthetic --accelerator tpu", ["accelerator=tpu", "Give auto, cpu or gpu"]),
    ("protect synthetic --out /dev/null/x", ["/dev/null is no folder; name another one"]),
    ("protect patmnist", ["data='patmnist'", "did you mean 'pathmnist'"]),
    ("verify", ["release is missing", "salm-cli verify"]),
    ("verify somewhere --sorce x", ["--sorce is not an option", "did you mean 'source'"]),
    ("audit", ["release is missing", "salm-cli audit"]),
    ("audit somewhere --sorce x", ["--sorce is not an option", "did you mean 'source'"]),
    ("audit somewhere --quick", ["somewhere is not a protected dataset"]),
    ("audit somewhere --quick perhaps", ["--quick=perhaps: expected true or false."]),
    ("protect synthetic --proof maybe --out x", ["--proof=maybe: expected true or false."]),
    ("quality", ["release is missing", "salm-cli quality"]),
    ("quality somewhere --segmentr x", ["--segmentr is not an option", "did you mean 'segmenter'"]),
    ("report", ["release is missing", "salm-cli report"]),
    ("report somewhere --audti x", ["--audti is not an option", "did you mean 'audit'"]),
    ("report somewhere", ["somewhere is not a protected dataset", "manifest.json"]),
]

FILES = [
    ("trainer: {max_step: 5}", ["my.yaml: trainer.max_step is not an option", "did you mean 'max_steps'"]),
    ("modle: {class_path: VictimModule}", ["my.yaml: modle is not an option", "did you mean 'model'"]),
    ("model: {class_path: VictimModul}", ["my.yaml: model=VictimModul is not known", "did you mean 'VictimModule'"]),
    (
        "model: {class_path: VictimModule, init_args: {widht: 1}}",
        ["my.yaml: model.widht is not an option", "did you mean 'width'", "VictimModule options"],
    ),
    (
        "model: {class_path: NoiseGeneratorModule, init_args: {method: {class_path: SALN}}}",
        ["my.yaml: model.method=SALN is not known", "did you mean 'SALM'"],
    ),
    (
        "model: {class_path: NoiseGeneratorModule, init_args: {method: {class_path: SALM, init_args: {percnt: 1}}}}",
        ["my.yaml: model.method.percnt is not an option", "did you mean 'percent'"],
    ),
    (
        "data: {class_path: MedMNISTDataModule, init_args: {nane: pathmnist}}",
        ["my.yaml: data.nane is not an option", "did you mean 'name'"],
    ),
    (
        "trainer: {callbacks: [{class_path: RunCheckpoint, init_args: {every_n_step: 1}}]}",
        ["my.yaml: trainer.callbacks, element 1.every_n_step", "did you mean 'every_n_steps'"],
    ),
    ("model: {class_path: VictimModule, init_args: {width: wide}}", ["my.yaml: model.width=wide: expected float"]),
    ("model: {class_path: VictimModule, init_args: {channels: 1}}", ["my.yaml: model.channels cannot be set"]),
    ("model: [1\n  b: {", ["--config my.yaml is not valid YAML in line 2"]),
    ("- 1\n- 2", ["--config my.yaml holds a list"]),
    ("\udcff", ["--config my.yaml cannot be read as text"]),
]


def _message(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that has to fail; return what it says."""
    assert main(shlex.split(arguments)) == 2
    message = capsys.readouterr().err
    message = message[message.index("salm-cli: error: ") :]  # Lightning may have named its devices before
    assert "usage:" not in message
    assert "Traceback" not in message
    assert message.count("\n") <= 3, message
    return message


@pytest.mark.parametrize(("arguments", "fragments"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_arguments(
    arguments: str, fragments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = _message(arguments, capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


@pytest.mark.parametrize(("content", "fragments"), FILES, ids=[case[0] for case in FILES])
def test_wrong_config_files(
    content: str, fragments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
    message = _message(f"fit --config my.yaml {'' if 'data:' in content else DATA}", capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_a_config_of_protect_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("data: synthetic\nwidht: 0.25\n")
    assert "my.yaml: widht is not an option; did you mean 'width'?" in _message("protect --config my.yaml", capsys)


def test_settings_of_files_and_options_merge(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: {class_path: A, init_args: {width: 1, method: {class_path: M}}}\n")
    found = compose(["--config", str(file), "--model.width=2", "--model.init_args.method.init_args.percent", "5", "x", "--help"])
    settings = found.settings
    width, method = settings.find("model.width"), settings.find("model.method")
    assert width is not None
    assert (width.value, width.origin) == ("2", "--model.width")
    assert method is not None
    assert (method.value, method.origin) == ("M", f"{file}: model.method")
    assert method.children["percent"].value == "5"
    assert settings.find("model.heigth") is None
    model = {"class_path": "A", "init_args": {"width": "2", "method": {"class_path": "M", "init_args": {"percent": "5"}}}}
    assert settings.options() == {"model": model}
    assert (found.flags, found.words) == (["--help"], ["x"])


def test_nothing_is_found_wrong_with_right_settings() -> None:
    settings = Setting.of({"run": "x", "trainer": {"max_steps": 3, "precision": "bf16-mixed"}}, "a.yaml: ")
    assert unknown(settings, {"run": str | None, "trainer.max_steps": int, "trainer.precision": None}) == []


def test_an_error_of_the_package_is_found_under_others() -> None:
    cause = SalmError("what the user reads")
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = KeyError("in between")
    wrapped.__cause__.__context__ = cause
    assert salm_error_behind(wrapped) is cause
    bare = salm_error_behind(ValueError("\nbad\n"))
    assert isinstance(bare, ConfigurationError)
    assert str(bare) == "bad"


GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
ON_CPU = "--trainer.accelerator cpu"
REFUSED = [
    pytest.param(f"{VICTIM} --config trainer/gpu.yaml", "trainer.accelerator=gpu: this machine has none", marks=GPU),
    pytest.param(f"{VICTIM} --config trainer/ddp.yaml", "Give --trainer.accelerator cpu", marks=GPU),
    (f"{VICTIM} --trainer.barebones true", "--trainer.barebones=True: it leaves out logs"),
    *(
        (f"{VICTIM} --trainer.{name} 0", f"--trainer.{name}=0: out of range. Give 1 or more")
        for name in ("max_steps", "val_check_interval", "check_val_every_n_epoch", "limit_train_batches", "limit_test_batches")
    ),
    (f"{GENERATOR} --trainer.limit_predict_batches 2", "--trainer.limit_predict_batches=2: the last pass makes every image"),
    (
        f"{GENERATOR} --trainer.accumulate_grad_batches 2",
        "--trainer.accumulate_grad_batches=2: the noise generator takes each step",
    ),
    (f"{GENERATOR} --trainer.gradient_clip_val 1", "--trainer.gradient_clip_val=1: the noise generator takes each step"),
    (
        f"{GENERATOR} --trainer.callbacks gradientaccumulationscheduler",
        "GradientAccumulationScheduler: the noise generator takes",
    ),
    (f"{GENERATOR} --trainer.callbacks BatchSizeFinder", "BatchSizeFinder: it trains before the training"),
    (f"{VICTIM} --trainer.callbacks '[Timer, LearningRateFinder]'", "LearningRateFinder: it trains before the training"),
    (f"{VICTIM} --trainer.callbacks lightning.pytorch.callbacks.ModelPruning", "ModelPruning: it is for other models"),
    (f"{VICTIM} --model.optimizer LBFGS", "--model.optimizer=LBFGS: it takes several passes"),
    (f"{VICTIM} --model.lr_scheduler ReduceLROnPlateau", "--model.lr_scheduler=ReduceLROnPlateau: it waits for a measure"),
    (
        f"{VICTIM} {ON_CPU} --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/ac",
        "EarlyStopping: monitor='val/ac' is not known; did you mean 'val/auc'?",
    ),
    (f"{VICTIM} {ON_CPU} --trainer.val_check_interval 0.5", "`val_check_interval` should be an integer"),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED)
def test_what_lightning_offers_and_cannot_work_is_refused(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in _message(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_device_statistics_need_psutil(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("salm_lightning.cli.refusals.find_spec", lambda name: None)
    assert "Run: pip install psutil" in _message(f"{VICTIM} --trainer.callbacks DeviceStatsMonitor", capsys)


TINY = "--data.size 16 --data.train_size 20 --data.val_size 8 --data.test_size 10 --model.width 0.125 --data.batch_size 8"
WORKS = [
    "--trainer.sync_batchnorm true",
    "--trainer.check_val_every_n_epoch 1",
    "--config victim.yaml --trainer.check_val_every_n_epoch 1",
    "--trainer.log_every_n_steps 0",
    "--trainer.callbacks Timer --trainer.callbacks.duration 00:00:10:00",
    "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/acc --trainer.callbacks.mode max",
    "--trainer.callbacks GradientAccumulationScheduler --trainer.callbacks.scheduling '{0: 2}'",
    "--trainer.max_steps -1 --trainer.max_epochs 1",
]


@pytest.mark.parametrize("options", WORKS)
def test_what_lightning_offers_works(options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = "" if "max_steps" in options else "--trainer.max_steps 3"
    assert main(shlex.split(f"{VICTIM} {TINY} {ON_CPU} {steps} {options} --run v")) == 0
    assert Path("lightning_logs/v/results.json").is_file()


def test_a_refused_run_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("lightning_logs/v")
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    options = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/ac --run v --overwrite true"
    _message(f"{VICTIM} {ON_CPU} {options}", capsys)
    assert (run / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("word", "expected"),
    [("BreastMNIST", "MedMNISTDataModule"), ("mine.npz", "NpzDataModule"), ("synthetic", "SyntheticDataModule")],
)
def test_data_by_the_words_that_other_commands_take(word: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(shlex.split(f"fit --model victimmodule --data {word} --data.batch_size 8 --print_config"))
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["class_path"].endswith(f".{expected}")
    assert data["init_args"]["batch_size"] == 8
