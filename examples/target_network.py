"""A step of one's own with a target network: a network learns to agree with a slow copy of itself,
a moving average as in BYOL or deep Q-learning, about what comes next. It learns the chance that a
walk to and fro on a line ends on the right, which grows evenly from left to right."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import loopax

PLACES = 10


class Chance(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, place):
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(place[:, None] / PLACES)))[:, 0]


class State(loopax.TrainState, kw_only=True):
    """A state with a second set of parameters, which no gradient reaches."""

    target: dict


def step(state, batch, rngs):
    after = batch["place"] + jax.random.choice(
        rngs["move"], jnp.array([-1, 1]), batch["place"].shape
    )
    ended = (after == 0) | (after == PLACES)
    goal = jnp.where(ended, after == PLACES, model.apply(state.target, after))

    def loss(params):
        return jnp.square(model.apply(params, batch["place"]) - goal).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    new = state.apply_gradients(grads=grads)
    return new.replace(target=optax.incremental_update(new.params, state.target, 0.02)), {
        "loss": value
    }


model, places = Chance(), np.arange(1, PLACES)
params = model.init(jax.random.key(0), jnp.ones(1))
tx = optax.adam(optax.linear_schedule(1e-2, 1e-4, 3000))
state = State.create(params=params, tx=tx, target=params)
data = loopax.data.Dataset({"place": np.repeat(places, 100)})
run = loopax.fit(state, data=data.batches(300), step=step, steps=3000)
chances = model.apply(run.state.target, places)
print("learned", np.round(chances, 2), "right", places / PLACES)
