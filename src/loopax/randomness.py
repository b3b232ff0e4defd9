"""Randomness as a function of (seed, step): named streams of keys, nothing to replay."""

from __future__ import annotations

import zlib
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Int32, Key

# Flax copies the mapping that it is given, so the streams that its layers ask for by default
# must be there from the start; any other name is made when the loss asks for it.
FLAX_STREAMS = ("params", "dropout", "noise")


@jax.tree_util.register_pytree_node_class
class Rngs(dict[str, Any]):
    """The keys of one step by stream name, for `rngs=` of Flax or for `jax.random` directly.

    A name that was never declared is made on the spot: `rngs["augment"]` just works. The key of a
    stream depends on the root key, the name and the index, and on nothing else. They are folded in
    this order, so that inside a compiled loop only the index is left to fold.

    It is a pytree, so that a loss may be transformed, as by `jax.checkpoint(loss_fn)`.

    Attributes:
        step: how many updates have been made, for a loss that changes in the course of training.
        training: False in an evaluation; a Python bool, so that `if rngs.training:` and
            `deterministic=not rngs.training` choose what is compiled.
    """

    step: Int32[ArrayLike, ""]
    training: bool

    def __init__(
        self,
        key: Key[Array, ""],
        index: Int32[ArrayLike, ""],
        *,
        step: Int32[ArrayLike, ""] | None = None,
        training: bool = True,
    ) -> None:
        """`index` seeds the noise; it is the step where no other one is given."""
        self._key, self._index = key, index
        self.step = index if step is None else step
        self.training = training
        super().__init__({name: self[name] for name in FLAX_STREAMS})

    def __missing__(self, name: str) -> Key[Array, ""]:
        return jax.random.fold_in(stream(self._key, name), self._index)

    def tree_flatten(self) -> tuple[tuple[Any, ...], bool]:
        """The keys and numbers; whether it trains is part of the structure."""
        return (dict(self), self._key, self._index, self.step), self.training

    @classmethod
    def tree_unflatten(cls, training: bool, children: tuple[Any, ...]) -> Self:
        """What `tree_flatten` took apart, whatever stands in the place of the arrays."""
        rngs = cls.__new__(cls)
        keys, rngs._key, rngs._index, rngs.step = children
        rngs.training = training
        rngs.update(keys)
        return rngs


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of the stream `name` under `key`, by a checksum that is the same everywhere."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def key_words(key: Key[Array, ""]) -> list[int]:
    """The words of a root key: the seed of the data's order, and a seed one can compare."""
    return [int(word) for word in jax.device_get(jax.random.key_data(key)).ravel()]
