"""Noise that is drawn while a function is traced would be one constant: it is refused."""

import functools
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.errors import ConfigError
from loopax.purity import calling_purely

X = jnp.arange(3.0)
OWN = np.random.default_rng(3)
OLD = np.random.RandomState(3)
PLAIN = random.Random(3)


def numpy_coin(x):
    return x if np.random.rand() < 0.5 else -x


def python_noise(x):
    return x + random.gauss(0, 1)


def coin_of_a_generator(x):
    return x if OWN.integers(0, 2) else -x


def noise_of_a_random_state(x):
    return x + OLD.normal(size=3)


def choice(x):
    return x * PLAIN.choice((1, 2, 3))


def helped(x):
    return numpy_coin(x) + coin_of_a_generator(x)


@jax.jit
def jitted(x):
    return x + np.random.normal()


def with_a_jitted_part(x):
    return 2 * jax.jit(lambda x: x + np.random.normal())(x)


def default(x, rng=OWN):
    return x * rng.integers(0, 2)


class Augmenter:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, x):
        return x[:: 1 if self.rng.integers(0, 2) else -1]

    def apply(self, x):
        return self(x)


DRAWING = {
    "numpy's global generator": numpy_coin,
    "random": python_noise,
    "a generator of the module": coin_of_a_generator,
    "a random state": noise_of_a_random_state,
    "a Random": choice,
    "a helper": helped,
    "jitted": jitted,
    "something jitted inside": with_a_jitted_part,
    "a default": default,
    "a partial": functools.partial(lambda rng, x: x * rng.integers(0, 2), OWN),
    "what a partial calls": functools.partial(coin_of_a_generator),
    "a closure": (lambda rng: lambda x: x * rng.integers(0, 2))(np.random.default_rng(1)),
    "an object": Augmenter(),
    "a method": Augmenter().apply,
}


@pytest.mark.parametrize("function", DRAWING.values(), ids=DRAWING.keys())
def test_what_is_drawn_from_a_generator_of_the_host_while_tracing_is_refused(function):
    with pytest.raises(ConfigError, match=r"^the loss draws random numbers.*; use keys"):
        jax.eval_shape(lambda x: calling_purely("the loss", "use keys", function, x), X)


def test_a_loss_that_draws_from_numpy_is_refused_before_the_first_step():
    def loss(params, batch, rngs):
        kept = np.random.rand(3) < 0.5
        return (params["w"] * batch["x"] * kept).sum()

    state = loopax.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
    with pytest.raises(ConfigError, match=r"the loss draws random.*jax.random from the keys"):
        loopax.fit(state, loss, [{"x": np.ones(3, np.float32)}], steps=1, progress=False)


def test_a_clock_is_seen_where_traces_are_compared():
    def timed(x):
        # Seconds since the machine began are one float32 for as long as a trace takes.
        return x + time.perf_counter() % 1e-3

    with pytest.raises(ConfigError, match="reads the clock"):
        jax.eval_shape(lambda x: calling_purely("it", "do not", timed, x, traces=2), X)


def pure(batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    batch["x"] = jax.nn.relu(batch.pop("x") + noise + np.arange(3.0))
    return {**batch, "label": "a name"}


def test_what_is_pure_passes_and_may_change_the_tree_that_it_is_given():
    given = {"x": X}

    def traced(batch, key):
        return calling_purely("it", "do not", pure, batch, key, traces=3)["x"]

    assert jax.jit(traced)(given, jax.random.key(0)).shape == (3,)
    assert given.keys() == {"x"}


def test_a_thread_that_draws_at_the_same_time_is_not_taken_for_the_function():
    """As one that reads batches does."""
    over = threading.Event()

    def draw():
        while not over.is_set():
            np.random.rand()
            time.sleep(0)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(20):
            jax.eval_shape(lambda x: calling_purely("it", "do not", jnp.sin, x), X)
    finally:
        over.set()
        thread.join()
