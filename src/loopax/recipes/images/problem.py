"""The problem that a configuration states: which images, which network, which loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

import loopax
from loopax.data import Splits
from loopax.errors import DataError
from loopax.extras import require
from loopax.models.classifier import Classifier
from loopax.recipes.images.common import ImagesProblem
from loopax.recipes.images.config import ImagesConfig
from loopax.recipes.images.data import data_of, known_only, with_validation

LENGTHS = {"standard": (8, 2000, 10**9), "judge": (60, 600, 1800)}
"""Of a training whose length is left to the data: passes, and the least and the most steps."""
BATCH, SMALLEST_BATCH = 64, 16
BATCHES_AT_LEAST = 8
"""In a pass, where the size of batches is left to the data."""
WARMUP = 100
"""Steps in which the learning rate grows from 0, but at most an eighth of all."""


@dataclass(frozen=True)
class Problem(ImagesProblem):
    """A classifier of images; `batches` are of the training images of known class."""

    ranked_by = ("accuracy", "max")
    measured = staticmethod(known_only)

    @classmethod
    def of(cls, config: ImagesConfig) -> Problem:
        """The problem that `config` states, with its images.

        Raises:
            LoopaxError: the images cannot be used.
        """
        require("images", "the images recipe", "sklearn", "PIL", "matplotlib", "jinja2")
        data = with_validation(data_of(config), config.validation)
        if not (data.test.columns["label"] >= 0).any():
            raise DataError(f"{data.test.name}: no image has a label; there is nothing to test on")
        return cls.of_images(config, data)

    @classmethod
    def of_images(cls, config: ImagesConfig, data: Splits) -> Problem:
        """The problem with images that are at hand, whatever the configuration names.

        Raises:
            DataError: they are of one class only.
        """
        train = known_only(data.train)
        if len(train.class_names) < 2:
            raise DataError(f"{train.name}: has one class only; a classifier needs two or more")
        model = cls.model_of(config, train.columns["image"].shape[1:], len(train.class_names))
        fitting = max(SMALLEST_BATCH, len(train) // BATCHES_AT_LEAST)
        size = config.batch_size or min(BATCH, len(train), fitting)
        return cls(config, data, model, train.batches(size))

    @staticmethod
    def model_of(config: ImagesConfig, image_shape: tuple[int, ...], classes: int) -> Classifier:
        """The network of a configuration, for images of any shape."""
        del image_shape
        return Classifier(classes, config.widths, config.features, config.dropout)

    @property
    def description(self) -> str:
        """What the data is, and how long it is trained on, in lines."""
        lines, train = [self.data.description], self.data.train
        if unknown := len(train) - len(self.batches.dataset):
            lines.append(f"{train.name}: {unknown:,} images have no label and are left out")
        moved = f", each moved by up to {self.shift} px" if self.shift else ""
        lines.append(f"{self.steps:,} steps of {self.batches.batch_size} images{moved}")
        return "\n".join(lines)

    @property
    def steps(self) -> int:
        """How many steps the training has."""
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.batches.steps_per_epoch))
        passes, at_least, at_most = LENGTHS[self.config.preset]
        return min(at_most, max(at_least, passes * len(self.batches.dataset) // BATCH))

    @property
    def shift(self) -> int:
        """Pixels by which training images are moved, at most."""
        height, width = self.data.train.columns["image"].shape[1:3]
        return min(height, width) // 14 if self.config.shift is None else self.config.shift

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """Cross-entropy in nats; shifts and dropout are for training alone."""
        model, shift = self.model, self.shift

        def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
            image, is_moved = batch["image"], shift > 0 and rngs.training
            image = shifted(rngs["shift"], image, shift) if is_moved else image
            logits, _ = model.apply(params, image, train=rngs.training, rngs=rngs)
            logits = logits.astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

        return loss_fn

    def state(self, *, resumed: bool = False) -> loopax.TrainState:
        """The state that training begins with."""
        del resumed
        optimizer = self.config.optimizer
        if not optimizer.schedule.warmup_steps:
            warmup = min(WARMUP, self.steps // 8)
            schedule = replace(optimizer.schedule, warmup_steps=warmup)
            optimizer = replace(optimizer, schedule=schedule)
        example = self.batches.dataset.example["image"]
        return loopax.TrainState.create(
            self.model,
            example,
            optimizer,
            compute_dtype=self.config.compute_dtype,
            total_steps=self.steps,
            seed=self.config.seed,
        )


def shifted(
    key: Key[Array, ""], images: Float[Array, "n h w c"], shift: int
) -> Float[Array, "n h w c"]:
    """Each image moved by up to `shift` pixels in each direction; its edge is repeated."""
    margin = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * shift + 1)
    cut = functools.partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    return jax.vmap(lambda image, offset: cut(image, (*offset, 0)))(padded, offsets)
