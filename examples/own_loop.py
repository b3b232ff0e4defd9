"""Own the loop: a run gives a chunk of steps at a time, and what happens next is up to you.

However the block is left, by `break`, by an exception or by Ctrl-C, the state is saved.
"""

import flax.linen as nn
import optax

import loopax


class Classifier(nn.Module):
    """A digit to the scores of the ten classes."""

    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.Dense(128)(image.reshape(len(image), -1)))
        return nn.Dense(10)(hidden)


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


model, data = Classifier(), loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.adam(1e-3))
batches = data.train.batches(100)

with loopax.training(
    state, loss_fn, batches, epochs=10, run_dir="runs/own_loop", chunk_steps=100
) as run:
    for chunk in run:
        accuracy = chunk.metrics["accuracy"]  # of each step; reading it waits for the chunk
        print(f"steps {chunk.start} to {chunk.stop}: accuracy {accuracy.mean():.3f}")
        if accuracy.mean() > 0.97:
            break

print(f"{run.step} steps:", loopax.evaluate(run.state, loss_fn, data.test.batches(500)))
