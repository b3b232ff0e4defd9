"""The judge tells classes apart, is known by its digest, and the bundled one is a good one."""

import dataclasses
import hashlib
from importlib import resources

import jax
import numpy as np
import pytest

import loopax
from loopax.caches import cache_dir
from loopax.data import Dataset, Splits
from loopax.deadline import time_limit
from loopax.errors import CheckpointError, DataError
from loopax.recipes.images import problem
from loopax.recipes.vae import judge
from loopax.weights import save_weights


def images_of(count, seed):
    """Bright above or bright below, on noise; a tenth of the labels are not known."""
    rng = np.random.default_rng(seed)
    label = (np.arange(count) % 2).astype(np.int32)
    image = rng.integers(0, 100, (count, 8, 7, 1))
    image[label == 0, :4] += 100
    image[label == 1, 4:] += 100
    label[::10] = -1
    return {"image": image.astype(np.uint8), "label": label}


@pytest.fixture(scope="module")
def data():
    names = ("above", "below")
    parts = (Dataset(images_of(n, n), name="halves", class_names=names) for n in (300, 100))
    return Splits(next(parts), None, next(parts))


@pytest.fixture(scope="module")
def trained(data):
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(problem.LENGTHS, "judge", (1, 200, 200))
        made = judge.judge_for(data, said.append)
    assert "training a judge" in said[0]
    return made


def test_a_judge_is_trained_once_and_kept(data, trained):
    said = []
    again = judge.judge_for(data, said.append)
    assert said == []
    assert again.digest == trained.digest
    kept = cache_dir() / "judges" / judge.name_for(data)
    assert again.digest == hashlib.sha256(kept.read_bytes()).hexdigest()[:12]
    assert not kept.with_suffix("").exists(), "the run that it was trained in"


def test_it_tells_the_classes_apart_and_says_how_well(data, trained):
    test = data.test.columns
    known = test["label"] >= 0
    right = trained.opinion(test["image"]).probabilities.argmax(axis=1) == test["label"]
    assert trained.test_accuracy == pytest.approx(right[known].mean())
    assert trained.test_accuracy > 0.95
    assert trained.plain_accuracy > 0.95, "halves are easy for logistic regression too"
    np.testing.assert_allclose(
        trained.opinion(test["image"]).probabilities.sum(axis=1), 1, rtol=1e-5
    )


def test_stored_and_scaled_images_have_the_same_features(data, trained):
    image = data.test.columns["image"][:30]
    one, two = (
        trained.opinion(image).features,
        trained.opinion(image.astype(np.float32) / 255).features,
    )
    assert one.shape == (30, 128)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_images_are_moved_within_their_frame():
    image = np.zeros((50, 9, 9, 1), np.float32)
    image[:, 4, 4] = 1
    shifted = jax.jit(problem.shifted, static_argnums=2)
    moved = np.asarray(shifted(jax.random.key(0), image, 2))
    assert moved.shape == image.shape
    np.testing.assert_array_equal(moved.sum(axis=(1, 2, 3)), 1)
    places = np.argwhere(moved[..., 0])[:, 1:]
    assert (abs(places - 4) <= 2).all()
    assert len({tuple(place) for place in places}) > 15


def test_one_that_falls_short_of_logistic_regression_is_not_sound(data, trained):
    assert trained.is_sound
    worse = dataclasses.replace(trained, test_accuracy=trained.plain_accuracy - 0.01)
    assert not worse.is_sound


def test_without_a_cache_it_is_trained_for_this_once(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOOPAX_CACHE", str(tmp_path / "file"))
    monkeypatch.setitem(problem.LENGTHS, "judge", (1, 10, 10))
    assert judge.judge_for(data, lambda line: None).opinion(data.test.columns["image"])
    assert "LOOPAX_CACHE" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_whose_time_was_up_is_not_kept_as_if_it_were_whole(data, tmp_path):
    over = []
    with time_limit(2, lambda: over.append(True)):
        judge.train_judge(data, tmp_path / "judge.safetensors", epochs=1e5)
    assert over == [True]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_judged_or_read_is_refused(data, tmp_path):
    one = Dataset(data.train.columns, class_names=("one",))
    alone = Splits(one, None, one)
    with pytest.raises(DataError, match="one class only"):
        judge.judge_for(alone)
    other = tmp_path / "other.safetensors"
    save_weights(other, {"kernel": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="another model"):
        judge.read_judge(other, data)


def test_the_bundled_judge_is_small_and_right_on_more_than_993_of_1000():
    mnist = loopax.data.mnist()
    file = resources.files("loopax.recipes.vae") / "judges" / judge.name_for(mnist)
    assert len(file.read_bytes()) < 1_000_000
    made = judge.judge_for(mnist)
    assert made.test_accuracy >= 0.993
    assert made.digest == hashlib.sha256(file.read_bytes()).hexdigest()[:12]
