"""A trained VAE: to sample from, to encode and decode with, as training or `load` gives it."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import loopax
from loopax.data import Splits
from loopax.errors import CheckpointError, ConfigError, DataError
from loopax.models.vae import VAE
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.samplers import FEWEST, Mixtures, fit_mixtures

SAMPLE_SEED = 1
PORTION = 1000
"""Images that are encoded or decoded at once."""
SAMPLER_FILE = "sampler.safetensors"

Images = Float[np.ndarray, "n height width channels"]
Latents = Float[np.ndarray, "n latent"]
Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class TrainedVAE:
    """A VAE with its parameters, the problem that it solves and its run directory.

    Attributes:
        problem: images, model and objective.
        params: what `problem.model.apply` takes.
        dir: the run directory.
        step: how many updates the parameters have seen.
        mixtures: what the latents of samples are drawn from; None leaves it to the prior.
    """

    problem: Problem
    params: Any
    dir: loopax.RunDir
    step: int
    mixtures: Mixtures | None = None

    @property
    def config(self) -> VAEConfig:
        """How it was trained."""
        return self.problem.config

    @property
    def model(self) -> VAE:
        """The Flax module."""
        return self.problem.model

    @property
    def data(self) -> Splits:
        """The images, by split."""
        return self.problem.data

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the labels."""
        return self.data.train.class_names

    @property
    def is_conditional(self) -> bool:
        """Whether there are several classes, and which one it is means anything to the model."""
        told = self.config.conditioning != "none" or self.config.prior == "class"
        return told and len(self.class_names) > 1

    def sample(self, label: int | str, count: int = 1, *, seed: int = SAMPLE_SEED) -> Images:
        """Images of one class, in [0, 1].

        Raises:
            ConfigError: there is no such class, or `count` is below 1.
        """
        return self.samples_of(np.full(_checked(count), self.label_of(label)), seed)

    def samples_by_class(
        self, count: int, *, seed: int = SAMPLE_SEED
    ) -> Float[np.ndarray, "classes count height width channels"]:
        """A row of samples for each class."""
        classes = len(self.class_names)
        images = self.samples_of(np.repeat(np.arange(classes), _checked(count)), seed)
        return images.reshape(classes, count, *images.shape[1:])

    def samples_of(self, labels: Labels, seed: int = SAMPLE_SEED) -> Images:
        """One image for each label, in [0, 1]."""
        return np.clip(self.decode(self.latents_of(labels, seed), labels), 0, 1)

    def latents_of(self, labels: Labels, seed: int = SAMPLE_SEED) -> Latents:
        """A latent for each label: from the mixture of its class, or from the prior."""
        draw = _draw_from_prior if self.mixtures is None else _draw_from_mixtures
        arrays = self.params if self.mixtures is None else self.mixtures.arrays()
        return np.asarray(draw(self.model, arrays, jax.random.key(seed), np.asarray(labels)))

    def from_prior(self) -> TrainedVAE:
        """The same, sampling from the prior."""
        return TrainedVAE(self.problem, self.params, self.dir, self.step)

    def encode(self, images: np.ndarray, labels: Labels) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latent of each image, given as uint8 or in [0, 1]."""
        mean, logvar = _in_portions(
            functools.partial(_encode, self.model, self.params), images, labels
        )
        return mean, logvar

    def decode(self, latents: Latents, labels: Labels) -> Images:
        """The image of each latent, as the model gives it."""
        decode = functools.partial(_decode, self.model, self.params)
        (images,) = _in_portions(decode, latents, labels)
        return images

    def reconstruct(self, images: np.ndarray, labels: Labels) -> Images:
        """Images through the encoder's mean and back, in [0, 1]."""
        mean, _ = self.encode(images, labels)
        return np.clip(self.decode(mean, labels), 0, 1)

    def label_of(self, label: int | str) -> int:
        """The number of a class that is given by its number or its name.

        Where all names are numbers, a number is a name and nothing else.
        """
        names, given = self.class_names, unicodedata.normalize("NFC", str(label))
        if given in names:
            return names.index(given)
        if given.isdecimal() and int(given) < len(names) and not all(map(str.isdecimal, names)):
            return int(given)
        raise ConfigError(f"there is no class {label!r}; there are {', '.join(names)}")

    def with_sampler(self) -> TrainedVAE:
        """The same with the sampler that its configuration asks for: read, or fitted and kept.

        One that was fitted to other parameters, those of another step, is not used. Hardly any
        images leave it to the prior.
        """
        if self.config.sampler == "prior" or len(self.data.train) < FEWEST:
            return self
        mixtures = self._kept_mixtures()
        if mixtures is None:
            mean, _ = self.encode(*(self.data.train.columns[name] for name in ("image", "label")))
            mixtures = fit_mixtures(
                mean,
                self.data.train.columns["label"],
                len(self.class_names),
                self.config.mixture_components,
                seed=self.config.seed,
            )
        return TrainedVAE(self.problem, self.params, self.dir, self.step, mixtures)

    def save_sampler(self) -> None:
        """Keeps what was fitted in the run directory."""
        if self.mixtures is not None:
            arrays = {**self.mixtures.arrays(), "step": np.asarray(self.step, np.int64)}
            loopax.save_weights(self.dir.path / SAMPLER_FILE, arrays)

    def _kept_mixtures(self) -> Mixtures | None:
        file = self.dir.path / SAMPLER_FILE
        if not file.exists():
            return None
        arrays = loopax.read_weights(file)
        step = arrays.pop("step", None)
        if step is None or int(step) != self.step:
            return None
        classes, latent = len(self.class_names), self.model.latent
        many = arrays["weights"].shape[-1] if "weights" in arrays else 0
        shapes = {
            "weights": (classes, many),
            "means": (classes, many, latent),
            "factors": (classes, many, latent, latent),
        }
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise CheckpointError(f"{file}: is not the sampler of this model; remove it")
        return Mixtures.of(arrays)

    @property
    def results_file(self) -> Path:
        """Where training leaves what it has measured at its end."""
        return self.dir.path / "results.json"


