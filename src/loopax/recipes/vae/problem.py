"""The problem that a VAE configuration states: which images, which model, which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loopax
from loopax.data import Splits
from loopax.models.vae import VAE
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.objective import Objective

FEWEST_TO_CHOOSE_BY = 10
"""Images below which a difference between two checkpoints is chance."""


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
        given = data_of(config)
        data = _with_validation(given, config.validation)
        model = VAE(
            image_shape=data.train.columns["image"].shape[1:],
            classes=len(data.train.class_names),
            latent=config.latent,
            widths=config.widths,
            network=config.network,
            activation=config.activation,
            conditioning=config.conditioning,
            output=config.output,
            prior=config.prior,
            learned_sigma=config.likelihood == "gaussian" and config.sigma == "learned",
        )
        return cls(config, given, data, model, data.train.batches(config.batch_size))

    @property
    def description(self) -> str:
        """What the data is, in a line; in a second one that no image could be held out of it."""
        if self.data.validation is not None or not self.config.validation:
            return self.data.description
        return (
            f"{self.data.description}\n{self.data.train.name}: too few images to hold any out; "
            "nothing is chosen, and the latest checkpoint counts"
        )

    @property
    def steps(self) -> int:
        """How many steps the whole training has."""
        return self.config.epochs * self.batches.steps_per_epoch

    @property
    def objective(self) -> Objective:
        """What is trained for, and measured."""
        warmup = self.config.kl_warmup_epochs * self.batches.steps_per_epoch
        return Objective(self.model, self.config, round(warmup))

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The objective, as `fit` takes it."""
        return self.objective.loss

    def state(self, *, weights: bool = True) -> loopax.TrainState:
        """The state that training begins with; without `weights`, its form.

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
        if config.weights is None or not weights:
            return state
        return state.with_params(weights_of(config.weights, state.params))


def costs(config: VAEConfig) -> list[str]:
    """What a step of this training costs, in lines."""
    problem = Problem.of(config)
    estimate = loopax.estimate(problem.state(), problem.loss_fn, problem.batches)
    return [problem.description, *estimate.lines()]


def data_of(config: VAEConfig) -> Splits:
    """The images that a configuration names.

    Raises:
        LoopaxError: they cannot be used.
    """
    if config.data == "mnist":
        return loopax.data.mnist()
    size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
    return loopax.data.load(
        config.data, test_fraction=config.test_fraction, size=size, channels=config.channels
    )


def _with_validation(data: Splits, fraction: float) -> Splits:
    """The images with a part to choose by; without one where it would be too small to tell."""
    if data.validation is not None or fraction * len(data.train) < FEWEST_TO_CHOOSE_BY:
        return data
    return data.with_validation(fraction)


def weights_of(source: str, params: Any) -> Any:
    """`params` with the values of a `.safetensors` file or of a run's latest checkpoint."""
    path = Path(source)
    if path.is_dir():
        with loopax.CheckpointStore(loopax.RunDir.open(path).checkpoints) as store:
            return loopax.with_weights(params, store.weights(), source=source)
    return loopax.with_weights(params, loopax.read_weights(path), source=source)
