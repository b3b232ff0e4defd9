"""Bounds and estimates against a VAE whose likelihood is known, and gradients against theory."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopax.errors import ConfigError
from loopax.randomness import Rngs
from loopax.recipes.vae import VAEConfig
from loopax.recipes.vae.objective import Objective, kl_divergence, log_normal

SIGMA = 0.5
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0] * [2.0, 0.7]
"""Orthogonal columns, so that the exact posterior has independent latents."""


class LinearVAE(nn.Module):
    """x = BASIS z + noise of SIGMA, with its exact posterior, moved and widened by parameters."""

    image_shape: tuple[int, int, int] = (3, 2, 1)

    def setup(self):
        self.basis = self.param("basis", lambda _: jnp.asarray(BASIS, jnp.float32))
        self.shift = self.param("shift", nn.initializers.zeros, ())
        self.widen = self.param("widen", nn.initializers.zeros, ())

    def __call__(self, image, label):
        return self.decode(self.encode(image, label)[0], label)

    def encode(self, image, label):
        del label
        precision = (BASIS**2).sum(axis=0) / SIGMA**2 + 1
        mean = image.reshape(len(image), -1) @ (BASIS / SIGMA**2 / precision).astype(np.float32)
        logvar = -jnp.broadcast_to(jnp.log(precision.astype(np.float32)), mean.shape)
        return mean + self.shift, logvar + self.widen

    def decode(self, latent, label):
        del label
        return (latent @ self.basis.T).reshape(-1, *self.image_shape)

    def prior_at(self, label):
        zeros = jnp.zeros((len(label), 2))
        return zeros, zeros


CONFIG = VAEConfig(likelihood="gaussian", sigma=SIGMA, kl_weight=1.0)
LABEL = jnp.zeros(7, jnp.int32)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(7, 2)) @ BASIS.T + SIGMA * rng.normal(size=(7, 6))
    return jnp.asarray(flat.reshape(7, 3, 2, 1), jnp.float32)


@pytest.fixture(scope="module")
def exact(images):
    """-log p of each image: the data are normal with covariance BASIS BASIS' + SIGMA^2."""
    covariance = BASIS @ BASIS.T + SIGMA**2 * np.eye(6)
    flat = np.asarray(images, np.float64).reshape(7, 6)
    distance = (flat @ np.linalg.inv(covariance) * flat).sum(axis=1)
    return 0.5 * (distance + np.linalg.slogdet(covariance)[1] + 6 * math.log(2 * math.pi))


def params(shift=0.0, widen=0.0):
    values = {"basis": BASIS, "shift": shift, "widen": widen}
    return {"params": {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}}


def objective(**changes):
    return Objective(LinearVAE(), dataclasses.replace(CONFIG, **changes))


@functools.partial(jax.jit, static_argnums=0)
def gradient(bound, images, key, at):
    chosen = objective(bound=bound, importance_samples=5)
    batch, rngs = {"image": images, "label": LABEL}, Rngs(key, 0)
    return jax.grad(lambda params: chosen.loss(params, batch, rngs)[0])(at)["params"]


@pytest.mark.parametrize(("samples", "per_pass"), [(1, 4000), (3, 14), (50, 1), (50, 4000)])
def test_with_the_exact_posterior_every_estimate_is_the_likelihood(
    samples, per_pass, images, exact
):
    estimate = objective().negative_log_likelihood(samples, per_pass=per_pass)
    found = estimate(params(), images, LABEL, jax.random.key(0))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_with_another_posterior_the_bound_falls_to_the_likelihood_from_above(images, exact):
    means = [
        float(
            objective()
            .negative_log_likelihood(k, per_pass=4000)(params(0.4, 0.5), images, LABEL, key)
            .mean()
        )
        for k in (1, 10, 4000)
        for key in [jax.random.key(2)]
    ]
    assert means[0] > means[1] > means[2]
    assert means[2] == pytest.approx(exact.mean(), abs=0.02)


def test_the_elbo_is_the_likelihood_less_the_distance_of_the_posteriors(images, exact):
    batch = {"image": images, "label": LABEL}
    wide = params(0.4, 0.5)
    keys = jax.random.split(jax.random.key(0), 400)
    losses = jax.jit(
        jax.vmap(lambda key: objective().loss(wide, batch, Rngs(key, 0))[1]["neg_elbo_nats"])
    )(keys)
    model = LinearVAE()
    q, p = (model.apply(at, images, LABEL, method="encode") for at in (wide, params()))
    gap = kl_divergence(q, p).sum(axis=-1)
    assert np.mean(losses) == pytest.approx(float((exact + gap).mean()), abs=0.1)


def test_dreg_has_the_decoders_gradient_of_iwae_and_on_average_the_encoders(images):
    at, keys = params(0.3, 0.4), jax.random.split(jax.random.key(3), 3000)
    plain, double = (
        jax.vmap(functools.partial(gradient, bound), (None, 0, None))(images, keys, at)
        for bound in ("iwae", "dreg")
    )
    np.testing.assert_allclose(plain["basis"], double["basis"], rtol=2e-4, atol=2e-4)
    for name in ("shift", "widen"):
        error = 4 * (plain[name].std() + double[name].std()) / math.sqrt(len(keys))
        assert abs(plain[name].mean() - double[name].mean()) < error
        assert double[name].std() < 0.7 * plain[name].std()


