"""One network with dropout and batch statistics, as each library's users write it.

All five are trained on the same batches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import loopax
from loopax.data import Dataset
from loopax.errors import ConfigError

PLAIN = {"progress": False, "probe_every": None}
RATE, MOMENTUM, EPSILON = 0.25, 0.9, 1e-5


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


# --- Linen -----------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(16, name="first")(x)
        x = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, name="norm")(x)
        x = nn.Dropout(RATE, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last")(x)


def linen_loss(params, batch, rngs, model_state):
    logits, model_state = Linen().apply(
        {**params, **model_state}, batch["x"], rngs.training, rngs=rngs, mutable=[*model_state]
    )
    return cross_entropy(logits, batch), {}, model_state


# --- NNX -------------------------------------------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(16, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=rngs)

    def __call__(self, x):
        first, last = self.layers
        return last(self.dropout(nnx.relu(self.norm(first(x)))))


def nnx_loss(model, batch, rngs):
    return cross_entropy(model(batch["x"]), batch)


# --- Equinox ---------------------------------------------------------------------------------


class Equinox(eqx.Module):
    layers: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    activation: Callable
    name: str = "a text is a leaf too"

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.layers = [eqx.nn.Linear(4, 16, key=first), eqx.nn.Linear(16, 3, key=last)]
        self.norm = eqx.nn.BatchNorm(16, "batch", eps=EPSILON, momentum=MOMENTUM, mode="batch")
        self.dropout = eqx.nn.Dropout(RATE)
        self.activation = jax.nn.relu

    def __call__(self, x, state, key):
        first, last = self.layers
        x, state = self.norm(first(x), state)
        return last(self.dropout(self.activation(x), key=key)), state


def equinox_loss(model, batch, rngs, model_state):
    keys = jax.random.split(rngs["dropout"], len(batch["x"]))
    call = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
    logits, model_state = call(batch["x"], model_state, keys)
    return cross_entropy(logits, batch), {}, model_state


# --- Haiku -----------------------------------------------------------------------------------


@hk.transform_with_state
def haiku(x, training=True):
    x = hk.Linear(16, name="first")(x)
    x = hk.BatchNorm(True, True, 1 - MOMENTUM, eps=EPSILON, name="norm")(x, training)
    x = jax.nn.relu(x)
    x = hk.dropout(hk.next_rng_key(), RATE, x) if training else x
    return hk.Linear(3, name="last")(x)


def haiku_loss(params, batch, rngs, model_state):
    logits, model_state = haiku.apply(
        params, model_state, rngs["dropout"], batch["x"], rngs.training
    )
    return cross_entropy(logits, batch), {}, model_state


# --- Plain functions -------------------------------------------------------------------------


def plain(params, state, x, key, training):
    x = x @ params["first"]["w"] + params["first"]["b"]
    moments = {"mean": x.mean(0, keepdims=True), "var": x.var(0, keepdims=True)}
    used = moments if training else state
    x = (x - used["mean"]) * jax.lax.rsqrt(used["var"] + EPSILON)
    x = jax.nn.relu(x * params["norm"]["scale"] + params["norm"]["offset"])
    if training:
        kept = jax.random.bernoulli(key, 1 - RATE, x.shape)
        x = jnp.where(kept, x / (1 - RATE), 0)
        state = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, state, moments)
    return x @ params["last"]["w"] + params["last"]["b"], state


def plain_loss(params, batch, rngs, model_state):
    logits, model_state = plain(params, model_state, batch["x"], rngs["dropout"], rngs.training)
    return cross_entropy(logits, batch), {}, model_state


# --- All of them -----------------------------------------------------------------------------


BATCHES = 20
NUMBERS = np.random.default_rng(0)
DATA = Dataset(
    {
        "x": NUMBERS.normal(size=(200, 4)).astype(np.float32),
        "label": NUMBERS.integers(0, 3, 200).astype(np.int32),
    },
    name="points",
)


def plain_arguments():
    first, last = jax.random.split(jax.random.key(0))
    ones, zeros = jnp.ones((1, 16)), jnp.zeros((1, 16))
    layer = {"w": 0.5 * jax.random.normal(first, (4, 16)), "b": zeros}
    head = {"w": 0.25 * jax.random.normal(last, (16, 3)), "b": jnp.zeros((1, 3))}
    norm = {"scale": ones, "offset": zeros}
    params = {"first": layer, "norm": norm, "last": head}
    return {"params": params, "model_state": {"mean": zeros, "var": ones}}


@dataclasses.dataclass(frozen=True)
class Case:
    arguments: Callable[[], dict[str, Any]]
    """Of `TrainState.create`."""
    loss: Callable[..., Any]
    first: str
    """A pattern of the parameters of the first layer."""

    def state(self, **options):
        options = {"tx": optax.adam(1e-2), "seed": 7} | options
        return loopax.TrainState.create(**self.arguments(), **options)


CASES = {
    "linen": Case(lambda: {"model": Linen(), "example": DATA}, linen_loss, "first"),
    "nnx": Case(lambda: {"model": Nnx(nnx.Rngs(0))}, nnx_loss, "layers/0"),
    "equinox": Case(lambda: {"model": Equinox(jax.random.key(0))}, equinox_loss, "layers/0"),
    "haiku": Case(lambda: {"model": haiku, "example": DATA}, haiku_loss, "first"),
    "plain": Case(plain_arguments, plain_loss, "first"),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@functools.cache
def trained(case):
    """A run of 30 steps with averages, and nothing else."""
    return loopax.fit(
        case.state(ema_decay=0.9), case.loss, DATA.batches(BATCHES), steps=30, **PLAIN
    )


def test_a_run_goes_on_exactly_where_it_was(case, bits, tmp_path):
    for steps in (13, 30):
        run = loopax.fit(
            case.state(ema_decay=0.9),
            case.loss,
            DATA.batches(BATCHES),
            steps=steps,
            evaluation=DATA.batches(50),
            run_dir=tmp_path,
            **PLAIN,
        )
    assert bits(run.state) == bits(trained(case).state)


def test_an_evaluation_draws_nothing_and_leaves_the_statistics_alone(case):
    state = trained(case).state
    other = state.replace(key=jax.random.key(1))
    measures = [loopax.evaluate(each, case.loss, DATA.batches(50)) for each in (state, other)]
    assert measures[0] == measures[1]
    assert loopax.evaluate(state, case.loss, DATA.batches(30)) == pytest.approx(measures[0])


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_the_trained_model_is_had_back(name):
    state = trained(CASES[name]).state
    x, label = DATA.columns["x"], DATA.columns["label"]
    if name == "nnx":
        logits = state.eval_model(x)
    else:
        call = jax.vmap(lambda x: state.eval_model(x, state.eval_model_state, None)[0])
        logits = call(x)
    measured = loopax.evaluate(state, CASES[name].loss, DATA.batches(200))
    expected = cross_entropy(logits, {"label": label})
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-5)
    first = [
        jax.tree.leaves(state.replace(trainable=params).model.layers[0])[-1].tolist()
        for params in (state.trainable, state.ema)
    ]
    assert jax.tree.leaves(state.model.layers[0])[-1].tolist() == first[0]
    assert jax.tree.leaves(state.eval_model.layers[0])[-1].tolist() == first[1]
    with pytest.raises(ConfigError, match=r"call model.apply\(state.eval_params"):
        _ = trained(CASES["linen"]).state.model
