"""A step of one's own: two networks with an optimiser each, which train against each other.

The generator learns to draw the digit it is asked for, out of random numbers."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import loopax
from loopax.recipes.vae import judge_for, save_grid


class Generator(nn.Module):
    """Images of digits out of noise; what is alike in all of a batch is taken out on the way."""

    @nn.compact
    def __call__(self, noise, label):
        x = jnp.append(noise, nn.one_hot(label, 10), axis=-1)
        for _ in range(2):
            x = nn.leaky_relu(nn.standardize(nn.Dense(128)(x), axis=0))
        return nn.sigmoid(nn.Dense(784)(x)).reshape(-1, 28, 28, 1)


class Critic(nn.Module):
    """How real each image looks through noise, as one of its class."""

    @nn.compact
    def __call__(self, image, label, key):
        x = image + 0.3 * jax.random.normal(key, image.shape)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(128)(x))
        return (nn.Dense(10)(x) * nn.one_hot(label, 10)).sum(-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rivals:
    """What training changes, by network; loopax asks for `step` and `key`."""

    step: jax.Array
    key: jax.Array
    params: dict
    moments: dict


networks = {"generator": Generator(), "critic": Critic()}
optimisers = {name: optax.adam(5e-4, b1=0.5) for name in networks}


def drawn(params, label, key):
    noise = jax.random.normal(key, (len(label), 32))
    return networks["generator"].apply(params["generator"], noise, label)


def step(state, batch, rngs):
    label, keys = batch["label"], jax.random.split(rngs["noise"], 3)

    def looks(params, image, key):
        return networks["critic"].apply(params["critic"], image, label, key)

    def loss(params):
        """The sum of what each network wants, of which the other one gets no gradient."""
        made = drawn(params, label, rngs["draw"])
        real = looks(params, batch["image"], keys[0])
        false = looks(params, jax.lax.stop_gradient(made), keys[1])
        critic = (nn.relu(1 - real) + nn.relu(1 + false)).mean()
        generator = -looks(jax.lax.stop_gradient(params), made, keys[2]).mean()
        return critic + generator, {"critic": critic, "generator": generator}

    (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    params, moments = {}, {}
    for name, tx in optimisers.items():
        updates, moments[name] = tx.update(grads[name], state.moments[name])
        params[name] = optax.apply_updates(state.params[name], updates)
    return Rivals(state.step + 1, state.key, params, moments), {"loss": total, **metrics}


data, key = loopax.data.mnist(), jax.random.key(0)
digits = np.arange(1000) % 10
params = {
    "generator": networks["generator"].init(key, jnp.ones((1, 32)), digits[:1]),
    "critic": networks["critic"].init(key, jnp.ones((1, 28, 28, 1)), digits[:1], key),
}
moments = {name: tx.init(params[name]) for name, tx in optimisers.items()}
state = Rivals(jnp.int32(0), jax.random.key(1), params, moments)
run = loopax.fit(state, data=data.train.batches(64), step=step, steps=2000)

images = np.asarray(drawn(run.state.params, digits, key))
found = judge_for(data).opinion(images).probabilities.argmax(-1)
save_grid(images[:100].reshape(10, 10, 28, 28, 1), Path("digits.png"))
print(f"{(found == digits).mean():.3f} of the digits are recognised")
