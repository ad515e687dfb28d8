"""Models that are no networks, against scikit-learn's own answers and scores, and in an audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from salm_lightning.audit import audit
from salm_lightning.audit.trials import plan
from salm_lightning.countermeasures import JPEG, SHALLOW, Countermeasure, HogSvm, LogisticRegression, NearestNeighbours, Shallow
from salm_lightning.data import SyntheticDataModule
from salm_lightning.data.base import Split
from salm_lightning.errors import ConfigurationError
from salm_lightning.main import main
from salm_lightning.models import Architecture
from salm_lightning.modules import VictimModule
from salm_lightning.runs.victims import VictimSettings, train_shallow


def images(**options: Any) -> SyntheticDataModule:
    data = SyntheticDataModule(
        **{"train_size": 240, "val_size": 8, "test_size": 160, "num_classes": 3, "size": 16, "seed": 3} | options
    )
    data.setup()
    return data


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SHALLOW)
def test_what_is_measured_is_what_scikit_learn_measures(name: str, channels: int) -> None:
    data = images(channels=channels)
    train, test = data.split("train"), data.split("test")
    model = SHALLOW[name]()
    found = train_shallow(model, data, seed=1)
    estimator = model.estimator(1).fit(model.features(np.asarray(train.images)), train.labels[:, 0])
    seen, truth = model.features(np.asarray(test.images)), test.labels[:, 0]
    guessed = estimator.predict(seen)
    assert found["test"]["acc"] == pytest.approx(accuracy_score(truth, guessed))
    assert found["test"]["balanced_acc"] == pytest.approx(balanced_accuracy_score(truth, guessed))
    if hasattr(estimator, "predict_proba"):
        assert found["test"]["auc"] == pytest.approx(
            roc_auc_score(truth, estimator.predict_proba(seen), multi_class="ovr"), abs=1e-5
        )
    assert np.sum(found["test"]["confusion"]) == len(test)
    assert found["history"]["peak"]["acc"] == found["history"]["best_on_val"]["acc"] == found["test"]["acc"]


@pytest.mark.parametrize("name", SHALLOW)
def test_two_classes_and_several_labels(name: str) -> None:
    two = images(num_classes=2, channels=1)
    model = SHALLOW[name]()
    found, test = train_shallow(model, two, seed=0), two.split("test")
    estimator = model.estimator(0).fit(model.features(np.asarray(two.split("train").images)), two.split("train").labels[:, 0])
    seen = model.features(np.asarray(test.images))
    scores = estimator.predict_proba(seen)[:, 1] if hasattr(estimator, "predict_proba") else estimator.decision_function(seen)
    assert found["test"]["auc"] == pytest.approx(roc_auc_score(test.labels[:, 0], scores), abs=1e-5)
    several = images(multi_label=True)
    labels = several.split("test").labels
    scores = model.fit(several.split("train"), several.info, 0)(np.asarray(several.split("test").images))
    assert scores.shape == labels.shape
    right = ((scores.numpy() > 0.5) == labels).mean()
    assert train_shallow(model, several, 0)["test"]["acc"] == pytest.approx(right, abs=1e-6)


def test_a_class_without_training_images_is_never_guessed() -> None:
    data = images()
    train = data.split("train")
    some = Split(np.asarray(train.images)[train.labels[:, 0] != 1], train.labels[train.labels[:, 0] != 1])
    for kind in SHALLOW.values():
        scores = kind().fit(some, data.info, 0)(np.asarray(data.split("test").images))
        assert scores.shape == (160, 3)
        assert set(scores.argmax(dim=1).tolist()) == {0, 2}
    alone = Split(np.asarray(train.images)[train.labels[:, 0] == 1], train.labels[train.labels[:, 0] == 1])
    with pytest.raises(ConfigurationError, match="countermeasure=hogsvm needs training images of two classes"):
        HogSvm().fit(alone, data.info, 0)


def test_a_large_split_is_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shallow, "most_images", 60)
    data = images()
    train, test = data.split("train"), np.asarray(data.split("test").images)
    model = NearestNeighbours()
    rows = np.sort(np.random.default_rng(5).permutation(240)[:60])
    expected = KNeighborsClassifier(5).fit(model.features(np.asarray(train.images[rows])), train.labels[rows, 0])
    probabilities = model.fit(train, data.info, 5)(test).numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba(model.features(test)), atol=1e-6)
    assert not np.allclose(model.fit(train, data.info, 6)(test).numpy(), probabilities)


def test_networks_refuse_them() -> None:
    module = VictimModule(3, 1, 16, width=0.125, countermeasure=LogisticRegression())
    with pytest.raises(ConfigurationError, match=r"trains no network; it is for audits: .*--countermeasures logisticregression"):
        module.countermeasure.initialise(module.network)


def test_a_battery_has_them_once_whatever_its_architectures() -> None:
    kinds = [Architecture.parse(name) for name in ("linear", "resnet18")]
    trials = plan({"protected": {}}, VictimSettings(), 8, [Countermeasure(), JPEG(), NearestNeighbours()], kinds, [0], cross=True)
    assert sorted(trial.kind for trial in trials) == [
        ("linear", "jpeg quality 10"), ("linear", "none"), ("no network", "nearestneighbours"), ("resnet18", "jpeg quality 10"),
        ("resnet18", "none"),
    ]  # fmt: skip


def test_an_audit_has_them_beside_their_twins(workplace: None) -> None:
    """They count as a way around the noise, have no learning curve, and a second audit trains none of them again."""
    assert main(["protect", "synthetic", "--method", "Random", "--proof", "false", "--out", "made"]) == 0
    options = {"source": "synthetic", "archs": ["linear"], "width": 0.0625, "victim_steps": 2, "quality": False}
    said: list[str] = []
    result = audit("made/protected", countermeasures=["nearestneighbours"], tell=said.append, **options)
    (row,) = (row for row in result.rows if row.arch == "no network")
    assert (row.title, row.is_ordinary, len(row.protected.acc), row.clean is None) == ("nearestneighbours", False, 1, False)
    assert {curve.arch for curve in result.curves} == {"linear"}
    again = audit("made/protected", countermeasures=["nearestneighbours"], tell=said.append, **options)
    assert replace(again, seconds=0) == replace(result, seconds=0)
    assert said[-1].startswith("4 victims, of which 4 are done")
    assert "no network" in Path("made/audit/audit.md").read_text()
