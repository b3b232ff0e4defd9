"""Tokens as the model is given them, and a model applied to many of them in few shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.data import bucket_lengths

CUT = ("input_ids", "token_type_ids")
"""The columns that are cut to the length of their bucket."""
BATCH = 64


def model_inputs(batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Ids, segments (None where there are no pairs) and mask of a batch of tokens."""
    ids = batch["input_ids"]
    mask = jnp.arange(ids.shape[1])[None] < batch["length"][:, None]
    return ids, batch.get("token_type_ids"), mask


def in_batches(
    function: Callable[[Mapping[str, np.ndarray]], jax.Array],
    columns: Mapping[str, np.ndarray],
    longest: int,
    size: int = BATCH,
) -> np.ndarray:
    """`function` of all rows of `columns`, in their order, `size` rows of similar length at a time.

    The last rows are filled up with copies, and none is longer than `longest`, so that `function`
    meets one shape for each length that a bucket can have.
    """
    lengths = columns["length"]
    order = np.argsort(lengths, kind="stable")
    bounds = [min(bound, longest) for bound in bucket_lengths(longest)]
    results = None
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        bound = next(bound for bound in bounds if bound >= lengths[rows].max())
        filled = np.resize(rows, size)
        batch = {
            name: _cut(column[filled], bound) if name in CUT else column[filled]
            for name, column in columns.items()
        }
        result = np.asarray(function(batch))[: len(rows)]
        if results is None:
            results = np.empty((len(order), *result.shape[1:]), result.dtype)
        results[rows] = result
    assert results is not None, "there are no rows"
    return results


def _cut(column: np.ndarray, bound: int) -> np.ndarray:
    """Columns that are shorter than their bucket are filled up, so that shapes stay few."""
    short = max(0, bound - column.shape[1])
    return np.pad(column[:, :bound], ((0, 0), (0, short)))
