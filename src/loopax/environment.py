"""What results depend on besides code and inputs: what a run is made with, and what has changed."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from loopax import processes
from loopax.errors import ConfigError

PACKAGES = ("loopax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
VARIABLES = ("NPROC", "XLA_FLAGS")
"""Of the environment only these are ever recorded; others may be secrets."""
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")
"""The lines of `/proc/cpuinfo`, on x86 and on ARM, by which XLA chooses its instructions."""


def provenance() -> dict[str, Any]:
    """Who and what made a result: time, command, host, versions, devices, revision."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "packages": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": jax.default_backend(),
        "visible_cores": visible_cores(),
        "git": _git_revision(),
    }


def versions() -> dict[str, str | None]:
    """Of the packages on which results depend."""
    return {name: _version(name) for name in PACKAGES}


def numerics(mesh: str = "data=1") -> dict[str, Any]:
    """The part of the environment that can change the bits of a result; None where unset.

    XLA on a CPU divides sums among the visible cores unless `NPROC` fixes their number; `mesh` says
    among which devices a batch is divided.
    """
    devices = jax.devices()
    # One process that is connected to no other sums by XLA's own collectives, in another order.
    collectives = {"jax_cpu_collectives_implementation"} if processes.are_connected() else set()
    return {
        "jax": _version("jax"),
        "jaxlib": _version("jaxlib"),
        "platform": jax.default_backend(),
        "device_kinds": sorted({str(device.device_kind) for device in devices}),
        "device_count": len(devices),
        "mesh": mesh,
        "cpu": cpu_kind(),
        "visible_cores": visible_cores(),
        **{name: os.environ.get(name) for name in VARIABLES},
        **{name: getattr(jax.config, name) for name in (*SETTINGS, *collectives)},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `numerics`, a line each: `visible_cores 2 -> 1`.

    What only one of the two knows of is `unknown` in the other.
    """
    if not before:
        return ["numerics unknown -> recorded"]
    lines = {name: f"{name} {_at(before, name)} -> {_at(now, name)}" for name in {**now, **before}}
    return [
        line
        for name, line in lines.items()
        if name not in before or name not in now or before[name] != now[name]
    ]


def check_fork() -> None:
    """Makes sure that JAX works in this process.

    Raises:
        ConfigError: it was forked from one in which JAX had started; a step would wait for ever
            for threads that the fork did not copy.
    """
    alone = False
    with suppress(Exception):  # Only Linux tells, and JAX by what is its own.
        from jax._src import xla_bridge

        threads = len(os.listdir("/proc/self/task"))
        alone = threads == 1 and xla_bridge.backends_are_initialized()
    if alone:
        raise ConfigError(
            "this process was forked from one in which JAX had started, and JAX does not work "
            "here; start processes by multiprocessing.get_context('spawn')"
        )


def _at(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "unknown"
    return "unset" if values[name] is None else repr(values[name])


def visible_cores() -> int | None:
    """Cores that this process may use; None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@functools.cache
def cpu_kind() -> str | None:
    """The CPU's name, and a short hash of it and of its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":")[::2] for line in lines)
    known = sorted({(k.strip(), v.strip()) for k, v in pairs if k.strip() in CPU_FIELDS})
    digest = hashlib.sha256(repr(known).encode()).hexdigest()[:12]
    return f"{dict(known).get('model name', platform.machine())} {digest}" if known else None


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> dict[str, Any] | None:
    """The revision of the working directory's repository, when it is in one."""
    try:
        revision, status = (
            subprocess.run(
                ["git", *command], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "changed": bool(status)}
