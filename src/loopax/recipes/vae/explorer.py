"""What the explorer's page asks of a trained VAE: latents under sliders, classes side by side."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from loopax.recipes.images import as_floats, some_of
from loopax.recipes.vae.evaluation import density
from loopax.recipes.vae.trained import TrainedVAE

SLIDERS = 8
"""The most active dimensions of the latent, which get a slider each."""
BASIS = 10_000
"""Training images, at most, that the latents' spread is taken from."""
LOOKED_AT = 1000
"""Training images, at most, from which it is read how a drawing has to look."""
AT_ONCE = 32
"""Classes that one request decodes a latent for, at most."""
PLAIN, STRAYS_PX = 0.02, 0.75
"""What the border differs from paper, and images from a common centre of mass, if drawn on it."""
INKED = 0.2
"""From here on a pixel differs from paper to the eye."""
BINS = 41
REACH = 4.0
"""Standard deviations that a slider goes to either side."""


class Explorer:
    """What the page asks of a trained VAE."""

    def __init__(self, trained: TrainedVAE) -> None:
        self.trained = trained
        self.classes = len(trained.class_names)
        self.image_shape = tuple(trained.data.train.columns["image"].shape[1:])
        # Requests come on threads of their own; the device gains nothing from two at a time.
        self._turn = threading.Lock()
        self._costs = jax.jit(density(trained).costs)
        self.facts = self._facts()

    def sample(self, label: int, seed: int) -> dict[str, Any]:
        """A latent from the run's sampler."""
        with self._turn:
            latent = self.trained.latents_of(np.array([label]), seed)[0]
        return {"latent": latent.tolist()}

    def decode(self, latent: Sequence[float], labels: Sequence[int]) -> bytes:
        """The bytes of an image for each label, one after another."""
        latents = np.tile(np.array(latent, np.float32), (len(labels), 1))
        with self._turn:
            images = self.trained.decode(latents, np.array(labels))
        # Latents far from all that it has seen may make a model give no number.
        return np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8).tobytes()

    def encode(self, pixels: str, label: int | None) -> dict[str, Any]:
        """The mean of the latent of pixels in base64; their class is guessed where it is None."""
        image = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(self.image_shape)
        with self._turn:
            label = self.guess(image) if label is None else label
            mean, _ = self.trained.encode(image[None], np.array([label]))
        return {"label": label, "latent": mean[0].tolist()}

    def guess(self, image: UInt8[np.ndarray, "height width channels"]) -> int:
        """The class under which an image costs least, by the model's own prior and likelihood."""
        costs: list[float] = []
        for first in range(0, self.classes, AT_ONCE):
            labels = np.arange(first, min(first + AT_ONCE, self.classes))
            images = np.broadcast_to(as_floats(image), (len(labels), *image.shape))
            costs += self._costs(self.trained.params, images, labels).tolist()
        return int(np.argmin(costs))

    def _facts(self) -> dict[str, Any]:
        """What the page needs to know before it asks for anything."""
        train = self.trained.data.train
        chosen = some_of(train.columns["image"], BASIS)
        images, labels = (train.columns[name][chosen] for name in ("image", "label"))
        latents, _ = self.trained.encode(images, labels)
        height, width, channels = self.image_shape
        return {
            "run": self.trained.dir.path.name,
            "step": self.trained.step,
            "classes": list(self.trained.class_names),
            "at_once": AT_ONCE,
            "height": height,
            "width": width,
            "channels": channels,
            "latent": latents.shape[1],
            "basis": len(images),
            "reach": REACH,
            "sliders": sliders(latents),
            "conditional": self.trained.is_conditional,
            "drawing": drawing_style(images[some_of(labels, LOOKED_AT)]),
        }


def sliders(latents: Float[np.ndarray, "n latent"]) -> list[dict[str, Any]]:
    """The most active dimensions, each with its mean, deviation and histogram.

    Activity is the variance over images of the posterior's mean (Burda et al., 2016).
    """
    activity = latents.var(axis=0)
    described = []
    for index in np.argsort(-activity, kind="stable")[:SLIDERS]:
        mean, deviation = float(latents[:, index].mean()), float(np.sqrt(activity[index]))
        standardised = (latents[:, index] - mean) / max(deviation, 1e-6)
        counts, _ = np.histogram(standardised, np.linspace(-REACH, REACH, BINS + 1))
        described.append(
            {
                "dimension": int(index),
                "mean": mean,
                "deviation": deviation,
                "histogram": (counts / max(1, counts.max())).round(4).tolist(),
            }
        )
    return described


def drawing_style(images: np.ndarray) -> dict[str, Any] | None:
    """How a drawing has to look to be like these images; None for colour.

    `paper` is the grey level of the border, 0 or 255. Where images are centred by mass, as those
    of MNIST, `centre` says where (row and column, in pixels from the corner) and `extent` how
    long the longer side of what is drawn usually is; else both are None.
    """
    if images.shape[-1] != 1:
        return None
    grey = as_floats(images)[..., 0]
    border = np.concatenate([grey[:, [0, -1]].ravel(), grey[:, :, [0, -1]].ravel()])
    paper = round(float(border.mean()))
    ink = np.abs(grey - paper)
    masses = np.stack([_middles(ink.sum(axis=2)), _middles(ink.sum(axis=1))], axis=1)
    centre = np.median(masses, axis=0)
    strays = float(np.median(np.linalg.norm(masses - centre, axis=1)))
    if np.abs(border - paper).mean() > PLAIN or strays > STRAYS_PX:
        return {"paper": 255 * paper, "centre": None, "extent": None}
    inked = ink > INKED
    sides = np.maximum(_extents(inked.any(axis=2)), _extents(inked.any(axis=1)))
    extent = max(1.0, float(np.median(sides)))
    return {"paper": 255 * paper, "centre": centre.round(2).tolist(), "extent": extent}


def _middles(ink: Float[np.ndarray, "n length"]) -> Float[np.ndarray, " n"]:
    """The centre of mass along each row."""
    return ink @ (np.arange(ink.shape[1]) + 0.5) / np.maximum(ink.sum(axis=1), 1e-6)


def _extents(inked: Any) -> np.ndarray:
    """How far it is from the first to the last that is true, in each row."""
    last = inked.shape[1] - inked[:, ::-1].argmax(axis=1)
    return np.where(inked.any(axis=1), last - inked.argmax(axis=1), 0)
