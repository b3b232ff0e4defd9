"""The judge: a classifier, trained on the same training images, that samples are measured by.

Frechet distances and the like can be compared only under one judge, so each is known by the digest
of its weights. The one for MNIST comes with the package; `loopax judge mnist --epochs 8 --shift 2`
makes one like it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
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
from loopax.deadline import check_time, seconds_left
from loopax.environment import cache_folder
from loopax.errors import DataError, LoopaxError, RunInUseError
from loopax.files import replacing
from loopax.models.classifier import Classifier
from loopax.weights import read_weights, save_weights, with_weights

FORMAT = 2
"""Of how judges are trained; those of another one are not compared with these."""
BATCH, SMALLEST_BATCH = 64, 16
BATCHES_AT_LEAST = 8
"""In a pass over few images, which makes batches smaller."""
PASSES = 60
"""Over few images; many are seen less often, by the limits below."""
STEPS_AT_LEAST, STEPS_AT_MOST = 600, 1800
PLAIN_LIMIT = 10_000
"""Training images that the plain classifier is fitted to, at most."""


class Opinion(NamedTuple):
    """The last hidden layer, and how sure it is of each class."""

    features: Float[np.ndarray, "n features"]
    probabilities: Float[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Judge:
    """A trained classifier.

    Attributes:
        model, params: the network.
        digest: the SHA-256 of its weights' file, in short.
        test_accuracy: on the test images; nan where no class of one is known.
        plain_accuracy: that of logistic regression on pixels, which it must not fall short of.
    """

    model: Classifier
    params: Any
    digest: str
    test_accuracy: float
    plain_accuracy: float

    @property
    def is_sound(self) -> bool:
        """Whether samples can be measured by it: it knows the classes as well as a plain one."""
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


def judge_for(data: Splits, say: Callable[[str], None] = print, *, progress: bool = False) -> Judge:
    """The judge of this data: bundled, kept from before, or trained now and kept.

    Where there is no cache to keep it in, it is trained for this once.

    Raises:
        DataError: the data has one class only, which leaves nothing to judge.
    """
    bundled = resources.files(__package__) / "judges" / name_for(data)
    if bundled.is_file():
        return read_judge(Path(str(bundled)), data)
    cache = cache_folder("judges")
    with nullcontext(cache) if cache else tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / name_for(data)
        if not kept.is_file():
            say(
                f"training a judge for {data.train.name}, once: {steps_for(len(data.train)):,} "
                "steps; --judge none goes without the measures that need one"
            )
            _train_alone(data, kept, say, progress)
        return read_judge(kept, data)


def _train_alone(data: Splits, kept: Path, say: Callable[[str], None], progress: bool) -> None:
    """Trains a judge in a run of its own, which goes on after a kill, or waits for who does so."""
    waiting = False
    while not kept.is_file():
        try:
            train_judge(data, kept, run_dir=kept.with_suffix(""), progress=progress)
        except RunInUseError as error:
            if not waiting:
                say(f"waiting for the judge that another program trains ({error})")
            waiting = True
            check_time()
            time.sleep(1)
        except LoopaxError:
            if not kept.is_file():  # or the other has just finished, and removed its run
                raise


def name_for(data: Splits) -> str:
    """The file name of a judge says which training images it is for, and how it was trained."""
    return f"{data.train.fingerprint[:16]}-{FORMAT}.safetensors"


def read_judge(path: Path, data: Splits) -> Judge:
    """The judge in a file, with its accuracy on the test images.

    Raises:
        CheckpointError: the file is damaged, or of a judge of other images.
    """
    model = model_for(data)
    form = jax.eval_shape(functools.partial(_new_state, model, data.train.example))
    params = with_weights(form.params, read_weights(path), source=str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    judge = Judge(model, params, digest, float("nan"), _plain_accuracy(path, data))
    labels = data.test.columns["label"]
    found = judge.opinion(data.test.columns["image"]).probabilities.argmax(axis=-1)
    known = labels >= 0
    accuracy = float((found == labels)[known].mean()) if known.any() else float("nan")
    return dataclasses.replace(judge, test_accuracy=accuracy)


def train_judge(
    data: Splits,
    path: Path,
    *,
    epochs: float | None = None,
    shift: int = 0,
    run_dir: Path | None = None,
    progress: bool = False,
    seed: int = 0,
) -> None:
    """Trains a judge on the training images alone and leaves its weights in `path`.

    Beside them, in a file of the same name that ends in `.json`, is the accuracy on the test
    images of logistic regression on pixels. Where time is short
    (`loopax.deadline.time_limit`), training stops and the block is left; with a `run_dir` it goes
    on from there the next time.

    Args:
        data: the images and their classes.
        path: a `.safetensors` file.
        epochs: passes over the training images; as many as `steps_for` says when left out.
        shift: pixels by which training images are moved, at most, in each direction.
        run_dir: where it is trained; removed at the end.
        progress: whether to show it.
        seed: of the weights and the order.
    """
    model, images = model_for(data), known_only(data.train)
    batches = images.batches(batch_size_for(len(images)))
    steps = steps_for(len(images))
    if epochs is not None:
        steps = max(1, round(epochs * batches.steps_per_epoch))
    run = loopax.fit(
        _new_state(model, images.example, steps, seed),
        loss_function(model, shift),
        batches,
        steps=steps,
        run_dir=run_dir,
        max_seconds=seconds_left(),
        progress=progress,
        config={"format": FORMAT, "steps": steps, "shift": shift, "seed": seed},
    )
    if run.step < steps:  # Half a judge is none: its time is up, or a notebook was interrupted.
        check_time(math.inf)
        raise KeyboardInterrupt
    with replacing(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({"plain_accuracy": plain_accuracy(data)}))
    save_weights(path, run.state.eval_params)
    if run_dir is not None:
        shutil.rmtree(run_dir, ignore_errors=True)


def batch_size_for(images: int) -> int:
    """Images in a step."""
    return min(BATCH, images, max(SMALLEST_BATCH, images // BATCHES_AT_LEAST))


def steps_for(images: int) -> int:
    """Steps of training with so many images."""
    return min(STEPS_AT_MOST, max(STEPS_AT_LEAST, PASSES * images // BATCH))


def plain_accuracy(data: Splits) -> float:
    """The share of test images that logistic regression on pixels takes for what they are.

    It is fitted to at most `PLAIN_LIMIT` images; nan where no class of a test image is known.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, test = known_only(data.train), known_only(data.test)
    if (test.columns["label"] < 0).any():
        return float("nan")
    chosen = np.random.default_rng(0).permutation(len(train))[:PLAIN_LIMIT]
    labels = train.columns["label"][chosen]
    if len(np.unique(labels)) < 2:
        return float((test.columns["label"] == labels[0]).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        plain = LogisticRegression().fit(_pixels(train.columns["image"][chosen]), labels)
    found = [plain.predict(_pixels(part)) for part in portions(test.columns["image"])]
    return float((np.concatenate(found) == test.columns["label"]).mean())


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


def loss_function(model: Classifier, shift: int = 0) -> Callable[..., Any]:
    """Cross-entropy in nats; in training on images that are moved by up to `shift` pixels."""

    def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
        image = shifted(rngs["shift"], batch["image"], shift) if shift else batch["image"]
        logits, _ = model.apply(params, image, train=True, rngs=rngs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    return loss_fn


def shifted(
    key: Key[Array, ""], images: Float[Array, "n h w c"], shift: int
) -> Float[Array, "n h w c"]:
    """Each image moved by up to `shift` pixels in each direction; its edge is repeated."""
    margin = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = jnp.pad(images, margin, mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * shift + 1)
    cut = functools.partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    return jax.vmap(lambda image, offset: cut(image, (*offset, 0)))(padded, offsets)


def _new_state(model: Classifier, example: Any, steps: int = 1, seed: int = 0) -> loopax.TrainState:
    schedule = loopax.Schedule("cosine", warmup_steps=min(100, steps // 8))
    optimizer = loopax.Optimizer(
        learning_rate=3e-3, schedule=schedule, weight_decay=0.02, decay_vectors=False
    )
    image = example["image"] if isinstance(example, dict) else example
    return loopax.TrainState.create(model, image, optimizer, total_steps=steps, seed=seed)


def _plain_accuracy(path: Path, data: Splits) -> float:
    """That which is kept beside a judge; found anew where it is missing or cannot be read."""
    try:
        return float(json.loads(path.with_suffix(".json").read_text())["plain_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return plain_accuracy(data)


def _pixels(images: np.ndarray) -> Float[np.ndarray, "n pixels"]:
    scale = 255 if images.dtype == np.uint8 else 1
    return images.reshape(len(images), -1).astype(np.float32) / scale


def known_only(dataset: Dataset) -> Dataset:
    """Without the images whose class is not known; all of them where none is."""
    known = dataset.columns["label"] >= 0
    columns = {name: column[known] for name, column in dataset.columns.items()}
    return dataclasses.replace(dataset, columns=columns) if known.any() else dataset
