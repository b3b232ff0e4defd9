"""Flax's variational autoencoder of black and white digits written anew for loopax.

The original is 182 lines of code with its input and its pictures, which are left out here; this is
25.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import loopax

LATENTS, STEPS = 20, 4000


class VAE(nn.Module):
    """One hidden layer on each side of the latent numbers."""

    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.Dense(500)(image))
        mean, logvar = nn.Dense(LATENTS)(hidden), nn.Dense(LATENTS)(hidden)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        hidden = nn.relu(nn.Dense(500)(mean + jnp.exp(0.5 * logvar) * noise))
        return nn.Dense(image.shape[-1])(hidden), mean, logvar


def loss_fn(params, batch, rngs):
    image = jnp.round(batch["image"]).reshape(len(batch["image"]), -1)
    logits, mean, logvar = model.apply(params, image, rngs=rngs)
    bce = optax.sigmoid_binary_cross_entropy(logits, image).sum(-1).mean()
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(-1).mean()
    return bce + kl, {"bce": bce, "kl": kl}


model, data = VAE(), loopax.data.mnist()
state = loopax.TrainState.create(model, jnp.ones((1, 784)), optax.adam(1e-3))
test = data.test.batches(500)
run = loopax.fit(state, loss_fn, data.train.batches(128), steps=STEPS, evaluation=test)
print({name: round(run.latest("test")[name], 2) for name in ("loss", "bce", "kl")})
