"""Fine-tuning: what is called along the way, and what is left in the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import loopax
from loopax.recipes.bert import report
from loopax.recipes.bert.evaluation import Results, evaluate
from loopax.recipes.bert.problem import Problem
from loopax.recipes.bert.trained import TrainedClassifier

train = partial(loopax.recipe.train, sys.modules["loopax.recipes.bert"])


def hooks_of(problem: Problem) -> list[loopax.Hook | loopax.EarlyStopping]:
    """The macro-F1 where it is what the best is chosen by, and early stopping."""
    metric, mode = problem.ranking
    every = problem.evaluate_every
    stopping = loopax.EarlyStopping(metric, problem.config.patience, mode, every=every)
    return [*problem.hooks, stopping]


def finish(
    trained: TrainedClassifier, problem: Problem, say: Callable[[str], None], progress: bool
) -> Results:
    """Measures a run that has come to its end, and leaves its report."""
    del progress
    say(f"{trained.dir.path}: measuring step {trained.step:,} on {len(problem.texts.test):,} texts")
    results = evaluate(trained, parts=problem.texts, say=say)
    config = replace(trained.config, epochs=problem.epochs, batch_size=problem.batch_size)
    report.write(replace(trained, config=config), results)
    return results
