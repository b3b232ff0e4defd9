"""What every recipe on images has in common: its problem, and what a run has come to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

import loopax
from loopax.data import Dataset, DatasetBatches, Splits
from loopax.errors import DataError
from loopax.recipe import noted, params_at
from loopax.recipes.images.data import at_once
from loopax.run import RunDir

EVAL_BATCH = 500
"""Images that are measured at once, at most."""
EVALUATIONS = 20
"""In a training, about, but at most one after each pass."""
NOTED = {"data": str, "image_shape": (int,), "class_names": (str,)}
"""What a run must know to be used without its images."""


@dataclass(frozen=True)
class ImagesProblem:
    """What a configuration says is to be trained on images, in the terms of `loopax.fit`.

    Attributes:
        config: what was asked for.
        data: the images in their parts.
        model, batches: what is trained, and on what.
        ranked_by: the metric of an evaluation that the best checkpoint is best in, and whether at
            its lowest or highest.
    """

    config: Any
    data: Splits
    model: Any
    batches: DatasetBatches
    ranked_by: ClassVar[tuple[str, Literal["min", "max"]]]

    @classmethod
    def of(cls, config: Any) -> Self:
        """The problem that `config` states, with its images."""
        raise NotImplementedError

    @staticmethod
    def model_of(config: Any, image_shape: tuple[int, ...], classes: int) -> Any:
        """The network of a configuration for such images."""
        raise NotImplementedError

    @staticmethod
    def inputs(image: Any) -> tuple[Any, ...]:
        """What the network is initialised with, beside keys."""
        return (image,)

    @staticmethod
    def measured(dataset: Dataset) -> Dataset:
        """The images of a part that are measured along the way."""
        return dataset

    @property
    def steps(self) -> int:
        """How many steps the training has, if nothing ends it early."""
        raise NotImplementedError

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations: whole passes."""
        in_a_pass = self.batches.steps_per_epoch
        return max(1, self.steps // in_a_pass // EVALUATIONS) * in_a_pass

    @property
    def evaluation(self) -> loopax.Evaluation:
        """The images to choose by; those to test on where there is nothing to choose."""
        name = "test" if self.data.validation is None else "validation"
        part = self.measured(self.data.parts[name])
        together = at_once(EVAL_BATCH, part.columns["image"].shape[1:])
        batches = part.batches(min(together, len(part)))
        return loopax.Evaluation({name: batches}, every=self.evaluate_every)

    @property
    def ranking(self) -> tuple[str | None, Literal["min", "max"]]:
        """What the best checkpoint is best in; nothing is chosen without validation images."""
        name, mode = self.ranked_by
        return None if self.data.validation is None else f"validation/{name}", mode

    @property
    def noted(self) -> dict[str, Any]:
        """What the run directory keeps, so that the model is used without its images."""
        train = self.data.train
        return {
            "data_sha256": train.fingerprint,
            "data": self.config.data,
            "image_shape": list(train.columns["image"].shape[1:]),
            "class_names": list(train.class_names),
        }


@dataclass(frozen=True)
class TrainedOnImages:
    """A model of images with its parameters and its run directory, used without its images.

    Attributes:
        config: how it was trained.
        model, params: the Flax module, and what its `apply` takes.
        image_shape: height, width and channels.
        class_names: the classes, in the order of the labels.
        dir: the run directory.
        step: how many updates the parameters have seen.
        find_problem: gives the problem that it solves, with its images.
    """

    config: Any
    model: Any
    params: Any
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    dir: RunDir
    step: int
    find_problem: Callable[[], Any] = field(repr=False)

    @classmethod
    def of_run(
        cls,
        config: Any,
        kind: type[ImagesProblem],
        run: str | Path,
        checkpoint: str | int,
        data: str | None,
        problem: ImagesProblem | None,
        say: Callable[[str], None],
    ) -> Self:
        """The model of a run; its images are read only when something needs them.

        Args:
            config, kind: what was trained.
            run: its directory.
            checkpoint: `best` (the latest where none is chosen), `latest`, or a step.
            data: where its images are by now, if not where they were.
            problem: with the images, where they are at hand.
            say: is told which checkpoint it is.

        Raises:
            RunDirError: the directory is damaged.
            CheckpointError: there is no such checkpoint.
        """
        directory = RunDir.open(run)
        kept = noted(directory, NOTED)
        shape, names = tuple(kept["image_shape"]), tuple(kept["class_names"])
        model = kind.model_of(config, shape, len(names))
        keys = {name: jax.random.key(0) for name in ("params", "noise")}
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        form = jax.eval_shape(functools.partial(model.init, keys), *kind.inputs(image))
        params, step = params_at(directory, checkpoint, form, say)

        @functools.cache
        def find_problem() -> ImagesProblem:
            return problem or _read_again(run, replace(config, data=data or kept["data"]), kind)

        return cls(config, model, params, shape, names, directory, step, find_problem)

    @property
    def problem(self) -> Any:
        """The problem with its images, which are read when it is first asked for.

        Raises:
            DataError: they are not where they were, or others than the run was trained on.
        """
        return self.find_problem()


def _read_again(run: str | Path, config: Any, kind: type[ImagesProblem]) -> ImagesProblem:
    try:
        problem = kind.of(config)
    except DataError as error:
        raise DataError(
            f"{error}; {run} was trained on these images: --data says where they are by now"
        ) from error
    loopax.recipe.check_data(run, problem.config, problem.noted["data_sha256"])
    return problem
