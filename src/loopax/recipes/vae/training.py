"""Training a VAE: the problem, the loop, and what is left in the run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import loopax
from loopax.recipes.vae import pictures, report
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.evaluation import EVAL_BATCH, evaluate
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.trained import TrainedVAE


def train(
    config: VAEConfig,
    run_dir: str | Path,
    *,
    steps: int | None = None,
    checkpoints: loopax.Checkpoints | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> TrainedVAE:
    """Trains a VAE, or continues the run that is in `run_dir`; measures and draws what is finished.

    Args:
        config: what to train, and how.
        run_dir: where everything goes.
        steps: stop here, before the end that `config` states.
        checkpoints, max_seconds, progress: as for `loopax.fit`.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    problem = Problem.of(config)
    say = print if progress else _silent
    say(problem.description)
    each, data = problem.batches.steps_per_epoch, problem.data
    # The test images are for the figures at the end, unless there is nothing to choose.
    name, watched = (
        ("test", data.test) if data.validation is None else ("validation", data.validation)
    )
    checkpoints = checkpoints or loopax.Checkpoints()
    if checkpoints.best == loopax.Checkpoints.best:
        best = None if data.validation is None else "validation/loss"
        checkpoints = replace(checkpoints, best=best)

    def draw(run: loopax.Run) -> None:
        if run.dir is not None:
            trained = TrainedVAE(problem, run.state.eval_params, run.dir, run.step)
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
        evaluation=loopax.Evaluation({name: watched.batches(min(EVAL_BATCH, len(watched)))}),
        hooks=[loopax.Hook(draw, every=each)],
        checkpoints=checkpoints,
        nonfinite=config.nonfinite,
        max_seconds=max_seconds,
        log_every=config.log_every,
        progress=progress,
        config=config.to_json(),
    )
    assert run.dir is not None
    trained = TrainedVAE(problem, run.state.eval_params, run.dir, run.step)
    if run.step < problem.steps:
        return trained
    if trained.results_file.exists():
        return trained.with_sampler()
    if config.sampler == "mixture":
        say(f"{run.dir.path}: fitting the sampler")
    trained = trained.with_sampler()
    trained.save_sampler()
    say(f"{run.dir.path}: drawing and measuring samples")
    drawn = pictures.draw_all(trained)
    results = evaluate(trained, say=say)
    report.write(trained, results, drawn)
    run.dir.write_json("results.json", results)  # last: it says that all of this is there
    return trained


def _silent(message: str) -> None:
    """Where nobody looks on."""
