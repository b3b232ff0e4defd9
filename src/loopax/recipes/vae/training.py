"""Training a VAE: what is called along the way, and what is left in the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import loopax
from loopax.deadline import check_time
from loopax.recipes.vae import pictures, report
from loopax.recipes.vae.evaluation import Results, evaluate
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.trained import TrainedVAE

train = partial(loopax.recipe.train, sys.modules["loopax.recipes.vae"])


def hooks_of(problem: Problem) -> list[loopax.Hook | loopax.EarlyStopping]:
    """A grid of samples with each evaluation, and early stopping where there are few images."""
    every = problem.evaluate_every

    def draw(run: loopax.Run) -> None:
        if run.dir is not None:
            trained = TrainedVAE.of(problem, run.state.eval_params, run.dir, run.step)
            name = f"samples-epoch-{run.step // problem.batches.steps_per_epoch:03d}.png"
            pictures.save_grid(trained.samples_by_class(10), run.dir.pictures / name)

    if problem.patience is None:
        return [loopax.Hook(draw, every)]
    stopping = loopax.EarlyStopping("validation/loss", problem.patience, every=every)
    return [loopax.Hook(draw, every), stopping]


def finish(
    trained: TrainedVAE, problem: Problem, say: Callable[[str], None], progress: bool
) -> Results:
    """What follows the training; files are replaced whole, and a next call goes on from there."""
    path = trained.dir.path
    if problem.config.sampler == "mixture":
        say(f"{path}: fitting the sampler to step {trained.step:,}")
    trained.save_sampler()
    check_time()
    say(f"{path}: drawing and measuring samples")
    drawn = pictures.draw_all(trained)
    results = evaluate(trained, say=say, progress=progress)
    report.write(trained, results, drawn)
    return results
