"""Randomness as a function of (seed, step): named streams of keys, nothing to replay."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

# Flax copies the mapping that it is given, so the streams that its layers ask for by default
# must be there from the start; any other name is made when the loss asks for it.
FLAX_STREAMS = ("params", "dropout", "noise")


class Streams(dict[str, Any]):
    """The keys of one step by stream name, for `rngs=` of Flax or for `jax.random` directly.

    A name that was never declared is made on the spot: `rngs["augment"]` just works. The key of a
    stream depends on the root key, the step and the name, and on nothing else.
    """

    def __init__(self, key: Key[Array, ""]) -> None:
        self._key = key
        super().__init__({name: self[name] for name in FLAX_STREAMS})

    def __missing__(self, name: str) -> Key[Array, ""]:
        return stream(self._key, name)


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of the stream `name` under `key`, by a checksum that is the same everywhere."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
