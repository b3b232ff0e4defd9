"""Training a VAE: the problem, the loop, and what is left in the run directory."""

from __future__ import annotations

from pathlib import Path

import loopax
from loopax.recipes.vae import pictures
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.trained import EVAL_BATCH, TrainedVAE


def train(
    config: VAEConfig,
    run_dir: str | Path,
    *,
    steps: int | None = None,
    checkpoints: loopax.Checkpoints | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> TrainedVAE:
    """Trains a VAE, or continues the run that is in `run_dir`; draws and measures what is finished.

    Args:
        config: what to train, and how.
        run_dir: where everything goes.
        steps: stop here, before the end that `config` states.
        checkpoints, max_seconds, progress: as for `loopax.fit`.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    problem = Problem.of(config)
    each, test = problem.batches.steps_per_epoch, problem.data.test

    def draw(run: loopax.Run) -> None:
        if run.dir is not None:
            trained = TrainedVAE(problem, run.state.eval_params, run.dir)
            name = f"samples-epoch-{run.step // each:03d}.png"
            pictures.save_grid(trained.samples_by_class(10), run.dir.pictures / name)

    # What a run goes on from is in its checkpoint; the weights it began with may be gone.
    begun = loopax.CheckpointStore(Path(run_dir) / "checkpoints").steps
    run = loopax.fit(
        problem.state(weights=not begun),
        problem.loss_fn,
        problem.batches,
        steps=problem.steps if steps is None else min(steps, problem.steps),
        run_dir=run_dir,
        evaluation=test.batches(min(EVAL_BATCH, len(test))),
        hooks=[loopax.Hook(draw, every=each)],
        checkpoints=checkpoints,
        nonfinite=config.nonfinite,
        max_seconds=max_seconds,
        log_every=config.log_every,
        progress=progress,
        config=config.to_json(),
    )
    assert run.dir is not None
    trained = TrainedVAE(problem, run.state.eval_params, run.dir)
    if run.step == problem.steps and not trained.results_file.exists():
        trained.draw()
        run.dir.write_json("results.json", trained.measure())
    return trained
