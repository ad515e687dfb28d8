"""Every shipped config runs on tiny fake files; those for hardware that is not here are built as far as possible."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import write_fake_npz
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from processes import before, run

from salm_lightning.cli.config_files import resolve_config, shipped_configs
from salm_lightning.cli.fit import SalmCLI
from salm_lightning.countermeasures import COUNTERMEASURES
from salm_lightning.data import MEDMNIST, MedMNISTDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.models import ARCHITECTURES
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Random
from salm_lightning.release import Manifest

CONFIGS = shipped_configs()
SHORT = ["--model.width", "0.125", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
FAST = [*SHORT, "--trainer.fast_dev_run", "true"]
RECIPES = {"medmnistrecipe": "medmnist", "adamwrecipe": "adamw"}
"""Countermeasures that are recipes, and their files."""
SWEEPS = {
    "methods": (6, 5),
    "percent": (11, 11),
    "transfer": (8, 1),
    "readings": (14, 13),
    "samples": (9, 4),
    "strict": (9, 8),
}
"""Victims and releases of every sweep, for one seed."""


pytestmark = pytest.mark.usefixtures("workplace")


def _fake(name: str) -> None:
    write_fake_npz(Path(f"{name}.npz"), MEDMNIST[name], (16, 8, 8))


def _fit(*arguments: str) -> int:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*MD5.*")
        return main(["fit", *arguments])


class Built(SalmCLI):
    """Builds everything and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Stop here."""


def _build(*arguments: str) -> Built:
    return Built(["fit", *arguments])


def test_the_set_is_complete() -> None:
    shipped = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert shipped == {
        "quickstart.yaml", "salm_pathmnist.yaml", "victim_pathmnist.yaml", "victim.yaml",
        *(f"dataset/{name}.yaml" for name in [*MEDMNIST, "chestmnist_any", "folder"]), *(f"arch/{name}.yaml" for name in ARCHITECTURES),
        *(f"method/{name}.yaml" for name in ("salm", "em", "em_classwise", "tap", "sp", "random", "robust")),
        *(f"countermeasure/{name}.yaml" for name in COUNTERMEASURES if name not in RECIPES),
        *(f"recipe/{name}.yaml" for name in ("paper", *RECIPES.values())),
        *(f"trainer/{name}.yaml" for name in ("cpu", "gpu", "ddp", "slurm")),
        *(f"scenario/{name}.yaml" for name in ("partial_classes", "some_samples", "classwise")),
        "size/224.yaml",
        *(f"sweep/{name}.yaml" for name in SWEEPS),
    }  # fmt: skip


@pytest.mark.parametrize("name", [*sorted(MEDMNIST), "chestmnist_any"])
def test_dataset(name: str) -> None:
    _fake(name.removesuffix("_any"))
    assert _fit("--config", "method/salm.yaml", "--config", f"dataset/{name}.yaml", *FAST) == 0


@pytest.mark.parametrize(
    ("name", "method"),
    [("salm", SALM), ("em", EM), ("em_classwise", EM), ("tap", TAP), ("sp", SP), ("random", Random), ("robust", EM)],
)
def test_method(name: str, method: type) -> None:
    _fake("breastmnist")
    arguments = ["--config", f"method/{name}.yaml", "--config", "dataset/breastmnist.yaml"]
    assert type(_build(*arguments, *SHORT).model.method) is method
    assert _fit(*arguments, *FAST) == 0


@pytest.mark.parametrize("name", ["partial_classes", "some_samples"])
def test_scenario(name: str) -> None:
    _fake("bloodmnist")
    assert _fit(
        "--config", "method/salm.yaml", "--config", "dataset/bloodmnist.yaml", "--config", f"scenario/{name}.yaml", *FAST
    ) == 0  # fmt: skip


def test_classwise() -> None:
    _fake("dermamnist")
    _fake("pathmnist")
    short = [
        "--training.width",
        "0.125",
        "--training.steps",
        "1",
        "--training.victim_steps",
        "1",
        "--training.accelerator",
        "cpu",
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*MD5.*")
        assert main(["classwise", "--config", "scenario/classwise.yaml", *short, "--out", "out"]) == 0
    manifest = Manifest.read("out/protected")
    assert manifest.dataset["name"] == "dermamnist"
    assert 0 < manifest.coverage.selected < manifest.coverage.samples


def test_size() -> None:
    write_fake_npz(Path("pathmnist_224.npz"), replace(MEDMNIST["pathmnist"], size=224), (8, 4, 4))
    arguments = ["--config", "method/salm.yaml", "--config", "dataset/pathmnist.yaml", "--config", "size/224.yaml", *SHORT]
    cli = _build(*arguments)
    assert (cli.model.image_shape, cli.datamodule.batch_size, cli.trainer.max_steps) == ((3, 224, 224), 64, 3000)
    assert cli.datamodule.info.name == "pathmnist"
    assert _fit(*arguments, "--data.batch_size", "4", "--trainer.fast_dev_run", "true") == 0


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_arch(name: str) -> None:
    _fake("bloodmnist")
    arguments = ["--config", "victim.yaml", "--config", f"arch/{name}.yaml", "--config", "dataset/bloodmnist.yaml"]
    assert _build(*arguments, *SHORT).model.arch.name == name
    assert _fit(*arguments, *FAST) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vit_learns_with_the_optimiser_of_its_config() -> None:
    """Minutes: 1000 steps ended at 76 % where chance is 25 %."""
    arguments = [
        "--config",
        "victim.yaml",
        "--config",
        "arch/vit.yaml",
        "--data",
        "SyntheticDataModule",
        "--data.batch_size",
        "64",
    ]
    length = ["--trainer.max_steps", "1000", "--trainer.val_check_interval", "1000", "--run", "vit"]
    assert _fit(*arguments, *SHORT, "--model.width", "0.25", *length) == 0
    assert json.loads(Path("lightning_logs/vit/results.json").read_text())["test"]["acc"] > 0.6


@pytest.mark.filterwarnings("ignore:.*MD5.*")
@pytest.mark.parametrize("name", sorted(COUNTERMEASURES))
def test_countermeasure(name: str) -> None:
    """Each stands with its defaults, so that the command line, Python and the configs mean the same by a name; and takes a step."""
    _fake("bloodmnist")
    file = f"recipe/{RECIPES[name]}.yaml" if name in RECIPES else f"countermeasure/{name}.yaml"
    arguments = ["--config", "victim.yaml", "--config", file, "--config", "dataset/bloodmnist.yaml"]
    required: list[str] = []
    if name == "finetune":  # which cannot have one
        required = [str(_victim_checkpoint())]
        arguments += ["--model.countermeasure.checkpoint", *required]
    cli = SalmCLI(["fit", *arguments, *FAST])
    assert cli.trainer.global_step == 1
    alone = VictimModule(8, countermeasure=COUNTERMEASURES[name](*required))
    for what in ("countermeasure", "optimizer", "lr_scheduler"):
        given, own = (module.settings()[what] for module in (cli.model, alone))
        assert given | {"total_steps": None} == own | {"total_steps": None}, what


@pytest.mark.filterwarnings("ignore:.*MD5.*")
@pytest.mark.parametrize("options", [["--model.countermeasure", "MedMNISTRecipe"], ["--config", "recipe/medmnist.yaml"]])
def test_a_recipe_is_the_same_from_an_option_and_from_its_file(options: list[str]) -> None:
    _fake("bloodmnist")
    cli = _build("--model", "VictimModule", *options, "--config", "dataset/bloodmnist.yaml")
    settings = cli.model.settings()
    assert (settings["optimizer"]["class"], settings["optimizer"]["lr"]) == ("Adam", 0.001)
    assert list(settings["lr_scheduler"]["fractions"]) == [0.5, 0.75]
    assert cli.datamodule.batch_size == 128


@pytest.mark.filterwarnings("ignore:.*MD5.*")
def test_the_paper_s_recipe_takes_another_one_back() -> None:
    _fake("bloodmnist")
    files = [word for file in ("victim", "recipe/medmnist", "recipe/paper") for word in ("--config", f"{file}.yaml")]
    settings = _build(*files, "--config", "dataset/bloodmnist.yaml").model.settings()
    assert settings == VictimModule(8).settings()


def _victim_checkpoint() -> Path:
    """Return the checkpoint of a victim of the images and the width that the tests here have."""
    info = MEDMNIST["bloodmnist"]
    weights = VictimModule(info.num_classes, info.channels, info.size, width=0.125).state_dict()
    torch.save({"state_dict": weights}, "some.ckpt")
    return Path("some.ckpt")


def test_one_flag_away() -> None:
    """Each of the other datasets is an option, and later values win."""
    cli = _build("--config", "salm_pathmnist.yaml", "--data.name", "chestmnist", *SHORT, "--trainer.max_steps", "7")
    assert isinstance(cli.datamodule, MedMNISTDataModule)
    assert cli.datamodule.info.name == "chestmnist"
    assert (cli.model.task, cli.model.image_shape) == ("multi-label", (1, 28, 28))
    assert cli.trainer.max_steps == 7


def test_pathmnist_pair_has_the_settings_of_the_paper() -> None:
    _fake("pathmnist")
    cli = _build("--config", "salm_pathmnist.yaml", *SHORT)
    module = cli.model
    assert isinstance(module, NoiseGeneratorModule)
    assert (module.method.percent, module.method.radius, module.method.step_size, module.pgd_steps) == (10, 8, 1.6, 10)
    assert (cli.trainer.max_steps, cli.datamodule.batch_size) == (5000, 128)

    assert _fit("--config", "salm_pathmnist.yaml", *SHORT, "--trainer.max_steps", "2") == 0
    cli = _build("--config", "victim_pathmnist.yaml", *SHORT)
    assert isinstance(cli.model, VictimModule)
    assert cli.trainer.max_steps == 20000
    optimizer = cli.model.build_optimizer(cli.model.parameters())
    assert [optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [0.1, 0.9, 5e-4]
    assert cli.model.build_scheduler(optimizer).fractions == (0.4, 0.8)
    assert _fit("--config", "victim_pathmnist.yaml", *FAST) == 0


def test_quickstart() -> None:
    _fake("breastmnist")
    values = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    assert values["data"] == "synthetic"
    short = ["--steps", "2", "--victim_steps", "2", "--width", "0.125", "--batch_size", "8", "--out", "out"]
    assert main(["protect", "breastmnist.npz", "--config", "quickstart.yaml", *short]) == 0
    assert Path("out/victim-protected/results.json").is_file()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_trainer_for_one_device(name: str) -> None:
    _fake("breastmnist")
    arguments = ["--config", "victim.yaml", "--config", "dataset/breastmnist.yaml", "--config", f"trainer/{name}.yaml"]
    assert yaml.safe_load((CONFIGS / f"trainer/{name}.yaml").read_text())["trainer"]["accelerator"] == name
    assert _fit(*arguments, *FAST) == 0


@pytest.mark.parametrize("name", ["ddp", "slurm"])
def test_trainer_for_many_devices(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One process of one device, where a real job has many, on the CPU.

    There is no sync_batchnorm for a CPU: it is in the Trainer that is built, and off in the one that runs. It runs in a process of its
    own, because it forms a process group. test_ddp.py has groups of two.
    """
    _fake("breastmnist")
    arguments = ["--config", "method/salm.yaml", "--config", "dataset/breastmnist.yaml", "--config", f"trainer/{name}.yaml"]
    if name == "slurm":
        assert _fit(*arguments, *SHORT) == 2
        assert "needs a SLURM job" in capsys.readouterr().err
        for variable, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{variable}", value)
    cli = _build(*arguments, *SHORT)
    assert isinstance(cli.trainer.strategy, DDPStrategy)
    assert cli.trainer._accelerator_connector.use_distributed_sampler is False
    assert cli.config["fit"]["trainer"]["sync_batchnorm"] is True
    if name == "slurm":
        environment = cli.trainer.strategy.cluster_environment
        assert isinstance(environment, SLURMEnvironment)
        assert environment.auto_requeue is False
    running, log = ["fit", *arguments, *FAST, "--trainer.sync_batchnorm", "false"], Path("log")
    assert run(running, log, patch=_say_the_world) == [0], log.with_suffix(".0").read_text()
    assert "a group of 1\n" in log.with_suffix(".0").read_text()


