"""The judge: a classifier, trained on the same training images, that samples are measured by.

Its network, training and baseline are those of the image classifier's preset `judge`.

Frechet distances and the like can be compared only under one judge, so each is known by the digest
of its weights. The one for MNIST comes with the package;
`loopax train images --preset judge --epochs 8 --shift 2` makes one like it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

import loopax
from loopax.caches import cache_folder
from loopax.data import Splits
from loopax.deadline import check_time, seconds_left
from loopax.errors import LoopaxError, RunInUseError
from loopax.files import replacing
from loopax.models.classifier import Classifier
from loopax.recipes.images import PRESETS, Answers, Problem, accuracy_of_baseline, answers
from loopax.weights import read_weights, save_weights, with_weights

FORMAT = 2
"""Of how judges are trained; those of another one are not compared with these."""


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

    def opinion(self, images: np.ndarray) -> Answers:
        """What it makes of images, uint8 or in [0, 1]."""
        return answers(self.model, self.params, images)


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
                f"training a judge for {data.train.name}, once: {problem_of(data).steps:,} "
                "steps; --judge none goes without the measures that need one"
            )
            _train_alone(data, kept, say, progress)
        return read_judge(kept, data)


def _train_alone(data: Splits, kept: Path, say: Callable[[str], None], progress: bool) -> None:
    """Trains a judge in a run of its own, which goes on after a kill, or waits for who does so."""
    waiting = False
    # One of several processes, which does this by itself, cannot save what it trains.
    run_dir = kept.with_suffix("") if jax.process_count() == 1 else None
    while not kept.is_file():
        try:
            train_judge(data, kept, run_dir=run_dir, progress=progress)
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
    problem, test = problem_of(data), data.test.columns
    form = jax.eval_shape(lambda: problem.state().params)
    params = with_weights(form, read_weights(path), source=str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    found = answers(problem.model, params, test["image"]).probabilities.argmax(axis=-1)
    known = test["label"] >= 0
    right = float((found == test["label"])[known].mean()) if known.any() else float("nan")
    return Judge(problem.model, params, digest, right, _plain_accuracy(path, data))


def train_judge(
    data: Splits,
    path: Path,
    *,
    run_dir: Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> None:
    """Trains a judge on the training images alone and leaves its weights in `path`.

    Beside them, in a file of the same name that ends in `.json`, is the accuracy on the test images
    of logistic regression on pixels. Where time is short (`loopax.deadline.time_limit`), training
    stops and the block is left; with a `run_dir` it goes on from there the next time.

    Args:
        data: the images and their classes.
        path: a `.safetensors` file.
        run_dir: where it is trained; removed at the end.
        progress: whether to show it.
        settings: of `ImagesConfig`, other than those of its preset `judge`.
    """
    problem = problem_of(data, **settings)
    steps = problem.steps
    run = loopax.fit(
        problem.state(),
        problem.loss_fn,
        problem.batches,
        steps=steps,
        run_dir=run_dir,
        max_seconds=seconds_left(),
        progress=progress,
        config={"format": FORMAT, "steps": steps, **settings},
    )
    if run.step < steps:  # Half a judge is none: its time is up, or a notebook was interrupted.
        check_time(math.inf)
        raise KeyboardInterrupt
    plain_accuracy = accuracy_of_baseline(data.train, data.test)
    with replacing(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({"plain_accuracy": plain_accuracy}))
    save_weights(path, run.state.eval_params)
    if run_dir is not None:
        shutil.rmtree(run_dir, ignore_errors=True)


def problem_of(data: Splits, **settings: Any) -> Problem:
    """What a judge is trained on and by.

    Raises:
        DataError: the images are of one class only.
    """
    return Problem.of_images(replace(PRESETS["judge"], **settings), data)


def _plain_accuracy(path: Path, data: Splits) -> float:
    """That which is kept beside a judge; found anew where it is missing or cannot be read."""
    try:
        return float(json.loads(path.with_suffix(".json").read_text())["plain_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return accuracy_of_baseline(data.train, data.test)
