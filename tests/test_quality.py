"""Quality from end to end: what is compared with what, what is written, and what the command says."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import as_tensor, fake_arrays
from oracles import make_trainer
from sklearn.metrics import accuracy_score, normalized_mutual_info_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from salm_lightning import commands
from salm_lightning.audit import pairs as pairs_module
from salm_lightning.audit.figures import pairs_figure
from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.probes import features_of, linear_separability, logits_of, noise_of, readability
from salm_lightning.audit.quality import assess
from salm_lightning.audit.results import Quality, Separability
from salm_lightning.audit.segmentation import Otsu
from salm_lightning.commands.quality import quality
from salm_lightning.data import MEDMNIST, DatasetInfo, MedMNISTDataModule, NpzDataModule
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.main import main
from salm_lightning.models import ARCHITECTURES, Architecture
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import SP
from salm_lightning.release import write_release
from salm_lightning.runs.generation import generate
from salm_lightning.sealed import read_sealed

BLOOD, BREAST, CHEST = MEDMNIST["bloodmnist"], MEDMNIST["breastmnist"], MEDMNIST["chestmnist"]
FOUR = {"mean", "p5", "worst", "worst_index", "worst_file"}


def make(
    folder: Path,
    info: DatasetInfo = BLOOD,
    count: int = 40,
    selected: np.ndarray | None = None,
    separable: bool = False,
    **options: Any,
) -> tuple[Path, NpzDataModule]:
    """Write a source and a release of it; separable noise is the same for all images of a class."""
    arrays = fake_arrays(info, (count, 8, 8), seed=3)
    rng = np.random.default_rng(4)
    noise = rng.integers(-8, 9, arrays["train_images"].shape)
    if separable:
        noise = noise[arrays["train_labels"][:, 0]]
    if selected is not None:
        noise[~selected] = 0
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{info.name}.npz", **arrays)
    source = NpzDataModule(folder / f"{info.name}.npz", info.task, **options)
    protected = np.clip(arrays["train_images"].astype(int) + noise, 0, 255).astype(np.uint8)
    bound = {"norm": "linf", "radius": 8}
    write_release(folder / "protected", source, [protected], {}, bound, selected=selected)
    return folder / "protected", source


def stored(release: Path, source: NpzDataModule) -> tuple[np.ndarray, np.ndarray]:
    with np.load(next(release.glob("*.npz"))) as arrays:
        return np.asarray(source.split("train").images), arrays["train_images"]


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values under dotted names, the names of things left out."""
    inner = {name: flat(value) if isinstance(value, dict) else {"": value} for name, value in values.items()}
    return {f"{name}.{key}": value for name, below in inner.items() for key, value in below.items() if not isinstance(value, str)}


