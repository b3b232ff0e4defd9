"""A trained classifier of images: to ask for classes, as training or `load` gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import loopax
from loopax.deadline import check_time
from loopax.models.classifier import Classifier
from loopax.recipes.images.common import TrainedOnImages
from loopax.recipes.images.config import NAME, ImagesConfig
from loopax.recipes.images.data import at_once
from loopax.recipes.images.problem import Problem
from loopax.terminal import Progress, to_stderr

PORTION = 1000
"""Images that are looked at at once, at most."""


class Answers(NamedTuple):
    """What a classifier makes of images: its last hidden layer, and how likely each class is."""

    features: Float[np.ndarray, "images features"]
    probabilities: Float[np.ndarray, "images classes"]


def answers(model: Classifier, params: Any, images: np.ndarray) -> Answers:
    """What a classifier makes of images, uint8 or in [0, 1]."""
    size, parts = at_once(PORTION, images.shape[1:]), []
    with Progress("classifying images", len(images)) as progress:
        for first in range(0, len(images), size):
            check_time()
            parts.append(jax.device_get(_apply(model, params, images[first : first + size])))
            progress.at(first + len(parts[-1][0]))
    logits, features = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Answers(features, np.asarray(jax.nn.softmax(logits)))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Classifier, params: Any, images: Any) -> Any:
    return model.apply(params, images / 255 if images.dtype == jnp.uint8 else images)


@dataclass(frozen=True)
class TrainedClassifier(TrainedOnImages):
    """A classifier of images with its parameters, and its run directory."""

    def probabilities(self, images: np.ndarray) -> Float[np.ndarray, "images classes"]:
        """How likely each image, uint8 or in [0, 1], is of each class."""
        return answers(self.model, self.params, images).probabilities

    def classify(self, images: np.ndarray) -> list[str]:
        """The most likely class of each image."""
        return [self.class_names[index] for index in self.probabilities(images).argmax(-1)]


def load(
    run: str | Path,
    checkpoint: str | int = "best",
    *,
    data: str | None = None,
    problem: Problem | None = None,
    say: Callable[[str], None] = to_stderr,
) -> TrainedClassifier:
    """The classifier of a run, as `TrainedOnImages.of_run` describes it."""
    config = loopax.recipe.config_of(run, NAME, ImagesConfig)
    return TrainedClassifier.of_run(config, Problem, run, checkpoint, data, problem, say)
