"""The judge: a classifier, trained on the same training images, that samples are measured by.

Frechet distances and the like can be compared only under one judge, so each is known by the digest
of its weights. The one for MNIST comes with the package; `loopax judge mnist` makes it anew.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

import loopax
from loopax.data import Dataset, Splits
from loopax.errors import DataError
from loopax.models.classifier import Classifier

BATCH, SMALL_BATCH = 128, 32
EPOCHS = 8
BATCHES_AT_LEAST = 8
"""In a pass: of few images batches are smaller, as `STEPS_AT_LEAST` sees them often enough."""
STEPS_LIMIT = EPOCHS * 60_000 // BATCH
STEPS_AT_LEAST = 600
SHIFT = 2
"""Pixels by which training images are moved, at most, in each direction."""


class Opinion(NamedTuple):
    """The last hidden layer, and how sure it is of each class."""

    features: Float[np.ndarray, "n features"]
    probabilities: Float[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Judge:
    """A trained classifier: `digest` is the SHA-256 of its weights' file, in short.

    `test_accuracy` is nan where no class of a test image is known, and so is `plain_accuracy`, that
    of a logistic regression on pixels.
    """

    model: Classifier
    params: Any
    digest: str
    test_accuracy: float
    plain_accuracy: float = float("nan")

    @property
    def is_sound(self) -> bool:
        """Whether it is no worse than what a linear classifier sees; unknown counts as yes."""
        return not self.test_accuracy < self.plain_accuracy

    def opinion(self, images: np.ndarray) -> Opinion:
        """What it makes of images, uint8 or in [0, 1]."""
        parts = [jax.device_get(_apply(self.model, self.params, part)) for part in portions(images)]
        logits, features = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Opinion(features, np.asarray(jax.nn.softmax(logits)))


def portions(images: np.ndarray, size: int = 1000) -> Iterator[np.ndarray]:
    """Images in parts that fit anywhere."""
    return (images[first : first + size] for first in range(0, len(images), size))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Classifier, params: Any, images: Any) -> Any:
    return model.apply(params, images / 255 if images.dtype == jnp.uint8 else images)


def judge_for(data: Splits, say: Callable[[str], None] = print) -> Judge:
    """The judge of this data: bundled, kept from before, or trained now and kept.

    Raises:
        DataError: the data has one class only, which leaves nothing to judge.
        StorageError: a judge that was trained could not be kept.
    """
    bundled, kept = resources.files(__package__) / "judges" / name_for(data), kept_for(data)
    if not bundled.is_file() and not kept.is_file():
        say(f"training a judge for {data.train.name}, once; it is kept as {kept}")
        with loopax.storing(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Another run may be training the same one; the last to finish leaves its own.
            mine = kept.with_name(f"{os.getpid()}-{kept.name}")
            train_judge(data, mine)
            mine.replace(kept)
    return read_judge(Path(str(bundled)) if bundled.is_file() else kept, data)


def name_for(data: Splits) -> str:
    """The file name of a judge says which training images it is for."""
    return f"{data.train.fingerprint[:16]}.safetensors"


def kept_for(data: Splits) -> Path:
    """Where a judge that was trained here is kept, in the user's cache."""
    return loopax.cache_dir() / "judges" / name_for(data)


def read_judge(path: Path, data: Splits) -> Judge:
    """The judge in a file, with its accuracy on the test images.

    Raises:
        CheckpointError: the file is damaged, or of a judge of other images.
    """
    model = model_for(data)
    form = jax.eval_shape(functools.partial(_new_state, model, data.train.example))
    params = loopax.with_weights(form.params, loopax.read_weights(path), source=str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    judge = Judge(model, params, digest, float("nan"))
    labels = data.test.columns["label"]
    found = judge.opinion(data.test.columns["image"]).probabilities.argmax(axis=-1)
    known = labels >= 0
    accuracy = float((found == labels)[known].mean()) if known.any() else float("nan")
    return Judge(model, params, digest, accuracy)


def train_judge(data: Splits, path: Path, *, progress: bool = False, seed: int = 0) -> None:
    """Trains a judge on the training images alone and leaves its weights in `path`."""
    model, images = model_for(data), known_only(data.train)
    small = min(SMALL_BATCH, len(images))
    batches = images.batches(min(BATCH, max(small, len(images) // BATCHES_AT_LEAST)))
    wanted = max(EPOCHS * batches.steps_per_epoch, STEPS_AT_LEAST)
    steps = min(wanted, STEPS_LIMIT)
    run = loopax.fit(
        _new_state(model, images.example, steps, seed),
        loss_function(model),
        batches,
        steps=steps,
        progress=progress,
    )
    loopax.save_weights(path, run.state.eval_params)


def model_for(data: Splits) -> Classifier:
    """The untrained judge of such images.

    Raises:
        DataError: they are of one class only.
    """
    classes = len(data.train.class_names)
    if classes < 2:
        raise DataError(
            f"{data.train.name}: has one class only; a judge needs images of two or more"
        )
    return Classifier(classes)


def loss_function(model: Classifier) -> Callable[..., Any]:
    """Cross-entropy in nats; in training on images that were moved a little."""

    def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
        image = shifted(rngs["shift"], batch["image"])
        logits, _ = model.apply(params, image, train=True, rngs=rngs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    return loss_fn


def shifted(key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Each image moved by up to `SHIFT` pixels in each direction; its edge is repeated."""
    margin = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * SHIFT + 1)
    cut = functools.partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    return jax.vmap(lambda image, offset: cut(image, (*offset, 0)))(padded, offsets)


def _new_state(model: Classifier, example: Any, steps: int = 1, seed: int = 0) -> loopax.TrainState:
    schedule = loopax.Schedule("cosine", warmup_steps=min(200, steps // 4))
    optimizer = loopax.Optimizer(
        learning_rate=2e-3, schedule=schedule, weight_decay=0.02, decay_vectors=False
    )
    image = example["image"] if isinstance(example, dict) else example
    return loopax.TrainState.create(
        model, image, optimizer, total_steps=steps, seed=seed, ema_decay=0.999
    )


def known_only(dataset: Dataset) -> Dataset:
    """Without the images whose class is not known; all of them where none is."""
    known = dataset.columns["label"] >= 0
    columns = {name: column[known] for name, column in dataset.columns.items()}
    return dataclasses.replace(dataset, columns=columns) if known.any() else dataset
