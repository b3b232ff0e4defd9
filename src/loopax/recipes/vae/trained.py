"""A trained VAE: to sample from, to encode and decode with, as training or `load` gives it."""

from __future__ import annotations

import functools
import math
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import loopax
from loopax.data import Splits
from loopax.errors import ConfigError, LoopaxError
from loopax.models.vae import VAE
from loopax.recipes.images import as_floats, problem_of_run
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.problem import Problem, model_of
from loopax.recipes.vae.recipe import VAERecipe
from loopax.recipes.vae.samplers import FEWEST, Mixtures, fit_mixtures
from loopax.run import RunDir
from loopax.terminal import to_stderr
from loopax.weights import read_weights, save_weights, with_weights

SAMPLE_SEED = 1
PORTION = 1000
"""Images that are encoded or decoded at once."""
SAMPLER_FILE = "sampler.safetensors"
NOTED = {"data": str, "image_shape": (int,), "class_names": (str,)}
"""What a run must know to be sampled without its images."""

RECIPE = VAERecipe()
train = functools.partial(loopax.recipe.train, RECIPE)

Images = Float[np.ndarray, "n height width channels"]
Latents = Float[np.ndarray, "n latent"]
Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class TrainedVAE:
    """A VAE with its parameters and its run directory. To sample from it takes no images.

    Attributes:
        config: how it was trained.
        model, params: the Flax module, and what its `apply` takes.
        class_names: the classes, in the order of the labels.
        dir: the run directory.
        step: how many updates the parameters have seen.
        find_problem: gives the problem that it solves, with its images.
        find_mixtures: gives what the latents of samples are drawn from; None for the prior.
    """

    config: VAEConfig
    model: VAE
    params: Any
    class_names: tuple[str, ...]
    dir: RunDir
    step: int
    find_problem: Callable[[], Problem] = field(repr=False)
    find_mixtures: Callable[[], Mixtures | None] = field(default=lambda: None, repr=False)

    @classmethod
    def of(cls, problem: Problem, params: Any, directory: RunDir, step: int) -> TrainedVAE:
        """From a problem whose images are at hand."""
        names = problem.data.train.class_names
        config, model = problem.config, problem.model
        return cls(config, model, params, names, directory, step, lambda: problem)

    @property
    def problem(self) -> Problem:
        """Images, model and objective; the images are read when it is first asked for.

        Raises:
            DataError: they are not where they were, or others than the run was trained on.
        """
        return self.find_problem()

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
        return replace(self, find_mixtures=lambda: None)

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
        names = [unicodedata.normalize("NFC", name) for name in self.class_names]
        given = unicodedata.normalize("NFC", str(label))
        if given in names:
            return names.index(given)
        if given.isdecimal() and int(given) < len(names) and not all(map(_is_number, names)):
            return int(given)
        raise ConfigError(f"there is no class {label!r}; there are {', '.join(names)}")

    def with_sampler(self) -> TrainedVAE:
        """The same with the sampler that its configuration asks for: read, or fitted.

        That is done when it is first asked for. One that was fitted to other parameters, those of
        another step, is not used. Hardly any images leave it to the prior.
        """
        if self.config.sampler == "prior":
            return self
        return replace(self, find_mixtures=functools.cache(self._read_or_fitted))

    def _read_or_fitted(self) -> Mixtures | None:
        if (kept := self._kept_mixtures()) is not None:
            return kept
        train = self.data.train
        if len(train) < FEWEST:
            return None
        mean, _ = self.encode(*(train.columns[name] for name in ("image", "label")))
        return fit_mixtures(
            mean,
            train.columns["label"],
            len(self.class_names),
            self.config.mixture_components,
            seed=self.config.seed,
        )

    def save_sampler(self) -> None:
        """Keeps what was fitted in the run directory."""
        if self.mixtures is not None:
            arrays = {**self.mixtures.arrays(), "step": np.asarray(self.step, np.int64)}
            save_weights(self.dir.path / SAMPLER_FILE, arrays)

    def _kept_mixtures(self) -> Mixtures | None:
        """Those in the run directory, if they were fitted to these parameters and are whole."""
        file = self.dir.path / SAMPLER_FILE
        if not file.exists():
            return None
        try:
            arrays = read_weights(file)
            step = int(arrays.pop("step"))
            weights, means, factors = (arrays[name] for name in ("weights", "means", "factors"))
        except (LoopaxError, KeyError, TypeError, ValueError) as error:
            print(f"{file}: is damaged ({error}); the sampler is fitted anew", file=sys.stderr)
            return None
        classes, many = len(self.class_names), weights.shape[-1]
        shape = (classes, many, self.model.latent)
        fits = (weights.shape, means.shape, factors.shape) == (
            (classes, many),
            shape,
            (*shape, self.model.latent),
        )
        if not fits or step != self.step:
            return None
        return Mixtures(*map(jnp.asarray, (weights, means, factors)))


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


def load(
    run: str | Path,
    checkpoint: str | int = "best",
    *,
    data: str | None = None,
    problem: Problem | None = None,
    say: Callable[[str], None] = to_stderr,
) -> TrainedVAE:
    """The VAE of a run, at its `best` or `latest` checkpoint or at that of a step.

    Where nothing was chosen, the best is the latest. The images are read only when something
    needs them: what was fitted to the parameters, the sampler, is in the run directory.

    Args:
        run: its directory.
        checkpoint: which one.
        data: where its images are by now, if not where they were.
        problem: with the images, where they are at hand.
        say: is told which checkpoint it is.

    Raises:
        RunDirError: `run` is not the directory of a VAE run.
        CheckpointError: there is no such checkpoint.
        DataError: images are needed, and are not what the run was trained on.
    """
    config, directory = RECIPE.config_of(run), RunDir.open(run)
    noted = loopax.recipe.noted(directory, NOTED)
    height, width, channels = noted["image_shape"]
    shape, names = (height, width, channels), tuple(noted["class_names"])
    model = model_of(config, shape, len(names))
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    form = jax.eval_shape(
        functools.partial(model.init, {"params": jax.random.key(0), "noise": jax.random.key(0)}),
        image,
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    with loopax.CheckpointStore(directory.checkpoints, say=say) as store:
        step = store.chosen(checkpoint)
        source = str(directory.checkpoints / str(step))
        params = with_weights(form, store.weights(step), source=source)

    @functools.cache
    def find_problem() -> Problem:
        here = replace(config, data=data or str(noted["data"]))
        return problem or problem_of_run(run, here, Problem.of)

    return TrainedVAE(config, model, params, names, directory, step, find_problem).with_sampler()


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _checked(count: int) -> int:
    if count < 1:
        raise ConfigError(f"count is {count}; it must be at least 1")
    return count