def test_dreg_has_no_noise_where_the_posterior_is_exact(images):
    key = jax.random.key(4)
    exact, plain = (gradient(bound, images, key, params()) for bound in ("dreg", "iwae"))
    for name in ("shift", "widen"):
        assert abs(exact[name]) < 1e-4
        assert abs(plain[name]) > 1e-2


def test_half_the_squared_error_is_a_normal_density_whose_variance_is_the_weight(images):
    batch, rngs = {"image": images, "label": LABEL}, Rngs(jax.random.key(5), 0)
    weight = 0.3
    article = objective(likelihood="squared_error", kl_weight=weight)
    normal = objective(sigma=math.sqrt(weight))
    loss, parts = article.loss(params(0.1), batch, rngs)
    expected, _ = normal.loss(params(0.1), batch, rngs)
    assert parts["neg_elbo_nats"] == pytest.approx(float(expected), rel=1e-5)
    constant = 3 * math.log(2 * math.pi * weight)
    assert loss / weight + constant == pytest.approx(float(expected), rel=1e-5)


def test_the_optimal_variance_is_no_worse_than_any_other(images):
    batch, rngs = {"image": images, "label": LABEL}, Rngs(jax.random.key(6), 0)
    best = objective(sigma="optimal").loss(params(), batch, rngs)[1]["reconstruction_nats"]
    others = [
        objective(sigma=sigma).loss(params(), batch, rngs)[1]["reconstruction_nats"]
        for sigma in (0.1, 0.3, 0.45, 0.55, 1.0)
    ]
    assert best < min(others)


def test_the_weight_warms_up_and_is_whole_in_a_test(images):
    chosen = Objective(LinearVAE(), dataclasses.replace(CONFIG, kl_weight=2.0), warmup_steps=10)
    batch = {"image": images, "label": LABEL}

    def weight_at(step, **options):
        loss, parts = chosen.loss(params(0.2), batch, Rngs(jax.random.key(0), step, **options))
        return float((loss - parts["reconstruction_nats"]) / parts["kl_nats"])

    steps = [weight_at(step) for step in (0, 4, 9, 50)]
    np.testing.assert_allclose(steps, [0.2, 1.0, 2.0, 2.0], rtol=1e-4)
    assert weight_at(0, training=False) == pytest.approx(2.0, rel=1e-4)


def test_free_bits_cost_nothing_up_to_their_number(images):
    batch, key = {"image": images, "label": LABEL}, jax.random.key(0)
    rngs, measuring = Rngs(key, 0), Rngs(key, 0, training=False)
    model = LinearVAE()
    kls = kl_divergence(
        model.apply(params(), images, LABEL, method="encode"),
        model.apply(params(), LABEL, method="prior_at"),
    ).mean(axis=0)
    free = float(kls.mean())
    loss, parts = objective(free_bits=free).loss(params(), batch, rngs)
    charged = np.maximum(np.asarray(kls), free).sum()
    assert loss - parts["reconstruction_nats"] == pytest.approx(charged, rel=1e-4)
    assert objective(free_bits=free).loss(params(), batch, measuring)[0] < loss


def test_bernoulli_is_the_probability_of_the_drawn_ink():
    class Logits(LinearVAE):
        def decode_logits(self, latent, label):
            del label
            return 40 * self.decode(latent, None)

    chosen = Objective(Logits(), dataclasses.replace(CONFIG, likelihood="bernoulli"))
    latent = jax.random.normal(jax.random.key(0), (7, 2))
    image = jax.random.bernoulli(jax.random.key(1), shape=(7, 3, 2, 1)).astype(jnp.float32)
    found = chosen.log_likelihood(params(), image, latent, LABEL)
    logits = np.asarray(
        40 * LinearVAE().apply(params(), latent, LABEL, method="decode"), np.float64
    )
    expected = np.where(image > 0, -np.logaddexp(0, -logits), -np.logaddexp(0, logits))
    np.testing.assert_allclose(found, expected.sum(axis=(1, 2, 3)), rtol=1e-5)
    drawn = chosen.observed(jnp.full((1, 100, 100, 1), 0.3), Rngs(jax.random.key(0), 0))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.02)


def test_normal_densities_and_their_divergence():
    x, mean, logvar = jnp.asarray([0.5, -1.0]), jnp.asarray([0.0, 1.0]), jnp.asarray([0.0, 1.0])
    by_hand = -0.5 * (0.25 + 4 / math.e + 1 + 2 * math.log(2 * math.pi))
    assert float(log_normal(x, mean, logvar)) == pytest.approx(by_hand, rel=1e-6)
    same = kl_divergence((mean, logvar), (mean, logvar))
    np.testing.assert_allclose(same, 0, atol=1e-7)
    one = kl_divergence((jnp.ones(1), jnp.zeros(1)), (jnp.zeros(1), jnp.full(1, math.log(4))))
    assert float(one[0]) == pytest.approx(0.5 * (2 / 4 - 1 + math.log(4)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bound": "iwae"}, "kl_weight"),
        ({"importance_samples": 5}, "bound"),
        ({"likelihood": "bernoulli", "output": "relu"}, "sigmoid"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"network": "conv", "conditioning": "sum"}, "every_layer"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": -0.1}, "validation is -0.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        VAEConfig(**changes)
