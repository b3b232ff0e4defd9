"""The network in Flax Linen, its loss and its optimiser: for the contestants that use them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks.peers.task import KL_WEIGHT, LATENT, LEARNING_RATE, PIXELS, WEIGHT_DECAY, Weights


class VAE(nn.Module):
    """The class joins at the latent, and the output is a ReLU, as in the article."""

    @nn.compact
    def __call__(self, image, label):
        hidden = image.reshape(len(image), PIXELS)
        for index, width in enumerate((256, 128, 64)):
            hidden = nn.relu(nn.Dense(width, name=f"enc{index}")(hidden))
        mean, logvar = jnp.split(nn.Dense(2 * LATENT, name="code")(hidden), 2, axis=-1)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        latent = nn.Dense(64, name="latent")(mean + jnp.exp(0.5 * logvar) * noise)
        hidden = nn.relu(latent + nn.Dense(64, name="label")(jax.nn.one_hot(label, 10)))
        for index, width in enumerate((128, 256, PIXELS)):
            hidden = nn.relu(nn.Dense(width, name=f"dec{index}")(hidden))
        return hidden, mean, logvar


model = VAE()
optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def loss_fn(params, batch, rngs):
    image = batch["image"]
    reconstruction, mean, logvar = model.apply(params, image, batch["label"], rngs=rngs)
    mse = optax.l2_loss(reconstruction, image.reshape(len(image), PIXELS)).sum(-1).mean()
    kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return mse + KL_WEIGHT * kl, {"mse": mse, "kl": kl}


def given(weights: Weights) -> dict:
    """Weights as the network's variables."""
    layers = {name: {"kernel": w, "bias": b} for name, (w, b) in weights.items()}
    return jax.tree.map(jnp.asarray, {"params": layers})


def taken(params: dict) -> Weights:
    """The network's variables as weights."""
    layers = params["params"].items()
    return {name: (np.asarray(x["kernel"]), np.asarray(x["bias"])) for name, x in layers}
