"""What a training step costs, measured before the run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from loopax import jaxprs, processes
from loopax.account import Account
from loopax.arguments import as_state
from loopax.batches.base import Batches, Feed, Items
from loopax.batches.iterable import as_batches
from loopax.batches.stacks import on_device
from loopax.compute.losses import Batch, LossFn
from loopax.compute.memory import batch_size, binary, explaining_memory, nbytes
from loopax.compute.program import TrainProgram
from loopax.compute.state import TrainState
from loopax.compute.step import train_step
from loopax.diagnose.collectives import Traffic, collectives
from loopax.errors import ConfigError
from loopax.paths import forms
from loopax.placement import Placement, placement

CAPACITY = 100
CHUNK_SECONDS = 0.2


@dataclass(frozen=True)
class Estimate:
    """What a step costs; memory is that of one device, whose share of a batch it computes.

    Attributes:
        device: the kind of device it was measured on.
        mesh: how many devices, as `fit` takes them.
        state_bytes: what of the state lies on one device.
        collectives: what the devices send each other in a step, by kind.
        batch_size: the leading axis of a batch.
        trainable, frozen: numbers of parameters.
        trainable_bytes, frozen_bytes, optimizer_bytes: what these and the optimiser's state take.
        flops_per_step: floating-point operations of a step as XLA counts them before it
            optimises, each iteration of a scan counted; a `while_loop` inside of the step counts
            as one iteration. None where the device's XLA does not count.
        argument_bytes: what is there between steps: the state, and the data on the device.
        temporary_bytes: what a step needs beside it, such as the activations.
        peak_bytes: both, and what of the result does not take an argument's place.
        compute_dtype, remat: how the loss of the state is computed; None where nothing is said.
        computed_share: the part of the operations of matrix products and convolutions that is done
            in `compute_dtype`; what something lifts to float32, such as a constant or noise, is
            not. None without a `compute_dtype`.
        plain_temporary_bytes: what a step would need beside the state without `compute_dtype` and
            `remat`; None where there is neither.
        seconds_per_step: measured in the training program itself, the median over its chunks.
        steps_per_epoch: None where the data has no known length.
    """

    device: str
    mesh: str
    state_bytes: int
    collectives: Mapping[str, Traffic]
    batch_size: int
    trainable: int
    frozen: int
    trainable_bytes: int
    frozen_bytes: int
    optimizer_bytes: int
    flops_per_step: float | None
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    compute_dtype: str | None
    computed_share: float | None
    remat: str | None
    plain_temporary_bytes: int | None
    seconds_per_step: float
    steps_per_epoch: int | None

    def lines(self) -> list[str]:
        """The estimate for people."""
        step = f"{_scaled(self.seconds_per_step, 's')} on {self.device}"
        if self.flops_per_step is not None:
            speed = self.flops_per_step / self.seconds_per_step
            step += f", {_scaled(self.flops_per_step, 'FLOP')} ({_scaled(speed, 'FLOP/s')})"
        lines = [
            f"parameters  {self.trainable:,} trainable ({binary(self.trainable_bytes)}), "
            f"{self.frozen:,} frozen ({binary(self.frozen_bytes)})",
            f"optimiser   {binary(self.optimizer_bytes)}",
            f"memory      {binary(self.peak_bytes)} at its peak: "
            f"{binary(self.argument_bytes)} of state and data, "
            f"{binary(self.temporary_bytes)} temporary",
            f"step        {step}, batch size {self.batch_size:,}",
        ]
        if self.mesh != "data=1":
            sent = ", ".join(
                f"{each.calls} {kind} of {binary(each.nbytes)}"
                for kind, each in self.collectives.items()
            )
            lines.insert(
                3,
                f"devices     {self.mesh}, {binary(self.state_bytes)} of the state on each; a "
                f"step sends {sent or 'nothing'}",
            )
        if self.plain_temporary_bytes is not None:
            lines.insert(3, f"computing   {self._computing}")
        if self.steps_per_epoch is not None:
            seconds = self.steps_per_epoch * self.seconds_per_step
            duration = f"{seconds:,.0f} s" if seconds >= 100 else _scaled(seconds, "s")
            lines.append(f"epoch       {duration}, {self.steps_per_epoch:,} steps")
        return lines

    @property
    def _computing(self) -> str:
        how = [] if self.remat is None else [f"remat {self.remat}"]
        if self.computed_share is not None:
            how.insert(0, f"{self.compute_dtype} ({self.computed_share:.0%} of all products)")
        assert self.plain_temporary_bytes is not None
        saved = self.plain_temporary_bytes - self.temporary_bytes
        change = f"{binary(abs(saved))} {'less' if saved >= 0 else 'more'}"
        return f"{', '.join(how)}: {change} temporary than without"


def estimate(
    state: TrainState,
    loss_fn: LossFn,
    data: Any,
    *,
    mesh: Any = None,
    sharding: Mapping[str, Any] | None = None,
    seconds: float = 2.0,
) -> Estimate:
    """What one step of `fit` with these arguments will cost, from the program that it will run.

    A few chunks are trained on a copy of the state, with the first batches of the data. Nothing
    is written, and the state stays as it is.

    Args:
        state, loss_fn, data: as for `fit`; `data` must be something that can be begun again.
        mesh, sharding: as for `fit`.
        seconds: about how long to measure, beside one compilation. At least one step is made.

    Raises:
        ConfigError: `data` is an iterator, which would lose the batches that are read here.
        DataError: there is no batch.
        DeviceMemoryError: the step does not fit.
    """
    state = as_state(state, loss_fn, data)
    if isinstance(data, Iterator):
        raise ConfigError(
            f"data is a {type(data).__name__}, and the batches that estimate reads would be gone; "
            "give something that can be iterated more than once"
        )
    batches = as_batches(data)
    where = placement(mesh, getattr(batches, "batch_size", None), sharding, state)
    if processes.count() > 1:
        processes.same({"mesh": where, "the state": forms(state), "the data": batches.content})
    train = TrainProgram(loss_fn, batches, Account(), where)
    feed = batches.feed([0], 0, CAPACITY)
    items = on_device(feed.take(1), where)
    copy = where.put_state(state)
    held = sum(map(_held, jax.tree.leaves(copy)))
    with explaining_memory(train, lambda: (copy, items)):
        program = train.compiled(copy, items)
        memory: Any = program.memory_analysis()
        pace = _seconds_per_step(train, copy, items, feed, seconds)
    trainable = jax.tree.leaves(state.trainable)
    frozen = jax.tree.leaves(state.frozen)
    return Estimate(
        device=next(iter(trainable[0].devices())).device_kind,
        mesh=str(where),
        state_bytes=held,
        collectives=collectives(program),
        batch_size=batch_size(train, state, items),
        trainable=sum(leaf.size for leaf in trainable),
        frozen=sum(leaf.size for leaf in frozen),
        trainable_bytes=nbytes(trainable),
        frozen_bytes=nbytes(frozen),
        optimizer_bytes=nbytes(state.opt_state),
        flops_per_step=flops(train_step(loss_fn), state, train.batch(state, items)),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        compute_dtype=None if state.precision is None else str(state.precision),
        computed_share=_computed_share(loss_fn, state, train.batch(state, items)),
        remat=state.remat,
        plain_temporary_bytes=_plain_temporary_bytes(loss_fn, batches, where, state, items),
        seconds_per_step=pace,
        steps_per_epoch=batches.steps_per_epoch,
    )


def _held(leaf: jax.Array) -> int:
    """What one device has of an array, in bytes."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _plain_temporary_bytes(
    loss_fn: LossFn, batches: Batches, where: Placement, state: TrainState, items: Items
) -> int | None:
    """Those of the same step in the types of the parameters, with all kept that it needs."""
    if state.precision is None and state.remat is None:
        return None
    train = TrainProgram(loss_fn, batches, Account(), where)
    plain = where.put_state(state.replace(precision=None, remat=None))
    memory: Any = train.compiled(plain, items).memory_analysis()
    return memory.temp_size_in_bytes


