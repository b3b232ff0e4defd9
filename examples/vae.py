"""A class-conditional VAE on MNIST: a model, a loss, the data, an optimiser, and `fit`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import loopax


class VAE(nn.Module):
    """Encodes an image, draws a latent, and decodes it together with the class."""

    latent: int = 32

    @nn.compact
    def __call__(self, image, label):
        x = image.reshape(len(image), -1)
        for width in (256, 128, 64):
            x = nn.relu(nn.Dense(width)(x))
        mean, logvar = jnp.split(nn.Dense(2 * self.latent)(x), 2, axis=-1)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("noise"), mean.shape)
        x = nn.Dense(64)(z) + nn.Dense(64)(jax.nn.one_hot(label, 10))
        for width in (128, 256, 784):
            x = nn.relu(nn.Dense(width)(x))
        return x.reshape(image.shape), mean, logvar


def loss_fn(params, batch, rngs):
    image, mean, logvar = model.apply(params, batch["image"], batch["label"], rngs=rngs)
    sse_half = optax.l2_loss(image, batch["image"]).sum() / len(image)
    kl_nats = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum() / len(image)
    return sse_half + 0.5 * kl_nats, {"sse_half": sse_half, "kl_nats": kl_nats}


model = VAE()
data = loopax.data.mnist()
state = loopax.TrainState.create(model, data.train, optax.adamw(1e-4), seed=0xFFFF)
train, test = data.train.batches(16), data.test.batches(500)
run = loopax.fit(state, loss_fn, train, epochs=10, run_dir="runs/first", evaluation=test)
