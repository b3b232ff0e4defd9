"""A small residual network with batch statistics on generated images, written anew for loopax.

Flax's ImageNet example trains such a network by 318 lines in its train.py; of these its input,
its half precision and its many devices are left out here.
"""

import numpy as np
import optax
from flax import nnx

import loopax

STEPS = 300


class Block(nnx.Module):
    """Two convolutions beside a short cut, with half as many pixels at the end."""

    def __init__(self, inputs, outputs, rngs):
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.short = nnx.Conv(inputs, outputs, (1, 1), strides=2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + self.short(x))


class ResNet(nnx.Module):
    """Two blocks, a mean over all pixels, and a layer."""

    def __init__(self, classes, rngs):
        self.blocks = nnx.List([Block(3, 16, rngs), Block(16, 32, rngs)])
        self.head = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def loss_fn(model, batch, rngs):
    logits = model(batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def stripes(count, seed):
    """Noisy stripes in one of four directions, which is the class."""
    rng = np.random.default_rng(seed)
    label, shift = rng.integers(0, 4, count), rng.uniform(0, 6.3, (count, 1, 1))
    y, x = np.mgrid[:16, :16]
    angle = (label * np.pi / 4)[:, None, None]
    wave = np.sin(x * np.cos(angle) + y * np.sin(angle) + shift)[..., None]
    image = wave + rng.normal(size=(count, 16, 16, 3))
    return loopax.data.Dataset({"image": image.astype(np.float32), "label": label})


tx = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9, nesterov=True)
state = loopax.TrainState.create(ResNet(4, nnx.Rngs(0)), tx=tx)
test = stripes(1000, seed=1).batches(250)
run = loopax.fit(state, loss_fn, stripes(8000, seed=0).batches(64), steps=STEPS, evaluation=test)
print(f"test accuracy {run.latest('test')['accuracy']:.4f}")
