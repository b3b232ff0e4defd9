"""Batch normalisation and dropout: `rngs.training` says whether a loss is trained or evaluated.

The state carries them as `model_state`, which the loss is given and returns."""

import flax.linen as nn
import optax

import loopax


class Classifier(nn.Module):
    """Normalises with the batch and drops units while it trains; uses the averages otherwise."""

    @nn.compact
    def __call__(self, image, train=True):
        x = nn.Dense(128)(image.reshape(len(image), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


def loss_fn(params, batch, rngs, model_state):
    variables = {**params, **model_state}
    logits, model_state = model.apply(
        variables, batch["image"], rngs.training, rngs=rngs, mutable=["batch_stats"]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}, model_state


model, data = Classifier(), loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.adam(1e-3))
batches, test = data.train.batches(100), data.test.batches(500)
run = loopax.fit(state, loss_fn, batches, epochs=2, evaluation=test)

print("test accuracy:", run.latest("test")["accuracy"])
print(
    "running mean of the first units:",
    run.state.model_state["batch_stats"]["BatchNorm_0"]["mean"][:4],
)
