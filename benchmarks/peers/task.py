"""What every contestant trains. NumPy alone.

All begin with the same values, see the same data, and are judged by the same function of the
parameters they end with. What they draw at random (order, noise, dropout) is their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from benchmarks.peers.tasks import bert, vae

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-4
"""Of AdamW with the moments' decays 0.9 and 0.999 and epsilon 1e-8, as Optax has them."""

Weights = dict[str, tuple[np.ndarray, ...]]
"""Of each layer its arrays, float32: a kernel, as the task says, and a bias; the scale and the bias
of a normalisation; an embedding."""


class Kind(NamedTuple):
    """What is trained.

    Attributes:
        title: what it is called.
        module: has its initial values, its data and its loss.
        checked: steps after which losses are compared, by size of batch.
        every: steps after which metrics are read, or that make a dispatch.
    """

    title: str
    module: ModuleType
    checked: Mapping[int, int]
    every: int = 100


KINDS = {
    "article": Kind("the article's VAE", vae, {16: 3750, 64: 1900, 256: 900, 1024: 230}),
    "conv": Kind("a VAE of convolutions", vae, {128: 200}, 20),
    "bert-tiny": Kind("a BERT of 2 layers x 128", bert, {32: 300}, 20),
    "bert-minilm": Kind("a BERT of 6 layers x 384 (MiniLM)", bert, {16: 60}, 5),
}


@dataclass(frozen=True)
class Task:
    """What a contestant is asked for.

    Attributes:
        folder: holds the arrays.
        batch: examples in a step; the last of an epoch that would be smaller is dropped.
        steps: how many to make.
        target: end after the first epoch by which the loss of the test part is this one or less.
        name: a key of `KINDS`.
    """

    folder: Path
    batch: int
    steps: int
    target: float | None = None
    name: str = "article"

    @property
    def every(self) -> int:
        """Steps after which metrics are read."""
        return KINDS[self.name].every

    def columns(self, part: str = "train") -> dict[str, np.ndarray]:
        """The data, by name; the label comes last."""
        with np.load(self.folder / f"{self.name}_{part}.npz") as arrays:
            return dict(arrays)

    def weights(self) -> Weights:
        """The values that all begin with."""
        return KINDS[self.name].module.weights(self.name)


def prepare(name: str, folder: Path) -> None:
    """Leaves the data of a task in a folder, as `Task.columns` reads it."""
    for part in ("train", "test"):
        np.savez(folder / f"{name}_{part}.npz", **KINDS[name].module.data(name, part))


def test_loss(weights: Weights, task: Task, *, noise: bool) -> float:
    """The loss of the test part, of such weights."""
    found = KINDS[task.name].module.loss(task.name, weights, task.columns("test"), noise=noise)
    return float(found)