def _computed_share(loss_fn: LossFn, state: TrainState, batch: Batch) -> float | None:
    """The part of a step's products whose factors are all of the type to compute in."""
    if state.precision is None:
        return None
    counts = {True: 0.0, False: 0.0}
    for equation, around in jaxprs.walk(jax.make_jaxpr(train_step(loss_fn))(state, batch)):
        if count := _multiplications(equation):
            factors: list[Any] = [factor.aval for factor in equation.invars]
            in_it = {factor.dtype.name for factor in factors} == {state.precision.dtype}
            counts[in_it] += count * math.prod(map(_length, around))
    return counts[True] / (sum(counts.values()) or 1.0)


def _multiplications(equation: jaxprs.Equation) -> int:
    """Of a product of matrices or a convolution; 0 for any other operation."""
    if equation.primitive not in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p):
        return 0
    avals: list[Any] = [var.aval for var in (*equation.invars, *equation.outvars)]
    first, second, product = avals
    dimensions = equation.params["dimension_numbers"]
    if equation.primitive is jax.lax.dot_general_p:
        return product.size * math.prod(first.shape[axis] for axis in dimensions[0][0])
    return product.size * second.size // second.shape[dimensions.rhs_spec[0]]


def _seconds_per_step(
    train: TrainProgram, state: TrainState, items: Items, feed: Feed, seconds: float
) -> float:
    """The median over chunks; the first one, which also sets things up, counts only when alone."""
    paces: list[float] = []
    total = 0.0
    while True:
        start, length = time.perf_counter(), int(items.length)
        state, rows = train(state, items)
        losses = rows.columns(length)["loss"]
        # Several processes make the same number of steps.
        duration = processes.agree("duration", time.perf_counter() - start)
        bad = np.flatnonzero(~np.isfinite(losses))
        paces.append(duration / (bad[0] + 1 if bad.size else length))
        total += duration
        if total >= seconds or bad.size:
            return statistics.median(paces[1:] or paces)
        items = on_device(
            feed.take(max(1, min(CAPACITY, int(CHUNK_SECONDS / paces[-1])))), Placement.of(state)
        )


def flops(function: Callable[..., Any], *args: Any) -> float | None:
    """Floating-point operations of a call, each iteration of a scan counted; None if not known.

    As XLA counts them before it optimises: only there loops are counted in the same way always.
    """
    flops = _counted(function, *args)
    if flops is None:
        return None
    for equation, around in jaxprs.walk(jax.make_jaxpr(function)(*args)):
        if equation.primitive.name == "scan":
            (body,) = jaxprs.inner(equation)
            shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
            repetitions = math.prod(map(_length, around)) * (_length(equation) - 1)
            flops += repetitions * (_counted(jaxprs.as_function(body), *shapes) or 0.0)
    return flops


def _counted(function: Callable[..., Any], *args: Any) -> float | None:
    """By XLA, which takes the body of a loop once."""
    analysis: Any = jax.jit(function).lower(*args).cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def _length(equation: jaxprs.Equation) -> int:
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _scaled(value: float, unit: str) -> str:
    """`12.3 GFLOP`, `4.2 ms`."""
    power = min(max(math.floor(math.log10(value) / 3), -3), 5) if value > 0 else 0
    return f"{value / 1000.0**power:.3g} {'nµm kMGTP'[power + 3].strip()}{unit}"
