"""The problem that a VAE configuration states: which images, which model, which loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

    model: VAE
    data: Splits
    state: loopax.TrainState
    loss_fn: Callable[..., Any]
    batches: Any
    steps: int

    @classmethod
    def of(cls, config: VAEConfig) -> Problem:
        """The problem that `config` states.

        Raises:
            LoopaxError: the data or the weights to begin with cannot be used.
        """
        data = read_data(config.data, config.image_size)
        model = build_model(asdict(config), data)
        batches = data.train.batches(config.batch_size)
        steps = config.epochs * batches.steps_per_epoch
        state = loopax.TrainState.create(
            model,
            data.train,
            config.optimizer.build(steps),
            seed=config.seed,
            frozen=config.optimizer.freeze,
            ema_decay=config.optimizer.params_ema,
        )
        if config.weights is not None:
            state = state.with_params(weights_of(config.weights, state.params))
        return cls(model, data, state, loss_function(model, config.kl_weight), batches, steps)


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


def read_data(source: str, image_size: Sequence[int] | None) -> Splits:
    """The images that a configuration names: `mnist`, or a path."""
    if source == "mnist":
        return loopax.data.mnist()
    size = (image_size[0], image_size[1]) if image_size else None
    return loopax.data.load(source, size=size)


def build_model(config: dict[str, Any], data: Splits) -> VAE:
    """The model that a configuration describes, for these images."""
    return VAE(
        image_shape=data.train.columns["image"].shape[1:],
        classes=len(data.train.class_names),
        latent=config["latent"],
        widths=tuple(config["widths"]),
        activation=config["activation"],
        conditioning=config["conditioning"],
        output=config["output"],
    )


def weights_of(source: str, params: Any) -> Any:
    """`params` with the values of a `.safetensors` file or of a run's latest checkpoint."""
    path = Path(source)
    if path.is_dir():
        with loopax.CheckpointStore(loopax.RunDir.open(path).checkpoints) as store:
            return loopax.with_weights(params, store.weights(), source=source)
    return loopax.with_weights(params, loopax.read_weights(path), source=source)
