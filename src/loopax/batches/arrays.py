"""Checks that columns and batches are arrays of numbers that the device can hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.batches.mapped import Mapped
from loopax.errors import DataError


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
