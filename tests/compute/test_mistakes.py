"""What is often done wrong in a loss is told in a line, with what would be right."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import loopax
from loopax.errors import ConfigError

BATCH = {"x": np.ones((2, 3), np.float32)}


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Equinox(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x * self.weight - jax.lax.pmean(x, "batch")


MODELS = {
    "linen": nn.Dense(1),
    "nnx": Nnx(nnx.Rngs(0)),
    "equinox": Equinox(jnp.ones(3)),
}
CASES = {
    "parameters called": (
        "linen",
        lambda model, batch, rngs: model(batch["x"]).mean(),
        r"called what it is given, the parameters; call model.apply\(params",
    ),
    "a model with apply": (
        "nnx",
        lambda params, batch, rngs: MODELS["nnx"].apply(params, batch["x"]).mean(),
        r"given the Nnx itself, with its parameters; call model\(...\)",
    ),
    "a module of outside that changes": (
        "nnx",
        lambda model, batch, rngs: MODELS["nnx"](batch["x"]).mean(),
        "changes a module that was made outside of it .*BatchStat.*; use the model",
    ),
    "a model of outside": (
        "equinox",
        lambda model, batch, rngs: MODELS["equinox"].weight.sum() + batch["x"].sum(),
        "depends on no parameter that trains; use the parameters or the model",
    ),
    "an axis without a name": (
        "equinox",
        lambda model, batch, rngs: jax.vmap(model)(batch["x"]).mean(),
        r"over the axis 'batch', .*: jax.vmap\(model, ..., axis_name='batch'\)",
    ),
    "a stream that is called": (
        "equinox",
        lambda model, batch, rngs: jax.random.normal(rngs.noise(), (3,)) @ model.weight,
        r"take one of them: rngs\['dropout'\]",
    ),
    "all streams as a key": (
        "equinox",
        lambda model, batch, rngs: jax.random.normal(rngs, (3,)) @ model.weight,
        r"take one of them: rngs\['dropout'\]",
    ),
}


@pytest.mark.parametrize(("name", "loss", "message"), CASES.values(), ids=CASES.keys())
def test_a_mistake_in_a_loss_is_told_with_its_cure(name, loss, message):
    example = BATCH["x"] if name == "linen" else None
    state = loopax.TrainState.create(MODELS[name], example, optax.sgd(0.1))
    with pytest.raises(ConfigError, match=message) as caught:
        jax.eval_shape(loopax.train_step(loss), state, BATCH)
    assert "\n" not in str(caught.value)


def test_a_model_in_the_place_of_a_state_is_told_how_one_is_made():
    with pytest.raises(ConfigError, match=r"state is a Nnx; .*TrainState.create\(model, tx="):
        loopax.fit(MODELS["nnx"], lambda model, batch, rngs: 0.0, [BATCH], steps=1)
