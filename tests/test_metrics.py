"""Metrics against medmnist.Evaluator and scikit-learn, on all four tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from medmnist import Evaluator
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    log_loss,
    multilabel_confusion_matrix,
    recall_score,
)

from salm_lightning.data.base import Task
from salm_lightning.metrics import ClassificationMetrics, classification_loss, confusion_image, majority_baseline
from salm_lightning.metrics.figures import confusion_figure

SETS = {
    Task.MULTI_CLASS: ("pathmnist", 9),
    Task.BINARY: ("breastmnist", 2),
    Task.ORDINAL: ("retinamnist", 5),
    Task.MULTI_LABEL: ("chestmnist", 14),
}


def draw(task: Task, samples: int, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that know something of the labels, and imbalanced labels in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    classes = SETS[task][1]
    logits = torch.randn(samples, classes, generator=generator)
    if task == Task.MULTI_LABEL:
        labels = (torch.rand(samples, classes, generator=generator) < torch.linspace(0.1, 0.6, classes)).float()
        logits += labels - 0.3
    else:
        labels = (torch.rand(samples, generator=generator) ** 2 * classes).long()
        labels[:classes] = torch.arange(classes)
        logits[torch.arange(samples), labels] += 1.0
    return logits * scale, labels


def measure(task: Task, logits: torch.Tensor, labels: torch.Tensor, batch: int = 37) -> dict[str, torch.Tensor]:
    metrics = ClassificationMetrics(task, SETS[task][1])
    for some_logits, some_labels in zip(logits.split(batch), labels.split(batch), strict=True):
        metrics.update(some_logits, some_labels)
    return metrics.compute()


def scores(task: Task, logits: torch.Tensor) -> np.ndarray:
    return (logits.sigmoid() if task == Task.MULTI_LABEL else logits.softmax(1)).numpy()


def test_an_ordinal_task_has_a_weighted_kappa() -> None:
    logits, labels = draw(Task.ORDINAL, 3_000)
    expected = cohen_kappa_score(labels.numpy(), logits.argmax(1).numpy(), weights="quadratic")
    measured = measure(Task.ORDINAL, logits, labels)["kappa"].item()
    assert measured == pytest.approx(expected, abs=1e-6)
    assert 0.1 < measured < 0.9
    assert "kappa" not in measure(Task.MULTI_CLASS, *draw(Task.MULTI_CLASS, 300))


@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["moderate", "saturated"])
@pytest.mark.parametrize("task", SETS)
def test_accuracy_and_auc_agree_with_the_medmnist_evaluator(task: Task, scale: float, tmp_path: Path) -> None:
    logits, labels = draw(task, 20_000 if scale == 1.0 else 700, scale=scale)
    name = SETS[task][0]
    np.savez(tmp_path / f"{name}.npz", test_labels=labels.numpy().astype(np.int64).reshape(len(labels), -1))
    expected = Evaluator(name, "test", root=str(tmp_path)).evaluate(scores(task, logits))
    measured = measure(task, logits, labels)
    assert measured["acc"].item() == pytest.approx(expected.ACC, abs=1e-6)
    assert measured["auc"].item() == pytest.approx(expected.AUC, abs=1e-6)
    assert 0.2 < expected.ACC < 0.95
    assert 0.6 < expected.AUC < 0.95


@pytest.mark.parametrize("task", [task for task in SETS if task != Task.MULTI_LABEL])
def test_recall_and_confusion_agree_with_scikit_learn(task: Task) -> None:
    logits, labels = draw(task, 500)
    measured = measure(task, logits, labels)
    predicted = logits.argmax(1)
    assert measured["balanced_acc"].item() == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)
    np.testing.assert_allclose(measured["recall"].numpy(), recall_score(labels, predicted, average=None), atol=1e-6)
    np.testing.assert_array_equal(measured["confusion"].numpy(), confusion_matrix(labels, predicted))


def test_multi_label_recall_and_confusion_agree_with_scikit_learn() -> None:
    logits, labels = draw(Task.MULTI_LABEL, 500)
    measured = measure(Task.MULTI_LABEL, logits, labels)
    predicted = (logits > 0).int().numpy()
    truth = labels.int().numpy()
    balanced = np.mean([balanced_accuracy_score(truth[:, i], predicted[:, i]) for i in range(14)])
    assert measured["balanced_acc"].item() == pytest.approx(balanced, abs=1e-6)
    np.testing.assert_allclose(measured["recall"].numpy(), recall_score(truth, predicted, average=None), atol=1e-6)
    np.testing.assert_array_equal(measured["confusion"].numpy(), multilabel_confusion_matrix(truth, predicted))


@pytest.mark.parametrize("task", SETS)
def test_a_batch_whose_logits_lie_in_the_unit_interval_is_still_read_as_logits(task: Task) -> None:
    logits, labels = draw(task, 400)
    logits[:200] = logits[:200].clamp(0.1, 0.9)
    whole = measure(task, logits, labels, batch=400)
    for key, value in measure(task, logits, labels, batch=200).items():
        torch.testing.assert_close(value, whole[key], msg=key)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_a_class_without_samples_stays_out_of_the_averages() -> None:
    logits, labels = draw(Task.MULTI_CLASS, 300)
    keep = labels != 4
    logits, labels = logits[keep], labels[keep]
    measured = measure(Task.MULTI_CLASS, logits, labels)
    assert measured["balanced_acc"].item() == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-6)
    assert measured["recall"].isnan().nonzero().flatten().tolist() == [4]
    assert measured["auc"].item() == pytest.approx(_mean_auc_of_pairs(logits, labels), abs=1e-6)


def _mean_auc_of_pairs(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Count for every class the pairs (member, other) that are ranked rightly."""
    probabilities = logits.softmax(1)
    shares = []
    for label in labels.unique():
        members, others = probabilities[labels == label, label], probabilities[labels != label, label]
        shares.append((members[:, None] > others).double().mean() + 0.5 * (members[:, None] == others).double().mean())
    return float(torch.stack(shares).mean())


