"""No lock-in: first a plain function over a PyTree, without Flax; then a Flax module with an
optimiser written by hand, without those of Optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import loopax

data = loopax.data.mnist()
batches = data.train.batches(100)


# Without Flax: any PyTree holds the parameters, and any function uses them.
def classify(params, image):
    hidden = jnp.tanh(image.reshape(len(image), -1) @ params["in"])
    return hidden @ params["out"]


def plain_loss(params, batch, rngs):
    logits = classify(params, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


keys = jax.random.split(jax.random.key(0))
params = {
    "in": jax.random.normal(keys[0], (784, 64)) / 28,
    "out": jax.random.normal(keys[1], (64, 10)) / 8,
}
state = loopax.TrainState.create(params=params, tx=optax.adam(1e-3))
plain = loopax.fit(state, plain_loss, batches, epochs=1)
print("without Flax:", loopax.evaluate(plain.state, plain_loss, data.test.batches(500)))


# Without the optimisers of Optax: an optimiser is two functions, and this one is SGD with momentum.
def init(params):
    return jax.tree.map(jnp.zeros_like, params)


def update(grads, velocity, params=None):
    velocity = jax.tree.map(lambda grad, speed: grad + 0.9 * speed, grads, velocity)
    return jax.tree.map(lambda speed: -0.05 * speed, velocity), velocity


def flax_loss(params, batch, rngs):
    logits = model.apply(params, batch["image"].reshape(-1, 784))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
example = data.train.example["image"].reshape(1, 784)
state = loopax.TrainState.create(model, example, optax.GradientTransformation(init, update))
by_hand = loopax.fit(state, flax_loss, batches, epochs=1)
print("SGD by hand:", loopax.evaluate(by_hand.state, flax_loss, data.test.batches(500)))
