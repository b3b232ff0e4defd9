"""Fine-tuning a BERT as a recipe: what is called along the way, and what is left in the run.

Importing this does not import JAX; the names of `bert` are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import loopax
from loopax.recipe import Recipe, Say
from loopax.recipes import bert
from loopax.recipes.bert.commands import COMMANDS
from loopax.recipes.bert.config import NAME, PRESETS, FineTuneConfig


class BERTRecipe(Recipe):
    """Fine-tune a pretrained BERT to classify texts."""

    name = NAME
    presets = PRESETS
    commands = COMMANDS
    parts = "loopax.recipes.bert"

    def problem(self, config: FineTuneConfig, say: Say = print) -> bert.Problem:
        return bert.Problem.of(config, say)

    def hooks(self, problem: bert.Problem) -> Sequence[loopax.Hook | loopax.EarlyStopping]:
        return problem.hooks

    def finish(
        self, trained: bert.TrainedClassifier, problem: bert.Problem, say: Say, progress: bool
    ) -> bert.Results:
        """Measures a run that has come to its end, and leaves its report."""
        tested = len(problem.texts.test)
        say(f"{trained.dir.path}: measuring step {trained.step:,} on {tested:,} texts")
        results = bert.evaluate(trained, parts=problem.texts, say=say)
        results["chosen"] = {"epochs": problem.epochs, "batch_size": problem.batch_size}
        self.report(trained, results)
        return results

    def report(self, trained: bert.TrainedClassifier, results: Mapping[str, Any]) -> Path:
        from loopax.recipes.bert import report

        return report.write(trained, results)

    def costs(self, config: FineTuneConfig, mesh: str | None = None) -> list[str]:
        return bert.costs(config, mesh)
