"""Flax NNX as its documentation trains: a step under `nnx.jit`, or `nnx.cached_partial`, metrics
kept on the device and computed each 100 steps. Images lie in memory, and each batch is a NumPy
array."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import optimizer
from benchmarks.peers.task import Task, Weights
from benchmarks.peers.tasks.vae import KL_WEIGHT, LAYERS
from flax import nnx


class VAE(nnx.Module):
    def __init__(self, weights: Weights, rngs: nnx.Rngs):
        for name, (inputs, outputs) in LAYERS["article"].items():
            layer = nnx.Linear(inputs, outputs, rngs=rngs)
            layer.kernel[...], layer.bias[...] = map(jnp.asarray, weights[name])
            setattr(self, name, layer)
        self.rngs = rngs

    def __call__(self, image, label):
        hidden = image
        for layer in (self.enc0, self.enc1, self.enc2):
            hidden = nnx.relu(layer(hidden))
        mean, logvar = jnp.split(self.code(hidden), 2, axis=-1)
        noise = jax.random.normal(self.rngs.noise(), mean.shape)
        latent = self.latent(mean + jnp.exp(0.5 * logvar) * noise)
        hidden = nnx.relu(latent + self.label(jax.nn.one_hot(label, 10)))
        for layer in (self.dec0, self.dec1, self.dec2):
            hidden = nnx.relu(layer(hidden))
        return hidden, mean, logvar


def loss_fn(model: VAE, image, label):
    image = image.astype(jnp.float32) / 255
    reconstruction, mean, logvar = model(image, label)
    mse = optax.l2_loss(reconstruction, image).sum(-1).mean()
    kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return mse + KL_WEIGHT * kl, (mse, kl)


def train_step(model, optimizer, metrics, image, label):
    grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, (mse, kl)), grads = grad_fn(model, image, label)
    metrics.update(loss=loss, mse=mse, kl=kl)
    optimizer.update(model, grads)


def taken(model: VAE) -> Weights:
    layers = {name: getattr(model, name) for name in LAYERS["article"]}
    return {n: (np.asarray(x.kernel[...]), np.asarray(x.bias[...])) for n, x in layers.items()}


def train(task: Task, clock: Clock) -> Weights:
    images, labels = task.columns().values()
    model = VAE(task.weights(), nnx.Rngs(0))
    update = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    metrics = nnx.MultiMetric(**{name: nnx.metrics.Average(name) for name in ("loss", "mse", "kl")})
    step_fn = nnx.jit(train_step)
    if os.environ.get("CACHED"):
        step_fn = nnx.cached_partial(step_fn, model, update, metrics)
    else:
        step_fn = partial(step_fn, model, update, metrics)
    rng, step = np.random.default_rng(0), 0
    while step < task.steps:
        order = rng.permutation(len(labels))
        for first in range(0, len(order) - task.batch + 1, task.batch):
            rows = order[first : first + task.batch]
            step_fn(images[rows], labels[rows])
            step += 1
            if step % 100 == 0:
                {name: float(value) for name, value in metrics.compute().items()}
                metrics.reset()
                clock(step)
            if step == task.steps:
                break
        clock.epoch(lambda: taken(model))
    jax.block_until_ready(nnx.state(model))
    clock(step)
    return taken(model)


if __name__ == "__main__":
    contest(train)
