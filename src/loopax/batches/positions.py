"""The state of a source as values that JSON can hold, so that a checkpoint can keep it."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from loopax.errors import DataError

BYTES, ARRAY, PAIRS, TUPLE = "bytes:", "array:", "pairs:", "tuple:"
_MARKS = {BYTES, ARRAY, PAIRS, TUPLE}


def packed(value: Any) -> Any:
    """A copy of `value` of lists, dicts and plain values; `unpacked` gives the value back.

    Raises:
        DataError: something in it is of another kind than numbers, text, bytes, arrays, tensors,
            lists, tuples and dicts.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case bytes():
            return {BYTES: base64.b64encode(value).decode()}
        case list():
            return [packed(each) for each in value]
        case tuple():
            return {TUPLE: [packed(each) for each in value]}
        case dict() if all(isinstance(key, str) and key not in _MARKS for key in value):
            return {key: packed(each) for key, each in value.items()}
        case dict():
            return {PAIRS: [[packed(key), packed(each)] for key, each in value.items()]}
    return _packed_array(value)


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    match value:
        case list():
            return [unpacked(each) for each in value]
        case {"bytes:": text}:
            return base64.b64decode(text)
        case {"tuple:": items}:
            return tuple(map(unpacked, items))
        case {"pairs:": pairs}:
            return {unpacked(key): unpacked(each) for key, each in pairs}
        case {"array:": [kind, dtype, shape, text]}:
            array = np.frombuffer(bytearray(base64.b64decode(text)), dtype).reshape(shape)
            return _as_kind(kind, array)
        case dict():
            return {key: unpacked(each) for key, each in value.items()}
    return value


def _packed_array(value: Any) -> Any:
    """An array of NumPy, a scalar, or a tensor of torch, by its bytes."""
    kind = type(value).__module__.partition(".")[0]
    try:
        array = np.asarray(value)
    except Exception:  # A class of the user's own may raise anything.
        array = np.asarray(None)
    if array.dtype.kind not in "biufc" or kind not in ("builtins", "numpy", "torch"):
        raise DataError(
            f"the state of the data holds a {type(value).__name__}, which no checkpoint can keep; "
            "its state must be made of numbers, text, bytes, arrays, lists and dicts"
        )
    kind = f"{kind} scalar" if isinstance(value, np.generic | float) else kind
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {ARRAY: [kind, array.dtype.str, list(array.shape), text]}


def _as_kind(kind: str, array: np.ndarray) -> Any:
    match kind:
        case "numpy scalar":
            return array[()]
        case "builtins scalar":
            return array.item()
        case "torch":
            import torch

            return torch.from_numpy(array)
    return array
