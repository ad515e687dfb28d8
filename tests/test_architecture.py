"""Networks from outside: any class of networks as a victim or as a source model, recorded as it was given."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import write_fake_npz
from lightning.pytorch import Trainer
from torch import Tensor, nn

from salm_lightning import countermeasures
from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.countermeasures import Countermeasure, FineTune
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.models import ARCHITECTURES, Architecture, NetworkFactory
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.modules.schedule import FractionalStepLR, default_optimizer
from salm_lightning.noise.methods import SALM

HERE = "test_architecture"


class Tiny(nn.Module):
    """A network of a user's, whose dropout is none of torch's layers."""

    def __init__(self, num_classes: int, channels: int, depth: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        widths = [channels, *[8] * depth]
        self.layers = nn.ModuleList(nn.Conv2d(*pair, kernel_size=3, stride=2) for pair in pairwise(widths))
        self.head = nn.Linear(8, num_classes)
        self.drop = drop

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images).relu()
        logits: Tensor = self.head(nn.functional.dropout(images.mean((2, 3)), self.drop, self.training))
        return logits


class Scaled(nn.Module):
    default_optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.002}}  # noqa: RUF012

    def __init__(self, *, num_classes: int, width: float, image_size: int, **options: Any) -> None:
        super().__init__()
        self.seen = (width, image_size, options)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class Misshapen(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return images


class Needy(Tiny):
    def __init__(self, num_classes: int, channels: int, depth: int) -> None:
        super().__init__(num_classes, channels, depth)


def function(num_classes: int) -> nn.Module:
    return nn.Linear(1, num_classes)


@pytest.mark.parametrize(
    ("given", "name", "settings"),
    [
        ("vit", "vit", "vit"),
        ({"class_path": "linear"}, "linear", "linear"),
        (f"{HERE}.Tiny", "tiny", {"class_path": f"{HERE}.Tiny", "init_args": {}}),
        (Tiny, "tiny", {"class_path": f"{HERE}.Tiny", "init_args": {}}),
        (partial(Tiny, depth=1, drop=0.0), "tiny", {"class_path": f"{HERE}.Tiny", "init_args": {}}),
        (partial(Tiny, depth=3), "tiny-depth=3", {"class_path": f"{HERE}.Tiny", "init_args": {"depth": 3}}),
        (
            {"class_path": f"{HERE}.Scaled", "init_args": {"blocks": (1, 2), "kind": "a/b"}}, "scaled-blocks=_1_2_-kind=a_b",
            {"class_path": f"{HERE}.Scaled", "init_args": {"blocks": [1, 2], "kind": "a/b"}},
        ),
    ],
)  # fmt: skip
def test_an_architecture_is_the_same_however_it_is_spelled(given: Any, name: str, settings: Any) -> None:
    arch = Architecture.parse(given)
    assert (arch.name, arch.settings()) == (name, settings)
    again = Architecture.parse(json.loads(json.dumps(arch.settings())))
    assert again == Architecture.parse(arch) == arch
    assert len({again, arch}) == 1


def test_a_class_gets_what_its_constructor_has_and_its_seed() -> None:
    before = torch.get_rng_state()
    arch = Architecture.parse({"class_path": f"{HERE}.Scaled", "init_args": {"depth": 2}})
    built = arch.build(4, 1, 12, 0.5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert built.network.seen == (0.5, 12, {"depth": 2})
    assert built.training
    same, other = arch.build(4, 1, 12, 0.5, seed=3), arch.build(4, 1, 12, 0.5, seed=4)
    assert torch.equal(built.network.layers[1].weight, same.network.layers[1].weight)
    assert not torch.equal(built.network.layers[1].weight, other.network.layers[1].weight)
    grey = torch.rand(2, 1, 12, 12)
    of_rgb = Architecture.parse(Tiny).build(3, 1, 12, as_rgb=True)
    assert of_rgb.network.layers[0].in_channels == 3
    assert of_rgb(grey).shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet19", r"source='resnet19' is not known; did you mean 'resnet18'\?.* Or give the path of a class"),
        ("no_such_module.Net", r"source=no_such_module.Net cannot be imported \(No module named 'no_such_module'\).*PYTHONPATH"),
        (f"{HERE}.Tini", f"source={HERE}.Tini cannot be imported .*no attribute 'Tini'"),
        (f"{HERE}.function", f"source={HERE}.function is no torch.nn.Module"),
        ("pathlib.Path", "source=pathlib.Path is no torch.nn.Module"),
        (partial(Tiny, dept=3), r"source=.*Tiny does not take init_args=\{'dept': 3\} \(.*'dept'\).*: depth, drop\."),
        (Needy, r"source=.*Needy does not take init_args=\{\} \(missing a required argument: 'depth'\)"),
        (partial(Tiny, num_classes=3), r"multiple values for keyword argument 'num_classes'"),
        (partial(Tiny, depth=torch.float32), r"does not take init_args.*not JSON serializable\)\. .*plain values"),
        ({"class_path": "vit", "init_args": {"depth": 3}}, r"source=vit takes no init_args"),
        ({"depth": "3"}, r"source=\{'depth': '3'\} is no architecture; give one of vgg11, .* or class_path and init_args"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        NoiseGeneratorModule(SALM(), 3, source=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        (Misshapen, 12, r"returns .*\[2, 3, 12, 12\].* for two images; .* shape \(2, 4\)"),
        (partial(Tiny, depth=5), 12, "Tiny fails with .*'image_size': 12.*: RuntimeError: .*[Kk]ernel size"),
        (partial(Tiny, depth="two"), 12, "Tiny fails with .*: TypeError"),
    ],
)
def test_a_class_that_does_not_classify_is_refused_before_any_work(given: NetworkFactory, size: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VictimModule(4, 3, size, arch=given)


def _options(countermeasure: str) -> dict[str, Any]:
    """Return the arguments that a countermeasure cannot do without."""
    return {"checkpoint": __file__} if countermeasure == "FineTune" else {}


@pytest.mark.parametrize("countermeasure", [None, *sorted(kind.__name__ for kind in countermeasures.COUNTERMEASURES.values())])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_default_optimisers_are_those_that_the_configs_had(arch: str, countermeasure: str | None) -> None:
    """The transformer's AdamW, else fine-tuning's smaller rate or a recipe's own optimiser, else the paper's SGD."""
    chosen = getattr(countermeasures, countermeasure)(**_options(countermeasure)) if countermeasure else Countermeasure()
    built = default_optimizer(Architecture.parse(arch), chosen)([nn.Parameter(torch.zeros(1))])
    rate = 0.01 if countermeasure == "FineTune" else 0.1
    if arch != "vit" and countermeasure in ("MedMNISTRecipe", "AdamWRecipe"):
        kind, decay = (torch.optim.Adam, 0) if countermeasure == "MedMNISTRecipe" else (torch.optim.AdamW, 0.05)
        assert (type(built), built.defaults["lr"], built.defaults["weight_decay"]) == (kind, 0.001, decay)
    elif arch == "vit":
        assert (type(built), built.defaults["lr"], built.defaults["weight_decay"]) == (torch.optim.AdamW, 0.001, 0.05)
    else:
        assert [built.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [rate, 0.9, 5e-4]
        assert type(built) is torch.optim.SGD


def test_modules_take_the_default_and_an_explicit_optimiser_wins() -> None:
    def first(module: VictimModule | NoiseGeneratorModule) -> tuple[str, float]:
        built = module.build_optimizer(module.parameters())
        return type(built).__name__, built.defaults["lr"]

    assert first(VictimModule(3, arch="vit", width=0.125)) == ("AdamW", 0.001)
    assert first(VictimModule(3, arch="linear", countermeasure=FineTune(__file__))) == ("SGD", 0.01)
    assert first(NoiseGeneratorModule(SALM(), 3, source="vit", width=0.125)) == ("AdamW", 0.001)
    assert first(VictimModule(3, 1, 12, arch=Scaled)) == ("Adam", 0.002)
    sgd = partial(torch.optim.SGD, lr=0.1)
    assert first(VictimModule(3, arch="vit", width=0.125, optimizer=sgd)) == ("SGD", 0.1)
    rate = default_optimizer(Architecture.parse("vit"), learning_rate=0.5)([nn.Parameter(torch.zeros(1))])
    assert (type(rate).__name__, rate.defaults["lr"], rate.defaults["weight_decay"]) == ("AdamW", 0.5, 0.05)


def _data(folder: Path, channels: int, task: Task) -> NpzDataModule:
    write_fake_npz(folder / "data.npz", DatasetInfo("data", task, ("a", "b", "c"), channels, 12), (24, 8, 8))
    return NpzDataModule(folder / "data.npz", batch_size=8, task=task)


def _fit(module: Any, data: NpzDataModule, folder: Path, steps: int, ckpt_path: Path | None = None) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        callbacks=[RunCheckpoint(2)], check_val_every_n_epoch=None, val_check_interval=2, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


@pytest.mark.parametrize(
    ("channels", "task"), [(1, Task.MULTI_CLASS), (3, Task.MULTI_CLASS), (1, Task.MULTI_LABEL), (3, Task.MULTI_LABEL)]
)
def test_victims_from_outside_train_resume_and_predict(tmp_path: Path, channels: int, task: Task) -> None:
    data = _data(tmp_path, channels, task)

    def victim() -> VictimModule:
        schedule = partial(FractionalStepLR, total_steps=100)
        return VictimModule(3, channels, 12, task, arch=partial(Tiny, depth=2, drop=0.5), lr_scheduler=schedule)

    whole, half, resumed = victim(), victim(), victim()
    _fit(whole, data, tmp_path / "whole", 4)
    _fit(half, _data(tmp_path, channels, task), tmp_path / "half", 2)
    saved = tmp_path / "half/checkpoints/step=2.ckpt"
    torch.manual_seed(99)
    trainer = _fit(resumed, data, tmp_path / "half", 4, saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    made = trainer.predict(resumed, dataloaders=data.test_dataloader())
    assert made is not None
    assert torch.cat([part["probabilities"] for part in made]).shape == (8, 3)
    assert whole.settings()["arch"] == {"class_path": f"{HERE}.Tiny", "init_args": {"depth": 2, "drop": 0.5}}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_source_model_from_outside_makes_noise_and_is_recorded(tmp_path: Path, channels: int) -> None:
    data = _data(tmp_path, channels, Task.MULTI_CLASS)
    module = NoiseGeneratorModule(SALM(), 3, channels, 12, source=partial(Tiny, depth=2))
    trainer = _fit(module, data, tmp_path, 2)
    checkpoint = torch.load(tmp_path / "checkpoints/step=2.ckpt", weights_only=True)
    assert checkpoint["settings"]["source"] == {"class_path": f"{HERE}.Tiny", "init_args": {"depth": 2}}
    chunks = trainer.predict(module, datamodule=data)
    assert chunks is not None
    clean = torch.from_numpy(data.split("train").images)
    assert any(not torch.equal(chunk.images[:1], clean[:1]) for chunk in chunks)


NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes: int, channels: int, image_size: int, hidden: int = 8):
        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_a_user.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_a_user", raising=False)


FAST = [
    *("--data", "SyntheticDataModule", "--data.size", "16", "--data.train_size", "20", "--data.val_size", "8", "--data.test_size", "8"),
    *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--data.batch_size", "8"),
]  # fmt: skip


@pytest.mark.usefixtures("nets")
def test_the_command_line_takes_a_class_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.arch", "nets_of_a_user.Net", "--model.arch.init_args.hidden", "5"]
    assert main(["fit", "--model", "VictimModule", *options, *FAST, "--run", "v"]) == 0
    expected = {"class_path": "nets_of_a_user.Net", "init_args": {"hidden": 5}}
    assert json.loads(Path("lightning_logs/v/results.json").read_text())["victim"]["arch"] == expected
    assert yaml.safe_load(Path("lightning_logs/v/config.yaml").read_text())["model"]["init_args"]["arch"] == expected
    again = ["--config", "lightning_logs/v/config.yaml", "--ckpt_path", "lightning_logs/v"]
    assert main(["predict", *again]) == 0

    Path("net.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "NoiseGeneratorModule", "init_args": {"source": expected}}})
    )
    options = ["--config", "method/salm.yaml", "--config", "net.yaml", "--model.source.hidden", "6"]
    assert main(["fit", *options, *FAST, "--run", "g"]) == 0
    manifest = json.loads(Path("lightning_logs/g/protected/manifest.json").read_text())
    assert manifest["settings"]["source"] == {"class_path": "nets_of_a_user.Net", "init_args": {"hidden": 6}}

    capsys.readouterr()
    assert main(["fit", "--model", "VictimModule", "--model.arch", "nets_of_a_user.Net", "--model.arch.hiden", "5", *FAST]) == 2
    assert "--model.arch.hiden is not an option; did you mean 'hidden'?" in capsys.readouterr().err
    assert main(["fit", "--model", "VictimModule", "--model.arch", "nets_of_a_user.Nett", *FAST]) == 2
    error = capsys.readouterr().err
    assert "arch=nets_of_a_user.Nett cannot be imported" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.arch", "vit", "--model.optimizer.lr", "0.002"], ("torch.optim.AdamW", 0.002)),
        (["--model.arch", "vit", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.01"], ("torch.optim.SGD", 0.01)),
        (["--config", "countermeasure/finetune.yaml", "--model.optimizer.lr", "0.1"], ("torch.optim.SGD", 0.1)),
        (["--model.optimizer.lr", "0.3"], ("torch.optim.SGD", 0.3)),
    ],
)
def test_options_of_an_optimiser_that_is_not_named_change_the_default_one(
    options: list[str], expected: tuple[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ["--model.countermeasure.checkpoint", __file__] if "countermeasure/finetune.yaml" in options else []
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "victim.yaml", *options, *checkpoint, *FAST, "--print_config"])
    assert end.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert (shown["class_path"], shown["init_args"]["lr"]) == expected
    if shown["class_path"].endswith("SGD") and "SGD" not in options:
        assert (shown["init_args"]["momentum"], shown["init_args"]["weight_decay"]) == (0.9, 5e-4)
