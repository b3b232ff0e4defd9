"""A step of one's own: two networks with an optimiser each, which train against each other.

The generator learns to place points where the data has them: on a ring of eight dots."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import loopax


def network(outputs):
    hidden = [nn.Dense(128), nn.leaky_relu, nn.Dense(128), nn.leaky_relu]
    return nn.Sequential([*hidden, nn.Dense(outputs)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rivals:
    """What training changes, by network; loopax asks for `step` and `key`."""

    step: jax.Array
    key: jax.Array
    params: dict
    moments: dict


networks = {"generator": network(2), "critic": network(1)}
optimisers = {"generator": optax.adam(1e-3, b1=0.5), "critic": optax.adam(2e-3, b1=0.5)}


def generate(params, key, count):
    return networks["generator"].apply(params["generator"], jax.random.normal(key, (count, 2)))


def step(state, batch, rngs):
    def doubt(params, points):
        return networks["critic"].apply(params["critic"], points)

    def loss(params):
        """The sum of what each network wants, of which the other one gets no gradient."""
        made = generate(params, rngs["noise"], len(batch["point"]))
        taken = nn.softplus(doubt(params, batch["point"])).mean()
        caught = nn.softplus(-doubt(params, jax.lax.stop_gradient(made))).mean()
        fooled = nn.softplus(doubt(jax.lax.stop_gradient(params), made)).mean()
        return taken + caught + fooled, {"critic": taken + caught, "generator": fooled}

    (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    params, moments = {}, {}
    for name, tx in optimisers.items():
        updates, moments[name] = tx.update(grads[name], state.moments[name])
        params[name] = optax.apply_updates(state.params[name], updates)
    return Rivals(state.step + 1, state.key, params, moments), {"loss": total, **metrics}


def dots_found(state, batch, rngs):
    """How many of the eight dots the generator reaches, with at least 2 of 100 points."""
    made = generate(state.params, rngs["noise"], 1000)
    near = jnp.linalg.norm(made[:, None] - DOTS[None], axis=-1) < 0.3
    return {"dots": (near.mean(0) > 0.02).sum()}


angles = np.arange(8) * np.pi / 4
DOTS = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
noise = np.random.default_rng(0).normal(size=(8192, 2)).astype(np.float32)
batches = loopax.data.Dataset({"point": np.tile(DOTS, (1024, 1)) + 0.05 * noise}).batches(256)

params = {name: networks[name].init(jax.random.key(0), DOTS) for name in networks}
moments = {name: optimisers[name].init(params[name]) for name in networks}
state = Rivals(jnp.int32(0), jax.random.key(1), params, moments)
evaluation = loopax.Evaluation(batches, loss_fn=dots_found, every=500)
run = loopax.fit(state, data=batches, step=step, steps=2000, evaluation=evaluation)
print("dots reached:", run.latest("test")["dots"])
