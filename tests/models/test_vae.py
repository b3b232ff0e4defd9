"""The VAE's networks: any image size, classes where they belong, and nothing left untrained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopax.models.vae import VAE

CLASSES = 4
LATENT = 5
SHAPES = [(28, 28, 1), (32, 32, 3), (17, 23, 1), (1, 3, 3)]
ARTICLE = {"network": "dense", "conditioning": "sum", "output": "relu"}
DENSE = {"network": "dense", "conditioning": "every_layer", "output": "sigmoid"}
CONV = {**DENSE, "network": "conv", "widths": (4, 6, 8), "activation": "silu"}


def model_of(**changes):
    usual = {"image_shape": (6, 5, 2), "classes": CLASSES, "latent": LATENT, "widths": (16, 8)}
    return VAE(**{**usual, **changes})


def images_of(model, count=3):
    return np.random.default_rng(0).random((count, *model.image_shape), np.float32)


def latents_of(count):
    return np.random.default_rng(0).normal(size=(count, LATENT)).astype(np.float32)


def begun(model):
    """Its parameters."""
    key = jax.random.key(1)
    return model.init({"params": key, "noise": key}, images_of(model), jnp.zeros(3, jnp.int32))


def started(model):
    """Parameters without a zero: of some nothing depends on others at first."""
    rng = np.random.default_rng(1)
    form = jax.eval_shape(lambda: begun(model))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), form)


def applied(model, method):
    """A method of the model, compiled, of parameters and inputs."""
    return jax.jit(functools.partial(model.apply, method=method))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", [DENSE, CONV], ids=["dense", "conv"])
def test_an_image_of_any_size_comes_back_in_its_size(settings, shape):
    model = model_of(**{**settings, "image_shape": shape})
    image, label = images_of(model), jnp.arange(3)

    def whole(key):
        params = model.init({"params": key, "noise": key}, image, label)
        return model.apply(params, image, label, rngs={"noise": key})

    decoded, mean, logvar = jax.eval_shape(whole, jax.random.key(0))
    assert decoded.shape == (3, *shape)
    assert mean.shape == logvar.shape == (3, LATENT)


@pytest.mark.parametrize("settings", [ARTICLE, DENSE, CONV], ids=["article", "dense", "conv"])
def test_pixels_are_in_range_and_depend_on_the_latent_and_the_class(settings):
    model = model_of(**settings)
    params = started(model)
    latent = latents_of(CLASSES)

    decode = applied(model, "decode")

    def decoded(latent, label):
        return np.asarray(decode(params, latent, label))

    found = decoded(latent, jnp.arange(CLASSES))
    assert found.min() >= 0
    assert settings["output"] == "relu" or found.max() <= 1
    assert np.ptp(found, axis=0).max() > 1e-3
    one_latent = decoded(jnp.repeat(latent[:1], CLASSES, axis=0), jnp.arange(CLASSES))
    one_class = decoded(latent, jnp.zeros(CLASSES, jnp.int32))
    for images in (one_latent, one_class):
        assert len({image.tobytes() for image in images}) == CLASSES


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (ARTICLE, {"decode"}),
        (DENSE, {"encode", "decode"}),
        (CONV, {"encode", "decode"}),
        ({**DENSE, "conditioning": "none"}, set()),
        ({**CONV, "conditioning": "none"}, set()),
        ({**DENSE, "prior": "class"}, {"encode", "decode", "prior_at"}),
        ({**DENSE, "classes": 1}, set()),
    ],
    ids=["sum", "dense", "conv", "dense none", "conv none", "class prior", "one class"],
)
def test_the_class_is_seen_where_it_is_said_to_be(settings, seen):
    model = model_of(**settings)
    params, image = started(model), images_of(model, 1)
    inputs = {"encode": (image,), "decode": (jnp.ones((1, LATENT)),), "prior_at": ()}
    for method, given in inputs.items():
        run = applied(model, method)
        found = [run(params, *given, jnp.array([label])) for label in (0, 1)]
        one, other = (np.concatenate([*map(np.ravel, jax.tree.leaves(each))]) for each in found)
        # A label that is no class, as a single class has it, must not matter either.
        assert np.array_equal(one, other) == (method not in seen), method


@pytest.mark.parametrize("settings", [ARTICLE, DENSE, CONV], ids=["article", "dense", "conv"])
def test_an_unknown_class_is_no_class_on_and_none_of_the_classes(settings, monkeypatch):
    model = model_of(**settings, prior="class")
    params, image = started(model), images_of(model)
    unknown = jnp.full(3, -1)

    def everything(label):
        mean, logvar = model.apply(params, image, label, method="encode")
        prior = model.apply(params, label, method="prior_at")
        return (mean, logvar, *prior, model.apply(params, mean, label, method="decode"))

    run = jax.jit(everything)
    found = run(unknown)
    for label in range(CLASSES):
        assert not np.allclose(run(jnp.full(3, label))[-1], found[-1], atol=1e-5)
    monkeypatch.setattr(jax.nn, "one_hot", lambda label, classes: jnp.zeros((len(label), classes)))
    by_hand = jax.jit(lambda label: everything(label))(jnp.zeros(3, jnp.int32))
    for one, other in zip(found, by_hand, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_prior_of_each_class_begins_as_the_standard_normal_and_is_learned():
    model, standard = model_of(**DENSE, prior="class"), model_of(**DENSE)
    prior_at, label = applied(model, "prior_at"), jnp.arange(CLASSES)
    for each in prior_at(begun(model), label):
        np.testing.assert_array_equal(each, jnp.zeros((CLASSES, LATENT)))
    assert "prior_of_class" not in started(standard)["params"]
    moved = started(model)
    mean, logvar = prior_at(moved, label)
    weights = moved["params"]["prior_of_class"]
    rows = np.asarray(weights["kernel"] + weights["bias"][None])
    np.testing.assert_allclose(np.concatenate([mean, logvar], axis=1), rows, rtol=1e-6)


def test_a_learned_deviation_is_a_parameter_of_its_own_and_positive():
    model = model_of(**DENSE, learned_sigma=True)
    params = started(model)
    raw = params["params"]["log_sigma"]
    assert raw.shape == ()
    assert float(model.apply(params, method="sigma")) == pytest.approx(float(np.exp(raw)))
    gradient = jax.grad(lambda p: model.apply(p, method="sigma"))(params)["params"]["log_sigma"]
    assert gradient == pytest.approx(float(np.exp(raw)))
    assert "log_sigma" not in started(model_of(**DENSE))["params"]


@pytest.mark.parametrize(
    "settings",
    [ARTICLE, DENSE, CONV, {**CONV, "image_shape": (7, 9, 1), "prior": "class"}],
    ids=["article", "dense", "conv", "conv, odd, class prior"],
)
def test_every_parameter_is_reached_by_gradients(settings):
    model = model_of(**settings)
    params, image = started(model), images_of(model, 8)
    label = jnp.arange(8) % CLASSES

    def loss(params):
        noise = {"noise": jax.random.key(3)}
        decoded, mean, logvar = model.apply(params, image, label, rngs=noise)
        prior_mean, prior_logvar = model.apply(params, label, method="prior_at")
        distance = jnp.square(mean - prior_mean) + jnp.square(logvar - prior_logvar)
        return jnp.square(decoded - image).sum() + distance.sum()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert (leaf != 0).any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("shape", [(7, 9, 3), (8, 4, 1)], ids=str)
def test_convolutions_see_and_fill_every_pixel(shape):
    """Also those at the edges of a size that cannot be halved."""
    model = model_of(**{**CONV, "image_shape": shape, "widths": (4, 6)})
    params, image = started(model), images_of(model, 1)
    label = jnp.zeros(1, jnp.int32)
    encode = applied(model, "encode")
    seen = jax.jit(jax.grad(lambda image: encode(params, image, label)[0].sum()))(image)
    assert (seen != 0).all()
    latent = latents_of(20)
    drawn = applied(model, "decode_logits")(params, latent, jnp.zeros(20, jnp.int32))
    assert (drawn.std(axis=0) > 0).all()


def test_the_reconstruction_draws_its_latent_from_the_posterior():
    model = model_of(**DENSE)
    params, image, label = started(model), images_of(model), jnp.arange(3)
    run = jax.jit(lambda params, key: model.apply(params, image, label, rngs={"noise": key}))
    one, again, other = (run(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[0], again[0])
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    narrow = params["params"]["posterior"]["bias"].at[LATENT:].set(-60.0)
    params["params"]["posterior"]["bias"] = narrow
    decoded, mean, _ = run(params, jax.random.key(1))
    np.testing.assert_allclose(decoded, applied(model, "decode")(params, mean, label), atol=1e-6)
