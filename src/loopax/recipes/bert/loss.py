"""What is minimised, and what is counted of each class beside it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from loopax.data import Texts

COUNTS = ("right", "predicted", "occurring")
"""What an evaluation counts of each class, for F1 over all of its batches."""


def measured(logits: Float[Array, "n classes"], labels: Any, weights: Any = None) -> Any:
    """The mean cross-entropy of logits, in nats, and the part of them that is right."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if weights is not None:
        each = each * jnp.asarray(weights)[labels]
    return each.mean(), {"accuracy": (logits.argmax(-1) == labels).mean()}


def counts_of(logits: Float[Array, "n classes"], labels: Any) -> dict[str, Array]:
    """How often each class is right, predicted, and there: int32 `[classes]`, by `COUNTS`."""
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    found = (jnp.where(predicted == labels, labels, classes), predicted, labels)
    return {
        name: jnp.bincount(each, length=classes + 1)[:classes].astype(jnp.int32)
        for name, each in zip(COUNTS, found, strict=True)
    }


def mean_f1(right: np.ndarray, predicted: np.ndarray, occurring: np.ndarray) -> float:
    """The macro-F1: the mean over the classes that occur or are predicted."""
    there = predicted + occurring > 0
    return float((2 * right[there] / (predicted + occurring)[there]).mean())


def class_weights(texts: Texts) -> Float[np.ndarray, " classes"]:
    """Weights by which every class weighs the same, 1 on average over the texts."""
    counts = np.bincount(texts.labels, minlength=len(texts.class_names))
    return (len(texts.labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
