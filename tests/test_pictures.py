"""What figures show: their data, their lines, their names; and the album that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from salm_lightning.audit import pictures
from salm_lightning.audit.figures import (
    Bar,
    Curve,
    battery_figure,
    curves_figure,
    embed,
    examples_figure,
    noise_image,
    pairs_figure,
    percent_figure,
    segmentation_figure,
    tsne_figure,
)
from salm_lightning.audit.pictures import Album, draw_audit, read_album
from salm_lightning.audit.results import (
    Attempt,
    AuditedRelease,
    AuditResult,
    Confusion,
    Figures,
    TrainedOn,
    Verdict,
    VictimCurve,
)
from salm_lightning.metrics.figures import CLEAN, COLORS, PROTECTED, confusion_figure, new_figure, short


def noisy(count: int, shape: tuple[int, ...] = (6, 6, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    original = rng.integers(20, 236, (count, *shape), dtype=np.uint8)
    return original, (original + rng.integers(-8, 9, original.shape)).astype(np.uint8)


def drawn(figure: Figure) -> list[np.ndarray]:
    """Return the images of the axes that are seen, each of which must be drawn without smoothing."""
    images = [image for axes in figure.axes if axes.get_visible() for image in axes.images]
    assert {image.get_interpolation() for image in images} == {"nearest"}
    return [np.asarray(image.get_array()) for image in images]


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}


def test_noise_is_shown_around_grey() -> None:
    original, protected = np.array([[100, 100, 100, 250]], np.uint8), np.array([[100, 92, 108, 254]], np.uint8)
    np.testing.assert_array_equal(noise_image(original, protected, 8), [[128, 0, 255, 191]])


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 3)])
def test_examples_stand_below_each_other(shape: tuple[int, ...]) -> None:
    original, protected = noisy(5, shape)
    figure = examples_figure(original, protected, list("abcde"))
    shown = drawn(figure)
    assert len(shown) == 15
    for place, number in ((0, 0), (3, 3), (12, 4)):  # the fifth begins a second block of rows
        np.testing.assert_array_equal(shown[place], original[number])
    np.testing.assert_array_equal(shown[8], protected[0])
    np.testing.assert_array_equal(shown[4], noise_image(original[0], protected[0], 8))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list("abcde")


def test_small_images_are_enlarged_without_new_colours(tmp_path: Path) -> None:
    board = 255 * (np.indices((8, 8)).sum(axis=0) % 2).astype(np.uint8)[None]
    figure = pairs_figure(board, board, [""])
    figure.savefig(tmp_path / "pair.png", dpi=150)
    left, bottom, right, top = figure.axes[0].get_window_extent().extents * 150 / figure.dpi
    with Image.open(tmp_path / "pair.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    inside = pixels[len(pixels) - int(top) + 3 : len(pixels) - int(bottom) - 3, int(left) + 3 : int(right) - 3]
    assert min(inside.shape) > 100
    assert np.isin(inside, (0, 255)).all()


def test_changed_pixels_are_coloured() -> None:
    original, protected = noisy(1, (6, 6))
    before = np.zeros((1, 6, 6), np.int64)
    after = before.copy()
    after[0, 2, 3] = 1
    shown = drawn(segmentation_figure(original, protected, before, after, [""]))
    coloured = (shown[2] != shown[2][..., :1]).any(axis=-1)
    np.testing.assert_array_equal(coloured, after[0] == 1)


def test_embedding_is_seeded_and_both_panels_share_it() -> None:
    rng = np.random.default_rng(0)
    clean = np.concatenate([rng.normal(0, 0.1, (10, 4)), rng.normal(5, 0.1, (10, 4))]).astype(np.float32)
    points = embed(clean, clean + 0.01, seed=3)
    assert points.shape == (2, 20, 2)
    np.testing.assert_array_equal(points, embed(clean, clean + 0.01, seed=3))
    classes = np.repeat([0, 9], 10)
    figure = tsne_figure(points, classes, [f"class {number}" for number in range(10)])
    for axes, places in zip(figure.axes, points, strict=True):
        for number, dots in zip((0, 9), axes.collections, strict=True):
            np.testing.assert_allclose(dots.get_offsets(), places[classes == number])
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class 0", "class 9"]


def test_learning_curves_are_in_percent_with_the_majority_line() -> None:
    curves = [Curve("clean", [10, 20], [0.5, 0.75], "blue"), Curve("clean", [10, 20], [0.4, 0.7], "blue")]
    figure = curves_figure({"a": curves, "b": curves, "c": curves[:1]}, majority=0.3)
    assert lines(figure)["clean"] == ([10, 20], [40, 70])
    assert lines(figure)["majority class"][1] == [30, 30]
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clean", "majority class"]


def test_battery_marks_the_worst_case() -> None:
    figure = battery_figure([Bar("none", [0.2, 0.3], [0.9]), Bar("JPEG", [0.8], [], worst=True)], majority=0.25)
    axes = figure.axes[0]
    offsets = [np.asarray(dots.get_offsets()).tolist() for dots in axes.collections]
    assert offsets == [[[90, 0]], [[20, 0], [30, 0]], [[80, 1]]]
    assert [(label.get_text(), label.get_fontweight()) for label in axes.get_yticklabels()] == [
        ("none", "normal"),
        ("JPEG", "bold"),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy on clean test images (%)", "what was tried")
    assert lines(figure)["majority class"][0] == [25, 25]


@pytest.mark.parametrize(("matrix", "columns"), [([[8, 2], [1, 3]], ["0", "1"]), ([[[8, 2], [1, 3]], [[5, 5], [0, 4]]], None)])
def test_confusion_shows_counts_and_shares_of_the_true_class(matrix: Any, columns: list[str] | None) -> None:
    figure = confusion_figure(matrix, ["left", "right (not left)"])
    axes = figure.axes[0]
    counts = np.array(matrix)
    shares = 100 * counts / counts.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(axes.images[0].get_array(), shares.reshape(2, -1))
    assert [text.get_text() for text in axes.texts] == [str(count) for count in counts.ravel()]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == (columns or ["no:\nright", "no:\nwrong", "yes:\nmissed", "yes:\nfound"])
    with pytest.raises(ValueError, match="class_names"):
        confusion_figure(matrix, ["one"])


def test_accuracy_over_k_goes_through_the_mean_of_seeds() -> None:
    figure = percent_figure({"blood": [(20, 0.6), (10, 0.2), (10, 0.4)]}, {"blood": 0.19})
    assert lines(figure)["blood"] == ([10, 20], [pytest.approx(30), pytest.approx(60)])
    assert [19, 19] in [line[1] for line in lines(figure).values()]


def test_names_are_cut_to_fit() -> None:
    assert short("immature granulocytes(myelocytes, metamyelocytes)", 14) == "immature\ngranulocytes"
    assert short("benign keratosis-like lesions", 14) == "benign\nkeratosis-…"
    assert short("0", 14) == "0"


def test_clean_and_protected_differ_for_people_who_see_few_colours() -> None:
    """Lightness alone tells them apart, as on a grey print."""
    rgb = np.array([[int(color[place : place + 2], 16) for place in (1, 3, 5)] for color in (CLEAN, PROTECTED)])
    lightness = rgb @ [0.299, 0.587, 0.114]
    assert len(set(COLORS)) == 8
    assert abs(lightness[0] - lightness[1]) > 5


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(mpl.rcParams)
    curves_figure({"a": [Curve("clean", [1, 2], [0.5, 0.6], "blue")]}, 0.3)
    assert dict(mpl.rcParams) == before


def audit(countermeasures: dict[str, str], clean: bool = True, sha256: str = "a1") -> AuditResult:
    measured = Figures(*[(0.6, 0.5)] * 5)
    rows = tuple(
        Attempt(name, title, {"name": name}, "resnet18", (0, 1), measured, measured if clean else None, worst=name == "jpeg")
        for name, title in countermeasures.items()
    )
    kinds: tuple[TrainedOn, ...] = ("protected", "clean") if clean else ("protected",)
    curves = tuple(
        VictimCurve(trained_on, "resnet18", 0, title, (5, 10), (0.4, 0.5))
        for title in countermeasures.values()
        for trained_on in kinds
    )
    confusion = Confusion(((5, 1), (2, 4)), ((6, 0), (0, 6)) if clean else None, ("a", "b"))
    verdict = Verdict("not judged", "", (), (), {})
    release = AuditedRelease("tiny", "salm", sha256)
    return AuditResult(release, {}, 0.5, 0.5, rows, (), verdict, confusion, curves, seconds=0.0)


def test_pictures_of_an_audit(tmp_path: Path) -> None:
    draw_audit(audit({"none": "no countermeasure", "jpeg": "JPEG"}), tmp_path)
    names = ["battery", "curves", "curves-all", "confusion-protected", "confusion-clean"]
    listed = read_album(tmp_path, "a1")
    assert [entry["file"] for entry in listed] == [f"pictures/{name}.png" for name in names]
    assert all(entry["title"] and entry["caption"] for entry in listed)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in names}
    for entry in listed:
        with Image.open(tmp_path / entry["file"]) as picture:
            assert picture.width == 900


def test_rows_of_one_countermeasure_keep_their_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(
        pictures, "battery_figure", lambda bars, majority: labels.extend(b.label for b in bars) or new_figure(1, 1)
    )
    both = audit({"jpeg": "JPEG 10"})
    other = replace(both.rows[0], title="JPEG 50")
    draw_audit(replace(both, rows=(*both.rows, other, replace(other, arch="vgg11"))), tmp_path)
    assert labels == ["JPEG 10, resnet18", "JPEG 50, resnet18", "JPEG 50, vgg11"]


def test_countermeasures_are_called_what_tables_call_them(tmp_path: Path) -> None:
    draw_audit(audit({"jpeg": "jpeg quality 10"}), tmp_path)
    captions = {Path(entry["file"]).stem: entry["caption"] for entry in read_album(tmp_path, "a1")}
    assert captions["curves"].startswith("JPEG compression quality 10: ")


def test_pictures_of_an_audit_without_clean_twins(tmp_path: Path) -> None:
    draw_audit(audit({"none": "no countermeasure"}, clean=False), tmp_path)
    assert [Path(entry["file"]).stem for entry in read_album(tmp_path, "a1")] == ["battery", "curves", "confusion-protected"]
    draw_audit(replace(audit({}), confusion=None), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_pictures_of_another_release_are_taken_from_the_list(tmp_path: Path) -> None:
    draw_audit(audit({"none": "no countermeasure"}), tmp_path)
    draw_audit(audit({"none": "no countermeasure"}, clean=False, sha256="b2"), tmp_path)
    assert read_album(tmp_path, "a1") == []
    assert "pictures/confusion-clean.png" not in {entry["file"] for entry in read_album(tmp_path, "b2")}


def test_a_picture_that_is_drawn_again_keeps_its_place(tmp_path: Path) -> None:
    for name in ("first", "second"):
        Album(tmp_path).add(name, new_figure(1, 1), name, "old")
    Album(tmp_path).add("first", new_figure(1, 1), "first", "new")
    assert [(entry["file"], entry["caption"]) for entry in json.loads((tmp_path / "pictures.json").read_text())["pictures"]] == [
        ("pictures/first.png", "new"),
        ("pictures/second.png", "old"),
    ]
    for text in ("{", '{"release": {"archive_sha256": null}, "pictures": [{"file": "../other.png"}]}'):
        (tmp_path / "pictures.json").write_text(text)
        assert read_album(tmp_path) == [], "of somebody else"
