"""Fine-tuning a BERT as a recipe: what is called along the way, and what is left in the run.

Importing this does not import JAX; the names of `bert` are loaded when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loopax
from loopax.recipe import Recipe
from loopax.recipes import bert
from loopax.recipes.bert.commands import COMMANDS
from loopax.recipes.bert.config import PRESETS, FineTuneConfig

if TYPE_CHECKING:
    from loopax.report import Table


class BERTRecipe(Recipe):
    """Fine-tune a pretrained BERT to classify texts."""

    name = "bert"
    presets = PRESETS
    commands = COMMANDS

    def problem(self, config: FineTuneConfig, say: Callable[[str], None] = print) -> bert.Problem:
        return bert.Problem.of(config, say)

    def hooks(self, problem: bert.Problem) -> Sequence[loopax.Hook | loopax.EarlyStopping]:
        """The macro-F1 where it is what the best is chosen by, and early stopping."""
        metric, mode = problem.ranking
        every = problem.evaluate_every
        stopping = loopax.EarlyStopping(metric, problem.config.patience, mode, every=every)
        return [*problem.hooks, stopping]

    def load(self, *arguments: Any, **options: Any) -> bert.TrainedClassifier:
        return bert.load(*arguments, **options)

    def evaluate(self, trained: bert.TrainedClassifier, **options: Any) -> bert.Results:
        return bert.evaluate(trained, **options)

    def finish(
        self,
        trained: bert.TrainedClassifier,
        problem: bert.Problem,
        say: Callable[[str], None],
        progress: bool,
    ) -> bert.Results:
        """Measures a run that has come to its end, and leaves its report."""
        tested = len(problem.texts.test)
        say(f"{trained.dir.path}: measuring step {trained.step:,} on {tested:,} texts")
        results = bert.evaluate(trained, parts=problem.texts, say=say)
        results["chosen"] = {"epochs": problem.epochs, "batch_size": problem.batch_size}
        self.report(trained, results)
        return results

    def report(self, trained: bert.TrainedClassifier, results: Mapping[str, Any]) -> Path:
        """The page, with the settings that followed the data as they were chosen."""
        from loopax.recipes.bert import report

        config = replace(trained.config, **results.get("chosen", {}))
        return report.write(replace(trained, config=config), results)

    def tables(self, results: bert.Results) -> list[Table]:
        return bert.tables(results)

    def costs(self, config: FineTuneConfig) -> list[str]:
        return bert.costs(config)

    def export(
        self,
        run: str | Path,
        checkpoint: str | int,
        out: Path | None,
        say: Callable[[str], None] = print,
    ) -> list[Path]:
        """A folder that PyTorch transformers loads as well."""
        return bert.export(run, checkpoint, out, say)
