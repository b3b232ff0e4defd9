"""Whether a run would go well here: versions, devices, processes, cache, disk, and a small run.

What would stop a run is found by training one: a small network for a few seconds, in a run
directory of its own that is gone afterwards.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from packaging.requirements import Requirement

from loopax.batches.dataset import Dataset
from loopax.caches import cache_dir
from loopax.compute.memory import binary
from loopax.compute.state import TrainState
from loopax.compute.step import train_step
from loopax.environment import cpu_kind, visible_cores
from loopax.errors import ConfigError, LoopaxError
from loopax.fitting import training

BATCH_SIZE, EXAMPLES, PIXELS, STEPS = 16, 1600, 784, 100
ENOUGH_BYTES = 100 * 2**20
"""Below it a disk is as good as full: two checkpoints of a small model."""
UNUSED = {
    "/dev/nvidia0": ("an NVIDIA GPU", "gpu", "pip install 'jax[cuda13]' or 'jax[cuda12]'"),
    "/dev/kfd": ("an AMD GPU", "gpu", "see JAX's installation guide for ROCm"),
    "/dev/accel0": ("a TPU", "tpu", "pip install 'jax[tpu]'"),
}
"""Files of devices that JAX may not have been installed for: what, its backend, what to do."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: what was looked at.
        text: how it is.
        advice: what would be better, or right; empty where all is well.
        stops: whether a run would fail by it.
    """

    name: str
    text: str
    advice: str = ""
    stops: bool = False

    def lines(self) -> list[str]:
        """For people: the finding, and what is to be done in a line of its own."""
        sign = "wrong" if self.stops else "hint"
        return [f"{self.name:<12}{self.text}", *([f"  {sign}: {self.advice}"] * bool(self.advice))]


def findings(directory: str | os.PathLike[str] = "runs", seconds: float = 5.0) -> Iterator[Finding]:
    """What a run in `directory` would meet on this machine, one after the other.

    Args:
        directory: where runs go; nothing is left in it.
        seconds: how long to train.
    """
    place = Path(directory).expanduser().absolute()
    for check in (_versions, _devices):
        yield (finding := check())
        if finding.stops:
            return  # nothing that follows could be asked
    yield _processes()
    yield _cache()
    yield (room := _disk(place))
    if not room.stops:
        yield _rate(place, seconds)


def _versions() -> Finding:
    """Of what loopax needs, beside what it was made to work with."""
    found, wrong = {}, []
    for line in metadata.requires("loopax") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found[needed.name] = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found[needed.name] = "missing"
        if not needed.specifier.contains(found[needed.name], prereleases=True):
            wrong.append(f"{needed.name} {found[needed.name]}, and {needed.specifier} is needed")
    # A pair of versions that pip lets through may still fail where one imports the other.
    for name in ("flax.nnx", "optax", "orbax.checkpoint"):
        try:
            importlib.import_module(name)
        except Exception as error:
            wrong.append(f"import {name} fails ({_one_line(error)})")
    told = {name: found.get(name, "?") for name in ("jax", "flax", "optax", "orbax-checkpoint")}
    said = ", ".join(f"{name} {version}" for name, version in told.items())
    text = f"loopax {metadata.version('loopax')}, Python {platform.python_version()}, {said}"
    advice = f"{'; '.join(wrong)}; pip install -U loopax" if wrong else ""
    return Finding("versions", text, advice, stops=bool(wrong))


def _devices() -> Finding:
    """Those that train, and those that JAX does not see."""
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        named = f"JAX_PLATFORMS is {platforms!r}; unset it, or " if platforms else ""
        advice = f"{_one_line(error)}; {named}install JAX for this machine's devices"
        return Finding("devices", "none", advice, stops=True)
    kind = devices[0].device_kind
    text = f"{len(devices)} x {kind}"
    if limit := (devices[0].memory_stats() or {}).get("bytes_limit"):
        text += f" with {binary(limit)} each"
    if kind == "cpu":
        text += f", {cpu_kind()}, {visible_cores()} cores"
    advice = "; ".join(
        f"{what} is here, and JAX does not use it: {how}"
        for file, (what, backend, how) in UNUSED.items()
        if os.path.exists(file) and jax.default_backend() != backend
    )
    return Finding("devices", text, advice)


def _processes() -> Finding:
    count = jax.process_count()
    together = f", with {len(jax.devices())} devices together" if count > 1 else ""
    return Finding("processes", f"{count}{together}")


def _cache() -> Finding:
    """What is kept for the next time, and where."""
    try:
        folder = cache_dir()
    except ConfigError as error:
        return Finding("cache", "none", str(error))
    existing = _existing(folder)
    if not os.access(existing, os.W_OK):
        advice = f"{existing} cannot be written; let LOOPAX_CACHE name a folder"
        return Finding("cache", f"{folder}", advice)
    parts = list(folder.iterdir()) if folder.is_dir() else []
    sizes = ", ".join(f"{part.name} {binary(_size(part))}" for part in sorted(parts))
    return Finding("cache", f"{folder}: {sizes or 'empty'}")


def _disk(place: Path) -> Finding:
    """Room where runs go."""
    existing = _existing(place)
    free = shutil.disk_usage(existing).free
    advice = ""
    if not existing.is_dir():
        advice = f"{existing} is a file; name a directory"
    elif not os.access(existing, os.W_OK):
        advice = f"{existing} cannot be written; name another directory"
    elif free < ENOUGH_BYTES:  # also of what is no disk, such as /proc
        advice = f"less than {binary(ENOUGH_BYTES)} are free; make room or name another directory"
    return Finding("disk", f"{place}: {binary(free)} free", advice, stops=bool(advice))


def _rate(place: Path, seconds: float) -> Finding:
    """Steps a second of a real run, beside the same steps without a loop around them."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_existing(place)) as folder:
            by_fit = _fit_rate(Path(folder) / "run", seconds / 2)
    except (LoopaxError, OSError) as error:
        advice = f"a small run failed: {_one_line(error)}"
        return Finding("rate", "none", advice, stops=True)
    bare = _scan_rate(seconds / 2)
    text = f"{by_fit:,.0f} steps/s of a small network, {bare:,.0f} in a bare scan"
    return Finding("rate", f"{text} ({by_fit / bare:.2f})")


