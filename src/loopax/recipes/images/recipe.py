"""The image classifier as a recipe: what is left in the run directory.

Importing this does not import JAX; the names of `images` are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopax.recipe import Recipe
from loopax.recipes import images
from loopax.recipes.images.commands import COMMANDS
from loopax.recipes.images.config import PRESETS, ImagesConfig

if TYPE_CHECKING:
    from loopax.report import Table


class ImagesRecipe(Recipe):
    """Train a classifier of images."""

    name = "images"
    presets = PRESETS
    commands = COMMANDS

    def problem(self, config: ImagesConfig, say: Callable[[str], None] = print) -> images.Problem:
        return images.Problem.of(config)

    def load(self, *arguments: Any, **options: Any) -> images.TrainedClassifier:
        return images.load(*arguments, **options)

    def evaluate(self, trained: images.TrainedClassifier) -> images.Results:
        return images.evaluate(trained)

    def finish(
        self,
        trained: images.TrainedClassifier,
        problem: images.Problem,
        say: Callable[[str], None],
        progress: bool,
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

    def tables(self, results: images.Results) -> list[Table]:
        return images.tables(results)
