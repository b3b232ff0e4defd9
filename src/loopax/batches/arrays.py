"""Checks that columns and batches are arrays of numbers that the device can hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.batches.mapped import Mapped
from loopax.errors import DataError
from loopax.paths import PyTree, leaf_path


def as_numbers(name: str, value: Any) -> Any:
    """`value` as an array of numbers, in the byte order of this machine; what is mapped stays so.

    Args:
        name: what it is called in messages, such as `the column 'label'`.
        value: an array of any library, or (nested) lists.

    Raises:
        DataError: it is not made of numbers, or some of its values are masked.
    """
    if isinstance(value, Mapped):
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{name} has masked values; say what they are: column.filled(0)")
    try:
        array = np.asarray(value)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} is {type(value).__name__} and cannot be read as an array: {said}"
        ) from error
    kind, size = array.dtype.kind, array.dtype.itemsize
    # JAX has no numbers of more than 64 bits but complex ones.
    is_number = jnp.issubdtype(array.dtype, np.number) or kind == "b"
    if not is_number or kind == "m" or size > (16 if kind == "c" else 8):
        raise DataError(
            f"{name} is {array.dtype if array.ndim else type(value).__name__}, not numbers of one "
            "type; strings become integers by numpy.unique(x, return_inverse=True), times numbers "
            "by (x - x.min()) / numpy.timedelta64(1, 's')"
        )
    if isinstance(value, np.memmap) and value.ndim > 1 and array.dtype.isnative:
        return Mapped(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class Rows:
    """Rows of a column, read when a part of them is asked for."""

    def __init__(self, column: np.ndarray, rows: np.ndarray) -> None:
        self._column, self._rows = column, rows
        self.shape, self.dtype = (*rows.shape, *column.shape[1:]), column.dtype

    def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
        """The part that the devices of this process need, of the axes of `rows`."""
        axes = self._rows.ndim
        found: np.ndarray = self._column[self._rows[part[:axes]]]
        return found[(slice(None),) * axes + part[axes:]]


def as_held(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in the type in which the device holds it: without x64, 64 bits become 32.

    Raises:
        DataError: a value is beyond that type.
    """
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if held == array.dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(held)
    is_whole = held.kind in "iu"
    beyond = result != array if is_whole else np.isfinite(result) != np.isfinite(array)
    if beyond.any():
        limit = (np.iinfo(held) if is_whole else np.finfo(held)).max
        raise DataError(
            f"{name} has the value {array[beyond][0]}, and JAX keeps {array.dtype} as {held}, up "
            f"to {limit}; number what they stand for from 0, or scale them, or switch "
            "jax_enable_x64 on"
        )
    return result


def as_arrays(batch: PyTree) -> PyTree:
    """A batch as the device will hold it; what lies on a device already stays there.

    Raises:
        DataError: something in it is not made of numbers, or a value is beyond them.
    """
    if batch is None:
        raise DataError("a batch is None; a batch without arrays is {}")

    def array(key_path: tuple[Any, ...], leaf: Any) -> np.ndarray | jax.Array:
        path = leaf_path(key_path)
        name = f"the batch's {path!r}" if path else "the batch"
        if is_on_device(leaf):
            if not leaf.is_fully_addressable:
                raise DataError(
                    f"{name} lies on devices of several processes; give each process the whole "
                    "batch, as NumPy arrays, of which its devices are given their share"
                )
            return leaf
        # A part of what is mapped from the disk is read here.
        return as_held(name, np.asarray(as_numbers(name, leaf)))

    return jax.tree_util.tree_map_with_path(array, batch)


def is_on_device(leaf: Any) -> bool:
    """Whether it is an array of JAX that a step can take as it lies."""
    is_array = isinstance(leaf, jax.Array)
    return is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def owned(batch: PyTree) -> PyTree:
    """A batch in memory of its own, where its source may fill the same memory again."""
    return jax.tree.map(lambda leaf: leaf if is_on_device(leaf) else np.copy(leaf), batch)
