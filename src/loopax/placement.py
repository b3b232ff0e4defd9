"""Where arrays lie: the only module that moves them between the host and devices.

Everything lies on one device, JAX's default, and belongs to one process. What several devices or
processes need changes these functions and nobody who calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

T = TypeVar("T")


def put(items: T) -> T:
    """What the next steps need, on the device."""
    return jax.device_put(items)


def resident(columns: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
    """Columns that stay on the device during a whole run."""
    return jax.device_put(dict(columns))


def put_state(state: T) -> T:
    """A copy of a state for chunks to use up, so that the caller's stays whole.

    Each chunk reuses the memory of the state that it is given.
    """
    return jax.tree.map(jnp.copy, state)


def put_like(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """An array that lies as `leaf` does, with memory of its own."""
    # Without the copy the result may be the same memory, also with `may_alias=False`.
    return jax.device_put(array.copy(), leaf.sharding if leaf.committed else None)


def to_host(state: T) -> T:
    """A copy of a state in the host's memory, or on the device where JAX is to use no CPU."""
    leaves, structure = jax.tree.flatten(state)
    copy: T = jax.tree.unflatten(structure, _copies(leaves))
    if jax.default_backend() != "cpu":
        with suppress(RuntimeError):
            copy = jax.device_put(copy, jax.local_devices(backend="cpu")[0])
    return copy


# Of the arrays and not of the state, whose optimiser is another object in each run of a process.
@jax.jit
def _copies(leaves: list[Array]) -> list[Array]:
    return list(map(jnp.copy, leaves))


def is_writer() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def agree(value: Any) -> Any:
    """A decision as all processes take it: that of the writer."""
    return value
