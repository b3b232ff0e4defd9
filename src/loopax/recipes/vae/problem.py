"""The problem that a VAE configuration states: which images, which model, which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

import loopax
from loopax.data import Dataset, Splits
from loopax.extras import require
from loopax.models.vae import VAE
from loopax.recipe import batch_size_for
from loopax.recipes.images import ImagesProblem, at_once, data_of, with_validation
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.objective import Objective
from loopax.run import RunDir
from loopax.weights import read_weights, with_weights

EPOCHS, STEPS_AT_LEAST = 24, 4000
"""Of a training whose length is left to the data: passes, and steps in more passes."""
BATCH, SMALLEST_BATCH = 128, 16
BATCHES_AT_LEAST = 8
"""In a pass, where the size of batches is left to the data."""
WARMUP = 100
"""Steps, at most half of all, in which the learning rate grows from 0 where images are large: at
256 x 256 a layer sums so many numbers that the first full steps of Adam end in inf."""
SHARP, SMOOTH, FEW_IMAGES = 0.005, 0.2, 1000
"""Weights of the KL divergence beside half the squared error; the second one of few images."""
PATIENCE = 6
"""Evaluations without a better one, after which a training of few images ends."""


@dataclass(frozen=True)
class Problem(ImagesProblem):
    """A VAE of images.

    Attributes:
        given: the images in the parts that the data has; what samples are judged by saw them all.
    """

    given: Splits
    ranked_by = ("loss", "min")

    @classmethod
    def of(cls, config: VAEConfig) -> Problem:
        """The problem that `config` states, with its images.

        Raises:
            LoopaxError: the data cannot be used.
        """
        require("vae", "the VAE recipe", "sklearn", "PIL", "matplotlib", "jinja2", "flatbuffers")
        given = data_of(config)
        data = with_validation(given, config.validation)
        train = data.train
        weight, weights = config.kl_weight, config.weights
        config = replace(
            config,
            weights=weights and loopax.data.absolute(weights),
            kl_weight=kl_weight_for(config, len(train)) if weight is None else weight,
        )
        model = cls.model_of(config, train.columns["image"].shape[1:], len(train.class_names))
        size = config.batch_size or batch_size_for(
            len(train), usual_batch(train), SMALLEST_BATCH, BATCHES_AT_LEAST
        )
        return cls(config, data, model, train.batches(size), given)

    @staticmethod
    def model_of(config: VAEConfig, image_shape: tuple[int, ...], classes: int) -> VAE:
        """The network of a configuration for such images."""
        height, width, channels = image_shape
        return VAE(
            image_shape=(height, width, channels),
            classes=classes,
            latent=config.latent,
            widths=config.widths,
            network=config.network,
            activation=config.activation,
            conditioning=config.conditioning,
            output=config.output,
            prior=config.prior,
            learned_sigma=config.likelihood == "gaussian" and config.sigma == "learned",
        )

    @staticmethod
    def inputs(image: Any) -> tuple[Any, ...]:
        """Images and labels."""
        return image, jax.ShapeDtypeStruct(image.shape[:1], jnp.int32)

    @property
    def description(self) -> str:
        """What the data is, and how long it is trained on where that follows the data, in lines."""
        lines, train = [self.data.description], self.data.train
        usual = usual_batch(train)
        if usual < BATCH:
            size = f"batches of {usual} and " if self.batch_size == usual else ""
            lines.append(f"{train.name}: large images, so {size}{self.warmup} steps of warm-up")
        if self.data.validation is None and self.config.validation:
            lines.append(
                f"{train.name}: too few images to hold any out; nothing is chosen, and the latest "
                "checkpoint counts"
            )
        if self.is_lengthened or self.batch_size not in (usual, self.config.batch_size):
            stop = " at most" if self.patience else ""
            lines.append(
                f"{train.name}: few images, so batches of {self.batch_size} and "
                f"{self.epochs:,} passes{stop} ({self.steps:,} steps); KL weight "
                f"{self.config.kl_weight}"
            )
        return "\n".join(lines)

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return self.batches.batch_size

    @property
    def is_lengthened(self) -> bool:
        """Whether there are more passes than of many images."""
        return self.config.epochs is None and self.epochs > EPOCHS

    @property
    def epochs(self) -> int:
        """Passes over the training images, if nothing ends them early."""
        at_least = -(-STEPS_AT_LEAST // self.batches.steps_per_epoch)
        return self.config.epochs or max(EPOCHS, at_least)

    @property
    def steps(self) -> int:
        """How many steps the whole training has, if nothing ends it early."""
        return self.epochs * self.batches.steps_per_epoch

    @property
    def patience(self) -> int | None:
        """Evaluations without a better one that end the training; None: nothing does."""
        chooses = self.data.validation is not None
        return PATIENCE if self.is_lengthened and chooses else None

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate grows from 0."""
        is_large = usual_batch(self.data.train) < BATCH
        given = self.config.optimizer.schedule.warmup_steps
        return given or (min(WARMUP, self.steps // 2) if is_large else 0)

    @property
    def objective(self) -> Objective:
        """What is trained for, and measured."""
        warmup = self.config.kl_warmup_epochs * self.batches.steps_per_epoch
        return Objective(self.model, self.config, round(warmup))

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The objective, as `fit` takes it."""
        return self.objective.loss

    def state(self, *, resumed: bool = False) -> loopax.TrainState:
        """The state that training begins with.

        What a run is resumed from is in its checkpoint, and the weights it began with may be gone.

        Raises:
            LoopaxError: the weights to begin with cannot be used.
        """
        config, train, optimizer = self.config, self.data.train, self.config.optimizer
        schedule = replace(optimizer.schedule, warmup_steps=self.warmup)
        state = loopax.TrainState.create(
            self.model,
            train,
            replace(optimizer, schedule=schedule),
            compute_dtype=config.compute_dtype,
            full_precision=("batch/image",) if config.compute_dtype else (),
            total_steps=self.steps,
            seed=config.seed,
        )
        if config.weights is None or resumed:
            return state
        return state.with_params(weights_of(config.weights, state.params))


def usual_batch(train: Dataset) -> int:
    """Images in a step where there are many: a power of two, smaller of large ones."""
    together = at_once(BATCH, train.columns["image"].shape[1:])
    return 1 << (together.bit_length() - 1)


def kl_weight_for(config: VAEConfig, images: int) -> float:
    """The weight of the KL divergence where it is left to the data."""
    if config.likelihood != "squared_error":
        return 1.0
    return SHARP if images >= FEW_IMAGES else SMOOTH


def weights_of(source: str, params: Any) -> Any:
    """`params` with the values of a `.safetensors` file or of a run's latest checkpoint."""
    path = loopax.data.as_path(source)
    if path.is_dir():
        with loopax.CheckpointStore(RunDir.open(path).checkpoints) as store:
            return with_weights(params, store.weights(), source=source)
    return with_weights(params, read_weights(path), source=source)
