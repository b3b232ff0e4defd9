"""Training a VAE: data, model, loss, the loop, and what is left in the run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

import loopax
from loopax.data import Splits
from loopax.models.vae import VAE
from loopax.recipes.vae import pictures
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.trained import TrainedVAE

EVAL_BATCH = 500
CHECKPOINTS = loopax.Checkpoints(best="test/loss")


def train(config: VAEConfig, run_dir: str | Path, *, progress: bool = True) -> TrainedVAE:
    """Trains a VAE, or continues the run that is in `run_dir`, and draws and measures the result.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    data = read_data(config.data, config.image_size)
    model = build_model(dataclasses.asdict(config), data)
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

    def draw(run: loopax.Run) -> None:
        if run.dir is not None:
            trained = TrainedVAE(model, run.state.eval_params, data, run.dir)
            name = f"samples-epoch-{run.step // batches.steps_per_epoch:03d}.png"
            pictures.save_grid(trained.samples_by_class(10), run.dir.pictures / name)

    run = loopax.fit(
        state,
        loss_function(model, config.kl_weight),
        batches,
        steps=steps,
        run_dir=run_dir,
        evaluation=data.test.batches(min(EVAL_BATCH, len(data.test))),
        hooks=[loopax.Hook(draw, every=batches.steps_per_epoch)],
        checkpoints=CHECKPOINTS,
        log_every=config.log_every,
        progress=progress,
        config={"recipe": "vae", **dataclasses.asdict(config)},
    )
    assert run.dir is not None
    trained = TrainedVAE(model, run.state.eval_params, data, run.dir)
    if not trained.results_file.exists():
        trained.draw()
        trained.measure()
    return trained


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
