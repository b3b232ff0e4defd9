"""Randomness as a function of (seed, step): named streams of keys, nothing to replay."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int32, Key

# Flax copies the mapping that it is given, so the streams that its layers ask for by default
# must be there from the start; any other name is made when the loss asks for it.
FLAX_STREAMS = ("params", "dropout", "noise")


class Streams(dict[str, Any]):
    """The keys of one step by stream name, for `rngs=` of Flax or for `jax.random` directly.

    A name that was never declared is made on the spot: `rngs["augment"]` just works. The key of a
    stream depends on the root key, the name and the step, and on nothing else. They are folded in
    this order, so that inside a compiled loop only the step is left to fold.

    Attributes:
        step: how many updates have been made, for a loss that changes in the course of training;
            in an evaluation it is the index of the batch.
    """

    def __init__(self, key: Key[Array, ""], step: Int32[ArrayLike, ""]) -> None:
        self._key, self.step = key, step
        super().__init__({name: self[name] for name in FLAX_STREAMS})

    def __missing__(self, name: str) -> Key[Array, ""]:
        return jax.random.fold_in(stream(self._key, name), self.step)


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of the stream `name` under `key`, by a checksum that is the same everywhere."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def key_words(key: Key[Array, ""]) -> list[int]:
    """The words of a root key: the seed of the data's order, and a seed one can compare."""
    return [int(word) for word in jax.device_get(jax.random.key_data(key)).ravel()]


def key_of(words: Sequence[int], like: Key[Array, ""]) -> Key[Array, ""]:
    """The key of these words, of the same kind as another one."""
    shape = jax.eval_shape(jax.random.key_data, like).shape
    data = jnp.asarray(words, jnp.uint32).reshape(shape)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