def _in_portions(
    function: Callable[..., tuple[Any, ...]], *arrays: np.ndarray
) -> tuple[np.ndarray, ...]:
    """`function` of arrays with a common first axis, a portion of them at a time."""
    count = len(arrays[0])
    parts = [
        jax.device_get(function(*(np.asarray(a[first : first + PORTION]) for a in arrays)))
        for first in range(0, count, PORTION)
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VAE, params: Any, images: Any, labels: Any) -> Any:
    return model.apply(params, as_floats(images), labels, method=model.encode)


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: VAE, params: Any, latents: Any, labels: Any) -> Any:
    return (model.apply(params, latents, labels, method=model.decode),)


@functools.partial(jax.jit, static_argnums=0)
def _draw_from_prior(model: VAE, params: Any, key: Any, labels: Any) -> Any:
    prior: Any = model.apply(params, labels, method=model.prior_at)
    mean, logvar = prior
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


@functools.partial(jax.jit, static_argnums=0)
def _draw_from_mixtures(model: VAE, arrays: Any, key: Any, labels: Any) -> Any:
    del model
    return Mixtures(**arrays).sample(key, labels)


def as_floats(images: Any) -> Any:
    """Stored images as the model sees them."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def load(run: str | Path, checkpoint: str | int = "latest") -> TrainedVAE:
    """The VAE of a run, at its `latest` or `best` checkpoint or at that of a step.

    Raises:
        RunDirError: `run` is not the directory of a VAE run.
        CheckpointError: there is no such checkpoint.
        DataError: the data is not what the run was trained on.
    """
    config = stored_config(run)
    problem, directory = Problem.of(config), loopax.RunDir.open(run)
    with loopax.CheckpointStore(directory.checkpoints) as store:
        form = jax.eval_shape(functools.partial(problem.state, weights=False))
        state, meta = store.restore(form, checkpoint)
    if problem.data.train.fingerprint != meta["data"]["data"]:
        raise DataError(f"{config.data}: its images are not those that {run} was trained on")
    return TrainedVAE(problem, state.eval_params, directory, int(meta["step"])).with_sampler()


def stored_config(run: str | Path) -> VAEConfig:
    """What the run in this directory was configured with.

    Raises:
        RunDirError: `run` is not the directory of a VAE run.
    """
    directory = loopax.RunDir.open(run)
    recipe = directory.config.get("recipe")
    if recipe != "vae":
        raise loopax.errors.RunDirError(
            f"{run}: holds a run of {recipe or 'a program'}, not of the vae recipe"
        )
    config = VAEConfig.from_json(directory.config)
    directory.check(config.to_json())
    return config


def _checked(count: int) -> int:
    if count < 1:
        raise ConfigError(f"count is {count}; it must be at least 1")
    return count
