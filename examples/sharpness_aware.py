"""A step of one's own with two gradients: sharpness-aware minimisation (SAM).

The update is by the gradient a little uphill, where the loss is highest nearby."""

import flax.linen as nn
import jax
import optax

import loopax

RADIUS = 0.05


class Classifier(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(nn.relu(nn.Dense(128)(image.reshape(len(image), -1))))


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def step(state, batch, rngs):
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, metrics), grads = gradient(state.params, batch, rngs)
    norm = optax.tree.norm(grads)
    uphill = jax.tree.map(lambda p, g: p + RADIUS * g / norm, state.params, grads)
    (highest, _), grads = gradient(uphill, batch, rngs)
    metrics |= {"loss": loss, "sharpness": highest - loss, "grad_norm": norm}
    return state.apply_gradients(grads=grads), metrics


model, data = Classifier(), loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.adam(1e-3))
evaluation = loopax.Evaluation(data.test.batches(500), loss_fn=loss_fn)
run = loopax.fit(
    state,
    data=data.train.batches(128),
    step=step,
    epochs=2,
    evaluation=evaluation,
    run_dir="runs/sharpness_aware",
)
print(
    f"sharpness {run.latest('train')['sharpness']:.4f}, {run.latest('test')['accuracy']:.4f} right"
)
