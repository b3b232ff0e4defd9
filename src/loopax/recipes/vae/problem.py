"""The problem that a VAE configuration states: which images, which model, which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import loopax
from loopax.data import Splits
from loopax.extras import require
from loopax.models.vae import VAE
from loopax.recipes.images import data_of, with_validation
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.objective import Objective
from loopax.run import RunDir
from loopax.weights import read_weights, with_weights

EVAL_BATCH = 500
"""Images that are measured at once."""
EPOCHS, STEPS_AT_LEAST = 24, 4000
"""Of a training whose length is left to the data: passes, and steps in more passes."""
BATCH, SMALLEST_BATCH = 128, 16
BATCHES_AT_LEAST = 8
"""In a pass, where the size of batches is left to the data."""
SHARP, SMOOTH, FEW_IMAGES = 0.005, 0.2, 1000
"""Weights of the KL divergence beside half the squared error; the second one of few images."""
EVALUATIONS = 20
"""In a training, about, but at most one after each pass."""
PATIENCE = 6
"""Evaluations without a better one, after which a training of few images ends."""


@dataclass(frozen=True)
class Problem:
    """What a configuration says is to be trained, in the terms of `loopax.fit`.

    Attributes:
        config: what was asked for.
        given: the images in the parts that the data has; what samples are judged by saw them all.
        data: the same with a validation part, if one could be held out.
        model, batches: what is trained, and on what.
    """

    config: VAEConfig
    given: Splits
    data: Splits
    model: VAE
    batches: Any

    @classmethod
    def of(cls, config: VAEConfig) -> Problem:
        """The problem that `config` states.

        Raises:
            LoopaxError: the data cannot be used.
        """
        require("vae", "the VAE recipe", "sklearn", "PIL", "matplotlib", "jinja2", "flatbuffers")
        weights = config.weights and loopax.data.absolute(config.weights)
        config = replace(config, weights=weights)
        given = data_of(config)
        data = with_validation(given, config.validation)
        train = data.train
        if config.kl_weight is None:
            config = replace(config, kl_weight=kl_weight_for(config, len(train)))
        model = model_of(config, train.columns["image"].shape[1:], len(train.class_names))
        size = config.batch_size or batch_size_for(len(train))
        return cls(config, given, data, model, train.batches(size))

    @property
    def description(self) -> str:
        """What the data is, and how long it is trained on where that follows the data, in lines."""
        lines, train = [self.data.description], self.data.train
        if self.data.validation is None and self.config.validation:
            lines.append(
                f"{train.name}: too few images to hold any out; nothing is chosen, and the latest "
                "checkpoint counts"
            )
        if self.is_lengthened or self.batch_size not in (BATCH, self.config.batch_size):
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
        return int(self.batches.batch_size)

    @property
    def is_lengthened(self) -> bool:
        """Whether there are more passes than of many images."""
        return self.config.epochs is None and self.epochs > EPOCHS

    @property
    def epochs(self) -> int:
        """Passes over the training images, if nothing ends them early."""
        if self.config.epochs is not None:
            return self.config.epochs
        return max(EPOCHS, -(-STEPS_AT_LEAST // self.batches.steps_per_epoch))

    @property
    def steps(self) -> int:
        """How many steps the whole training has, if nothing ends it early."""
        return self.epochs * int(self.batches.steps_per_epoch)

    @property
    def evaluate_every(self) -> int:
        """Steps from one evaluation, and grid of samples, to the next: whole passes."""
        return max(1, self.epochs // EVALUATIONS) * int(self.batches.steps_per_epoch)

    @property
    def patience(self) -> int | None:
        """Evaluations without a better one that end the training; None: nothing does."""
        chooses = self.data.validation is not None
        return PATIENCE if self.is_lengthened and chooses else None

    @property
    def objective(self) -> Objective:
        """What is trained for, and measured."""
        warmup = self.config.kl_warmup_epochs * self.batches.steps_per_epoch
        return Objective(self.model, self.config, round(warmup))

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The objective, as `fit` takes it."""
        return self.objective.loss

    @property
    def evaluation(self) -> loopax.Evaluation:
        """The images to choose by; those to test on where there is nothing to choose."""
        data = self.data
        name, part = (
            ("test", data.test) if data.validation is None else ("validation", data.validation)
        )
        batches = part.batches(min(EVAL_BATCH, len(part)))
        return loopax.Evaluation({name: batches}, every=self.evaluate_every)

    @property
    def ranking(self) -> tuple[str | None, Literal["min", "max"]]:
        """What the best checkpoint is best in, and that it is best at its lowest."""
        return None if self.data.validation is None else "validation/loss", "min"

    @property
    def noted(self) -> dict[str, Any]:
        """What the run directory keeps, so that samples are drawn without the images."""
        train = self.data.train
        return {
            "data_sha256": train.fingerprint,
            "data": self.config.data,
            "image_shape": list(self.model.image_shape),
            "class_names": list(train.class_names),
        }

    def state(self, *, resumed: bool = False) -> loopax.TrainState:
        """The state that training begins with.

        What a run is resumed from is in its checkpoint, and the weights it began with may be gone.

        Raises:
            LoopaxError: the weights to begin with cannot be used.
        """
        config = self.config
        state = loopax.TrainState.create(
            self.model,
            self.data.train,
            config.optimizer,
            total_steps=self.steps,
            seed=config.seed,
        )
        if config.weights is None or resumed:
            return state
        return state.with_params(weights_of(config.weights, state.params))


def kl_weight_for(config: VAEConfig, images: int) -> float:
    """The weight of the KL divergence where it is left to the data."""
    if config.likelihood != "squared_error":
        return 1.0
    return SHARP if images >= FEW_IMAGES else SMOOTH


def batch_size_for(images: int) -> int:
    """A power of two by which a pass has enough steps: `BATCH`, or less for few images."""
    fitting = max(SMALLEST_BATCH, images // BATCHES_AT_LEAST)
    return min(BATCH, 2 ** (fitting.bit_length() - 1), max(1, images))


def model_of(config: VAEConfig, image_shape: tuple[int, int, int], classes: int) -> VAE:
    """The network of a configuration for such images."""
    return VAE(
        image_shape=image_shape,
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


def weights_of(source: str, params: Any) -> Any:
    """`params` with the values of a `.safetensors` file or of a run's latest checkpoint."""
    path = loopax.data.as_path(source)
    if path.is_dir():
        with loopax.CheckpointStore(RunDir.open(path).checkpoints) as store:
            return with_weights(params, store.weights(), source=source)
    return with_weights(params, read_weights(path), source=source)
