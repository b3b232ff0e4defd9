"""What a classifier of images is worth on unseen images, beside a baseline and guessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopax import measures
from loopax.recipes.images.baseline import BASELINE, fit_baseline
from loopax.recipes.images.data import known_only
from loopax.recipes.images.trained import TrainedClassifier
from loopax.report import Table

Results = dict[str, Any]

NOUN = "images"
MISTAKES = 20


def evaluate(trained: TrainedClassifier) -> Results:
    """Everything that `tables` shows, on the test images of known class, as plain values for JSON.

    Raises:
        DataError: the images of the run are not where they were.
    """
    data, names = trained.problem.data, trained.class_names
    test = known_only(data.test)
    images, labels = test.columns["image"], test.columns["label"]
    probabilities = trained.probabilities(images)
    simple = BASELINE, fit_baseline(data.train).probabilities(images)
    return {
        "step": trained.step,
        "data": test.name,
        **measures.beside_others(probabilities, labels, names, simple),
        "mistakes": measures.surest_mistakes(probabilities, labels, names, MISTAKES),
    }


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The results for people."""
    return measures.tables(results, NOUN)
