from __future__ import annotations

import hashlib
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from salm_lightning.data import SPLITS, SyntheticDataModule, Task
from salm_lightning.errors import ConfigurationError

SMALL = {"train_size": 64, "val_size": 24, "test_size": 32}


def digest(data: SyntheticDataModule) -> str:
    content = hashlib.sha256()
    for name in SPLITS:
        content.update(data.split(name).images.tobytes() + data.split(name).labels.tobytes())
    return content.hexdigest()


def test_the_pictures_are_the_same_on_every_machine() -> None:
    assert digest(SyntheticDataModule(**SMALL)) == "204170f6002e1acdfcb03ebbde8762beb16af21514df531db104563aede82c49"
    assert digest(SyntheticDataModule(**SMALL, seed=1)) != digest(SyntheticDataModule(**SMALL))


def test_splits_differ_and_no_picture_occurs_twice() -> None:
    data = SyntheticDataModule(**SMALL)
    pictures = [image.tobytes() for name in SPLITS for image in data.split(name).images]
    assert len(set(pictures)) == len(pictures) == 120


@pytest.mark.parametrize(
    ("settings", "shape", "task"),
    [
        ({}, (28, 28, 3), Task.MULTI_CLASS),
        ({"channels": 1}, (28, 28), Task.MULTI_CLASS),
        ({"num_classes": 2, "size": 64}, (64, 64, 3), Task.BINARY),
        ({"num_classes": 8, "size": 33, "channels": 1, "multi_label": True}, (33, 33), Task.MULTI_LABEL),
    ],
)
def test_shapes_and_tasks(settings: dict[str, Any], shape: tuple[int, ...], task: Task) -> None:
    data = SyntheticDataModule(**SMALL, **settings)
    split = data.split("train")
    assert split.images.shape == (64, *shape)
    assert split.images.dtype == np.uint8
    assert data.task is task
    assert split.labels.shape == (64, data.num_classes if task is Task.MULTI_LABEL else 1)
    assert data.source_path is None
    assert next(iter(data.train_dataloader())).images.shape[2:] == shape[:2]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("background", "low", "high"), [("light", 225, 250), ("dark", 0, 10)])
def test_cells_lie_on_a_blank_background(background: Any, low: int, high: int, channels: int) -> None:
    images = SyntheticDataModule(**SMALL, channels=channels, background=background).split("train").images.reshape(64, 28 * 28, -1)
    for image in images:
        pixels, counts = np.unique(image, axis=0, return_counts=True)
        blank = pixels[counts.argmax()]
        assert low <= blank.min() <= blank.max() <= high
        assert counts.max() > 0.35 * 28 * 28
        contrast = np.abs(image.astype(int) - blank).max()
        assert contrast > 40


def test_classes_are_balanced_or_as_imbalanced_as_asked() -> None:
    counts = np.bincount(SyntheticDataModule(train_size=202).split("train").labels[:, 0])
    assert sorted(counts) == [50, 50, 51, 51]
    data = SyntheticDataModule(train_size=2000, imbalance=10.0)
    counts = np.bincount(data.split("train").labels[:, 0])
    assert counts.sum() == 2000
    assert counts[0] / counts[3] == pytest.approx(10, rel=0.05)
    assert counts[0] / counts[1] == pytest.approx(10 ** (1 / 3), rel=0.02)
    # An order by class would make neighbouring batches of one class.
    assert len(np.unique(data.split("train").labels[:40])) > 1


def test_a_picture_without_labels_shows_no_cell() -> None:
    split = SyntheticDataModule(multi_label=True, train_size=400, num_classes=3).split("train")
    empty = np.array([len(np.unique(image.reshape(-1, 3), axis=0)) == 1 for image in split.images])
    np.testing.assert_array_equal(split.labels.sum(axis=1) == 0, empty)
    assert 0.02 < empty.mean() < 0.12  # four places, each filled with probability one half: 1/16
    # A kind takes a place with probability 1/6, so it is missing with probability (5/6)^4.
    np.testing.assert_allclose(split.labels.mean(axis=0), 1 - (5 / 6) ** 4, atol=0.08)


def test_multi_label_frequencies_follow_the_imbalance() -> None:
    labels = SyntheticDataModule(multi_label=True, train_size=1000, num_classes=3, imbalance=9.0).split("train").labels
    rates = labels.mean(axis=0)
    assert rates[0] > 1.5 * rates[1] > 2 * rates[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 9}, "num_classes=9 cannot be drawn; give 2 to 8"),
        ({"num_classes": 1}, "num_classes=1 cannot be drawn"),
        ({"size": 8}, "size=8 is too small to show a cell; give at least 16"),
        ({"channels": 4}, "channels=4 is not an image format; give 1"),
        ({"imbalance": 0.5}, "imbalance=0.5 is out of range; give 1"),
        ({"test_size": 3}, "test_size=3 is too small; give at least num_classes=4"),
        ({"background": "drak"}, "background='drak' is not known; did you mean 'dark'"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SyntheticDataModule(**settings)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("background", ["light", "dark"])
def test_a_linear_model_on_the_pixels_fails(background: Any) -> None:
    data = SyntheticDataModule(train_size=2000, test_size=500, background=background)
    train, test = data.split("train"), data.split("test")
    model = LogisticRegression(max_iter=60).fit(train.images.reshape(2000, -1) / 255 - 0.5, train.labels[:, 0])
    assert model.score(test.images.reshape(500, -1) / 255 - 0.5, test.labels[:, 0]) < 0.7


@pytest.mark.slow
def test_a_small_resnet_learns_it() -> None:
    from salm_lightning.models import Architecture
    from salm_lightning.noise.transforms import CropFlip

    torch.manual_seed(0)
    data = SyntheticDataModule()
    network = Architecture.parse("resnet18").build(4, 3, 28, width=0.25)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [120, 240])
    crop_flip, loader = CropFlip(4), data.train_dataloader()
    for step, batch in enumerate(islice((batch for _ in range(20) for batch in loader), 300)):
        images = crop_flip(data.on_after_batch_transfer(batch, 0).images, batch.indices, 0, "test", step)
        optimizer.zero_grad()
        cross_entropy(network(images), batch.labels).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = [
            network(data.on_after_batch_transfer(batch, 0).images).argmax(1) == batch.labels for batch in data.test_dataloader()
        ]
    assert torch.cat(right).float().mean() >= 0.95
