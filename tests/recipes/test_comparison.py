"""Samples are held against real images of the same classes, and the baseline is a fair one."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from loopax.data import Dataset, Splits
from loopax.recipes.images import Answers, some_of
from loopax.recipes.images import data as selection
from loopax.recipes.vae import comparison, evaluation
from loopax.recipes.vae.baseline import fit_baseline
from loopax.recipes.vae.comparison import with_labels

SHAPE = (4, 4, 1)
PLACES = np.random.default_rng(9).integers(40, 215, (3, *SHAPE))
"""What images of each class vary about."""
RARE = np.repeat([0, 1, 2], [420, 150, 30])


def images_of(labels, seed):
    noise = np.random.default_rng(seed).normal(0, 15, (len(labels), *SHAPE))
    return np.clip(PLACES[labels] + noise, 0, 255).astype(np.uint8)


def part(labels, seed):
    labels = np.asarray(labels, np.int32)
    return Dataset({"image": images_of(labels, seed), "label": labels}, class_names=("a", "b", "c"))


class Sampler:
    """One that draws real images of the classes that are asked for."""

    mixtures = None

    def latents_of(self, labels, seed):
        return images_of(labels, 1000 + seed) / np.float32(255)

    def decode(self, latents, labels):
        return latents


class Judge:
    """Its features are the pixels, and its answer the nearest class."""

    digest, test_accuracy, plain_accuracy, is_sound = "0123456789ab", 1.0, 1.0, True
    model = SimpleNamespace(classes=3)

    def opinion(self, images):
        pixels = images / 255 if images.dtype == np.uint8 else images
        pixels = pixels.reshape(len(images), -1).astype(np.float64)
        distances = np.square(pixels[:, None] - PLACES.reshape(3, -1) / 255).sum(axis=-1)
        answers = np.exp(-distances) / np.exp(-distances).sum(axis=1, keepdims=True)
        return Answers(pixels, answers)


def compared(test, train=None, sampler=None, *, whole=False):
    train = part(np.arange(1800) % 3 if train is None else train, 0)
    data = Splits(train, None, part(test, 1))
    trained = SimpleNamespace(
        data=data,
        class_names=train.class_names,
        problem=SimpleNamespace(given=data, objective=SimpleNamespace(pixels=16)),
        config=SimpleNamespace(output="sigmoid", judge="auto"),
        mixtures=None,
        from_prior=lambda: sampler or Sampler(),
    )
    results = comparison.compare(trained, 1, print)
    return results if whole else results["samples"]


@pytest.fixture(autouse=True)
def _judge(monkeypatch):
    monkeypatch.setattr(comparison, "judge_for", lambda data, say, progress: Judge())


@pytest.fixture
def no_baseline(monkeypatch):
    """It takes most of the time, and has tests of its own."""
    monkeypatch.setattr(comparison, "fit_baseline", lambda train: None)


@pytest.mark.usefixtures("no_baseline")
def test_a_perfect_sampler_of_unbalanced_classes_scores_its_floor():
    found = compared(RARE)
    perfect, floor = found["prior"], found["floor"]
    # Of equal classes, either would be at 0.19.
    assert max(perfect["frechet_distance"], floor["frechet_distance"]) < 0.01
    for name in ("precision", "recall", "density", "coverage"):
        assert perfect[name] == pytest.approx(floor[name], abs=0.08)


@pytest.mark.usefixtures("no_baseline")
def test_a_class_that_fails_counts_as_one_however_rare_it_is():
    class WithoutC(Sampler):
        def latents_of(self, labels, seed):
            return super().latents_of(np.where(labels == 2, 0, labels), seed)

    found = compared(RARE, sampler=WithoutC())["prior"]
    assert found["class_accuracy"] == pytest.approx(2 / 3)
    assert found["worst_class_accuracy"] == 0


def test_a_class_without_test_images_is_not_drawn():
    found = compared([0, 1] * 50)
    for source in found.values():
        assert source["per_class_accuracy"] == [1, 1, None]


@pytest.mark.usefixtures("no_baseline")
def test_classes_of_unlabelled_test_images_come_as_often_as_in_training():
    asked = []

    class Asked(Sampler):
        def latents_of(self, labels, seed):
            asked.extend(labels)
            return super().latents_of(labels, seed)

    compared([-1] * 400, train=RARE, sampler=Asked())
    assert np.bincount(asked)[:2] / 400 == pytest.approx([0.7, 0.25], abs=0.06)
    assert min(asked) >= 0


def test_without_a_sound_judge_its_measures_are_withheld_and_that_is_said(monkeypatch):
    judge = Judge()
    judge.test_accuracy, judge.plain_accuracy, judge.is_sound = 0.8, 0.95, False
    monkeypatch.setattr(comparison, "judge_for", lambda data, say, progress: judge)
    results = compared(RARE, whole=True)
    for scores in results["samples"].values():
        assert scores.keys() == {"spread", "nearest_train_distance"}
    *_, table = evaluation.tables({**results, "objective": {"test": {}}})
    assert "withheld: it is right on 80.0% of the test images" in table.title
    assert "regression on pixels on 95.0%" in table.title
    assert {row[0] for row in table.rows} == {
        "spread within a class, per pixel",
        "distance to the nearest training image",
    }


def test_the_floor_takes_each_image_once_while_its_class_lasts():
    labels = np.array([0, 1, 1, 0, 1, -1, 0])
    places = with_labels(labels, np.array([1, 0, 1, 0, 0, 1]))
    assert labels[places].tolist() == [1, 0, 1, 0, 0, 1]
    assert len(set(places)) == 6
    assert labels[with_labels(labels, np.ones(7, int))].tolist() == [1] * 7
    assert (labels[with_labels(labels, np.array([2, 2]))] >= 0).all()


@pytest.mark.parametrize("period", [1, 10], ids=["class by class", "in turns"])
def test_some_of_the_images_are_of_all_classes(period):
    labels = np.arange(60_000) // 6000 if period == 1 else np.arange(60_000) % 10
    shares = np.bincount(labels[some_of(labels, 10_000)]) / 10_000
    assert shares == pytest.approx([0.1] * 10, abs=0.01)
    assert some_of(labels[:5], 10).tolist() == [0, 1, 2, 3, 4]
    large = np.broadcast_to(labels[:300, None], (300, 2**20))
    assert len(some_of(large, 200)) == 128, "which are half a gigabyte as floats"


def test_the_nearest_are_looked_for_without_a_copy_of_all_images_in_floats(monkeypatch):
    monkeypatch.setattr(selection, "NUMBERS_AT_ONCE", 2**18)
    train = np.zeros((6000, 32, 32, 1), np.uint8)
    train[-1] = 255
    reference = comparison._Reference(train[:1], None, train, None, "sigmoid")
    tracemalloc.start()
    found = reference.nearest(np.ones((10, 32, 32, 1), np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["nearest_train_distance"] == 0
    assert peak < train.nbytes


# --- The baseline -------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.float32], ids=["bytes", "floats"])
def test_the_baseline_draws_the_classes_that_it_is_asked_for(kind):
    train = part(RARE, 0)
    if kind is np.float32:
        train.columns["image"] = train.columns["image"] / np.float32(255)
    baseline = fit_baseline(train)
    labels = np.repeat([2, 0, 1], 100)
    drawn = baseline.decode(baseline.latents_of(labels, 1), labels)
    assert drawn.shape == (300, *SHAPE)
    for label in range(3):
        mean = 255 * drawn[labels == label].mean(axis=0)
        np.testing.assert_allclose(mean, PLACES[label], atol=8)
    again = fit_baseline(train)
    np.testing.assert_array_equal(again.decode(again.latents_of(labels, 1), labels), drawn)


def test_images_too_few_or_all_alike_are_no_reason_to_fail():
    assert fit_baseline(part([0, 1, 2], 0)) is None
    train = part([0] * 6, 0)
    train.columns["image"][:] = 7
    baseline = fit_baseline(train)
    drawn = baseline.decode(baseline.latents_of(np.zeros(2, int), 1), np.zeros(2, int))
    np.testing.assert_allclose(255 * drawn, 7, atol=30)


@pytest.mark.parametrize(
    ("distance", "near", "said"),
    [
        (1.0, 5.0, "The model was worth its training: the Fréchet distance of its samples is 1.00"),
        (3.0, 4.2, "PCA with a Gaussian mixture for each class does better"),
        (1.0, 2.0, "memorised images: its samples are 2.00 from the nearest"),
    ],
)
def test_whether_it_was_worth_it_is_said(distance, near, said):
    scores = {
        "prior": {"frechet_distance": distance, "nearest_train_distance": near},
        "baseline": {"frechet_distance": 2.0, "nearest_train_distance": 1.0},
        "floor": {"frechet_distance": 0.1, "nearest_train_distance": 5.0},
    }
    sentence = evaluation.verdict({"samples": scores})
    assert said in sentence
    assert ("memorised" in sentence) == (near == 2.0)
    del scores["baseline"]
    assert evaluation.verdict({"samples": scores}) is None
