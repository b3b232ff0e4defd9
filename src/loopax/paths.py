"""Parameters by path: patterns that pick leaves of a tree, and trees split in two by them."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.errors import ConfigError

SHOWN = 5

PyTree = Any


def leaf_path(key_path: tuple[Any, ...]) -> str:
    """`encoder/Dense_0/kernel` for a JAX key path; Flax's outer `params/` is dropped."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/").removeprefix("params/")


def leaf_paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def is_number(leaf: Any) -> bool:
    """Whether a leaf can be differentiated: no integers, booleans or random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", None) or jnp.result_type(leaf), jnp.inexact)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array that JAX can hold: of numbers, booleans or random keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and any(
        jnp.issubdtype(dtype, kind) for kind in (jax.dtypes.prng_key, np.number, np.bool_)
    )


def form_of(leaf: Any) -> str:
    """`float32[3, 4]`; a random key has the form of the words that it is stored as."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{leaf.dtype}{list(leaf.shape)}"


def forms(tree: PyTree) -> dict[str, str]:
    """The form of every array of a tree by its whole path: `params/params/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): form_of(leaf)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def differing(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Which leaves differ, by path and form, in one line; empty where all are alike."""
    lines = [
        f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]
    more = f" (and {len(lines) - SHOWN} more)" if len(lines) > SHOWN else ""
    return f"{'; '.join(lines[:SHOWN])}{more}"


def matches(path: str, pattern: str) -> bool:
    """Whether `pattern` names the leaf at `path` or a branch that holds it.

    `*` stands for anything but a slash, `**` for anything: `bert` and `bert/**` pick the whole
    branch, `**/bias` every bias, `encoder/layer_*/attention` one branch of each layer.
    """
    return _compiled(pattern).match(path) is not None


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = re.sub(
        r"\*\*/|\*\*|\*|\?|[^*?]+",
        lambda found: tokens.get(found.group(), re.escape(found.group())),
        pattern.strip("/"),
    )
    return re.compile(f"{body}(?:/|$)")


def path_mask(tree: PyTree, patterns: Sequence[str], *, purpose: str) -> PyTree:
    """A tree of booleans: which leaves any of `patterns` picks.

    Raises:
        ConfigError: a pattern picks no leaf; `purpose` says what it was given for.
    """
    paths = leaf_paths(tree)
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            branches = {path.rsplit("/", depth)[0] for path in paths for depth in range(4)}
            near = difflib.get_close_matches(pattern, sorted(branches), n=3, cutoff=0.3)
            hint = f"the nearest paths are {', '.join(near)}" if near else f"one is {paths[0]}"
            raise ConfigError(
                f"{purpose}: {pattern!r} matches none of the {len(paths)} parameters; {hint}"
            )
    return map_with_path(lambda path, _: any(matches(path, each) for each in patterns), tree)


def map_with_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` whose function is also given each leaf's path as a string."""
    return jax.tree_util.tree_map_with_path(
        lambda key_path, leaf: function(leaf_path(key_path), leaf), tree
    )


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` in two of the same shape; a leaf absent from one half is None there."""
    picked = jax.tree.map(lambda leaf, chosen: leaf if chosen else None, tree, mask)
    rest = jax.tree.map(lambda leaf, chosen: None if chosen else leaf, tree, mask)
    return picked, rest


def like(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of `other`, of the same shape, where `tree` has one; None where it has None."""
    return jax.tree.map(
        lambda leaf, there: None if leaf is None else there,
        tree,
        other,
        is_leaf=lambda leaf: leaf is None,
    )


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Puts the halves of `partition` back together."""
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        first,
        second,
        is_leaf=lambda leaf: leaf is None,
    )
