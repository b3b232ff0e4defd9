"""What the explorer's page asks of a trained VAE: latents under sliders, classes side by side."""

from __future__ import annotations

import base64
import binascii
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
class RequestError(Exception):
    """A request that gets no answer but a status and a line that says why."""

    status: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.reason


class Explorer:
    """What the page asks of a trained VAE, in the terms of its requests."""

    def __init__(self, trained: TrainedVAE) -> None:
        self.trained = trained
        self.classes = len(trained.class_names)
        self.at_once = min(self.classes, AT_ONCE)
        self.image_shape = tuple(trained.data.train.columns["image"].shape[1:])
        # Requests come on threads of their own; the device gains nothing from two at a time.
        self._turn = threading.Lock()
        self._costs = jax.jit(density(trained).costs)
        self.facts = self._facts()
        self._warm_up()

    def sample(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """`label` and `seed` give a latent from the run's sampler."""
        label, seed = self._label(question), _whole(question, "seed", 2**31)
        with self._turn:
            latent = self.trained.latents_of(np.array([label]), seed)[0]
        return {"latent": latent.tolist()}

    def decode(self, question: Mapping[str, Any]) -> bytes:
        """`latent` and `labels` give an image for each label: their bytes, one after another."""
        latent, labels = self._latent(question), self._labels(question)
        with self._turn:
            return _as_bytes(self._decoded(latent, labels)).tobytes()

    def encode(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """`pixels` (base64) and `label` give the mean of the latent; a null label is guessed."""
        image = self._image(question)
        guess = question.get("label") is None
        with self._turn:
            label = self.guess(image) if guess else self._label(question)
            mean, _ = self.trained.encode(image[None], np.array([label]))
        return {"label": label, "latent": mean[0].tolist()}

    def guess(self, image: UInt8[np.ndarray, "height width channels"]) -> int:
        """The class under which an image costs least, by the model's own prior and likelihood."""
        costs = []
        for first in range(0, self.classes, self.at_once):
            # The last portion overlaps the one before: there is one shape to compile for.
            first = min(first, self.classes - self.at_once)
            labels = np.arange(first, first + self.at_once)
            images = np.broadcast_to(as_floats(image), (self.at_once, *image.shape))
            found = self._costs(self.trained.params, images, labels)
            costs += list(zip(found.tolist(), labels.tolist(), strict=True))
        return int(min(costs)[1])

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
            "at_once": self.at_once,
            "height": height,
            "width": width,
            "channels": channels,
            "latent": latents.shape[1],
            "basis": len(images),
            "reach": REACH,
            "sliders": sliders(latents),
            "conditional": self.trained.is_conditional,
            "drawing": drawing_style(images[:: math.ceil(len(images) / LOOKED_AT)]),
        }

    def _warm_up(self) -> None:
        """Compiles for each shape that requests have."""
        latent = np.zeros(self.facts["latent"], np.float32)
        image = np.zeros(self.image_shape, np.uint8)
        self.trained.latents_of(np.array([0]))
        self.trained.encode(image[None], np.array([0]))
        self.guess(image)
        for count in {1, self.at_once}:
            self._decoded(latent, np.arange(count))

    def _decoded(self, latent: np.ndarray, labels: np.ndarray) -> np.ndarray:
        count = 1 if len(labels) == 1 else self.at_once
        padded = np.pad(labels, (0, count - len(labels)))
        latents = np.broadcast_to(latent, (count, len(latent)))
        return self.trained.decode(np.ascontiguousarray(latents), padded)[: len(labels)]

    def _label(self, question: Mapping[str, Any]) -> int:
        return _whole(question, "label", self.classes)

    def _labels(self, question: Mapping[str, Any]) -> np.ndarray:
        labels = question.get("labels")
        if not isinstance(labels, list) or not 1 <= len(labels) <= self.at_once:
            raise RequestError(400, f"labels must be a list of 1 to {self.at_once} classes")
        return np.array([_whole({"labels": each}, "labels", self.classes) for each in labels])

    def _latent(self, question: Mapping[str, Any]) -> np.ndarray:
        latent, size = question.get("latent"), self.facts["latent"]
        if not isinstance(latent, list) or len(latent) != size:
            raise RequestError(400, f"latent must be a list of {size} numbers")
        if not all(type(each) in (int, float) and abs(each) < 1e6 for each in latent):
            raise RequestError(400, "latent must hold finite numbers below a million")
        return np.array(latent, np.float32)

    def _image(self, question: Mapping[str, Any]) -> np.ndarray:
        text, count = question.get("pixels"), math.prod(self.image_shape)
        try:
            pixels = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            raise RequestError(400, "pixels is not base64") from None
        if len(pixels) != count:
            raise RequestError(400, f"pixels must be {count} bytes in base64")
        return np.frombuffer(pixels, np.uint8).reshape(self.image_shape)

    @property
    def largest_question_bytes(self) -> int:
        """What a request may be long: an image in base64, or a latent and labels as text."""
        return 4096 + 2 * math.prod(self.image_shape) + 32 * (self.facts["latent"] + self.classes)


def sliders(latents: Float[np.ndarray, "n latent"]) -> list[dict[str, Any]]:
    """The most active dimensions, each with its mean, deviation and histogram.

    Activity is the variance over images of the posterior's mean (Burda et al., 2016).
    """
    activity = latents.var(axis=0)
    edges = np.linspace(-REACH, REACH, BINS + 1)
    described = []
    for index in np.argsort(-activity, kind="stable")[:SLIDERS]:
        mean, deviation = float(latents[:, index].mean()), float(np.sqrt(activity[index]))
        standardised = (latents[:, index] - mean) / max(deviation, 1e-6)
        counts, _ = np.histogram(standardised, edges)
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
    grey = images[..., 0].astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    border = np.concatenate([grey[:, [0, -1]].ravel(), grey[:, :, [0, -1]].ravel()])
    paper = round(float(border.mean()))
    ink = np.abs(grey - paper)
    masses = np.stack([_middles(ink.sum(axis=2)), _middles(ink.sum(axis=1))], axis=1)
    centre = np.median(masses, axis=0)
    strays = float(np.median(np.linalg.norm(masses - centre, axis=1)))
    if np.abs(border - paper).mean() > PLAIN or strays > STRAYS_PX:
        return {"paper": 255 * paper, "centre": None, "extent": None}
    inked = ink > INKED
    rows, columns = np.asarray(inked.any(axis=2)), np.asarray(inked.any(axis=1))
    sides = np.maximum(_extents(rows), _extents(columns))
    extent = max(1.0, float(np.median(sides)))
    return {"paper": 255 * paper, "centre": centre.round(2).tolist(), "extent": extent}


def _middles(ink: Float[np.ndarray, "n length"]) -> Float[np.ndarray, " n"]:
    """The centre of mass along each row."""
    return ink @ (np.arange(ink.shape[1]) + 0.5) / np.maximum(ink.sum(axis=1), 1e-6)


def _extents(inked: np.ndarray) -> np.ndarray:
    """How far it is from the first to the last that is true, in each row."""
    last = inked.shape[1] - inked[:, ::-1].argmax(axis=1)
    return np.where(inked.any(axis=1), last - inked.argmax(axis=1), 0)


def _whole(question: Mapping[str, Any], name: str, end: int) -> int:
    value = question.get(name)
    if type(value) is not int or not 0 <= value < end:
        raise RequestError(400, f"{name} must be a whole number from 0 to {end - 1}")
    return value


def _as_bytes(images: np.ndarray) -> UInt8[np.ndarray, ...]:
    # Latents far from all that it has seen may make a model give no number.
    return np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
