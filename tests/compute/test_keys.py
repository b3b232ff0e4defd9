"""Root keys of every implementation that JAX has, given or chosen by JAX's own switch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.data import Dataset
from loopax.errors import CheckpointError, ConfigError

POINTS = Dataset({"x": np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)})


def noisy(params, batch, rngs):
    noise = jax.random.normal(rngs["noise"], ())
    return jnp.square(batch["x"] @ params["w"] - noise).mean()


def trained(seed, steps, run_dir=None):
    state = loopax.TrainState.create(params={"w": jnp.zeros(3)}, tx=optax.sgd(0.1), seed=seed)
    return loopax.fit(state, noisy, POINTS.batches(4), steps=steps, run_dir=run_dir, progress=False)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_run_from_a_given_key_goes_on_exactly(kind, bits, tmp_path):
    key = jax.random.key(3, impl=kind)
    whole = trained(key, 20)
    trained(key, 7, tmp_path)
    assert bits(trained(key, 20, tmp_path).state) == bits(whole.state)
    with jax.default_prng_impl(kind):
        assert bits(trained(3, 20).state) == bits(whole.state)
    with pytest.raises(CheckpointError, match=r"made with (random numbers of|seed)|key is uint32"):
        trained(jax.random.key(3, impl="rbg" if kind != "rbg" else "unsafe_rbg"), 20, tmp_path)


@pytest.mark.parametrize(
    ("seed", "shown"),
    [
        (jax.random.split(jax.random.key(0)), r"uint32\[2, 2\]"),
        (jax.random.key_data(jax.random.key(0)), r"uint32\[2\]"),
    ],
    ids=["two keys", "words"],
)
def test_what_is_no_key_is_refused(seed, shown):
    with pytest.raises(ConfigError, match=f"seed is {shown}; .* or a key such as jax.random.key"):
        trained(seed, 1)
