"""What a mesh of devices is, how a text names one, and which devices it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from loopax import processes
from loopax.errors import ConfigError

BATCH_AXES = ("data", "fsdp")
"""The axes of a mesh that share the examples of a batch."""
AXES = (*BATCH_AXES, "tensor")


def mesh_of(mesh: Any) -> Mesh:
    """The mesh that a text names, such as `"data=2,fsdp=4"`, or a `jax.sharding.Mesh` itself.

    Raises:
        ConfigError: it is none of both, an axis is not known, there are not as many devices, or a
            process would have none of them.
    """
    made = mesh if isinstance(mesh, Mesh) else _made(_sizes(mesh))
    if unknown := [name for name in made.axis_names if name not in AXES]:
        raise ConfigError(f"mesh has the axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    held = {device.process_index for device in made.devices.flat}
    if processes.count() > 1 and (idle := set(range(processes.count())) - held):
        raise ConfigError(
            f"mesh is {text_of(made)}, and process {min(idle)} of {processes.count()} would have "
            "no device of it; every process must train"
        )
    return made


def text_of(mesh: Mesh) -> str:
    """A mesh as `mesh_of` takes it."""
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())


def sharing(batch_size: int | None) -> str:
    """The mesh of as many devices as share a batch evenly, the same number in each process.

    Raises:
        ConfigError: the processes cannot share it evenly.
    """
    devices, each = len(processes.devices()), processes.count()
    shares = math.gcd(devices, batch_size or devices)
    if shares % each:
        raise ConfigError(
            f"a batch of {batch_size} cannot be shared evenly by {devices} devices of {each} "
            f"processes; take a batch size of {nearest(batch_size, devices)}"
        )
    return f"data={shares}"


def nearest(batch_size: int | None, shares: int) -> str:
    """The nearest batch sizes that can be shared, in words."""
    below = (batch_size or 0) // shares * shares
    return f"{below} or {below + shares}" if below else f"{shares}"


def default_device() -> jax.Device | None:
    """That of `jax.default_device`; None where nobody has chosen one."""
    chosen = getattr(jax.config, "jax_default_device", None)
    return chosen if isinstance(chosen, jax.Device) else None


def checked_sharding(
    sharding: Mapping[str, PartitionSpec] | None, mesh: Mesh
) -> tuple[tuple[str, PartitionSpec], ...]:
    """How arrays are to be spread over a mesh, by patterns of paths.

    Raises:
        ConfigError: what a pattern stands for is no `PartitionSpec` of its axes.
    """
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


def _made(sizes: Mapping[str, int]) -> Mesh:
    devices, wanted = processes.devices(), math.prod(sizes.values())
    named = ",".join(f"{name}={size}" for name, size in sizes.items())
    if wanted > len(devices):
        raise ConfigError(f"mesh is {named}, {wanted} devices; there are {len(devices)}")
    each, rest = divmod(wanted, processes.count())
    if rest:
        raise ConfigError(
            f"mesh is {named}, {wanted} devices; {processes.count()} processes cannot hold as many "
            f"each; name a multiple of {processes.count()}, {len(devices)} at most"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
        devices=[device for process in _by_process(devices) for device in process[:each]],
    )


def _by_process(devices: list[jax.Device]) -> list[list[jax.Device]]:
    indices = sorted({device.process_index for device in devices})
    return [[device for device in devices if device.process_index == each] for each in indices]
