"""The networks in Flax Linen, their losses, their optimiser: for the contestants that use them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks.peers.task import LEARNING_RATE, WEIGHT_DECAY, Weights
from benchmarks.peers.tasks import bert
from benchmarks.peers.tasks.vae import KL_WEIGHT, LATENT, PIXELS, SMALL
from flax.traverse_util import flatten_dict, unflatten_dict


class VAE(nn.Module):
    """The class joins at the latent, and the output is a ReLU, as in the article."""

    narrow = 64

    @nn.compact
    def __call__(self, image, label):
        hidden = self.encoded(image.reshape(len(image), PIXELS))
        mean, logvar = jnp.split(nn.Dense(2 * LATENT, name="code")(hidden), 2, axis=-1)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        latent = nn.Dense(self.narrow, name="latent")(mean + jnp.exp(0.5 * logvar) * noise)
        one_hot = jax.nn.one_hot(label, 10)
        hidden = nn.relu(latent + nn.Dense(self.narrow, name="label")(one_hot))
        return self.decoded(hidden), mean, logvar

    def encoded(self, hidden):
        for index, width in enumerate((256, 128, 64)):
            hidden = nn.relu(nn.Dense(width, name=f"enc{index}")(hidden))
        return hidden

    def decoded(self, hidden):
        for index, width in enumerate((128, 256, PIXELS)):
            hidden = nn.relu(nn.Dense(width, name=f"dec{index}")(hidden))
        return hidden


class ConvVAE(VAE):
    narrow = 7 * 7 * 64

    def encoded(self, hidden):
        hidden = hidden.reshape(-1, 28, 28, 1)
        for index, channels in enumerate((32, 64)):
            hidden = nn.relu(nn.Conv(channels, (4, 4), 2, padding=1, name=f"enc{index}")(hidden))
        return hidden.reshape(len(hidden), -1)

    def decoded(self, hidden):
        hidden = hidden.reshape(-1, *SMALL)
        up = partial(nn.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), transpose_kernel=True)
        for index, channels in enumerate((32, 1)):
            hidden = nn.relu(up(channels, name=f"dec{index}")(hidden))
        return hidden.reshape(len(hidden), PIXELS)


optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def vae_loss(model, params, batch, rngs):
    image = batch["image"]
    reconstruction, mean, logvar = model.apply(params, image, batch["label"], rngs=rngs)
    mse = optax.l2_loss(reconstruction, image.reshape(len(image), PIXELS)).sum(-1).mean()
    kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return mse + KL_WEIGHT * kl, {"mse": mse, "kl": kl}


def bert_loss(model, params, batch, rngs):
    ids, label = batch["input_ids"], batch["label"]
    mask = jnp.arange(ids.shape[1]) < batch["length"][:, None]
    logits = model.apply(params, ids, None, mask, deterministic=False, rngs=rngs)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return loss, {"accuracy": (logits.argmax(-1) == label).mean()}


def loss_of(name: str) -> Callable:
    """The loss of a task: a function of parameters, batch and keys."""
    if name in bert.CONFIG:
        from loopax.models.bert import BertConfig, BertForSequenceClassification

        config = BertConfig(**bert.CONFIG[name])
        return partial(bert_loss, BertForSequenceClassification(config, bert.CLASSES))
    return partial(vae_loss, {"article": VAE, "conv": ConvVAE}[name]())


def given(weights: Weights) -> dict:
    """Weights as the network's variables."""
    leaves = {
        (*layer.split("."), name): jnp.asarray(array)
        for layer, arrays in weights.items()
        for name, array in zip(names(layer), arrays, strict=True)
    }
    return {"params": unflatten_dict(leaves)}


def taken(params: dict) -> Weights:
    """The network's variables as weights."""
    leaves = flatten_dict(params["params"], sep=".")
    layers = dict.fromkeys(leaf.rpartition(".")[0] for leaf in leaves)
    return {
        layer: tuple(np.asarray(leaves[f"{layer}.{name}"]) for name in names(layer))
        for layer in layers
    }


def names(layer: str) -> tuple[str, ...]:
    """What Flax calls the arrays of a layer."""
    if layer.endswith("_embeddings"):
        return ("embedding",)
    return ("scale" if layer.endswith("LayerNorm") else "kernel", "bias")
