"""Another class begins with its own defaults, for every command, every kind of class and every source; later values win."""

from __future__ import annotations

import itertools
import shlex
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from salm_lightning.cli.composition import compose, merge, same_class
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method, Random
from salm_lightning.sweep.options import compose as compose_cell

METHODS = (SALM, EM, TAP, SP, Random)
PAIRS = [pytest.param(*pair, id=f"{pair[0].__name__}-{pair[1].__name__}") for pair in itertools.permutations(METHODS, 2)]
ODD = {"percent": 20, "radius": 4.5, "step_size": 0.7, "eot_samples": 3, "start": "zero", "score": "signed", "restarts": 2}
"""Values that are no method's own."""
DATA = "--data synthetic"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _own(method: type[Method]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in signature(method).parameters.items()}


def _odd(method: type[Method]) -> dict[str, Any]:
    return {name: value for name, value in ODD.items() if name in signature(method).parameters}


def _write(name: str, values: dict[str, Any]) -> str:
    Path(name).write_text(yaml.safe_dump(values))
    return f"--config {name}"


def _amounts_to(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what a command line amounts to."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(shlex.split(f"{arguments} --print_config"))
    assert end.value.code == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_a_later_method_begins_anew(earlier: type[Method], later: type[Method], capsys: pytest.CaptureFixture[str]) -> None:
    """File then option, file then file, short or whole names, in fit and in protect."""
    spelt = {"class_path": earlier.__name__, "init_args": _odd(earlier)}
    whole = {"class_path": f"{later.__module__}.{later.__name__}"}
    generator = {"class_path": "NoiseGeneratorModule", "init_args": {"method": spelt}}
    of_fit = [_write("fit.yaml", {"model": generator}), _write("then.yaml", {"model": {"init_args": {"method": whole}}})]
    of_protect = [_write("protect.yaml", {"method": spelt}), _write("after.yaml", {"method": whole})]
    expected = {name: str(value) for name, value in _own(later).items()}
    for way in (f"fit {DATA} {of_fit[0]} --model.method {later.__name__.lower()}", f"fit {DATA} {' '.join(of_fit)}"):
        method = _amounts_to(way, capsys)["model"]["init_args"]["method"]
        assert method["class_path"].endswith(f".{later.__name__}")
        assert {name: str(value) for name, value in method["init_args"].items()} == expected, way
    for way in (f"protect synthetic {of_protect[0]} --method {later.__name__}", f"protect synthetic {' '.join(of_protect)}"):
        method = _amounts_to(way, capsys)["method"]
        assert method["class_path"].endswith(f".{later.__name__}")
        assert {name: str(value) for name, value in method["init_args"].items()} == expected, way


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_a_later_method_of_a_sweep_begins_anew(earlier: type[Method], later: type[Method]) -> None:
    generator = {
        "class_path": "NoiseGeneratorModule",
        "init_args": {"method": {"class_path": earlier.__name__, "init_args": ODD}},
    }
    _write("cell.yaml", {"model": generator})
    section = {"config": ["cell.yaml"], "model.method": later.__name__}
    for options in (
        compose_cell("generator", section, {}),
        compose_cell("generator", section | {"model.method": "SALM"}, section),
    ):
        assert options["model"]["init_args"]["method"] == {"class_path": later.__name__}
    chosen = {"model.method": later.__name__, "model.method.radius": 5}
    method = compose_cell("generator", {"config": "cell.yaml"}, chosen)["model"]["init_args"]["method"]
    assert method == {"class_path": later.__name__, "init_args": {"radius": 5}}


KINDS = {
    "data": ("data", "SyntheticDataModule", {"batch_size": 7}, "breastmnist", "MedMNISTDataModule", {"batch_size": None}),
    "optimizer": ("model.optimizer", "torch.optim.SGD", {"lr": 0.3, "weight_decay": 0.2}, "adamw", "AdamW",
                  {"lr": 0.001, "weight_decay": 0.01}),
    "schedule": ("model.lr_scheduler", "StepLR", {"step_size": 3, "gamma": 0.7}, "ExponentialLR --model.lr_scheduler.gamma 0.9",
                 "ExponentialLR", {"gamma": 0.9}),
    "countermeasure": ("model.countermeasure", "Gaussian", {"sigma": 3}, "jpeg", "JPEG", {"quality": 10}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_begin_anew_too(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, earlier, given, option, name, own = KINDS[kind]
    values: dict[str, Any] = {"model": {"class_path": "VictimModule", "init_args": {}}, "data": "synthetic"}
    values = merge(values, {path: {"class_path": earlier, "init_args": given}})
    found: Any = _amounts_to(f"fit {_write('my.yaml', values)} --{path} {option}", capsys)
    for part in path.split("."):
        found = found.get("init_args", found)[part] if part != path.partition(".")[0] else found[part]
    assert found["class_path"].rpartition(".")[2] == name
    assert found["init_args"] | own == found["init_args"]
    assert not set(given) & set(found["init_args"]) - set(own)


def test_options_of_the_default_class_are_not_another_s(capsys: pytest.CaptureFixture[str]) -> None:
    """Options without a class are those of the default one, and go with it."""
    lr = _write("lr.yaml", {"model": {"class_path": "VictimModule", "init_args": {"optimizer": {"lr": 0.05}}}})
    sgd = _amounts_to(f"fit {DATA} {lr}", capsys)["model"]["init_args"]["optimizer"]["init_args"]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.05, 0.9, 0.0005)
    adam = _amounts_to(f"fit {DATA} {lr} --model.optimizer Adam", capsys)["model"]["init_args"]["optimizer"]["init_args"]
    assert (adam["lr"], adam["weight_decay"]) == (0.001, 0.0)
    steps = _write("steps.yaml", {"method": {"init_args": {"step_size": 3}}})
    assert _amounts_to(f"protect synthetic {steps}", capsys)["method"]["init_args"]["step_size"] == 3
    assert _amounts_to(f"protect synthetic {steps} --method TAP", capsys)["method"]["init_args"]["step_size"] == 0.064
    assert _amounts_to("protect synthetic --method TAP", capsys)["method"]["init_args"]["step_size"] == 0.064


def test_what_a_fit_amounts_to_spells_its_optimiser_out(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the architecture's own, or the countermeasure's, whether an option of it is given or not."""
    for options, name, rate in (
        ("", "SGD", 0.1),
        ("--model.arch vit", "AdamW", 0.001),
        ("--model.countermeasure finetune", "SGD", 0.01),
    ):
        given = f"fit {DATA} --model VictimModule {options}"
        if "finetune" in options:
            given += " --model.countermeasure.checkpoint some.ckpt"
        found = _amounts_to(given, capsys)["model"]["init_args"]
        assert found["optimizer"]["class_path"] == f"torch.optim.{name}"
        assert found["optimizer"]["init_args"]["lr"] == rate
        assert found["lr_scheduler"]["init_args"] == {"fractions": [0.4, 0.8], "gamma": 0.1, "total_steps": None}
        assert _amounts_to(f"{given} --model.optimizer.lr {rate}", capsys)["model"]["init_args"] == found
        other = _amounts_to(f"{given} --model.optimizer.lr 0.5", capsys)["model"]["init_args"]["optimizer"]
        assert other == {"class_path": f"torch.optim.{name}", "init_args": {**found["optimizer"]["init_args"], "lr": 0.5}}


def test_the_same_class_keeps_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for one, other in (("SALM", "salm_lightning.noise.methods.salm.SALM"), ("salm", "SALM")):
        assert same_class(one, other)
        merged = merge({"class_path": one, "init_args": {"percent": 20}}, other)
        assert merged == {"class_path": max(one, other, key=len), "init_args": {"percent": 20}} or "." not in one + other
    assert not same_class("mine.SALM", "SALM")
    assert not same_class("mine.SALM", "yours.SALM")
    assert merge({"class_path": "mine.SALM", "init_args": {"percent": 20}}, {"class_path": "yours.SALM"}) == {
        "class_path": "yours.SALM"
    }


def test_merging() -> None:
    base = {"model": {"class_path": "A", "init_args": {"width": 1, "layers": [1, 2]}}, "trainer": {"max_steps": 5}}
    assert merge(base, {"model.width": 2, "trainer": {"max_time": None}}) == {
        "model": {"class_path": "A", "init_args": {"width": 2, "layers": [1, 2]}}, "trainer": {"max_steps": 5, "max_time": None},
    }  # fmt: skip
    assert merge(base, {"model": {"init_args": {"layers": [3]}}})["model"]["init_args"] == {"width": 1, "layers": [3]}
    assert merge(base, {"model": "B"})["model"] == {"class_path": "B"}
    assert merge(base, {"model": {"class_path": "B", "dict_kwargs": {"x": 1}}})["model"] == {
        "class_path": "B", "dict_kwargs": {"x": 1},
    }  # fmt: skip
    assert merge(base, {"model": None})["model"] is None
    assert merge({"callbacks": ["A"]}, {"callbacks+": {"class_path": "B"}, "callbacks.x": 1}) == {
        "callbacks": ["A", {"class_path": "B", "init_args": {"x": 1}}]
    }
    assert base["model"] == {"class_path": "A", "init_args": {"width": 1, "layers": [1, 2]}}, "the base is left as it was"


def test_what_is_typed_comes_after_all_files() -> None:
    Path("my.yaml").write_text("run: file\nrelease: there\n")
    assert compose(["--run", "typed", "--config", "my.yaml"]).settings.options() == {"run": "typed", "release": "there"}


def test_a_typed_option_is_never_dropped_without_a_word() -> None:
    for args in (["--method.percent", "5", "--method", "TAP"], ["--method", "SALM", "--method.percent=5", "--method=TAP"]):
        with pytest.raises(ConfigurationError, match=r"--method.percent stands before --method TAP; give the class first"):
            compose(args)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
        "\n".join([f"a0: &a0 [{'x, ' * 5000}]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 7))]),
        "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 30))]),
        "a: &a [*a]",
        "[" * 5000,
    ],
    ids=["many", "few of much", "merged", "itself", "deep"],
)
def test_aliases_of_aliases_are_refused(text: str) -> None:
    Path("bomb.yaml").write_text(text)
    with pytest.raises(
        ConfigurationError, match=r"bomb.yaml is not valid YAML: (it stands for more than 100000|its values lie too deep)"
    ):
        compose(["--config", "bomb.yaml"])
    Path("fine.yaml").write_text("a: &a {x: 1}\nb: *a\n")
    assert compose(["--config", "fine.yaml"]).settings.options() == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_home_folder_is_meant_wherever_a_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("out: ~/a\ncallbacks: [~/b]\nmodel: {init_args: {path: ~/c}}\nnothing: ~\n")
    found = compose(["~/d", "--config", "~/my.yaml", "--release", "~/e", "--more=~/f"])
    values = found.settings.options()
    assert found.words == [f"{tmp_path}/d"]
    assert (values["out"], values["callbacks"], values["release"], values["more"]) == (
        f"{tmp_path}/a", [f"{tmp_path}/b"], f"{tmp_path}/e", f"{tmp_path}/f"
    )  # fmt: skip
    assert values["model"] == {"path": f"{tmp_path}/c"}
    assert values["nothing"] is None