def _say_the_world(rank: int) -> None:
    """Print in the training step how many processes there are, which fails without a process group."""
    before(NoiseGeneratorModule, "training_step", lambda: print(f"a group of {torch.distributed.get_world_size()}"))


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_sweep(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs are planned, with their data and modules built; tests of the sweep itself run some."""
    narrow = ["--generator.model.width", "0.125", "--victim.model.width", "0.125"]
    assert main(["sweep", "--config", f"sweep/{name}.yaml", "--dry_run", "true", "--grid.seed", "[0]", *narrow]) == 0
    victims, releases = SWEEPS[name]
    shown = capsys.readouterr().out
    assert f"{victims} victims, {releases} releases; 0 of {victims + releases} runs are done." in shown


def test_readings_are_those_of_the_documentation() -> None:
    """Every key with another reading in docs/method.md is varied."""
    page = (CONFIGS.parent / "docs/method.md").read_text()
    table = page.partition("## Readings")[2].partition("## Precision")[0]
    keys = {key.rpartition(".")[2] for key in re.findall(r"^\|[^|]*\| `([\w.]+)` \|", table, flags=re.MULTILINE)}
    values = yaml.safe_load((CONFIGS / "sweep/readings.yaml").read_text())["grid"]["generator.model"]
    varied = {key.rpartition(".")[2] for value in values for key in value}
    # The sweep's dataset has colours, which as_rgb leaves as they are.
    assert varied == keys - {"percent", "lr_scheduler", "optimizer", "as_rgb"}


def _classes(values: Any) -> int:
    if isinstance(values, dict):
        return ("class_path" in values) + sum(map(_classes, values.values()))
    return sum(map(_classes, values)) if isinstance(values, list) else 0


def test_small_configs_say_one_thing() -> None:
    """A file of a folder settles one thing, so that files of several folders go together in any order."""
    for folder, section in (
        ("dataset", "data"),
        ("method", "model"),
        ("arch", "model"),
        ("trainer", "trainer"),
        ("countermeasure", "model"),
    ):
        for path in (CONFIGS / folder).glob("*.yaml"):
            values = yaml.safe_load(path.read_text())
            assert set(values) == {section}, path
            has_parts = path.stem in ("vit", "finetune", "robust")  # an optimiser, or the method's T
            assert _classes(values) <= (2 if folder in ("method", "countermeasure") else 1) + has_parts, path


def test_every_config_begins_with_a_comment() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_bare_names_find_shipped_configs() -> None:
    assert Path(resolve_config("method/em.yaml")) == CONFIGS / "method/em.yaml"
    assert Path(resolve_config("configs/victim.yaml")) == CONFIGS / "victim.yaml"
    Path("victim.yaml").write_text("run: mine\n")
    assert resolve_config("victim.yaml") == "victim.yaml", "the user's own file comes first"
    for name in ("../pyproject.toml", "/victim.yaml"):
        with pytest.raises(ConfigurationError, match="neither a file nor a shipped config"):
            resolve_config(name)
