"""Batch normalisation: a loss with a fourth argument, `mutable`, gets and returns collections.

Training measures with the statistics of the batch, evaluation with the running averages.
"""

import flax.linen as nn
import optax

import loopax


class Classifier(nn.Module):
    """Normalises with the batch while it trains, with the running averages otherwise."""

    @nn.compact
    def __call__(self, image, train=True):
        x = nn.Dense(128)(image.reshape(len(image), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


def train_loss(params, batch, rngs, mutable):
    variables = {**params, **mutable}
    logits, mutable = model.apply(variables, batch["image"], mutable=["batch_stats"])
    return *cross_entropy(logits, batch["label"]), mutable


def test_loss(params, batch, rngs, mutable):
    logits = model.apply({**params, **mutable}, batch["image"], train=False)
    return *cross_entropy(logits, batch["label"]), mutable


def cross_entropy(logits, label):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean(), {"accuracy": (logits.argmax(-1) == label).mean()}


model, data = Classifier(), loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.adam(1e-3))
evaluation = loopax.Evaluation(data.test.batches(500), loss_fn=test_loss)
run = loopax.fit(state, train_loss, data.train.batches(100), epochs=2, evaluation=evaluation)

print("test accuracy:", run.latest("test")["accuracy"])
print(
    "running mean of the first units:", run.state.mutable["batch_stats"]["BatchNorm_0"]["mean"][:4]
)
