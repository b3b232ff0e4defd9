"""Mixtures find the clusters that latents lie in, class by class, and samples come from there."""

import jax
import numpy as np
import pytest

from loopax.errors import DataError
from loopax.recipes.vae.samplers import Mixtures, fit_mixtures

CENTRES = np.asarray([[[-4.0, 0.0], [4.0, 1.0]], [[0.0, 6.0], [1.0, -6.0]]])
"""Of two clusters in each of two classes."""
COVARIANCE = np.asarray([[1.0, 0.6], [0.6, 0.5]])


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 4000)
    cluster = rng.random(8000) < 0.3
    noise = rng.multivariate_normal([0, 0], COVARIANCE, 8000)
    return (CENTRES[label, cluster.astype(int)] + noise).astype(np.float32), label


@pytest.fixture(scope="module")
def mixtures(latents):
    return fit_mixtures(*latents, classes=2, components=2)


def test_samples_have_the_moments_of_the_latents_of_their_class(latents, mixtures):
    for label in (0, 1):
        real = latents[0][latents[1] == label]
        drawn = np.asarray(mixtures.sample(jax.random.key(label), np.full(20_000, label)))
        np.testing.assert_allclose(drawn.mean(axis=0), real.mean(axis=0), atol=0.15)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(real.T), atol=0.5)
        clusters = [
            (np.linalg.norm(each - CENTRES[label][1], axis=1) < 4).mean() for each in (real, drawn)
        ]
        assert clusters[1] == pytest.approx(clusters[0], abs=0.02)


def test_covariances_are_those_of_the_clusters(mixtures):
    covariances = np.einsum("ckij,cklj->ckil", mixtures.factors, mixtures.factors)
    np.testing.assert_allclose(covariances, np.broadcast_to(COVARIANCE, (2, 2, 2, 2)), atol=0.15)


def test_equal_seeds_draw_and_fit_the_same(latents, mixtures):
    again = fit_mixtures(*latents, classes=2, components=2)
    labels = np.arange(10) % 2
    one, two = (each.sample(jax.random.key(3), labels) for each in (mixtures, again))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, mixtures.sample(jax.random.key(4), labels))


def test_few_images_get_few_components_which_never_draw_from_nothing(latents):
    points, labels = latents
    chosen = np.r_[0:60, 4000:7000]
    mixtures = fit_mixtures(points[chosen], labels[chosen], classes=2, components=5)
    assert (np.asarray(mixtures.weights) > 0).sum(axis=1).tolist() == [1, 5]
    drawn = np.asarray(mixtures.sample(jax.random.key(0), np.zeros(5000, int)))
    distance = np.linalg.norm(drawn[:, None] - CENTRES[0], axis=-1).min(axis=1)
    assert np.median(distance) < np.median(np.linalg.norm(drawn, axis=1)) + 1
    assert (drawn.std(axis=0) > 0).all()


def test_a_class_with_hardly_an_image_and_an_unknown_one_draw_from_all(latents):
    points, labels = latents
    mixtures = fit_mixtures(points[:3000], labels[:3000], classes=2, components=2)
    rare = np.asarray(mixtures.sample(jax.random.key(0), np.full(4000, 1)))
    np.testing.assert_allclose(rare.mean(axis=0), points[:3000].mean(axis=0), atol=0.3)
    whole = fit_mixtures(points, labels, classes=2, components=2)
    unknown = np.asarray(whole.sample(jax.random.key(0), np.full(20_000, -1)))
    np.testing.assert_allclose(unknown.mean(axis=0), points.mean(axis=0), atol=0.2)


def test_they_survive_a_file(mixtures):
    arrays = {name: np.asarray(array) for name, array in mixtures.arrays().items()}
    labels = np.arange(20) % 2
    np.testing.assert_array_equal(
        Mixtures(**arrays).sample(jax.random.key(0), labels),
        mixtures.sample(jax.random.key(0), labels),
    )


def test_what_cannot_be_fitted_is_refused(latents):
    with pytest.raises(DataError, match="there are 3"):
        fit_mixtures(latents[0][:3], latents[1][:3], classes=2, components=2)
    with pytest.raises(DataError, match="finite"):
        fit_mixtures(np.full((10, 2), np.nan), np.zeros(10, int), classes=1, components=2)


def test_random_numbers_from_elsewhere_choose_the_normal_and_the_place_in_it():
    mixtures = Mixtures(
        weights=np.asarray([[1.0, 0.0], [0.25, 0.75]]),
        means=np.asarray([[[1.0], [2.0]], [[3.0], [4.0]]]),
        factors=np.asarray([[[[1.0]], [[1.0]]], [[[1.0]], [[0.5]]]]),
    )
    label, pick = np.asarray([0, 0, 1, 1, 1]), np.asarray([0.0, 0.999, 0.24, 0.26, 0.999])
    noise = np.asarray([[0.0], [1.0], [0.0], [0.0], [2.0]])
    placed = np.asarray(mixtures.place(label, pick, noise))
    np.testing.assert_allclose(placed[:, 0], [1, 2, 3, 4, 5])
