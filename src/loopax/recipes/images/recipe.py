"""The image classifier as a recipe: what is left in the run directory.

Importing this does not import JAX; the names of `images` are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopax.recipe import Recipe, Say
from loopax.recipes import images
from loopax.recipes.images.commands import COMMANDS
from loopax.recipes.images.config import NAME, PRESETS, ImagesConfig


class ImagesRecipe(Recipe):
    """Train a classifier of images."""

    name = NAME
    presets = PRESETS
    commands = COMMANDS
    parts = "loopax.recipes.images"

    def problem(self, config: ImagesConfig, say: Say = print) -> images.Problem:
        return images.Problem.of(config)

    def finish(
        self, trained: images.TrainedClassifier, problem: images.Problem, say: Say, progress: bool
    ) -> images.Results:
        """Measures a run that has come to its end, and leaves its report."""
        count = len(problem.data.test)
        say(f"{trained.dir.path}: measuring step {trained.step:,} on {count:,} images")
        results = images.evaluate(trained)
        self.report(trained, results)
        return results

    def report(self, trained: images.TrainedClassifier, results: Mapping[str, Any]) -> Path:
        from loopax.recipes.images import report

        return report.write(trained, results)
