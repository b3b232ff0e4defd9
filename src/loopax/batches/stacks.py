"""Batches of one form on a new first axis, which is no longer on the host than what it holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from loopax.batches.arrays import is_on_device
from loopax.batches.base import Items
from loopax.paths import PyTree
from loopax.placement import Placement

PIECE_BYTES = 2**20
"""Stacks are multiples of about so much, as each length is filled up by a program of its own."""


class Stack:
    """Batches in a row, all of the form of the first one.

    Args:
        first: a batch of arrays.
        room: how many batches there may be.
        capacity: to how many the stack is filled up on the device.
    """

    def __init__(self, first: PyTree, room: int, capacity: int) -> None:
        leaves, self._structure = jax.tree.flatten(first)
        size = sum(leaf.nbytes for leaf in leaves)
        self._piece = min(capacity, max(1, PIECE_BYTES // max(1, size)))
        self._forms, self._room, self._capacity = _forms(leaves), room, capacity
        self._columns: list[Any] = [
            [] if is_on_device(leaf) else np.zeros((self._rows(room), *leaf.shape), leaf.dtype)
            for leaf in leaves
        ]
        self._length = 0

    @property
    def is_full(self) -> bool:
        return self._length == self._room

    def takes(self, batch: PyTree) -> bool:
        """Whether a batch is of the form of the first one."""
        leaves, structure = jax.tree.flatten(batch)
        # JAX's stubs leave out how structures compare.
        same: bool = structure == self._structure  # type: ignore[operator]
        return same and _forms(leaves) == self._forms

    def add(self, batch: PyTree) -> None:
        """Takes in a batch: a copy of what lies on the host, and what lies on a device itself."""
        for column, leaf in zip(self._columns, jax.tree.leaves(batch), strict=True):
            if isinstance(column, list):
                column.append(leaf)
            else:
                column[self._length] = leaf
        self._length += 1

    def items(self, position: Any) -> Items:
        """What was taken in, after which the source stands at `position`."""
        rows = self._rows(self._length)
        columns = [
            _stacked(each) if isinstance(each, list) else each[:rows] for each in self._columns
        ]
        # A batch may have no leaves at all; these tell how many there are.
        filled = np.arange(self._capacity) < self._length
        tree = {"batch": jax.tree.unflatten(self._structure, columns), "filled": filled}
        return Items(tree, self._length, position, self._capacity)

    def _rows(self, length: int) -> int:
        return min(self._capacity, -(-length // self._piece) * self._piece)


def _forms(leaves: list[Any]) -> list[tuple[Any, ...]]:
    return [(leaf.shape, leaf.dtype, is_on_device(leaf)) for leaf in leaves]


@jax.jit
def _stacked(leaves: list[Array]) -> Array:
    return jnp.stack(leaves)


def on_device(items: Items, placement: Placement) -> Items:
    """Items where a chunk takes them from, their number as it counts them."""
    stacked, length = placement.put((items.stacked, np.int32(items.length)))
    capacity = items.capacity
    if capacity and any(len(leaf) < capacity for leaf in jax.tree.leaves(stacked)):
        stacked = placement.put(_filled_up(stacked, capacity))
    return items._replace(stacked=stacked, length=length)


@partial(jax.jit, static_argnums=1)
def _filled_up(stacked: PyTree, capacity: int) -> PyTree:
    def filled_up(leaf: Array) -> Array:
        rest = jnp.zeros((capacity - len(leaf), *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, rest])

    return jax.tree.map(filled_up, stacked)
