"""The baseline for a classifier of images: logistic regression on their pixels."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from loopax.data import Dataset
from loopax.recipes.images.data import NUMBERS_LIMIT, flat_portions, known_only

BASELINE = "logistic regression on pixels"
FITTED_LIMIT = 10_000
"""Training images that it is fitted to, at most."""


class Baseline(NamedTuple):
    """A fitted classifier of flattened images.

    Attributes:
        classifier: scikit-learn's.
        classes: how many there are; it may not have met all.
    """

    classifier: Any
    classes: int

    def probabilities(self, images: np.ndarray) -> Float[np.ndarray, "images classes"]:
        """How likely each image is of each class; 0 for one that was not trained on."""
        found = np.zeros((len(images), self.classes))
        parts = [self.classifier.predict_proba(part) for part in flat_portions(images)]
        found[:, self.classifier.classes_] = np.concatenate(parts)
        return found


def fit_baseline(train: Dataset) -> Baseline:
    """Logistic regression on at most `FITTED_LIMIT` images of known class, fewer of large ones."""
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = known_only(train)
    images, labels = train.columns["image"], train.columns["label"]
    most = min(FITTED_LIMIT, max(1, NUMBERS_LIMIT // images[:1].size))
    chosen = np.random.default_rng(0).permutation(len(train))[:most]
    pixels, labels = np.concatenate([*flat_portions(images[chosen])]), labels[chosen]
    is_single = len(np.unique(labels)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = (DummyClassifier() if is_single else LogisticRegression()).fit(pixels, labels)
    return Baseline(classifier, len(train.class_names))


def accuracy_of_baseline(train: Dataset, test: Dataset) -> float:
    """The share of test images that the baseline is right on; nan where no class is known."""
    test = known_only(test)
    labels = test.columns["label"]
    if (labels < 0).any():
        return float("nan")
    found = fit_baseline(train).probabilities(test.columns["image"])
    return float((found.argmax(-1) == labels).mean())
