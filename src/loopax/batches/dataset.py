"""A dataset: named columns, kept as they were stored, and batches of their examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from loopax import processes
from loopax.batches.arrays import Rows, as_held, as_numbers
from loopax.batches.base import LEAST_CAPACITY, Batches, Feed, Items, affordable
from loopax.batches.mapped import Mapped, fingerprint_of, picked
from loopax.batches.transforms import (
    Transform,
    checked_transforms,
    scaled,
    scaled_columns,
    transformed,
)
from loopax.compiled import executed
from loopax.errors import ConfigError, DataError
from loopax.meshes import default_device
from loopax.paths import PyTree
from loopax.placement import Placement, taken
from loopax.randomness import Rngs

RESIDENT_LIMIT_BYTES, COPIED_LIMIT_BYTES = 2 * 2**30, 2**29
"""Of columns that stay on the device, and of those that are mapped where it has no other memory."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named columns whose first axis counts the examples.

    Images are stored as `uint8` with shape `(examples, height, width, channels)` in the column
    `image`, and become `float32` in [0, 1] inside the compiled step; integer classes in `label`,
    where -1 means that the class is not known. No other column is changed.

    Attributes:
        columns: the arrays by name; lists and arrays of other libraries become NumPy's. One that
            lies on the disk is a `Mapped`, which is indexed like an array.
        name: what it is called in messages.
        class_names: the name of each class, in the order of the labels.
        source: what it was read from, in words.
        held_out: the fraction by which a whole was split into this and its counterpart; None if
            the parts were given.
        notes: what was left out, kept together or changed when it was read, in words.

    Raises:
        DataError: there are no columns, their lengths differ, or one is not made of numbers.
    """

    columns: Mapping[str, Any]
    name: str = "data"
    class_names: tuple[str, ...] = field(default=())
    source: str = ""
    held_out: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Mapping) or not all(
            isinstance(name, str) for name in self.columns
        ):
            raise DataError(
                f"{self.name}: columns is {type(self.columns).__name__}; it must be a dict of "
                "arrays by name: Dataset({'x': x, 'label': label})"
            )
        if not self.columns:
            raise DataError(f"{self.name}: a dataset needs at least one column")
        columns = {
            name: as_numbers(self._called(name), column) for name, column in self.columns.items()
        }
        for name, column in columns.items():
            if not column.ndim:
                raise DataError(
                    f"{self._called(name)} is {column}; its first axis must be examples"
                )
        object.__setattr__(self, "columns", columns)
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{self.name}: columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def pick(self, rows: np.ndarray) -> Dataset:
        """The examples at these positions, or where a mask is true, in this order."""
        columns = {name: picked(column, rows) for name, column in self.columns.items()}
        return replace(self, columns=columns)

    def batches(self, batch_size: int, **options: Any) -> DatasetBatches:
        """Batches to train on or to evaluate with; the options are those of `DatasetBatches`."""
        return DatasetBatches(self, batch_size, **options)

    def _called(self, name: str) -> str:
        return f"{self.name}: the column {name!r}"

    def check_fits(self) -> None:
        """Whether the device can hold every value.

        Raises:
            DataError: a value is beyond the 32 bits in which JAX holds it without x64.
        """
        for name, column in self.columns.items():
            as_held(self._called(name), column)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns as stored."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def example(self) -> PyTree:
        """A batch of one example, as a loss sees it: to initialise a model with."""
        return self.batches(1).example

    def resident(self, placement: Placement) -> Mapping[str, jax.Array]:
        """The columns on the devices, as stored; put there once and shared by all batches."""
        where = placement.mesh or default_device()
        if where not in self._residents:
            columns = {name: np.asarray(column) for name, column in self.columns.items()}
            self._residents[where] = placement.resident(columns)
        return self._residents[where]

    @cached_property
    def _residents(self) -> dict[Any, Mapping[str, jax.Array]]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the columns: the identity of the data."""
        return fingerprint_of(self.columns)