def test_everything_that_is_written(tmp_path: Path) -> None:
    release, source = make(tmp_path)
    classifier = Architecture.parse("resnet18").build(8, width=0.125)
    seen: list[tuple[int, int]] = []
    out = tmp_path / "audit"
    result = assess(release, source, out, classifier, Otsu(), on_progress=lambda *done: seen.append(done))
    assert read_sealed(out / "quality.json") == (result.to_json(), True)
    assert Quality.read(out, result.release.archive_sha256) == result
    values = result.to_json()
    assert (values["format_version"], values["images"], values["protected_images"]) == (1, 40, 40)
    assert values["release"] == {"archive_sha256": hashlib.sha256((release / f"{BLOOD.name}.npz").read_bytes()).hexdigest()}
    assert list(values["similarity"]) == ["ssim", "psnr", "ahash", "phash", "dhash", "nmi", "linf", "l0", "changed_share"]
    assert all(set(measure) == FOUR for measure in values["similarity"].values())
    assert values["segmentation"].pop("segmenter") == "otsu"
    assert {name: set(measure) for name, measure in values["segmentation"].items()} == {"changed_share": FOUR, "dice": FOUR}
    assert set(values["readable"]) == {"clean_acc", "protected_acc", "clean_auc", "protected_auc", "majority"}
    assert set(values["linear_separability"]) == {"noise_acc", "majority", "images", "held_out"}
    assert seen == [(40, 40)]

    names = ["examples", "extremes", "worst", "segmentation", "features"]
    assert [entry["file"] for entry in json.loads((out / "pictures.json").read_text())["pictures"]] == [
        f"pictures/{name}.png" for name in names
    ]
    written = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert {path for path in written if not path.startswith("tensorboard/")} == {
        "quality.json",
        "pictures.json",
        *(f"pictures/{name}.png" for name in names),
    }
    assess(release, source, out, classifier, Otsu())
    events = EventAccumulator(str(out / "tensorboard/pictures"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == names
    assert [len(events.Images(name)) for name in names] == [1] * len(names), "no picture twice"


def test_worst_images_are_named_by_their_place_in_the_split(tmp_path: Path) -> None:
    selected = np.arange(40) % 3 == 1
    release, source = make(tmp_path, BREAST, selected=selected)
    original, protected = stored(release, source)
    result = assess(release, source, tmp_path / "audit").to_json()
    assert (result["images"], result["segmentation"], result["readable"]) == (13, None, None)
    rows = np.flatnonzero(selected)
    nmi = [normalized_mutual_info_score(original[row].ravel(), protected[row].ravel()) for row in rows]
    found = result["similarity"]["nmi"]
    assert found["worst_index"] == rows[np.argmin(nmi)]
    assert found["p5"] == pytest.approx(np.percentile(nmi, 5))
    l0 = (original[rows] != protected[rows]).sum(axis=(1, 2))
    assert result["similarity"]["l0"] == {
        "mean": pytest.approx(l0.mean()),
        "p5": pytest.approx(np.percentile(l0, 95)),
        "worst": l0.max(),
        "worst_index": rows[np.argmax(l0)],
        "worst_file": "",
    }


def test_pictures_call_measures_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        "salm_lightning.audit.quality.pairs_figure", lambda a, b, names: shown.extend(names) or pairs_figure(a, b, names)
    )
    assess(*make(tmp_path, count=20), tmp_path / "audit")
    text = "\n".join(shown)
    assert [name for name in ("aHash", "pHash", "dHash", "SSIM", "PSNR", "NMI", "changed pixels") if f"{name} " not in text] == []
    assert re.findall("ahash|phash|dhash|ssim|psnr|nmi|linf|l0|changed_share", text) == []


def test_chunks_do_not_matter_nor_does_a_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, source = make(tmp_path, count=20)
    classifier = Architecture.parse("resnet18").build(8, width=0.125)
    whole = assess(release, source, tmp_path / "whole", classifier, Otsu())
    monkeypatch.setattr(pairs_module, "CHUNK_BYTES", 7 * 28 * 28 * 3)
    mapped = NpzDataModule(source.source_path, source.task, resident="mapped")
    seen: list[tuple[int, int]] = []
    parts = assess(release, mapped, tmp_path / "parts", classifier, Otsu(), on_progress=lambda *done: seen.append(done))
    assert isinstance(mapped.split("train").images, np.memmap)
    assert seen == [(7, 20), (14, 20), (20, 20)]
    assert flat(parts.to_json()) == pytest.approx(flat(whole.to_json()), abs=1e-12)
    for name in ("examples", "extremes", "worst", "segmentation"):
        ours, theirs = (tmp_path / folder / f"pictures/{name}.png" for folder in ("whole", "parts"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_sample_is_seeded_and_said(tmp_path: Path) -> None:
    release, source = make(tmp_path)
    result = assess(release, source, tmp_path / "audit", max_images=9).to_json()
    assert (result["images"], result["protected_images"]) == (9, 40)
    first, again, other = (Pairs(release, source, 9, seed).rows for seed in (0, 0, 1))
    assert len(np.unique(first)) == 9
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
    original, protected = Pairs(release, source, 9).at(slice(2, 4))
    for stored_images, images in zip(stored(release, source), (original, protected), strict=True):
        np.testing.assert_array_equal(stored_images[first[2:4]], images)
    with pytest.raises(ConfigurationError, match="max_images=0"):
        Pairs(release, source, 0)


def test_another_source_is_refused(tmp_path: Path) -> None:
    release, _ = make(tmp_path / "a")
    with pytest.raises(ReleaseError, match=r"source=breastmnist: its training images are \[40, 28, 28\]"):
        assess(release, make(tmp_path / "b", BREAST)[1], tmp_path / "audit")
    arrays = fake_arrays(BLOOD, (40, 8, 8), seed=5)
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ReleaseError, match="source=other: its training labels are not those of the release"):
        assess(release, NpzDataModule(tmp_path / "other.npz"), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_the_command_takes_the_very_original_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release, source = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(source.source_path))
    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez("lookalike.npz", **arrays)  # the same shapes and labels
    assert main(["quality", str(release), "--source", "lookalike.npz"]) == 2
    assert "source=lookalike.npz is not what" in capsys.readouterr().err
    assert main(["quality", str(release), "--source", str(release / f"{BLOOD.name}.npz")]) == 2
    assert main(["quality", str(release), "--source", str(source.source_path)]) == 0


def test_readability_stays_when_it_is_not_measured_again(tmp_path: Path) -> None:
    release, source = make(tmp_path)
    out = tmp_path / "audit"
    before = assess(release, source, out, Architecture.parse("resnet18").build(8, width=0.125)).readable
    assert before is not None
    assert assess(release, source, out).readable == before
    other, _ = make(tmp_path / "b", separable=True)
    assert assess(other, source, out).readable is None


def test_labels_that_were_made_from_several(tmp_path: Path) -> None:
    _, source = make(tmp_path, CHEST)
    derived = MedMNISTDataModule("chestmnist", any_finding=True, root=tmp_path)
    write_release(tmp_path / "any", derived, [derived.split("train").images], {}, {"norm": "linf", "radius": 8})
    pairs = Pairs(tmp_path / "any", source)
    np.testing.assert_array_equal(pairs.labels[:, 0], source.split("train").labels.any(axis=1))


@pytest.mark.parametrize("info", [BLOOD, CHEST], ids=lambda info: info.name)
def test_an_example_of_each_class(tmp_path: Path, info: DatasetInfo) -> None:
    pairs = Pairs(*make(tmp_path, info))
    names, positions = pairs.one_per_class()
    assert names == [str(number) for number in range(info.num_classes)]  # the file that it was made from has no better ones
    for number, place in enumerate(positions):
        of_class = pairs.labels[:, number] > 0 if info is CHEST else pairs.labels[:, 0] == number
        assert place == np.flatnonzero(of_class)[0]
    assert set(pairs.classes) == (set(range(8)) if info is BLOOD else {1})


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28 * 3, 4), nn.ReLU(), nn.Linear(4, 5))


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "perceptron"])
def test_features_are_what_the_last_layer_takes(arch: str) -> None:
    classifier = (perceptron() if arch == "perceptron" else Architecture.parse(arch).build(5, width=0.125)).train()
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), dtype=np.uint8)
    last = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
    features = features_of(classifier, images)
    assert classifier.training
    with torch.no_grad():
        torch.testing.assert_close(last(torch.from_numpy(features)), logits_of(classifier, images))
        torch.testing.assert_close(logits_of(classifier, images), classifier.eval()(as_tensor(images)), rtol=1e-4, atol=1e-5)
    assert not last._forward_pre_hooks


