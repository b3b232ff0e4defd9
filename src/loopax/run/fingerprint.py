"""A short name for the bits of many arrays, computed where they lie."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from loopax.paths import PyTree, form_of

WHOLE = 8
"""Bits of the smallest type that can be looked at as it lies."""


def fingerprint(tree: PyTree) -> str:
    """64 hexadecimal digits that tell a tree of arrays from others, by paths, forms and bits.

    It tells arrays apart that differ by accident, such as other weights or those of another step,
    but for one time in 2**32; it does not protect against somebody who wants two to be alike.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    words = jax.device_get(_sums([leaf for _, leaf in leaves]))
    digest = hashlib.sha256()
    for (path, leaf), word in zip(leaves, words, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)}:{form_of(leaf)};".encode())
        digest.update(np.asarray(word, "<u4").tobytes())
    return digest.hexdigest()


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    """Of each array the sum of its words, each mixed with its place."""
    words = [_words(leaf) for leaf in leaves]
    return [_mixed(each ^ _mixed(_places(each))).sum(dtype=jnp.uint32) for each in words]


def _places(words: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    return jnp.arange(words.size, dtype=jnp.uint32)


def _mixed(words: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """The last step of MurmurHash3 (Appleby, 2011): each bit depends on every other."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _words(leaf: Array) -> UInt32[Array, " n"]:
    """The bits of an array of any type."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    elif _bits(leaf) < WHOLE:
        leaf = leaf.astype(jnp.float32)  # which is exact
    unsigned = {8: jnp.uint8, 16: jnp.uint16}.get(_bits(leaf), jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).ravel()


def _bits(leaf: Array) -> int:
    info = jnp.iinfo if jnp.issubdtype(leaf.dtype, jnp.integer) else jnp.finfo
    return int(info(leaf.dtype).bits)
