"""A trained VAE: to sample from, to reconstruct with, to draw and to measure."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

import loopax
from loopax.data import Splits
from loopax.errors import ConfigError, DataError
from loopax.models.vae import VAE
from loopax.recipes.vae import pictures
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.problem import Problem

SAMPLE_SEED = 1
EVAL_BATCH = 500
RESULTS = {
    "loss": "objective: ½ squared error + weighted KL",
    "sse_half": "½ squared error, summed over pixels, mean over images",
    "kl_nats": "KL divergence to the prior, nats, mean over images",
    "mse_per_pixel": "squared error per pixel, mean",
}
"""What `measure` gives, in words with units."""


@dataclass(frozen=True)
class TrainedVAE:
    """A VAE with its parameters, the problem that it solves and its run directory."""

    problem: Problem
    params: Any
    dir: loopax.RunDir

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

    def sample(
        self, label: int | str, count: int = 1, *, seed: int = SAMPLE_SEED
    ) -> Float[np.ndarray, "count height width channels"]:
        """Images of one class, decoded from latents drawn from the standard normal, in [0, 1].

        Raises:
            ConfigError: there is no such class, or `count` is below 1.
        """
        return self._samples(np.full(_checked(count), self.label_of(label)), seed)

    def samples_by_class(
        self, count: int, *, seed: int = SAMPLE_SEED
    ) -> Float[np.ndarray, "classes count height width channels"]:
        """A row of samples for each class."""
        classes = len(self.class_names)
        images = self._samples(np.repeat(np.arange(classes), _checked(count)), seed)
        return images.reshape(classes, count, *images.shape[1:])

    def reconstruct(
        self, images: Float[np.ndarray, "n height width channels"], labels: np.ndarray
    ) -> Float[np.ndarray, "n height width channels"]:
        """Images through the encoder's mean and back, in [0, 1]."""
        return np.clip(_reconstruct(self.model, self.params, images, labels), 0, 1)

    def label_of(self, label: int | str) -> int:
        """The number of a class that is given by its number or its name."""
        names = self.class_names
        if str(label) in names:
            return names.index(str(label))
        if str(label).isdecimal() and int(label) < len(names):
            return int(label)
        raise ConfigError(f"there is no class {label!r}; there are {', '.join(names)}")

    def save_reconstructions(self, path: Path, *, each: int = 5) -> None:
        """Draws test images beside their reconstructions, `each` pairs a class."""
        test = self.data.test
        labels = test.columns["label"]
        rows = []
        for label in range(len(self.class_names)):
            chosen = np.flatnonzero(labels == label)[:each]
            if not len(chosen):
                continue
            chosen = np.resize(chosen, each)
            images = as_floats(test.columns["image"][chosen])
            pairs = np.stack([images, self.reconstruct(images, labels[chosen])], axis=1)
            rows.append(pairs.reshape(-1, *images.shape[1:]))
        pictures.save_grid(np.stack(rows), path)

    def draw(self) -> None:
        """Leaves samples, reconstructions and curves in the run directory."""
        folder = self.dir.pictures
        pictures.save_grid(self.samples_by_class(10), folder / "samples.png")
        self.save_reconstructions(folder / "reconstructions.png")
        pictures.save_curves(self.dir.metrics, folder / "curves.png")

    def measure(self) -> dict[str, dict[str, float]]:
        """The final metrics of both splits over every image once.

        `mse_per_pixel` is twice `sse_half` over the number of pixels.
        """
        seed = self.problem.config.seed
        state = loopax.TrainState.create(params=self.params, tx=optax.identity(), seed=seed)
        results = {}
        for name, dataset in self.data._asdict().items():
            batches = dataset.batches(min(EVAL_BATCH, len(dataset)))
            metrics = loopax.evaluate(state, self.problem.loss_fn, batches)
            metrics["mse_per_pixel"] = 2 * metrics["sse_half"] / math.prod(self.model.image_shape)
            results[name] = metrics
        return results

    def _samples(self, labels: np.ndarray, seed: int) -> Float[np.ndarray, "n height width c"]:
        latent = jax.random.normal(jax.random.key(seed), (len(labels), self.model.latent))
        return np.clip(_decode(self.model, self.params, latent, labels), 0, 1)

    @property
    def results_file(self) -> Path:
        """Where training leaves what it has measured at its end."""
        return self.dir.path / "results.json"


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: VAE, params: Any, latent: Any, labels: Any) -> Any:
    return model.apply(params, latent, labels, method=model.decode)


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(model: VAE, params: Any, images: Any, labels: Any) -> Any:
    mean, _ = model.apply(params, images, labels, method=model.encode)
    return model.apply(params, mean, labels, method=model.decode)


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
    return TrainedVAE(problem, state.eval_params, directory)


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


def as_floats(images: np.ndarray) -> Float[np.ndarray, ...]:
    """Stored images as the model sees them."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
