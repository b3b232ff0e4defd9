"""Checks that columns and batches are arrays of numbers that the device can hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.errors import DataError

_INTEGERS = "strings become integers by names, label = numpy.unique(label, return_inverse=True)"
_CURES = {
    **dict.fromkeys("UST", _INTEGERS),
    "O": f"give numbers of one type, and rows of one length; {_INTEGERS}",
    "M": "times become numbers by (x - x.min()) / numpy.timedelta64(1, 's')",
    "m": "times become numbers by x / numpy.timedelta64(1, 's')",
}


def as_numbers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of numbers, in the byte order of this machine.

    Args:
        name: what it is called in messages, such as `the column 'label'`.
        value: an array of any library, or (nested) lists.

    Raises:
        DataError: it is not made of numbers, or some of its values are masked.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{name} has masked values; say what they are: column.filled(0)")
    try:
        array = np.asarray(value)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} is {type(value).__name__} and cannot be read as an array: {said}"
        ) from error
    if not _is_of_numbers(array.dtype):
        raise DataError(f"{name} {_not_numbers(value, array)}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _is_of_numbers(dtype: np.dtype) -> bool:
    """Whether JAX knows this type; it has none of more than 64 bits but complex ones."""
    is_number = jnp.issubdtype(dtype, np.number) and dtype.kind != "m"
    return (is_number or dtype == np.bool_) and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def _not_numbers(value: Any, array: np.ndarray) -> str:
    """The type of an array that does not hold numbers, and how to get numbers from it."""
    kind = array.dtype.kind
    cure = _CURES.get(kind, "give numbers, such as float32 or int32")
    if array.dtype.names:
        return f"is structured; give each field by itself: {', '.join(array.dtype.names)}"
    if kind == "O" and not array.ndim:  # Nothing that an array could be made of.
        return f"is {type(value).__name__}, not an array of numbers"
    if kind in "UST" and array.size:
        return f"holds strings, such as {str(array.flat[0])[:40]!r}, not numbers; {cure}"
    return f"is {array.dtype}, not numbers; {cure}"


def as_held(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in the type in which the device holds it: without x64, 64 bits become 32.

    Raises:
        DataError: a value is beyond that type.
    """
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if held == array.dtype:
        return array
    if array.dtype.kind in "iu":
        limits = np.iinfo(held)
        for value in (array.min(initial=0), array.max(initial=0)):
            if not limits.min <= value <= limits.max:
                raise _beyond(name, array, value, limits)
    try:
        with np.errstate(over="raise"):
            return array.astype(held)
    except FloatingPointError as error:
        finite = array[np.isfinite(array)]
        raise _beyond(name, array, finite[np.abs(finite).argmax()], np.finfo(held)) from error


def _beyond(name: str, array: np.ndarray, value: Any, limits: Any) -> DataError:
    cure = (
        "number what they stand for from 0: numpy.unique(column, return_inverse=True)"
        if array.dtype.kind in "iu"
        else "scale them"
    )
    return DataError(
        f"{name} has the value {value}, and JAX keeps {array.dtype} as {limits.dtype}, up to "
        f"{limits.max}; {cure}, or switch jax_enable_x64 on"
    )
