"""In which type of number a loss is computed.

The parameters are cast inside of what is differentiated. So gradients arrive in the type that the
parameters have, and what an update or an average adds up is as exact as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from loopax.errors import ConfigError
from loopax.paths import PyTree, leaf_path, matches, path_mask

BATCH = "batch"
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Precision:
    """The type in which a loss is computed.

    Attributes:
        dtype: what the loss is given real parameters and columns of the batch in. The batch too,
            because JAX computes `float32 * bfloat16` in float32.
        full: patterns of those that it is given as they are; `batch/target` is a column.
    """

    dtype: str
    full: tuple[str, ...] = ()

    @classmethod
    def of(cls, dtype: Any, full: tuple[str, ...], params: PyTree) -> Self | None:
        """The precision that these arguments of `TrainState.create` ask for; None for none.

        Raises:
            ConfigError: the type is none to train in, or a pattern matches nothing.
        """
        if isinstance(full, str):
            raise ConfigError(
                f"full_precision is {full!r}; it must be a tuple of patterns: ({full!r},)"
            )
        if dtype is None:
            if full:
                raise ConfigError(
                    f"full_precision is {full!r}, which says what compute_dtype leaves alone, and "
                    "there is none; give compute_dtype='bfloat16'"
                )
            return None
        try:
            name = jnp.dtype(dtype).name
        except TypeError:
            name = ""
        if name not in DTYPES:
            scaling = "; in float16 small gradients would become 0" if name == "float16" else ""
            raise ConfigError(
                f"compute_dtype is {dtype!r}; it must be {' or '.join(DTYPES)}{scaling}"
            )
        of_params = [pattern for pattern in full if not _is_of_batch(pattern)]
        path_mask(params, of_params, purpose="full_precision")
        return cls(name, tuple(full))

    def __str__(self) -> str:
        return self.dtype + (f" without {', '.join(self.full)}" if self.full else "")

    def cast_params(self, params: PyTree) -> PyTree:
        """Parameters as the loss is given them."""
        return self._cast(params, "")

    def cast_batch(self, batch: PyTree) -> PyTree:
        """A batch as the loss is given it.

        Raises:
            ConfigError: a pattern matches none of its columns.
        """
        names = [f"{BATCH}/{leaf_path(p)}" for p, _ in jax.tree_util.tree_leaves_with_path(batch)]
        for pattern in filter(_is_of_batch, self.full):
            if not any(matches(name, pattern) for name in names):
                raise ConfigError(
                    f"full_precision: {pattern!r} matches nothing of the batch, which has "
                    f"{', '.join(names)}"
                )
        return self._cast(batch, f"{BATCH}/")

    def _cast(self, tree: PyTree, prefix: str) -> PyTree:
        def cast(path: Any, leaf: Any) -> Any:
            name = prefix + leaf_path(path)
            exempt = any(matches(name, pattern) for pattern in self.full)
            return leaf.astype(self.dtype) if _is_real(leaf) and not exempt else leaf

        return jax.tree_util.tree_map_with_path(cast, tree)


def _is_of_batch(pattern: str) -> bool:
    return pattern.strip("/").split("/")[0] == BATCH


def _is_real(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def narrow(metrics: Mapping[str, Any]) -> list[str]:
    """The names of metrics that hold fewer digits than float32 does."""
    real = {name: value for name, value in metrics.items() if _is_real(value)}
    return [name for name, value in real.items() if jnp.finfo(value.dtype).bits < 32]


def typed_like(tree: PyTree, other: PyTree) -> PyTree:
    """The real numbers of a tree in the types that they have in `other`, at the same paths."""
    leaves = jax.tree_util.tree_leaves_with_path(other)
    types = {path: leaf.dtype for path, leaf in leaves if _is_real(leaf)}

    def typed(path: Any, leaf: Any) -> Any:
        dtype = types.get(path)
        return leaf.astype(dtype) if dtype is not None and _is_real(leaf) else leaf

    return jax.tree_util.tree_map_with_path(typed, tree)
