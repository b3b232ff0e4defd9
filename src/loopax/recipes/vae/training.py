"""Training a VAE: data, model, loss, the loop, and what is left in the run directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import loopax
from loopax.recipes.vae import pictures
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.problem import build_model, loss_function, read_data
from loopax.recipes.vae.trained import EVAL_BATCH, TrainedVAE


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
        checkpoints=loopax.Checkpoints(best="test/loss"),
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