def test_features_need_a_linear_layer() -> None:
    with pytest.raises(ConfigurationError, match="classifier=Flatten has no linear layer"):
        features_of(nn.Flatten(), np.zeros((1, 4, 4), np.uint8))


@pytest.mark.parametrize("info", [BLOOD, BREAST, CHEST], ids=lambda info: info.name)
def test_readability_is_scikit_learns(tmp_path: Path, info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    release, source = make(tmp_path, info)
    monkeypatch.setattr(pairs_module, "CHUNK_BYTES", 9 * 28 * 28)
    pairs = Pairs(release, source)
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28 * info.channels, info.num_classes))
    found = readability(classifier, pairs)
    labels = pairs.labels if info is CHEST else pairs.labels[:, 0]
    for name, images in zip(("clean", "protected"), stored(release, source), strict=True):
        logits = classifier(as_tensor(images)).detach()
        scores = (logits.sigmoid() if info is CHEST else logits.softmax(1)).numpy()
        answers = scores > 0.5 if info is CHEST else scores.argmax(1)
        accuracy = np.mean(answers == labels) if info is CHEST else accuracy_score(labels, answers)
        auc = roc_auc_score(labels, scores[:, 1] if info is BREAST else scores, multi_class="ovr")
        assert (getattr(found, f"{name}_acc"), getattr(found, f"{name}_auc")) == pytest.approx((accuracy, auc), abs=1e-6)
    assert found.clean_auc != found.protected_auc


def test_noise_of_a_class_is_separable_and_random_noise_is_not(tmp_path: Path) -> None:
    found = linear_separability(Pairs(*make(tmp_path / "a", BREAST, 200, separable=True)))
    assert found == Separability(1.0, pytest.approx(0.5, abs=0.15), 200, 40)
    found = linear_separability(Pairs(*make(tmp_path / "b", BREAST, 200)))
    assert found is not None
    assert found.noise_acc < 0.8


def test_separability_of_several_labels_and_of_one_class(tmp_path: Path) -> None:
    release, source = make(tmp_path / "a", CHEST, 30)
    found = linear_separability(Pairs(release, source))
    assert found is not None
    held_out = np.random.default_rng(0).permutation(30)[:6]
    positive = source.split("train").labels[held_out].mean(axis=0)
    assert found.majority == pytest.approx(np.maximum(positive, 1 - positive).mean())
    assert 0 < found.noise_acc < 1
    of_one_class = fake_arrays(BREAST, (40, 8, 8), seed=3)["train_labels"][:, 0] == 1
    assert linear_separability(Pairs(*make(tmp_path / "b", BREAST, 40, of_one_class))) is None
    assert linear_separability(Pairs(*make(tmp_path / "c", BREAST, 2), max_images=1)) is None