class DatasetBatches(Batches):
    """Batches of a `Dataset`: gathered and scaled on the device, in an order per (seed, epoch).

    Args:
        dataset: where the examples come from.
        batch_size: examples in a batch.
        shuffle: a new order each epoch; otherwise the stored order.
        drop_last: leave out the last batch of an epoch when it is not full.
        resident: keep the columns on the devices; by default when they take at most 2 GiB, or, on
            a CPU, 512 MiB of what is mapped, which lies in the host's memory already.
            Otherwise batches are gathered on the host. With True, several devices divide among them
            what takes more than 2 GiB. The result is the same bit for bit.
        scale: the `uint8` columns that become `float32` in [0, 1] in the compiled step; by
            default the column `image`. Labels, masks and tokens stay as they are.
        transform: a pure function `batch -> batch`, or several in a row, traced into the step
            after scaling. One that takes `(batch, rngs)` is applied in training only, with the
            keys of the step: `jax.random.uniform(rngs["augment"], ...)`.

    Raises:
        ConfigError: the batch size is not between 1 and the number of examples, or another
            argument cannot work.
        DataError: there are no examples, or a value is beyond what the device can hold.
    """

    steps_per_epoch: int

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        resident: bool | None = None,
        scale: Sequence[str] | None = None,
        transform: Transform | Sequence[Transform] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = checked_batch_size(batch_size, dataset)
        self.shuffle = _checked_flag("shuffle", shuffle)
        self.drop_last = _checked_flag("drop_last", drop_last)
        self.scale = scaled_columns(dataset.columns, scale, dataset.name)
        self.transforms = checked_transforms(transform)
        if resident is None:
            resident = dataset.nbytes <= _resident_limit(dataset)
        _checked_flag("resident", resident)
        rest = 0 if drop_last else self.batch_size - 1
        self.steps_per_epoch = (len(dataset) + rest) // self.batch_size
        self.is_resident = bool(resident)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "data": self.dataset.fingerprint,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "scale": list(self.scale),
        }

    @property
    def example(self) -> PyTree:
        """One batch, as the loss sees it in training."""
        item = self._item(np.arange(self.batch_size, dtype=np.int32))

        def batch(resident: PyTree, item: PyTree) -> PyTree:
            return self.assemble(resident, item, Rngs(jax.random.key(0), 0))

        return executed(batch, self.resident(Placement()), item)

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        return _DatasetFeed(self, seed, start, capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        order = np.arange(len(self.dataset), dtype=np.int32)
        full = len(order) // self.batch_size
        rows = order[: full * self.batch_size].reshape(full, self.batch_size)
        capacity = min(self.affordable(capacity), max(1, full))
        for first in range(0, full, capacity):
            yield self.items(rows[first : first + capacity], capacity)
        if rest := order[full * self.batch_size :].size:
            yield self.items(order[-rest:][None], 1)

    def resident(self, placement: Placement) -> PyTree:
        return self.dataset.resident(placement) if self.is_resident else None

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        if resident is None:
            return item
        columns = self.dataset.columns
        return {k: taken(column, item, columns[k].dtype) for k, column in resident.items()}

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        batch = scaled(examples, self.scale)
        for transform in self.transforms:
            batch = transformed(transform, batch, rngs)
        return batch

    def affordable(self, capacity: int) -> int:
        """How many batches are stacked at once, to bound what is gathered on the host."""
        if self.is_resident:
            return max(LEAST_CAPACITY, capacity)
        example_bytes = self.dataset.nbytes // len(self.dataset)
        return affordable(capacity, example_bytes * self.batch_size)

    def items(self, rows: Int32[np.ndarray, "steps batch"], capacity: int) -> Items:
        """The items of consecutive steps whose examples `rows` names, padded to `capacity`."""
        padded = np.zeros((capacity, rows.shape[1]), np.int32)
        padded[: len(rows)] = rows
        if self.is_resident or processes.count() == 1:
            return Items(self._item(padded), len(rows))
        columns = self.dataset.columns.items()
        return Items({key: Rows(column, padded) for key, column in columns}, len(rows))

    def _item(self, rows: Int32[np.ndarray, ...]) -> PyTree:
        if self.is_resident:
            return rows
        return {key: column[rows] for key, column in self.dataset.columns.items()}


class _DatasetFeed:
    """Walks the epochs of a `DatasetBatches`; a take ends at the latest with its epoch."""

    def __init__(
        self, batches: DatasetBatches, seed: Sequence[int], start: int, capacity: int
    ) -> None:
        self._batches, self._seed, self._step = batches, seed, start
        self._capacity = batches.affordable(capacity)
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def take(self, n: int) -> Items:
        batches, size = self._batches, self._batches.batch_size
        epoch, first = divmod(self._step, batches.steps_per_epoch)
        order = self._order_of(epoch)
        full = len(order) // size
        if first < full:
            last = min(first + min(n, self._capacity), full)
            rows = order[first * size : last * size].reshape(last - first, size)
            items = batches.items(rows, self._capacity)
        else:
            items = batches.items(order[full * size :][None], LEAST_CAPACITY)
        self._step += items.length
        return items

    def _order_of(self, epoch: int) -> Int32[np.ndarray, " examples"]:
        if epoch != self._epoch:
            count = len(self._batches.dataset)
            if self._batches.shuffle:
                generator = np.random.default_rng([*self._seed, epoch])
                self._order = generator.permutation(count).astype(np.int32)
            else:
                self._order = np.arange(count, dtype=np.int32)
            self._epoch = epoch
        return self._order


def checked_batch_size(batch_size: Any, dataset: Dataset) -> int:
    """`batch_size` as a number of examples that the dataset has.

    Raises:
        ConfigError: it is not a whole number between 1 and the number of examples.
        DataError: there are no examples, or a value is beyond what the device can hold.
    """
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool):
        raise ConfigError(f"batch_size is {batch_size!r}; it must be a whole number")
    if not len(dataset):
        raise DataError(f"{dataset.name} has no examples")
    dataset.check_fits()
    if not 1 <= batch_size <= len(dataset):
        raise ConfigError(
            f"batch_size is {batch_size}; {dataset.name} has {len(dataset)} examples, so it "
            f"must be from 1 to {len(dataset)}"
        )
    return int(batch_size)


def _resident_limit(dataset: Dataset) -> int:
    """Bytes up to which a dataset is kept on the device."""
    is_mapped = any(isinstance(column, Mapped) for column in dataset.columns.values())
    is_copy = is_mapped and jax.default_backend() == "cpu"
    return COPIED_LIMIT_BYTES if is_copy else RESIDENT_LIMIT_BYTES


def _checked_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_ | int) or value not in (True, False):
        raise ConfigError(f"{name} is {value!r}; it must be True or False")
    return bool(value)
