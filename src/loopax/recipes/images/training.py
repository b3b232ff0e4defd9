"""Training a classifier of images, and what is left in the run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import loopax
from loopax.recipes.images import report
from loopax.recipes.images.evaluation import Results, evaluate
from loopax.recipes.images.problem import Problem
from loopax.recipes.images.trained import TrainedClassifier

train = partial(loopax.recipe.train, sys.modules["loopax.recipes.images"])


def hooks_of(problem: Problem) -> list[loopax.Hook]:
    """None: every step is trained, and the best checkpoint is chosen."""
    del problem
    return []


def finish(
    trained: TrainedClassifier, problem: Problem, say: Callable[[str], None], progress: bool
) -> Results:
    """Measures a run that has come to its end, and leaves its report."""
    del progress
    count = len(problem.data.test)
    say(f"{trained.dir.path}: measuring step {trained.step:,} on {count:,} images")
    results = evaluate(trained)
    report.write(trained, results)
    return results
