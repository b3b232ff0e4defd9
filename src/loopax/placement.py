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

from loopax.errors import ConfigError
from loopax.paths import PyTree, leaf_path, map_with_path, matches

T = TypeVar("T")

BATCH_AXES = ("data", "fsdp")
"""The axes of a mesh that share the examples of a batch."""
AXES = (*BATCH_AXES, "tensor")
SMALLEST = 1024
"""Elements of an array that is worth spreading; smaller ones are the same on every device."""


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
        if self.mesh is None:
            return "data=1"
        return ",".join(f"{name}={size}" for name, size in self.mesh.shape.items())

    def told(self) -> str:
        """Which of several devices train, and how many are idle; empty where there is one."""
        used, there = 1 if self.mesh is None else self.mesh.size, len(jax.devices())
        idle = f"; {there - used} of {there} devices are idle" if used < there else ""
        return (
            f"trains on {self if used == 1 else f'{used} devices, {self}'}{idle}"
            if there > 1
            else ""
        )

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
        """Columns that stay on the devices during a whole run, all of them on each."""
        if self.mesh is None:
            return jax.device_put(dict(columns))
        return {name: self._put(column, PartitionSpec()) for name, column in columns.items()}

    def put_state(self, state: Any) -> Any:
        """A copy of a state for chunks to use up, so that the caller's stays whole.

        Each chunk reuses the memory of the state that it is given. What lies on a mesh already
        stays as it lies.
        """
        if self.mesh is None or Placement.of(state).mesh is not None:
            return jax.tree.map(lambda leaf: jnp.copy(_on_default_device(leaf)), state)
        if hasattr(state, "placement"):
            state = dataclasses.replace(state, placement=self)
        return jax.tree.map(
            lambda leaf, sharding: jax.device_put(jnp.copy(leaf), sharding),
            state,
            self.shardings(state),
        )

    def shardings(self, state: PyTree) -> PyTree:
        """How each array of a state is spread over the mesh; of it only shapes count.

        Raises:
            ConfigError: a pattern picks no array that it can spread.
        """
        self._check_patterns(state)
        return map_with_path(lambda path, leaf: self._sharding(self._part(path, leaf)), state)

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
        return jax.device_put(array, self._sharding(part))

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
            shared evenly, `sharding` is no such mapping, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"this is process {jax.process_index()} of {jax.process_count()}; a run is trained by "
            "one process with all its devices: leave jax.distributed.initialize() out"
        )
    there, devices = Placement.of(state), jax.devices()
    if mesh is None and there.mesh is not None:
        mesh = there.mesh
    elif mesh is None:
        alone = default_device() is not None
        shares = 1 if alone else math.gcd(len(devices), batch_size or len(devices))
        mesh = f"data={shares}"
    made = mesh if isinstance(mesh, Mesh) else _mesh(_sizes(mesh))
    unknown = [name for name in made.axis_names if name not in AXES]
    if unknown:
        raise ConfigError(f"mesh has the axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    where = Placement(made if made.size > 1 else None, _checked_sharding(sharding, made))
    if batch_size is not None and batch_size % where.shares:
        below = batch_size // where.shares * where.shares
        near = f"{below} or {below + where.shares}" if below else f"{where.shares}"
        raise ConfigError(
            f"mesh is {where}, over which a batch of {batch_size} cannot be shared evenly; "
            f"take a batch size of {near}"
        )
    return where


def default_device() -> jax.Device | None:
    """That of `jax.default_device`; None where nobody has chosen one."""
    chosen = getattr(jax.config, "jax_default_device", None)
    return chosen if isinstance(chosen, jax.Device) else None


def _on_default_device(leaf: jax.Array) -> jax.Array:
    """An array that JAX may move, where it now computes; any other as it lies."""
    device = default_device()
    return leaf if device is None or leaf.committed else jax.device_put(leaf, device)


def _checked_sharding(
    sharding: Mapping[str, PartitionSpec] | None, mesh: Mesh
) -> tuple[tuple[str, PartitionSpec], ...]:
    for pattern, part in (sharding or {}).items():
        names = [name for each in part for name in (each if isinstance(each, tuple) else (each,))]
        if not isinstance(part, PartitionSpec) or not {*names} <= {None, *mesh.axis_names}:
            raise ConfigError(
                f"sharding: {pattern!r} is {part!r}; it must be a jax.sharding.PartitionSpec of "
                f"the axes {', '.join(mesh.axis_names)}"
            )
    return tuple((sharding or {}).items())


def _sizes(mesh: Any) -> dict[str, int]:
    """The size of each axis that a text names."""
    wrong = f"mesh is {mesh!r}; it must be a text such as 'data=2,fsdp=4', or a jax.sharding.Mesh"
    if not isinstance(mesh, str):
        raise ConfigError(wrong)
    pairs = [part.partition("=") for part in mesh.replace(" ", "").split(",")]
    sizes = {name: int(size) for name, _, size in pairs if size.isdecimal() and int(size)}
    if len(sizes) != len(pairs):
        raise ConfigError(wrong)
    return sizes


def _mesh(sizes: Mapping[str, int]) -> Mesh:
    devices, wanted = jax.devices(), math.prod(sizes.values())
    if wanted > len(devices):
        named = ",".join(f"{name}={size}" for name, size in sizes.items())
        raise ConfigError(f"mesh is {named}, {wanted} devices; there are {len(devices)}")
    chosen = devices[:wanted]
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
        devices=chosen,
    )


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
