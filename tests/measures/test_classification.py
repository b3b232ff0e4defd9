"""A classifier is measured by known answers, and shown in tables and pictures."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from loopax.measures import (
    beside_others,
    calibration,
    save_calibration,
    save_confusion,
    surest_mistakes,
    tables,
    wilson_interval,
)
from loopax.terminal import show_tables

NAMES = ("bad", "fair", "good")
LABELS = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 1, 2, 2]


def sure(predicted, classes=3, probability=0.8):
    """Probabilities of which each is `probability` for one class, the same for the others."""
    rest = (1 - probability) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool)[list(predicted)], probability, rest)


def measured(labels, probabilities, names=NAMES):
    labels, probabilities = np.array(labels, np.int32), np.asarray(probabilities, np.float32)
    results = {
        "step": 7,
        "data": "some.csv",
        **beside_others(probabilities, labels, names, None),
    }
    assert results == json.loads(json.dumps(results, allow_nan=False))
    return results


def test_every_figure_is_what_a_hand_computes():
    results = measured(LABELS, sure(PREDICTED))
    assert (results["examples"], results["step"], results["data"]) == (6, 7, "some.csv")
    assert results["accuracy"] == pytest.approx(4 / 6)
    assert results["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert results["per_class"] == [
        {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3},
        {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    ]
    assert results["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    nats = -(4 * math.log(0.8) + 2 * math.log(0.1)) / 6
    assert results["nll_nats"] == pytest.approx(nats, rel=1e-6)
    # Always "bad": precision 3/6, recall 1, and F1 0 for the two others.
    assert results["floor"] == {
        "class": "bad",
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 / 3) / 3),
        "nll_nats": pytest.approx(math.log(2) / 2 + math.log(3) / 3 + math.log(6) / 6),
    }


def test_a_perfect_classifier_has_nothing_against_it():
    results = measured(LABELS, sure(LABELS, probability=1.0))
    assert results["accuracy"] == results["macro_f1"] == 1
    assert results["nll_nats"] == results["calibration"]["error"] == 0
    assert surest_mistakes(sure(LABELS), np.array(LABELS), NAMES, 10) == []
    assert results["accuracy_interval"][1] == 1


def test_a_classifier_that_guesses_scores_the_floor():
    labels = [2] * 6 + [0] * 3 + [1]
    results = measured(labels, [[0.3, 0.1, 0.6]] * 10)
    for name in ("accuracy", "macro_f1", "nll_nats"):
        assert results[name] == pytest.approx(results["floor"][name], rel=1e-6)


def test_a_class_that_is_not_there_has_no_part_in_the_mean():
    names = (*NAMES, "unheard of", "never said")
    results = measured([0, 0, 4], sure([0, 0, 0], classes=5), names)
    absent, unsaid = results["per_class"][3:]
    assert absent == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert unsaid == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert results["macro_f1"] == pytest.approx((0.8 + 0) / 2)


def test_what_is_held_impossible_and_happens_is_a_large_number():
    results = measured([0, 1], [[1.0, 0.0, 0.0]] * 2)
    assert 40 < results["nll_nats"] < 50


def test_a_classifier_that_is_as_right_as_it_is_sure_is_calibrated():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.random(20_000) > confidence).astype(int)
    found = measured(labels, probabilities, ("a", "b"))["calibration"]
    assert found["error"] < 0.02
    for each in found["bins"]:
        assert abs(each["accuracy"] - each["confidence"]) < 0.05
        assert each["from"] < each["confidence"] <= each["to"]
    assert sum(each["count"] for each in found["bins"]) == 20_000
    overconfident = measured(
        labels, probabilities**4 / (probabilities**4).sum(1, keepdims=True), "ab"
    )
    assert overconfident["calibration"]["error"] > 0.1
    assert overconfident["accuracy"] == pytest.approx((labels == 0).mean())


def test_the_calibration_error_is_the_distance_weighted_by_texts():
    labels, predicted = [0] * 10, [0] * 6 + [1] * 4
    found = measured(labels, sure(predicted, 2, 0.9), ("a", "b"))["calibration"]
    assert found["error"] == pytest.approx(0.3)
    assert [each["count"] for each in found["bins"]] == [10]
    mixed = np.concatenate([sure([0] * 5, 2, 1.0), sure([1] * 5, 2, 0.7)])
    found = measured(labels, mixed, ("a", "b"))["calibration"]
    assert found["error"] == pytest.approx(0.5 * 0 + 0.5 * 0.7)
    assert [(each["count"], each["to"]) for each in found["bins"]] == [(5, 11 / 15), (5, 1.0)]


def test_a_bin_ends_with_its_upper_bound():
    """Which is how Guo et al. define them: above (m - 1) / M, up to m / M."""
    found = calibration(np.array([[0.6, 0.4], [0.6001, 0.3999]]), np.array([0, 1]))
    assert [each["to"] for each in found["bins"]] == [9 / 15, 10 / 15]


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_the_interval_is_the_published_one(right, count, interval):
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(right, count) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("classes", [2, 6, 7, 130])
def test_tables_are_complete_and_say_what_they_measure(classes, capsys):
    names = [f"[red]{index}[/x] :smile:" for index in range(classes)]
    labels = np.arange(3 * classes) % classes
    predicted = np.where(labels == 1, 0, labels)
    results = measured(labels, sure(predicted, classes), names)
    found = tables(results, "texts")
    for table in found:
        assert table.title
        assert {len(row) for row in table.rows} == {len(table.columns)}
    overall, by_class, confusion, calibration = found
    share = 1 - 1 / classes
    assert overall.title == f"{3 * classes} texts of some.csv, step 7"
    assert overall.rows[0][:2] == ("accuracy", f"{share:.2%}")
    assert [row[0] for row in overall.rows][2] == "negative log-likelihood, nats"
    if classes == 130:
        assert by_class.title.endswith("the 100 with the lowest F1 of 130")
        assert by_class.rows[0] == (names[1], "–", "0.000", "0.000", "3")
    else:
        assert by_class.rows[0] == (names[0], "0.500", "1.000", "0.667", "3")
    if classes > 6:
        assert confusion.rows == [(names[1], names[0], "3")]
    else:
        assert confusion.rows[1] == (names[1], "3", *["0"] * (classes - 1))
    assert calibration.rows[-1][1:] == ("80.0%", f"{share:.1%}", str(3 * classes))
    show_tables([overall, by_class])
    assert names[1] in capsys.readouterr().out, "names are words and no markup"


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **more: figures.append(self) or save(self, *args, **more),
    )
    return figures


def test_the_confusion_picture_counts_in_the_right_fields(tmp_path, saved):
    save_confusion(measured(LABELS, sure(PREDICTED)), tmp_path / "c.png", "texts")
    axes = saved[0].axes[0]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "2", (1, 0): "1", (1, 1): "1", (2, 1): "1", (2, 2): "1"}
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[2 / 3, 1 / 3, 0], [0, 0.5, 0.5], [0, 0, 1]]
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)


def test_the_reliability_diagram_is_of_the_bins(tmp_path, saved):
    results = measured([0] * 10, sure([0] * 6 + [1] * 4, 2, 0.9), ("a", "b"))
    caption = save_calibration(results, tmp_path / "c.png", "texts")
    assert "30.0%" in caption
    above, below = saved[0].axes
    np.testing.assert_allclose(above.lines[1].get_xydata(), [[0.9, 0.6]], rtol=1e-6)
    assert [bar.get_height() for bar in below.patches] == [10]


@pytest.mark.parametrize("classes", [2, 60, 150])
def test_any_number_of_classes_is_drawn(classes, tmp_path):
    names = [f"$\\frac{{$ class number {index} with a long name\n" for index in range(classes)]
    labels = np.arange(classes)
    results = measured(labels, sure(np.roll(labels, 1), classes), names)
    caption = save_confusion(results, tmp_path / "c.png", "texts")
    assert ("count" in caption) == (classes == 2)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
