"""Equinox's MNIST example (a convolutional network) written anew for loopax.

The original notebook is 151 lines of code and explanations; this is 33.
"""

import equinox as eqx
import jax
import optax

import loopax

STEPS = 300


class CNN(eqx.Module):
    """A convolution with pooling, and three layers."""

    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(1, 3, kernel_size=4, key=keys[0]),
            eqx.nn.MaxPool2d(kernel_size=2),
            jax.nn.relu,
            jax.numpy.ravel,
            eqx.nn.Linear(1728, 512, key=keys[1]),
            jax.nn.sigmoid,
            eqx.nn.Linear(512, 64, key=keys[2]),
            jax.nn.relu,
            eqx.nn.Linear(64, 10, key=keys[3]),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def loss_fn(model, batch, rngs):
    logits = jax.vmap(model)(batch["image"].transpose(0, 3, 1, 2))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


data = loopax.data.mnist()
state = loopax.TrainState.create(CNN(jax.random.key(5678)), tx=optax.adamw(3e-4))
test = data.test.batches(500)
run = loopax.fit(state, loss_fn, data.train.batches(64), steps=STEPS, evaluation=test)
print(f"test accuracy {run.latest('test')['accuracy']:.4f}")
