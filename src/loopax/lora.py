"""LoRA: a low-rank change of chosen parameters trains, and the model itself stays as it is.

A parameter `w` becomes `w + (alpha / rank) * a @ b` (Hu et al., 2021, arXiv:2106.09685). The sum is
formed inside the step, before the loss, so that any model and any loss work unchanged. Libraries
such as qwix put the change into the layers of a model instead, which needs to know its layers.

In a state's trees such a parameter is a dictionary of four arrays, and on the disk four names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from loopax.errors import ConfigError
from loopax.paths import (
    PyTree,
    form_of,
    is_number,
    leaf_path,
    map_with_path,
    matches,
    partition,
    path_mask,
)
from loopax.randomness import stream

BASE, A, B, SCALE = "base", "lora_a", "lora_b", "lora_scale"
ADAPTED = {BASE, A, B, SCALE}


@dataclass(frozen=True)
class LoRA:
    """Which parameters are adapted, and how; for `TrainState.create(..., lora=...)`.

    An array of more than two axes is taken as the matrix, of its first axes by its last ones, that
    has the smallest adapters: a wide convolution is `(height * width * channels, features)`.

    Attributes:
        targets: path patterns of the parameters that get adapters, as in `loopax.paths.matches`.
        rank: columns of `a`, and rows of `b`.
        alpha: the change is scaled by `alpha / rank`, so that another rank needs no other
            learning rate.
        train: path patterns of parameters that train as they are, such as a new head. All others
            are frozen.

    Raises:
        ConfigError: a number is out of range, or patterns are no tuple.
    """

    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"lora: rank is {self.rank}; it must be a whole number of at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora: alpha is {self.alpha}; it must be above 0")
        for name in ("targets", "train"):
            patterns = getattr(self, name)
            if isinstance(patterns, str):
                raise ConfigError(
                    f"lora: {name} is {patterns!r}; it must be a tuple of patterns: ({patterns!r},)"
                )
        if not self.targets:
            raise ConfigError("lora: targets is empty; name parameters to adapt: ('**/kernel',)")

    def split(self, params: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """The parameters with their adapters, in two trees: what trains and what does not.

        `a` is normal with variance `1 / rows` and `b` is 0, so that training begins with the model
        as it is.

        Args:
            params: of a model.
            key: the root key of the run.

        Raises:
            ConfigError: a pattern matches nothing, or a target cannot be adapted.
        """
        targets = path_mask(params, self.targets, purpose="lora targets")
        path_mask(params, self.train, purpose="lora train")
        paths = map_with_path(lambda path, _: path, params)
        key = stream(key, "lora")

        def adapted(leaf: Any, path: str, is_target: bool) -> Any:
            return self._adapted(leaf, path, stream(key, path)) if is_target else leaf

        whole = jax.tree.map(adapted, params, paths, targets)

        def trains(path: str, leaf: Any) -> bool:
            if path.rpartition("/")[2] in (A, B):
                return True
            named = any(matches(path, pattern) for pattern in self.train)
            return named and is_number(leaf) and path.rpartition("/")[2] not in (BASE, SCALE)

        return partition(whole, map_with_path(trains, whole))

    def _adapted(self, base: Any, path: str, key: Key[Array, ""]) -> dict[str, Any]:
        base = jnp.asarray(base)
        if base.ndim < 2 or not jnp.issubdtype(base.dtype, jnp.floating):
            raise ConfigError(
                f"lora targets: {path} is {form_of(base)}, and adapters are for matrices of real "
                "numbers; name kernels, such as '**/kernel'"
            )
        shapes = [
            (math.prod(base.shape[:axis]), math.prod(base.shape[axis:]))
            for axis in range(1, base.ndim)
        ]
        rows, columns = min(shapes, key=sum)
        if self.rank > min(rows, columns):
            raise ConfigError(
                f"lora: rank is {self.rank}, and {path} is a matrix of {rows} x {columns}; give "
                f"at most {min(rows, columns)}, or leave it out of the targets"
            )
        # What is added up over many steps would be lost in half a float.
        dtype = jnp.promote_types(base.dtype, jnp.float32)
        return {
            BASE: base,
            A: jax.random.normal(key, (rows, self.rank), dtype) / math.sqrt(rows),
            B: jnp.zeros((self.rank, columns), dtype),
            SCALE: jnp.asarray(self.alpha / self.rank, dtype),
        }


def merged(params: PyTree) -> PyTree:
    """Parameters as the model knows them: each with its adapters added, in its own type."""
    return jax.tree.map(
        lambda leaf: _sum(**leaf) if _is_adapted(leaf) else leaf, params, is_leaf=_is_adapted
    )


def scales(params: PyTree) -> set[float]:
    """The factors `alpha / rank` in a tree of arrays, of what does not train."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        float(leaf)
        for path, leaf in leaves
        if leaf_path(path).rpartition("/")[2] == SCALE and isinstance(leaf, jax.Array)
    }


def _is_adapted(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == ADAPTED


def _sum(base: Any, lora_a: Any, lora_b: Any, lora_scale: Any) -> Any:
    change = lora_scale * jnp.matmul(lora_a, lora_b, precision="highest")
    return base + change.reshape(base.shape).astype(base.dtype)
