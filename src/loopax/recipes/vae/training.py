"""Training a VAE: the problem, the loop, and what is left in the run directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import loopax
from loopax.recipes.vae import pictures, report
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.evaluation import EVAL_BATCH, evaluate
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.trained import (
    MODEL_FILE,
    TrainedVAE,
    absolute,
    check_data,
    load,
    note_model,
    stored_config,
)


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
        checkpoints, progress: as for `loopax.fit`.
        max_seconds: for all of it. What is not done by then is done when this is called again.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    say = print if progress else _silent
    with loopax.time_limit(
        max_seconds,
        lambda: say(
            f"{run_dir}: time is up; the same command fits, measures and draws what is left"
        ),
    ):
        weights = config.weights and loopax.data.absolute(config.weights)
        config = replace(config, data=absolute(config.data), weights=weights)
        problem = Problem.of(config)
        say(problem.description)
        run = _fit(problem, run_dir, steps, checkpoints, progress)
        note_model(loopax.RunDir(run_dir), problem)  # of a finished run that has lost it
        trained = load(run_dir, problem=problem, say=_silent)
        is_finished = run.stopped is not None or run.step >= problem.steps
        if is_finished and not trained.results_file.exists():
            _finish(trained, say, progress)
    return load(run_dir, problem=problem, say=_silent)


def _fit(
    problem: Problem,
    run_dir: str | Path,
    steps: int | None,
    checkpoints: loopax.Checkpoints | None,
    progress: bool,
) -> loopax.Run:
    """The training itself, or what is left of it."""
    check_data(run_dir, problem)
    config, data, every = problem.config, problem.data, problem.evaluate_every
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
            trained = TrainedVAE.of(problem, run.state.eval_params, run.dir, run.step)
            name = f"samples-epoch-{run.step // problem.batches.steps_per_epoch:03d}.png"
            pictures.save_grid(trained.samples_by_class(10), run.dir.pictures / name)

    hooks: list[Any] = [lambda run: note_model(run.dir, problem), loopax.Hook(draw, every=every)]
    if problem.patience is not None:
        hooks.append(loopax.EarlyStopping("validation/loss", problem.patience, every=every))
    # What a run goes on from is in its checkpoint; the weights it began with may be gone.
    begun = loopax.CheckpointStore(Path(run_dir) / "checkpoints").steps
    return loopax.fit(
        problem.state(weights=not begun),
        problem.loss_fn,
        problem.batches,
        steps=problem.steps if steps is None else min(steps, problem.steps),
        run_dir=run_dir,
        evaluation=loopax.Evaluation(
            {name: watched.batches(min(EVAL_BATCH, len(watched)))}, every=every
        ),
        hooks=hooks,
        checkpoints=checkpoints,
        nonfinite=config.nonfinite,
        max_seconds=loopax.seconds_left(),
        log_every=config.log_every,
        progress=progress,
        config=_as_begun(config, run_dir).to_json(),
    )


def _as_begun(config: VAEConfig, run_dir: str | Path) -> VAEConfig:
    """The configuration as the run has it: its images, which are the same, may have moved."""
    directory = loopax.RunDir(run_dir)
    if not (directory.path / MODEL_FILE).exists():
        return config
    return replace(config, data=stored_config(run_dir).data)


def _finish(trained: TrainedVAE, say: Callable[[str], None], progress: bool) -> None:
    """What follows the training; files are replaced whole, and a next call goes on from there."""
    path, config = trained.dir.path, trained.config
    loopax.check_time()
    if config.sampler == "mixture":
        say(f"{path}: fitting the sampler to step {trained.step:,}")
    trained.save_sampler()
    loopax.check_time()
    say(f"{path}: drawing and measuring samples")
    drawn = pictures.draw_all(trained)
    results = evaluate(trained, say=say, progress=progress)
    report.write(trained, results, drawn)
    trained.dir.write_json("results.json", results)  # last: it says that all of this is there


def _silent(message: str) -> None:
    """Where nobody looks on."""