def _fit_rate(run_dir: Path, seconds: float) -> float:
    """Of a run with its log, its checkpoints and all, from its first whole chunk on."""
    began, first, step = 0.0, 0, 0
    with training(
        _state(),
        _loss,
        _digits().batches(BATCH_SIZE),
        steps=10**9,
        run_dir=run_dir,
        log_every=STEPS,
        probe_every=None,
        chunk_steps=STEPS,
        mesh="data=1",  # as the scan beside it
        progress=False,
    ) as run:
        for chunk in run:
            step = chunk.stop
            if not first:
                began, first = time.perf_counter(), step
            elif time.perf_counter() - began > seconds:
                break
        jax.block_until_ready(run.state.step)
        return (step - first) / (time.perf_counter() - began)


def _scan_rate(seconds: float) -> float:
    """Of the same step in a scan, which nothing watches."""
    columns = jax.tree.map(jnp.asarray, dict(_digits().columns))
    rows = np.arange(STEPS * BATCH_SIZE, dtype=np.int32).reshape(STEPS, BATCH_SIZE) % EXAMPLES
    step = train_step(_loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state: TrainState) -> TrainState:
        def body(state: TrainState, row: Any) -> tuple[TrainState, None]:
            return step(state, {name: column[row] for name, column in columns.items()})[0], None

        return jax.lax.scan(body, state, rows)[0]

    state, steps = jax.block_until_ready(chunk(_state())), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        state, steps = jax.block_until_ready(chunk(state)), steps + STEPS
    return steps / (time.perf_counter() - began)


def _state() -> TrainState:
    """A network of two layers and 100,000 parameters."""
    generator = np.random.default_rng(0)
    weights = {
        "hidden": generator.normal(size=(PIXELS, 128), scale=0.03).astype(np.float32),
        "out": generator.normal(size=(128, 10), scale=0.03).astype(np.float32),
    }
    return TrainState.create(params=weights, tx=optax.adam(1e-3))


def _loss(params: Any, batch: Any, rngs: Any) -> Any:
    del rngs
    logits = jax.nn.relu(batch["x"] @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def _digits() -> Dataset:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(EXAMPLES, PIXELS)).astype(np.float32)
    return Dataset({"x": x, "label": (np.arange(EXAMPLES) % 10).astype(np.int32)})


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _size(path: Path) -> int:
    """Bytes of all files below a path."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
