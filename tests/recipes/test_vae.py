"""The VAE recipe in Python: what is trained is what is loaded, sampled and measured."""

import dataclasses

import numpy as np
import pytest

import loopax
from loopax import Optimizer
from loopax.recipes import vae


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    label = np.arange(60) % 3
    image = np.random.default_rng(0).random((60, 5, 4, 3)) * 80 * (1 + label)[:, None, None, None]
    np.savez(path, image=image.astype(np.uint8), label=label)
    return vae.VAEConfig(
        data=str(path),
        epochs=2,
        batch_size=6,
        widths=(8,),
        latent=2,
        optimizer=Optimizer(learning_rate=1e-2, params_ema=0.5, freeze=("posterior/bias",)),
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return vae.train(config, tmp_path_factory.mktemp("runs") / "colour", progress=False)


def test_a_run_is_loaded_with_the_average_that_was_evaluated(trained):
    loaded = vae.load(trained.dir.path)
    for one, other in ((loaded, trained), (loaded, vae.load(trained.dir.path, "latest"))):
        np.testing.assert_array_equal(one.sample(1, 4), other.sample(1, 4))
    assert loaded.measure() == trained.measure()
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        tree, _ = store.read()
    kernel = np.asarray(loaded.params["params"]["posterior"]["kernel"])
    assert np.array_equal(kernel, tree["ema"]["params"]["posterior"]["kernel"])
    assert not np.array_equal(kernel, tree["params"]["params"]["posterior"]["kernel"])


def test_samples_are_colour_images_in_range_and_a_function_of_the_seed(trained):
    samples = trained.sample("2", 5, seed=3)
    assert samples.shape == (5, 5, 4, 3)
    assert samples.min() >= 0
    assert samples.max() <= 1
    np.testing.assert_array_equal(samples, trained.sample(2, 5, seed=3))
    assert not np.array_equal(samples, trained.sample(2, 5, seed=4))
    assert trained.samples_by_class(2).shape == (3, 2, 5, 4, 3)


def test_data_that_has_changed_since_is_refused(trained, config, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, image=np.zeros((60, 5, 4, 3), np.uint8), label=np.arange(60) % 3)
    changed = dataclasses.replace(config, data=str(other))
    with pytest.raises(loopax.LoopaxError, match="data = "):
        vae.train(changed, trained.dir.path, progress=False)


def test_presets_are_the_article_and_the_same_with_more():
    article, wide = vae.PRESETS["article"], vae.PRESETS["wide"]
    assert (article.widths, article.batch_size, article.seed) == ((256, 128, 64), 16, 0xFFFF)
    assert article.optimizer == Optimizer("adamw", 1e-4)
    assert article.kl_weight == wide.kl_weight == 0.5
    assert article.epochs == wide.epochs == 10
