"""The problem that a VAE configuration states: which images, which model, which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

import loopax
from loopax.data import Splits
from loopax.models.vae import VAE
from loopax.recipes.vae.config import VAEConfig


@dataclass(frozen=True)
class Problem:
    """What a configuration says is to be trained, in the terms of `loopax.fit`."""

    config: VAEConfig
    data: Splits
    model: VAE
    batches: Any

    @classmethod
    def of(cls, config: VAEConfig) -> Problem:
        """The problem that `config` states.

        Raises:
            LoopaxError: the data cannot be used.
        """
        size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
        data = (
            loopax.data.mnist()
            if config.data == "mnist"
            else loopax.data.load(config.data, size=size)
        )
        model = VAE(
            image_shape=data.train.columns["image"].shape[1:],
            classes=len(data.train.class_names),
            latent=config.latent,
            widths=config.widths,
            activation=config.activation,
            conditioning=config.conditioning,
            output=config.output,
        )
        return cls(config, data, model, data.train.batches(config.batch_size))

    @property
    def steps(self) -> int:
        """How many steps the whole training has."""
        return self.config.epochs * self.batches.steps_per_epoch

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The objective, as `fit` takes it."""
        return loss_function(self.model, self.config.kl_weight)

    def state(self, *, weights: bool = True) -> loopax.TrainState:
        """The state that training begins with; without `weights`, its form.

        Raises:
            LoopaxError: the weights to begin with cannot be used.
        """
        config = self.config
        state = loopax.TrainState.create(
            self.model,
            self.data.train,
            config.optimizer.build(self.steps),
            seed=config.seed,
            frozen=config.optimizer.freeze,
            ema_decay=config.optimizer.params_ema,
        )
        if config.weights is None or not weights:
            return state
        return state.with_params(weights_of(config.weights, state.params))


def loss_function(model: VAE, kl_weight: float) -> Callable[..., Any]:
    """Half the squared error summed over pixels, plus the weighted KL divergence in nats.

    Both are means over the batch. With weight w this is the negative evidence lower bound of a
    Gaussian decoder of variance w, times w, up to a constant.
    """

    def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
        image: Any = batch["image"]
        output: Any = model.apply(params, image, batch["label"], rngs=rngs)
        reconstruction, mean, logvar = output
        sse_half = optax.l2_loss(reconstruction, image).sum(axis=(1, 2, 3)).mean()
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).sum(axis=-1).mean()
        return sse_half + kl_weight * kl, {"sse_half": sse_half, "kl_nats": kl}

    return loss_fn


def weights_of(source: str, params: Any) -> Any:
    """`params` with the values of a `.safetensors` file or of a run's latest checkpoint."""
    path = Path(source)
    if path.is_dir():
        with loopax.CheckpointStore(loopax.RunDir.open(path).checkpoints) as store:
            return loopax.with_weights(params, store.weights(), source=source)
    return loopax.with_weights(params, loopax.read_weights(path), source=source)
