"""A trained VAE: to sample from, to encode and decode with, as training or `load` gives it."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import loopax
from loopax.data import Splits
from loopax.deadline import check_time
from loopax.errors import ConfigError, LoopaxError, StorageError
from loopax.models.vae import VAE
from loopax.recipes.images import TrainedOnImages, as_floats, at_once, some_of
from loopax.recipes.vae.config import NAME, VAEConfig
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.samplers import FEWEST, Mixtures, fit_mixtures
from loopax.run import RunDir
from loopax.terminal import Progress, to_stderr
from loopax.weights import read_weights, save_weights

SAMPLE_SEED = 1
PORTION = 1000
"""Images that are encoded or decoded at once, at most."""
SAMPLER_OF = 60_000
"""Training images, at most, whose latents the sampler is fitted to; all of MNIST."""
SAMPLER_FILE = "sampler.safetensors"

Images = Float[np.ndarray, "n height width channels"]
Latents = Float[np.ndarray, "n latent"]
Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class TrainedVAE(TrainedOnImages):
    """A VAE with its parameters and its run directory. To sample from it takes no images.

    Attributes:
        find_mixtures: gives what the latents of samples are drawn from; None for the prior.
    """

    find_mixtures: Callable[[], Mixtures | None] = field(default=lambda: None, repr=False)

    @classmethod
    def of(cls, problem: Problem, params: Any, directory: RunDir, step: int) -> TrainedVAE:
        """From a problem whose images are at hand."""
        shape, names = problem.model.image_shape, problem.data.train.class_names
        return cls(
            problem.config, problem.model, params, shape, names, directory, step, lambda: problem
        )

    @property
    def mixtures(self) -> Mixtures | None:
        """What the latents of samples are drawn from, None for the prior; found when asked for."""
        return self.find_mixtures()

    @property
    def data(self) -> Splits:
        """The images, by split."""
        return self.problem.data

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
        return self.samples_of(np.repeat(self.label_of(label), _checked(count)), seed)

    def samples_by_class(
        self, count: int, *, seed: int = SAMPLE_SEED
    ) -> Float[np.ndarray, "classes count height width channels"]:
        """A row of samples for each class."""
        labels = np.repeat(np.arange(len(self.class_names)), _checked(count))
        return self.samples_of(labels, seed).reshape(-1, count, *self.image_shape)

    def samples_of(self, labels: Labels, seed: int = SAMPLE_SEED) -> Images:
        """One image for each label, in [0, 1]."""
        return np.clip(self.decode(self.latents_of(labels, seed), labels), 0, 1)

    def latents_of(self, labels: Labels, seed: int = SAMPLE_SEED) -> Latents:
        """A latent for each label: from the mixture of its class, or from the prior."""
        arrays = self.mixtures and self.mixtures.arrays()
        key = jax.random.key(seed)
        return np.asarray(_draw(self.model, self.params, arrays, key, np.asarray(labels)))

    def from_prior(self) -> TrainedVAE:
        """The same, sampling from the prior."""
        return replace(self, find_mixtures=lambda: None)

    def encode(
        self, images: np.ndarray, labels: Labels, rows: Int[np.ndarray, " n"] | None = None
    ) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latent of each image, given as uint8 or in [0, 1].

        Or only of those in some rows, which then need not fit into memory together.
        """

        def encode(rows: Any) -> Any:
            check_time()
            return _encode(self.model, self.params, images[rows], labels[rows])

        rows = np.arange(len(images)) if rows is None else rows
        mean, logvar = self._in_portions("encoding images", encode, rows)
        return mean, logvar

    def decode(self, latents: Latents, labels: Labels) -> Images:
        """The image of each latent, as the model gives it."""
        decode = functools.partial(_decode, self.model, self.params)
        (images,) = self._in_portions("decoding latents", decode, latents, labels)
        return images

    def reconstruct(self, images: np.ndarray, labels: Labels) -> Images:
        """Images through the encoder's mean and back, in [0, 1]."""
        mean, _ = self.encode(images, labels)
        return np.clip(self.decode(mean, labels), 0, 1)

    def label_of(self, label: int | str) -> int:
        """The number of a class that is given by its number or its name.

        Where all names are numbers, a number is a name and nothing else.
        """
        names = [unicodedata.normalize("NFC", name) for name in self.class_names]
        given = unicodedata.normalize("NFC", str(label))
        if given in names:
            return names.index(given)
        are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
        if given.isdecimal() and int(given) < len(names) and not are_numbers:
            return int(given)
        raise ConfigError(f"there is no class {label!r}; there are {', '.join(names)}")

    def with_sampler(self) -> TrainedVAE:
        """The same with the sampler of its configuration, read or fitted when it is asked for.

        One that was fitted to the parameters of another step is not used. Hardly any images leave
        it to the prior.
        """
        if self.config.sampler == "prior":
            return self
        return replace(self, find_mixtures=functools.cache(self._read_or_fitted))

    def _in_portions(
        self, what: str, function: Callable[..., Any], *arrays: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """`function` of arrays with a common first axis, as many images at a time as fit."""
        count, size = len(arrays[0]), at_once(PORTION, self.image_shape)
        parts = []
        with Progress(what, count) as progress:
            for first in range(0, count, size):
                given = (np.asarray(array[first : first + size]) for array in arrays)
                parts.append(jax.device_get(function(*given)))
                progress.at(min(count, first + size))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _read_or_fitted(self) -> Mixtures | None:
        if (kept := self._kept_mixtures()) is not None:
            return kept
        train = self.data.train
        if len(train) < FEWEST:
            return None
        images, labels = train.columns["image"], train.columns["label"]
        rows = some_of(labels, SAMPLER_OF)
        mean, _ = self.encode(images, labels, rows)
        count, seed = self.config.mixture_components, self.config.seed
        fitted = fit_mixtures(mean, labels[rows], len(self.class_names), count, seed=seed)
        # A finished run has that of its best checkpoint, and keeps it.
        if not (self.dir.path / loopax.recipe.RESULTS_FILE).exists():
            with suppress(StorageError):  # It may be another's, to look at only.
                self._keep(fitted)
        return fitted

    def save_sampler(self) -> None:
        """Keeps what was fitted in the run directory."""
        if self.mixtures is not None:
            self._keep(self.mixtures)

    def _keep(self, mixtures: Mixtures) -> None:
        arrays = {**mixtures.arrays(), "step": np.asarray(self.step, np.int64)}
        save_weights(self.dir.path / SAMPLER_FILE, arrays)

    def _kept_mixtures(self) -> Mixtures | None:
        """Those in the run directory, if they were fitted to these parameters and are whole."""
        file = self.dir.path / SAMPLER_FILE
        if not file.exists():
            return None
        try:
            arrays = read_weights(file)
            step = arrays.pop("step")
            kept = Mixtures(**{name: jnp.asarray(array) for name, array in arrays.items()})
        except (LoopaxError, KeyError, TypeError) as error:
            print(f"{file}: is damaged ({error}); the sampler is fitted anew", file=sys.stderr)
            return None
        return kept if step == self.step else None


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VAE, params: Any, images: Any, labels: Any) -> Any:
    return model.apply(params, as_floats(images), labels, method=model.encode)


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: VAE, params: Any, latents: Any, labels: Any) -> Any:
    return (model.apply(params, latents, labels, method=model.decode),)


def drawn(model: VAE, params: Any, mixtures: Any, key: Any, labels: Any) -> Any:
    """A latent for each label from the arrays of mixtures, or from the prior; traceable."""
    if mixtures is not None:
        return Mixtures(**mixtures).sample(key, labels)
    prior: Any = model.apply(params, labels, method=model.prior_at)
    mean, logvar = prior
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


_draw = jax.jit(drawn, static_argnums=0)


def load(
    run: str | Path,
    checkpoint: str | int = "best",
    *,
    data: str | None = None,
    problem: Problem | None = None,
    say: Callable[[str], None] = to_stderr,
) -> TrainedVAE:
    """The VAE of a run, as `TrainedOnImages.of_run` describes it, with its sampler."""
    config = loopax.recipe.config_of(run, NAME, VAEConfig)
    trained = TrainedVAE.of_run(config, Problem, run, checkpoint, data, problem, say)
    return trained.with_sampler()


def _checked(count: int) -> int:
    if count < 1:
        raise ConfigError(f"count is {count}; it must be at least 1")
    return count
