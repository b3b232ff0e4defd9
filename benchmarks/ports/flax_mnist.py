"""Flax's MNIST example (a convolutional network of NNX) written anew for loopax.

The original's train.py is 121 lines of code, with an export that is left out; this is 25.
"""

import optax
from flax import nnx

import loopax

STEPS = 2000


class CNN(nnx.Module):
    """Two convolutions with pooling, and two layers with dropout."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(3136, 256, rngs=rngs)
        self.dropout = nnx.Dropout(0.025, rngs=rngs)
        self.linear2 = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.dropout(self.linear1(x.reshape(len(x), -1))))
        return self.linear2(x)


def loss_fn(model, batch, rngs):
    logits = model(batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


data = loopax.data.mnist()
state = loopax.TrainState.create(CNN(nnx.Rngs(0)), tx=optax.adamw(0.005, 0.9))
evaluation = loopax.Evaluation(data.test.batches(500), every=200)
run = loopax.fit(state, loss_fn, data.train.batches(32), steps=STEPS, evaluation=evaluation)
print(f"test accuracy {run.latest('test')['accuracy']:.4f}")
