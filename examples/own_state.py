"""A state that carries more: subclass `TrainState`, add a field, and fill it in `observe`.

The loss of the latest step, and the lowest so far, are saved and restored with everything else.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import loopax


class StateWithLoss(loopax.TrainState, kw_only=True):
    """A state that remembers how the training went."""

    latest_loss: jax.Array
    lowest_loss: jax.Array

    def observe(self, loss, metrics):
        return self.replace(latest_loss=loss, lowest_loss=jnp.minimum(loss, self.lowest_loss))


class Classifier(nn.Module):
    """Logistic regression on the pixels."""

    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(image.reshape(len(image), -1))


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


model, data = Classifier(), loopax.data.mnist()
state = StateWithLoss.create(
    model, data.train, optax.adam(1e-3), latest_loss=jnp.inf, lowest_loss=jnp.inf
)
run = loopax.fit(state, loss_fn, data.train.batches(100), epochs=1, run_dir="runs/own_state")
print(f"latest {run.state.latest_loss:.4f}, lowest {run.state.lowest_loss:.4f}")
