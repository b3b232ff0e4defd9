"""Where arrays lie: the only module that moves them between the host and devices.

Several devices are a `jax.sharding.Mesh` with named axes, and JAX's own partitioner does the rest.
Batches are spread over `data` and `fsdp`; what a state holds is spread over `fsdp`, or as patterns
of paths say, and the same on all of `data`. Which device has what changes no value but for the
order of sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from loopax import processes
from loopax.errors import ConfigError
from loopax.meshes import (
    BATCH_AXES,
    checked_sharding,
    default_device,
    mesh_of,
    nearest,
    sharing,
    text_of,
)
from loopax.paths import PyTree, leaf_path, map_with_path, matches

T = TypeVar("T")

SMALLEST = 1024
"""Elements of an array that is worth spreading; smaller ones are the same on every device."""
REPLICATED_LIMIT_BYTES = 2 * 2**30
"""Of data that stays on the devices; what takes more is divided among them."""


@dataclass(frozen=True)
class Placement:
    """The devices of a run: one, JAX's default, or a mesh of them.

    Attributes:
        mesh: has some of the axes `data`, `fsdp` and `tensor`; None for a single device.
        patterns: how arrays of a state are spread whose paths they pick, in the place of the rule.
    """

    mesh: Mesh | None = None
    patterns: tuple[tuple[str, PartitionSpec], ...] = ()

    @classmethod
    def of(cls, state: PyTree) -> Placement:
        """Where a state lies."""
        for leaf in jax.tree.leaves(state):
            sharding = getattr(leaf, "sharding", None)
            if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
                return cls(sharding.mesh if sharding.mesh.size > 1 else None)
        return cls()

    def __str__(self) -> str:
        return "data=1" if self.mesh is None else text_of(self.mesh)

    def told(self) -> str:
        """Which of several devices train, and how many are idle; empty where there is one."""
        used, there = 1 if self.mesh is None else self.mesh.size, len(processes.devices())
        idle = f"; {there - used} of {there} devices idle" if used < there else ""
        return (
            f"trains on {self if used == 1 else f'{used} devices, {self}'}{idle}"
            if there > 1
            else ""
        )

    @property
    def everywhere(self) -> NamedSharding | None:
        """How an array lies that is the same on all devices; None where there is one."""
        return None if self.mesh is None else self._sharding(PartitionSpec())

    @property
    def is_shared(self) -> bool:
        """Whether several processes hold these devices."""
        return self.everywhere is not None and not self.everywhere.is_fully_addressable

    @property
    def shares(self) -> int:
        """Into how many parts a batch is split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[a] for a in self._batch_axes)

    def put(self, items: T) -> T:
        """What the next steps need, on the devices: leaves `[steps, batch, ...]`, and numbers."""
        if self.mesh is None:
            return jax.device_put(items)
        return jax.tree.map(lambda leaf: self._put(leaf, self._spread(np.shape(leaf), 1)), items)

    def resident(self, columns: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
        """Columns that stay on the devices during a whole run; `taken` gives rows of them.

        All of them are on each device, or where that is too much a share of the rows.
        """
        if self.mesh is None:
            return jax.device_put(dict(columns))
        if sum(column.nbytes for column in columns.values()) > REPLICATED_LIMIT_BYTES:
            return {name: self._divided(column) for name, column in columns.items()}
        return {name: self._put(column, PartitionSpec()) for name, column in columns.items()}

    def put_state(self, state: Any) -> Any:
        """A copy of a state for chunks to use up, so that the caller's stays whole.

        Each chunk reuses the memory of the state that it is given. What lies on a mesh already
        stays as it lies.
        """
        if self.mesh is None or Placement.of(state).mesh is not None:
            return _copied(jax.tree.map(_on_default_device, state))
        if hasattr(state, "placement"):
            state = dataclasses.replace(state, placement=self)
        return jax.tree.map(_spread, _copied(state), self.shardings(state))

    def shardings(self, state: PyTree) -> PyTree:
        """How each array of a state is spread over the mesh; of it only shapes count.

        Raises:
            ConfigError: a pattern picks no array that it can spread.
        """
        self._check_patterns(state)
        return map_with_path(lambda path, leaf: self._sharding(self._part(path, leaf)), state)

    def left_whole(self, state: PyTree) -> dict[str, Array]:
        """What is large enough for `fsdp`, and has no axis that it divides, by path."""
        if self.mesh is None or self.mesh.shape.get("fsdp", 1) == 1:
            return {}
        leaves = ((leaf_path(p), x) for p, x in jax.tree_util.tree_leaves_with_path(state))
        return {
            path: leaf
            for path, leaf in leaves
            if leaf.size >= SMALLEST and self._part(path, leaf) == PartitionSpec()
        }

    def spread(self, examples: T) -> T:
        """The examples of a batch, split over the devices; traced into the step."""
        if self.mesh is None:
            return examples

        def split(leaf: Array) -> Array:
            sharding = self._sharding(self._spread(leaf.shape, 0))
            return jax.lax.with_sharding_constraint(leaf, sharding)

        return jax.tree.map(split, examples)

    def gathered(self, params: T) -> T:
        """Parameters whole where `fsdp` spreads them; traced into the loss.

        So a batch stays where it is and parameters come to it. Left to itself JAX's partitioner may
        send the activations instead, which are larger: of BERT base on eight devices eighteen times
        as much (`benchmarks/scaling.py`).
        """
        if self.mesh is None or self.mesh.shape.get("fsdp", 1) == 1:
            return params

        def whole(path: str, leaf: Any) -> Any:
            part = self._part(path, leaf)
            kept = PartitionSpec(*[None if axis == "fsdp" else axis for axis in part])
            if kept == part:
                return leaf
            return jax.lax.with_sharding_constraint(leaf, self._sharding(kept))

        return map_with_path(whole, params)

    def _divided(self, column: np.ndarray) -> jax.Array:
        """A column whose rows the devices share, the last of them with some that are empty.

        What several devices add up to give a row of one of them is its bits, as whole numbers: a
        float would lose the sign of its zeros.
        """
        assert self.mesh is not None
        rows = -(-len(column) // self.mesh.size)
        held = column.astype(jax.dtypes.canonicalize_dtype(column.dtype), copy=False)
        is_float = jnp.issubdtype(held.dtype, jnp.floating)
        bits = held.view(f"u{held.itemsize}") if is_float else held

        def share(part: Any) -> np.ndarray:
            found = bits[part]
            return np.pad(found, [(0, rows - len(found)), *[(0, 0)] * (found.ndim - 1)])

        return jax.make_array_from_callback(
            (rows * self.mesh.size, *column.shape[1:]),
            self._sharding(PartitionSpec(self.mesh.axis_names)),
            share,
        )

    @property
    def _batch_axes(self) -> tuple[str, ...]:
        assert self.mesh is not None
        return tuple(name for name in BATCH_AXES if name in self.mesh.shape)

    def _spread(self, shape: tuple[int, ...], axis: int) -> PartitionSpec:
        """Split along `axis` where that divides."""
        if len(shape) <= axis or shape[axis] % self.shares or not shape[axis]:
            return PartitionSpec()
        return PartitionSpec(*[None] * axis, self._batch_axes)

    def _part(self, path: str, leaf: Array) -> PartitionSpec:
        """Of an array of a state: as a pattern says, or by the largest axis that `fsdp` divides.

        What an optimiser keeps for a parameter has its path at the end of its own.
        """
        assert self.mesh is not None
        for pattern, part in self.patterns:
            if len(part) == leaf.ndim and matches(path, f"**/{pattern}"):
                return part
        parts = self.mesh.shape.get("fsdp", 1)
        dividing = [axis for axis, size in enumerate(leaf.shape) if size and size % parts == 0]
        if parts == 1 or leaf.size < SMALLEST or not dividing:
            return PartitionSpec()
        largest = max(dividing, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*[None] * largest, "fsdp")

    def _check_patterns(self, state: PyTree) -> None:
        """Whether each pattern picks an array that it can spread.

        Raises:
            ConfigError: it picks none of as many axes, or an axis that does not divide.
        """
        forms = {leaf_path(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(state)}
        for pattern, part in self.patterns:
            picked = {
                path: shape
                for path, shape in forms.items()
                if len(shape) == len(part) and matches(path, f"**/{pattern}")
            }
            if not picked:
                raise ConfigError(
                    f"sharding: {pattern!r} picks no array of {len(part)} axes, as {part} asks for"
                )
            for path, shape in picked.items():
                try:
                    self._sharding(part).shard_shape(shape)
                except ValueError as error:
                    raise ConfigError(
                        f"sharding: {path} has the shape {shape}, which {part} cannot divide over "
                        f"mesh {self}"
                    ) from error

    def _put(self, array: Any, part: PartitionSpec) -> jax.Array:
        return _spread(array, self._sharding(part))

    def _sharding(self, part: PartitionSpec) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, part)


ONE = Placement()
"""A single device."""


def placement(
    mesh: Any = None,
    batch_size: int | None = None,
    sharding: Mapping[str, PartitionSpec] | None = None,
    state: PyTree = None,
) -> Placement:
    """The devices that `mesh` names, or those on which a state lies already.

    What does not divide, such as the last batch of an evaluation, is the same on every device.

    Args:
        mesh: sizes by axis, `"data=2,fsdp=4"`, or a `jax.sharding.Mesh` with these axes. None for
            as many of the devices as share the batch evenly, or for that of `jax.default_device`.
        batch_size: examples in a batch, if that is known.
        sharding: how to spread arrays of the state whose paths the patterns pick.
        state: where it lies on a mesh, that is the one unless another is named.

    Raises:
        ConfigError: there are not as many devices, an axis is not known, the batch cannot be
            shared evenly, `sharding` is no such mapping, or processes cannot share the devices.
    """
    if jax.process_count() > 1 and not processes.are_connected():
        raise ConfigError(
            f"there are {jax.process_count()} processes that cannot talk to each other; call "
            "jax.distributed.initialize() at the beginning of the program"
        )
    there = Placement.of(state)
    if mesh is None and there.mesh is not None:
        mesh = there.mesh
    elif mesh is None:
        mesh = "data=1" if default_device() is not None else sharing(batch_size)
    made = mesh_of(mesh)
    where = Placement(made if made.size > 1 else None, checked_sharding(sharding, made))
    if batch_size is not None and batch_size % where.shares:
        raise ConfigError(
            f"mesh is {where}, over which a batch of {batch_size} cannot be shared evenly; "
            f"take a batch size of {nearest(batch_size, where.shares)}"
        )
    return where


def taken(column: Array, index: Any, dtype: np.dtype) -> Array:
    """Rows, or parts of them, of a column that stays on the devices and was a `dtype`; traced."""
    found = column[index]
    if jnp.issubdtype(found.dtype, jnp.floating) or not jnp.issubdtype(dtype, jnp.floating):
        return found
    return jax.lax.bitcast_convert_type(found, jax.dtypes.canonicalize_dtype(dtype))


def _spread(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, or can read a part of, over the devices of all of them."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _spread(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jax.make_array_from_callback(np.shape(array), sharding, lambda part: array[part])


def _on_default_device(leaf: jax.Array) -> jax.Array:
    """An array that JAX may move, where it now computes; any other as it lies."""
    device = default_device()
    return leaf if device is None or leaf.committed else jax.device_put(leaf, device)


def gather(tree: T) -> T:
    """Arrays whole on one device of this process, wherever the devices of a mesh hold them.

    All processes of the mesh must ask for it.
    """
    where = Placement.of(tree)
    if where.mesh is None:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=where.everywhere)(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def put(array: Any, sharding: Any = None) -> jax.Array:
    """An array of the host on a device, with memory of its own; `jnp.asarray` compiles for that."""
    # Without the copy the result may be the same memory, also with `may_alias=False`.
    return jax.device_put(np.array(array), sharding)


def put_like(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """An array that lies as `leaf` does."""
    return put(array, leaf.sharding if leaf.committed else None)


def to_host(state: T) -> T:
    """A copy of a state in the host's memory.

    On the devices where JAX is to use no CPU, or several processes hold it.
    """
    copy = _copied(state)
    if jax.default_backend() != "cpu" and processes.count() == 1:
        with suppress(RuntimeError):
            copy = jax.device_put(copy, jax.local_devices(backend="cpu")[0])
    return copy


def _copied(state: T) -> T:
    leaves, structure = jax.tree.flatten(state)
    copy: T = jax.tree.unflatten(structure, _copies(leaves))
    return copy


# Of the arrays and not of the state, whose optimiser is another object in each run of a process.
@jax.jit
def _copies(leaves: list[Array]) -> list[Array]:
    return list(map(jnp.copy, leaves))
