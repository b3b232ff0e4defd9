"""When the device's or the host's memory is too small: one line that says what would help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from loopax.batches.base import Items
from loopax.compute.program import TrainProgram
from loopax.compute.state import TrainState
from loopax.errors import DeviceMemoryError
from loopax.paths import PyTree


@contextmanager
def explaining_memory(
    train: TrainProgram, current: Callable[[], tuple[TrainState, Items | None]]
) -> Iterator[None]:
    """Makes an error of the device or the host one line that says what would help.

    Args:
        train: the program that runs inside.
        current: gives the state and the items that it was last called with, or None for the items
            where there are none yet. The state may be donated already.

    Raises:
        DeviceMemoryError: there was too little memory.
    """
    try:
        yield
    except DeviceMemoryError:
        raise
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        message = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in message:
            raise
        raise DeviceMemoryError(_advice(message, train, *current())) from error


def _advice(message: str, train: TrainProgram, state: TrainState, items: Items | None) -> str:
    reason = (message.strip().splitlines() or ["nothing more is known"])[0]
    reason = re.sub("^RESOURCE_EXHAUSTED: |out of memory:? ?", "", reason, flags=re.IGNORECASE)
    reason = re.sub(r"(\d+) bytes", lambda match: binary(int(match[1])), reason).rstrip(".")
    facts = [f"the state takes {binary(nbytes(state))}"]
    if items is not None:
        facts.insert(0, f"batch size {batch_size(train, state, items):,}")
        temporary = _temporary_bytes(train, state, items, message)
        facts += [] if temporary is None else [f"a step needs {binary(temporary)} beside it"]
    return (
        f"out of memory: {reason} ({', '.join(facts)}); make the batch size smaller, accumulate "
        "gradients (loopax.Optimizer(accumulate=...), optax.MultiSteps), compute in half as many "
        "bits (TrainState.create(compute_dtype='bfloat16')), or recompute activations instead of "
        "keeping them (remat='dots', or jax.checkpoint and nn.remat around each layer)"
    )


def _temporary_bytes(
    train: TrainProgram, state: TrainState, items: Items, message: str
) -> int | None:
    """From the compilation that is there already; None where there is none."""
    if not train.is_compiled or "compil" in message.lower():
        return None
    try:
        memory = train.compiled(state, items).memory_analysis()
    except jax.errors.JaxRuntimeError:
        return None
    return getattr(memory, "temp_size_in_bytes", None)


def batch_size(train: TrainProgram, state: TrainState, items: Items) -> int:
    """The leading axis of a batch; 1 where no leaf has one."""
    leaves = jax.tree.leaves(train.batch(state, items))
    return next((leaf.shape[0] for leaf in leaves if leaf.shape), 1)


def nbytes(tree: PyTree) -> int:
    """What all leaves take, in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def binary(count: float) -> str:
    """`4.7 MiB`."""
    power = min((max(int(count), 1).bit_length() - 1) // 10, 5)
    unit = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[power]
    return f"{count / 1024**power:,.{1 if power else 0}f} {unit}"
