"""A step of one's own with a gradient for each example: each is clipped and noise is added to their
sum, so that one example shows little in the model (DP-SGD, Abadi et al., 2016)."""

import flax.linen as nn
import jax
import optax

import loopax

BATCH, CLIP, NOISE = 200, 1.0, 1.0


class Classifier(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(nn.relu(nn.Dense(32)(image.reshape(len(image), -1))))


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def private_gradient(params, batch, key):
    """The mean of clipped gradients, with Gaussian noise of `NOISE * CLIP` on their sum."""

    def of_one(example):
        one = jax.tree.map(lambda column: column[None], example)
        (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, one, None)
        scale = jax.numpy.minimum(1, CLIP / optax.tree.norm(gradient))
        return loss, optax.tree.scale(scale, gradient)

    losses, clipped = jax.vmap(of_one)(batch)
    total = jax.tree.map(lambda leaf: leaf.sum(0), clipped)
    noise = optax.tree.random_like(key, total, jax.random.normal)
    noisy = optax.tree.add_scale(total, NOISE * CLIP, noise)
    return losses.mean(), optax.tree.scale(1 / len(losses), noisy)


def step(state, batch, rngs):
    loss, gradient = private_gradient(state.params, batch, rngs["privacy"])
    return state.apply_gradients(grads=gradient), {"loss": loss}


model, data = Classifier(), loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.sgd(0.5))
evaluation = loopax.Evaluation(data.test.batches(500), loss_fn=loss_fn)
batches = data.train.batches(BATCH)
run = loopax.fit(state, data=batches, step=step, epochs=5, evaluation=evaluation)
print(f"{run.latest('test')['accuracy']:.4f} right")
