"""The VAE as a recipe: what is called along the way, and what is left in the run directory.

Importing this does not import JAX; the names of `vae` are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import loopax
from loopax.deadline import check_time
from loopax.recipe import Recipe, Say
from loopax.recipes import vae
from loopax.recipes.vae.commands import COMMANDS
from loopax.recipes.vae.config import NAME, PRESETS, VAEConfig


class VAERecipe(Recipe):
    """Train a class-conditional VAE on images."""

    name = NAME
    presets = PRESETS
    commands = COMMANDS
    parts = "loopax.recipes.vae"

    def problem(self, config: VAEConfig, say: Say = print) -> vae.Problem:
        return vae.Problem.of(config)

    def hooks(self, problem: vae.Problem) -> Sequence[loopax.Hook | loopax.EarlyStopping]:
        """A grid of samples with each evaluation, and early stopping where there are few images."""
        every = problem.evaluate_every

        def draw(run: loopax.Run) -> None:
            if run.dir is None:
                return
            params = run.gather(run.state.eval_params)
            if run.is_writer:
                trained = vae.TrainedVAE.of(problem, params, run.dir, run.step)
                name = f"samples-epoch-{run.step // problem.batches.steps_per_epoch:03d}.png"
                vae.save_grid(trained.samples_by_class(10), run.dir.pictures / name)

        if problem.patience is None:
            return [loopax.Hook(draw, every)]
        stopping = loopax.EarlyStopping("validation/loss", problem.patience, every=every)
        return [loopax.Hook(draw, every), stopping]

    def finish(
        self, trained: vae.TrainedVAE, problem: vae.Problem, say: Say, progress: bool
    ) -> vae.Results:
        """Files are replaced whole, and where it is ended a next call goes on."""
        path = trained.dir.path
        if problem.config.sampler == "mixture":
            say(f"{path}: fitting the sampler to step {trained.step:,}")
        trained.save_sampler()
        check_time()
        say(f"{path}: drawing and measuring samples")
        results = vae.evaluate(trained, say=say, progress=progress)
        self.report(trained, results)
        return results

    def report(self, trained: vae.TrainedVAE, results: Mapping[str, Any]) -> Path:
        from loopax.recipes.vae import pictures, report

        return report.write(trained, dict(results), pictures.draw_all(trained))
