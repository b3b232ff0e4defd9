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
        classifier: scikit-learn's; None where all images are of one class.
        labels: the classes that it was fitted to, in the order of its answers.
        classes: how many classes there are.
    """

    classifier: Any
    labels: np.ndarray
    classes: int

    def probabilities(self, images: np.ndarray) -> Float[np.ndarray, "images classes"]:
        """How likely each image is of each class; 0 for one that was not trained on."""
        found = np.zeros((len(images), self.classes))
        if self.classifier is None:
            found[:, self.labels] = 1
        else:
            parts = [self.classifier.predict_proba(part) for part in flat_portions(images)]
            found[:, self.labels] = np.concatenate(parts)
        return found


def fit_baseline(train: Dataset) -> Baseline:
    """Logistic regression on at most `FITTED_LIMIT` images of known class, fewer of large ones."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = known_only(train)
    images, labels = train.columns["image"], train.columns["label"]
    most = min(FITTED_LIMIT, max(1, NUMBERS_LIMIT // images[:1].size))
    chosen = np.random.default_rng(0).permutation(len(train))[:most]
    images, labels, classifier = images[chosen], labels[chosen], None
    if len(np.unique(labels)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            pixels = np.concatenate([*flat_portions(images)])
            classifier = LogisticRegression().fit(pixels, labels)
    return Baseline(classifier, np.unique(labels), len(train.class_names))


def accuracy_of_baseline(train: Dataset, test: Dataset) -> float:
    """The share of test images that the baseline is right on; nan where no class is known."""
    test = known_only(test)
    labels = test.columns["label"]
    if (labels < 0).any():
        return float("nan")
    found = fit_baseline(train).probabilities(test.columns["image"])
    return float((found.argmax(-1) == labels).mean())
