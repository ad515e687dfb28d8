"""SP: its codes against scikit-learn's generator, separable, the same in any company, and within the bound on the stored bytes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fakes import write_fake_npz
from processes import run
from sklearn.datasets import _samples_generator as samples_generator
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from salm_lightning.data import MEDMNIST, Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.noise.methods import SP
from salm_lightning.noise.pgd import Objective, Samples, release_images
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release import Manifest, verify_release

SEED = 5


def noise_of(
    labels: Tensor, indices: Tensor, channels: int = 3, size: int = 28, classes: int = 0, seed: int = SEED, **setting: Any
) -> Tensor:
    """Return SP's noise for grey images."""
    several = labels.is_floating_point()
    task, classes = (Task.MULTI_LABEL, labels.shape[1]) if several else (Task.MULTI_CLASS, classes or int(labels.max()) + 1)
    images = torch.full((len(labels), channels, size, size), 128 / 255)
    goal = Objective(nn.Identity(), Samples(images, labels, indices, task, classes, seed), CropFlip(), "last")
    method = SP(**setting)
    return method.improve(images, method.start(images, indices, seed), goal, 10).delta


def plain_parts(classes: int, indices: np.ndarray, features: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bits of the vertices, the uniform numbers of the matrices and the normal ones of the samples, in NumPy."""
    taken: list[tuple[int, ...]] = []
    for number in range(classes):
        for attempt in range(1000):
            draws = oracles.uniform(oracles.fold(seed, "patch vertex", attempt), [number], features)[0]
            bits = tuple(int(draw >= 0.5) for draw in draws)
            if all(bits[-30:] != other[-30:] for other in taken):
                taken.append(bits)
                break
    matrices = oracles.uniform(oracles.fold(seed, "patch matrix"), range(classes), features**2).astype(np.float64)
    pairs = oracles.uniform(oracles.fold(seed, "patch cloud"), indices, 2 * features).astype(np.float64)
    normals = np.sqrt(-2 * np.log(1 - pairs[:, :features])) * np.cos(2 * np.pi * pairs[:, features:])
    return np.array(taken), matrices.reshape(classes, features, features), normals


class Scripted(np.random.RandomState):
    """Gives scikit-learn's generator the numbers that it asks for."""

    def script(self, normals: np.ndarray, matrices: np.ndarray) -> Scripted:
        self.normals, self.matrices = normals, list(matrices)
        return self

    def standard_normal(self, size: Any = None) -> Any:
        assert tuple(size) == self.normals.shape
        return self.normals

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return self.matrices.pop(0) if isinstance(size, tuple) else np.ones(size)


def theirs(vertices: np.ndarray, matrices: np.ndarray, normals: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return what ``make_classification`` makes of given vertices, matrices and normal numbers, in the order of the classes."""
    monkeypatch.setattr(samples_generator, "_generate_hypercube", lambda *_: vertices)
    features = normals.shape[1]
    codes, labels = make_classification(
        len(normals), features, n_informative=features, n_redundant=0, n_classes=len(vertices), n_clusters_per_class=1,
        class_sep=10.0, flip_y=0.0, shuffle=False, random_state=Scripted(0).script(normals, matrices),
    )  # fmt: skip
    assert (np.diff(labels) >= 0).all()
    return codes


def as_noise(codes: np.ndarray, channels: int, size: int, patch: int, norm: str) -> np.ndarray:
    """Paint codes as patches of an image, pixel by pixel, and scale each image."""
    side = -(-size // patch)
    grid = codes.reshape(len(codes), channels, side, side)
    images = np.empty((len(codes), channels, size, size))
    for row in range(size):
        for column in range(size):
            images[:, :, row, column] = grid[:, :, row // patch, column // patch]
    flat = images.reshape(len(codes), -1)
    scale = np.linalg.norm(flat, axis=1) / np.sqrt(flat.shape[1]) if norm == "l2" else np.abs(flat).max(1)
    return images / scale[:, None, None, None] * 8 / 255


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("channels", "size", "patch", "side"), [(3, 28, 8, 4), (1, 28, 8, 4), (1, 64, 16, 4), (3, 30, 8, 4)])
def test_codes_are_those_of_make_classification(
    channels: int, size: int, patch: int, side: int, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, indices = torch.arange(5).repeat_interleave(4), torch.arange(100, 120)
    vertices, matrices, normals = plain_parts(5, indices.numpy(), channels * side**2, SEED)
    expected = as_noise(theirs(vertices, matrices, normals, monkeypatch), channels, size, patch, norm)
    made = noise_of(labels, indices, channels, size, norm=norm)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-8)


def test_codes_of_several_labels_are_added_up_and_none_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, indices = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) > 0.6).float(), torch.arange(40)
    assert (labels.sum(1) == 0).any()
    assert (labels.sum(1) == 3).any()
    vertices, matrices, normals = plain_parts(4, indices.numpy(), 16, SEED)
    codes = theirs(vertices, matrices, np.tile(normals, (4, 1)), monkeypatch).reshape(
        4, 40, 16
    )  # each class's code of each sample
    none = labels.sum(1, keepdim=True) == 0
    weights = torch.cat([labels, none.float()], 1).numpy().T
    expected = as_noise((weights[:, :, None] * codes).sum(0), 1, 28, 8, "l2")
    np.testing.assert_allclose(noise_of(labels, indices, 1).numpy(), expected, rtol=0, atol=1e-8)


def test_codes_have_the_spread_of_make_classification() -> None:
    """The real generator with its own numbers, over several seeds: the same sizes of a class's centre and of its cloud."""
    spreads, centres = [], []
    for seed in range(6):
        codes, labels = make_classification(
            1500, 48, n_informative=48, n_redundant=0, n_classes=3, n_clusters_per_class=1, class_sep=10.0, flip_y=0.0, random_state=seed
        )  # fmt: skip
        # One factor for all samples, unlike ours, keeps the ratio of cloud and centre.
        ours = noise_of(torch.arange(1500) % 3, torch.arange(1500), seed=seed)[:, :, ::8, ::8].flatten(1).numpy()
        for points, classes in ((codes, labels), (ours / np.abs(ours).mean() * np.abs(codes).mean(), np.arange(1500) % 3)):
            groups = [points[classes == number] for number in range(3)]
            spreads.append(np.mean([group.std(0).mean() for group in groups]))
            centres.append(np.mean([np.abs(group.mean(0)).mean() for group in groups]))
    for values in (spreads, centres):
        assert np.mean(values[1::2]) == pytest.approx(np.mean(values[::2]), rel=0.05)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("classes", "channels", "size"), [(9, 3, 28), (11, 1, 28), (2, 1, 28), (8, 3, 64)])
def test_noise_is_linearly_separable(classes: int, channels: int, size: int, norm: Any) -> None:
    labels = torch.randint(0, classes, (900,), generator=torch.Generator().manual_seed(1))
    features = noise_of(labels, torch.arange(900), channels, size, classes, norm=norm)[:, :, ::4, ::4].flatten(1).numpy() * 255
    model = LogisticRegression(max_iter=2000).fit(features[:600], labels[:600])
    assert model.score(features[600:], labels[600:]) >= 0.99


def test_noise_of_several_labels_tells_each_of_them() -> None:
    labels = (torch.rand(2000, 5, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    features = noise_of(labels, torch.arange(2000))[:, :, ::8, ::8].flatten(1).numpy() * 255
    for number in range(5):
        model = LogisticRegression(max_iter=2000).fit(features[:1500], labels[:1500, number])
        assert model.score(features[1500:], labels[1500:, number]) >= 0.97


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("channels", "size"), [(3, 28), (1, 64)])
def test_noise_of_a_sample_depends_on_its_index_and_label_alone(channels: int, size: int, several: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 6, (120,), generator=generator)  # one class less than there is, and unevenly:
    labels[:60] = 0
    labels[60] = 5
    labels[61:][labels[61:] == 5] = 4
    if several:
        labels = (torch.rand(120, 6, generator=generator) > 0.5).float()
    indices = torch.randperm(500, generator=generator)[:120]
    whole = noise_of(labels, indices, channels, size, 7)
    for count in (1, 7, 50):
        parts = [
            noise_of(chosen, where, channels, size, 7)
            for chosen, where in zip(labels.split(count), indices.split(count), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(120, generator=generator)
    assert torch.equal(noise_of(labels[order], indices[order], channels, size, 7), whole[order])
    assert not torch.equal(noise_of(labels, indices, channels, size, 7, seed=SEED + 1), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 120  # a cloud around the class's vertex, not the vertex


def test_every_class_has_a_vertex_of_its_own() -> None:
    labels = torch.arange(16)
    made = noise_of(labels, torch.zeros(16, dtype=torch.int64), 1, 16, norm="linf")  # 2 x 2 patches: as many vertices
    assert made[:, 0, ::8, ::8].shape == (16, 2, 2)
    vertices = plain_parts(16, np.zeros(1, dtype=np.int64), 4, SEED)[0]
    assert len({tuple(row) for row in vertices.tolist()}) == 16
    with pytest.raises(
        ConfigurationError, match=r"17 classes need as many codes, and 4 patches .* have only 16; give a smaller patch"
    ):
        noise_of(torch.arange(17), torch.arange(17), 1, 16)
    noise_of(torch.arange(17), torch.arange(17), 1, 16, patch=4)
    with pytest.raises(ConfigurationError, match=r"patch=1 makes 12288 patches .* 64 px.*give a larger patch"):
        noise_of(torch.arange(4), torch.arange(4), 3, 64, patch=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [1.0, 2.5, 8.0])
@pytest.mark.parametrize(("channels", "size"), [(3, 28), (1, 64)])
def test_released_bytes_keep_the_bound_and_reach_it(norm: Any, radius: float, channels: int, size: int) -> None:
    labels, indices = torch.arange(60) % 4, torch.arange(60)
    noise = noise_of(labels, indices, channels, size, norm=norm, radius=radius)
    grey = torch.randint(0, 256, noise.shape, generator=torch.Generator().manual_seed(0))
    grey[0], grey[1], grey[2:30] = 0, 255, 128
    change = (release_images(grey / 255, noise, radius, norm).int() - grey).double().flatten(1).numpy()
    if norm == "linf":
        assert np.abs(change).max() == np.floor(radius)
        return
    squares = (change.astype(np.int64) ** 2).sum(1)
    assert (squares <= radius**2 * change.shape[1]).all()
    assert np.abs(change).max() > radius
    # Where nothing is clipped, the nearest bytes are taken if they keep the bound, and as few as needed are moved if not.
    nearest = np.rint(noise[2:30].double().flatten(1).numpy() * 255)
    over = (nearest**2).sum(1) > radius**2 * change.shape[1]
    assert 0 < over.sum() < 28
    np.testing.assert_array_equal(change[2:30][~over], nearest[~over])
    assert (squares[2:30][over] > radius**2 * change.shape[1] - 2 * np.abs(nearest).max()).all()
    assert np.abs(change[2:30] - nearest).max() == 1
    assert (change[0] >= 0).all()
    assert (change[1] <= 0).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"radius": 0}, "radius=0 is out of range"),
        ({"norm": "l1"}, "norm='l1' is not known.* Choices: l2, linf"),
        ({"patch": 0}, "patch=0 is out of range; give 1 or more pixels"),
    ],
)
def test_bad_arguments_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SP(**setting)


@pytest.mark.parametrize("name", ["bloodmnist", "chestmnist"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_over_the_command_line(name: str, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    arrays = write_fake_npz(Path("a.npz"), MEDMNIST[name], (30, 8, 10))
    fit = ["fit", "--config", "method/sp.yaml", "--data", "NpzDataModule", "--data.path", "a.npz", "--data.task"]
    fit += [MEDMNIST[name].task, "--data.chunk_size", "16", "--model.width", "0.125", "--trainer.accelerator", "cpu"]
    assert main([*fit, "--run", "sp", "--model.method.norm", norm]) == 0
    release = Path("lightning_logs/sp/protected")
    assert main(["verify", str(release), "--source", "a.npz"]) == 0
    manifest = Manifest.read(release)
    assert manifest.bound.to_dict() == {"norm": norm, "radius": 8.0}
    assert manifest.settings["method"]["norm"] == norm
    with np.load(release / "a.npz", allow_pickle=False) as archive:
        change = (archive["train_images"].astype(int) - arrays["train_images"]).reshape(30, -1)
    assert manifest.measured.rms_max == pytest.approx(np.sqrt((change**2).mean(1)).max(), abs=1e-12)
    assert manifest.measured.rms_max <= 8
    assert (np.abs(change).max() == 8) == (norm == "linf")


def test_two_processes_and_other_chunks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_fake_npz(Path("a.npz"), MEDMNIST["bloodmnist"], (50, 8, 10))
    fit = ["fit", "--config", "method/sp.yaml", "--data", "NpzDataModule", "--data.path", "a.npz", "--model.width", "0.125"]
    fit += ["--trainer.accelerator", "cpu", "--data.batch_size", "16"]
    for name, ranks, chunk in (("one", 1, 50), ("two", 2, 16)):
        codes = run([*fit, "--run", name, "--data.chunk_size", str(chunk)], tmp_path / name, ranks)
        assert codes == [0] * ranks, (tmp_path / f"{name}.0").read_text()
    first, second = (Path("lightning_logs") / name / "protected/a.npz" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("named", [["--run", "late"], []])
def test_ranks_that_start_late_find_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_fake_npz(Path("a.npz"), MEDMNIST["breastmnist"], (50, 8, 10))
    fit = [
        "fit",
        "--config",
        "method/sp.yaml",
        "--data",
        "NpzDataModule",
        "--data.path",
        "a.npz",
        "--data.chunk_size",
        "16",
        *named,
    ]
    codes = run([*fit, "--trainer.accelerator", "cpu"], tmp_path / "late", 2, lambda rank: time.sleep(3 * rank))
    assert codes == [0, 0], (tmp_path / "late.0").read_text() + (tmp_path / "late.1").read_text()
    assert [path.name for path in Path("lightning_logs").iterdir()] == [named[-1] if named else "version_0"]
    (release,) = Path("lightning_logs").glob("*/protected")
    assert all(check.ok for check in verify_release(release, "a.npz"))


def test_verify_finds_bytes_beyond_an_l2_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    write_fake_npz(Path("a.npz"), MEDMNIST["breastmnist"], (30, 8, 10))
    protect = [
        "protect",
        "a.npz",
        "--method",
        "SP",
        "--proof",
        "false",
        "--out",
        "out",
        "--width",
        "0.125",
        "--accelerator",
        "cpu",
    ]
    assert main(protect) == 0
    path = Path("out/protected/manifest.json")
    text = path.read_text()
    path.write_text(text.replace('"radius": 8.0\n', '"radius": 7.5\n', 1) if '"radius": 8.0\n' in text else text)
    assert path.read_text() != text
    failed = [check for check in verify_release("out/protected", "a.npz") if not check.ok]
    assert [check.name for check in failed] == ["bound"]
    assert "root mean square), the bound is 7.5" in failed[0].detail