@pytest.mark.parametrize("task", SETS)
def test_labels_of_one_kind_give_a_nan_auc_and_no_warning(task: Task, recwarn: pytest.WarningsRecorder) -> None:
    logits, labels = draw(task, 50)
    measured = measure(task, logits, torch.zeros_like(labels))
    assert measured["auc"].isnan()
    assert 0.0 <= measured["acc"].item() <= 1.0
    assert not recwarn.list


def test_reset_forgets() -> None:
    logits, labels = draw(Task.BINARY, 60)
    metrics = ClassificationMetrics(Task.BINARY, 2)
    metrics.update(-logits, labels)
    metrics.compute()
    metrics.reset()
    metrics.update(logits, labels)
    for key, value in measure(Task.BINARY, logits, labels).items():
        torch.testing.assert_close(metrics.compute()[key], value)


def test_state_is_kept_out_of_checkpoints() -> None:
    assert not ClassificationMetrics(Task.MULTI_CLASS, 3).state_dict()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_majority_baseline(as_tensor: bool) -> None:
    single = np.array([[0], [2], [2], [1], [2]])
    several = np.array([[0, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    convert = torch.from_numpy if as_tensor else np.asarray
    assert majority_baseline(convert(single), Task.ORDINAL, 4) == pytest.approx(3 / 5)
    assert majority_baseline(convert(several), Task.MULTI_LABEL, 3) == pytest.approx((3 + 3 + 3) / 12)


@pytest.mark.parametrize("task", SETS)
def test_loss_agrees_with_scikit_learn(task: Task) -> None:
    logits, labels = draw(task, 80)
    probabilities = scores(task, logits.double())
    if task == Task.MULTI_LABEL:
        expected = np.mean([log_loss(labels[:, i], probabilities[:, i], labels=[0, 1]) for i in range(14)])
        each = [log_loss(row, p, labels=[0, 1], normalize=False) for row, p in zip(labels, probabilities, strict=True)]
    else:
        classes = range(SETS[task][1])
        expected = log_loss(labels, probabilities, labels=classes)
        each = [log_loss([label], [p], labels=classes) for label, p in zip(labels, probabilities, strict=True)]
    assert classification_loss(logits, labels, task).item() == pytest.approx(expected, abs=1e-6)
    assert classification_loss(logits, labels, task, "none").tolist() == pytest.approx(each, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("task", SETS)
def test_loss_of_half_precision_logits_is_computed_in_float32(task: Task) -> None:
    logits, labels = draw(task, 80)
    half = logits.bfloat16()
    losses = classification_loss(half, labels, task, "none")
    assert losses.dtype == torch.float32
    assert torch.equal(losses, classification_loss(half.float(), labels, task, "none"))


def _shades(picture: torch.Tensor, figure: Figure) -> list[list[int]]:
    """Return the red of each cell a little beside its text, where the drawn figure has it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    rows, columns = axes.images[0].get_array().shape
    places = [[axes.transData.transform((column - 0.4, row - 0.3)) for column in range(columns)] for row in range(rows)]
    return [[int(picture[0, picture.shape[1] - round(y), round(x)]) for x, y in row] for row in places]


def _blue(share: float) -> int:
    return round(255 * colormaps["Blues"](float(share))[0])


def test_confusion_image_shades_the_share_of_each_row_and_names_its_axes() -> None:
    matrix, names = (
        torch.tensor([[90, 0, 0], [5, 5, 0], [0, 0, 0]]),
        ["adipose", "a name far too long to be drawn beside it", "none"],
    )
    picture, figure = confusion_image(matrix, names), confusion_figure(matrix, names)
    assert (picture.dtype, picture.shape[0]) == (torch.uint8, 3)
    none, half, all_of_it = (_blue(share) for share in (0, 0.5, 1))
    expected = [[all_of_it, none, none], [half, half, none], [none, none, none]]
    np.testing.assert_allclose(_shades(picture, figure), expected, atol=2)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("predicted class (number)", "true class")
    assert len(figure.axes[0].get_yticklabels()[1].get_text()) <= 28


def test_confusion_image_of_a_multi_label_task_has_a_row_per_label() -> None:
    matrix, names = torch.tensor([[[7, 3], [0, 10]]] * 5), [f"finding {i}" for i in range(5)]
    picture, figure = confusion_image(matrix, names), confusion_figure(matrix, names)
    np.testing.assert_allclose(_shades(picture, figure), [[_blue(share) for share in (0.7, 0.3, 0, 1)]] * 5, atol=2)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("answer", "label")


def test_confusion_image_refuses_a_wrong_number_of_names() -> None:
    with pytest.raises(ValueError, match="2 names for a matrix of 3"):
        confusion_image(torch.eye(3), ["a", "b"])
