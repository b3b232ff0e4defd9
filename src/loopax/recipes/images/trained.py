"""A trained classifier of images: to ask for classes, as training or `load` gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import loopax
from loopax.deadline import check_time
from loopax.models.classifier import Classifier
from loopax.recipes.images.config import ImagesConfig
from loopax.recipes.images.data import problem_of_run
from loopax.recipes.images.problem import Problem, model_of
from loopax.recipes.images.recipe import ImagesRecipe
from loopax.run import RunDir
from loopax.terminal import to_stderr
from loopax.weights import with_weights

RECIPE = ImagesRecipe()
train = functools.partial(loopax.recipe.train, RECIPE)

NOTED = {"data": str, "image_shape": (int,), "class_names": (str,)}
"""What a run must know to be used without its images."""


class Answers(NamedTuple):
    """What a classifier makes of images: its last hidden layer, and how likely each class is."""

    features: Float[np.ndarray, "images features"]
    probabilities: Float[np.ndarray, "images classes"]


def answers(model: Classifier, params: Any, images: np.ndarray) -> Answers:
    """What a classifier makes of images, uint8 or in [0, 1]."""
    parts = [jax.device_get(_apply(model, params, part)) for part in portions(images)]
    logits, features = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Answers(features, np.asarray(jax.nn.softmax(logits)))


def portions(images: np.ndarray, size: int = 1000) -> Iterator[np.ndarray]:
    """Images in parts that fit anywhere."""
    return (images[first : first + size] for first in range(0, len(images), size))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Classifier, params: Any, images: Any) -> Any:
    return model.apply(params, images / 255 if images.dtype == jnp.uint8 else images)


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier of images with its parameters, and its run directory.

    Attributes:
        config: how it was trained.
        model, params: the Flax module, and what its `apply` takes.
        image_shape: height, width and channels.
        class_names: the classes, in the order of the probabilities.
        dir: the run directory.
        step: how many updates the parameters have seen.
        find_problem: gives the problem that it solves, with its images.
    """

    config: ImagesConfig
    model: Classifier
    params: Any
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    dir: RunDir
    step: int
    find_problem: Callable[[], Problem] = field(repr=False)

    @property
    def problem(self) -> Problem:
        """The problem with its images, which are read when it is first asked for.

        Raises:
            DataError: they are not where they were, or others than the run was trained on.
        """
        return self.find_problem()

    def probabilities(self, images: np.ndarray) -> Float[np.ndarray, "images classes"]:
        """How likely each image, uint8 or in [0, 1], is of each class."""
        check_time()
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
    """The classifier of a run; its images are read only when something needs them.

    Args:
        run: its directory.
        checkpoint: `best` (the latest where none is chosen), `latest`, or a step.
        data: where its images are by now, if not where they were.
        problem: with the images, where they are at hand.
        say: is told which checkpoint it is.

    Raises:
        RunDirError: `run` is not the directory of a run of this recipe.
        CheckpointError: there is no such checkpoint.
        DataError: images are needed, and are not what the run was trained on.
    """
    config, directory = RECIPE.config_of(run), RunDir.open(run)
    noted = loopax.recipe.noted(directory, NOTED)
    names = tuple(noted["class_names"])
    model = model_of(config, len(names))
    height, width, channels = noted["image_shape"]
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    form = jax.eval_shape(model.init, jax.random.key(0), image)
    with loopax.CheckpointStore(directory.checkpoints, say=say) as store:
        step = store.chosen(checkpoint)
        source = str(directory.checkpoints / str(step))
        params = with_weights(form, store.weights(step), source=source)

    @functools.cache
    def find_problem() -> Problem:
        here = replace(config, data=data or str(noted["data"]))
        return problem or problem_of_run(run, here, Problem.of)

    shape = (height, width, channels)
    return TrainedClassifier(config, model, params, shape, names, directory, step, find_problem)