def test_noise_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, source = make(tmp_path)
    original, protected = stored(release, source)
    monkeypatch.setattr("salm_lightning.audit.pairs.CHUNK_BYTES", 3 * 28 * 28 * 3)
    positions = np.array([5, 0, 39, 7, 8, 9, 11])
    expected = (protected.astype(int) - original)[positions].reshape(7, -1)
    np.testing.assert_array_equal(noise_of(Pairs(release, source), positions), expected)


@pytest.mark.usefixtures("workplace")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "run")
    assert main(shlex.split("quality run/protected --source run/bloodmnist.npz --max_images 30")) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("run/audit/quality.json").read_text())
    assert "30 of 40 protected images" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in shown.splitlines() if line.startswith("│")}
    ssim, dice = result["similarity"]["ssim"], result["segmentation"]["dice"]
    assert [cell.strip() for cell in rows["structural similarity (SSIM)"]] == [
        *(f"{ssim[key]:.4f}" for key in ("mean", "p5", "worst")),
        str(ssim["worst_index"]),
    ]
    assert rows["overlap of the masks (Dice)"][0].strip() == f"{dice['mean']:.4f}"
    assert f"is right for {result['linear_separability']['noise_acc']:.1%} of 6 held-out images" in shown
    shown = EventAccumulator("run/audit/tensorboard/pictures").Reload().Tags()["images"]
    assert shown == ["examples", "extremes", "worst", "segmentation"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.filterwarnings("ignore:.*MD5.*")
def test_the_page_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs, and its commands are read."""
    page = (Path(__file__).parent.parent / "docs/quality.md").read_text(encoding="utf-8")
    release, _ = make(tmp_path, MEDMNIST["pathmnist"], count=18)
    Path("lightning_logs").mkdir()
    Path("lightning_logs/pathmnist-salm").mkdir()
    release.rename("lightning_logs/pathmnist-salm/protected")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # the page's own code
    assert read_sealed(Path("quality/quality.json"))[0] == names["result"].to_json()
    read: list[dict[str, Any]] = []
    only_reads = functools.wraps(quality)(lambda **given: read.append(given) or 0)
    monkeypatch.setattr(commands, "function_of", lambda _: only_reads)
    for line in re.findall(r"^salm-cli (quality .*)$", page, flags=re.MULTILINE):
        assert main(shlex.split(line)) == 0
    assert [given["source"] for given in read] == ["pathmnist", "bloodmnist"]


@pytest.mark.real_data
def test_sp_on_real_images(tmp_path: Path, real_data_root: Path) -> None:
    """The figures of docs/quality.md for BreastMNIST."""
    source = NpzDataModule(real_data_root / "breastmnist.npz")
    module = NoiseGeneratorModule(SP(), source.num_classes, source.channels, source.image_size, source.task)
    release = generate(make_trainer(tmp_path, 1), module, source, tmp_path / "protected")
    result = assess(release, source, tmp_path / "audit", segmenter=Otsu()).to_json()
    assert result["linear_separability"]["noise_acc"] == 1.0
    assert result["similarity"]["ssim"]["mean"] == pytest.approx(0.929, abs=5e-4)
    assert result["similarity"]["nmi"]["mean"] == pytest.approx(0.781, abs=5e-4)
    assert result["segmentation"]["dice"]["mean"] == pytest.approx(0.954, abs=5e-4)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("run/protected", "source is missing: give the originals, as in --source pathmnist"),
        ("nowhere --source bloodmnist", "nowhere is not a protected dataset"),
        ("run/protected --source run/bloodmnist.npz --segmenter vessel", "did you mean 'vessels'"),
        ("run/protected --source run/bloodmnist.npz --max_images 0", "max_images=0 is out of range"),
        ("run/protected --source blodmnist", "did you mean 'bloodmnist'"),
    ],
)
def test_what_the_command_refuses(arguments: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "run", count=8)
    assert main(["quality", *shlex.split(arguments)]) == 2
    assert expected in capsys.readouterr().err
    assert not Path("run/audit").exists()


def test_identical_images_have_no_psnr_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, source = make(tmp_path, count=10)
    images = source.split("train").images
    write_release(tmp_path / "same", source, [images], {}, {"norm": "linf", "radius": 8})
    assert main(["quality", str(tmp_path / "same"), "--source", str(source.source_path), "--out", str(tmp_path / "audit")]) == 0
    assert json.loads((tmp_path / "audit/quality.json").read_text())["similarity"]["psnr"] is None
    assert "identical" in capsys.readouterr().out
