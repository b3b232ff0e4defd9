"""A dataset in memory: named columns of equal length, kept exactly as they were stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from loopax.data.batches import DatasetBatches
from loopax.data.description import described
from loopax.errors import DataError
from loopax.paths import PyTree


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named columns whose first axis counts the examples.

    Images are stored as `uint8` with shape `(examples, height, width, channels)` in the column
    `image`; integer classes in `label`. They become `float32` in [0, 1] inside the compiled step.
    A label of -1 means that the class is not known.

    Attributes:
        columns: the arrays by name.
        name: what it is called in messages.
        class_names: the name of each class, in the order of the labels.
        source: what it was read from, in words.
        held_out: the fraction by which a whole was split into this and its counterpart; None if
            the parts were given.

    Raises:
        DataError: there are no columns, or their lengths differ.
    """

    columns: Mapping[str, np.ndarray]
    name: str = "data"
    class_names: tuple[str, ...] = field(default=())
    source: str = ""
    held_out: float | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise DataError(f"{self.name}: a dataset needs at least one column")
        lengths = {key: len(column) for key, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{self.name}: columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batches(self, batch_size: int, **options: Any) -> DatasetBatches:
        """Batches to train on or to evaluate with; the options are those of `DatasetBatches`."""
        return DatasetBatches(self, batch_size, **options)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns as stored."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def example(self) -> PyTree:
        """A batch of one example, as a loss sees it: to initialise a model with."""
        return self.batches(1).example

    @cached_property
    def on_device(self) -> Mapping[str, jax.Array]:
        """The columns on the device, as stored; put there once and shared by all batches."""
        return jax.device_put(dict(self.columns))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the columns: the identity of the data."""
        digest = hashlib.sha256()
        for key, column in sorted(self.columns.items()):
            digest.update(f"{key}:{column.dtype.str}:{column.shape};".encode())
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Splits(NamedTuple):
    """The two parts that every recipe needs: one to train on, one never trained on."""

    train: Dataset
    test: Dataset

    @property
    def description(self) -> str:
        """What the data is, in one line: how it was read, counts, sizes, classes."""
        return described(self.train, self.test)
