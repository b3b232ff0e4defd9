"""Where the first number went bad: a step taken apart, equation by equation.

A NaN seldom shows where it was born. Here a function is evaluated one equation at a time, and each
value that is not finite carries its origin with it: an equation whose inputs are finite gives its
own place, any other passes on the origin of the input that spoiled it. So an infinity that never
reaches the result, such as that of an attention mask, is never blamed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

import loopax.state
import loopax.step
import loopax.updates
from loopax import jaxprs
from loopax.paths import PyTree, is_number, leaf_path
from loopax.soundness import Flags, sound_leaves
from loopax.state import TrainState
from loopax.step import Batch, LossFn, call_loss, differentiate, extra_args_of, train_step
from loopax.updates import update

CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}
"""Equations that only evaluate others; what is inside of any other one is not looked at."""

UNROLLED_LIMIT = 50_000
"""Equations up to which a scan is walked through; a longer one is named as a whole."""

# A line in one of these says less than the line that called it.
LIBRARIES = (
    os.path.dirname(flax.__file__) + os.sep,
    os.path.dirname(optax.__file__) + os.sep,
    loopax.state.__file__,
    loopax.step.__file__,
    loopax.updates.__file__,
)
ARGUMENTS = {
    "batch": "the batch's",
    "params": "the parameter",
    "mutable": "the collection",
    "opt_state": "the optimiser state",
    "ema": "the average of",
}
PARTS = ("batch", "state", "loss", "gradients", "updated_state")
"""Of a step, in its order."""
ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Origin:
    """Where a value that is not finite came from.

    Attributes:
        what: how it began: `nan`, `inf` or `-inf`.
        layer: the named scopes around the equation, which in Flax are the modules, such as
            `VAE/encoder/Dense_1`. For an argument its leaf: `the batch's image`.
        primitive: the operation that made it from finite inputs, such as `log`; `constant` for a
            literal or an array that the function holds, `argument` for what it was given.
        source: the line of the program, `/path/vae.py:34`; empty where it is not known.
        pass_: `backward` is the computation of the gradient, `update` that of the optimiser.
        inputs: what each input was: `ranges from 0 to 3.2`.
        iteration: of the scan that it happened in.
    """

    what: str
    layer: str
    primitive: str
    source: str = ""
    pass_: Literal["forward", "backward", "update"] = "forward"
    inputs: tuple[str, ...] = ()
    iteration: int | None = None

    def __str__(self) -> str:
        if self.primitive == "argument":
            return f"{self.what} comes in with {self.layer}"
        verb = "is a constant" if self.primitive == "constant" else "is born"
        scope = f" in {self.layer}" if self.layer else ""
        turn = "" if self.iteration is None else f", iteration {self.iteration}"
        name = "" if self.primitive == "constant" else f": {self.primitive}"
        line = f" at {Path(self.source).name}" if self.source else ""
        part = "update" if self.pass_ == "update" else f"{self.pass_} pass"
        return f"{self.what} {verb}{scope}{turn}{name}{line} ({part}{self._facts})"

    @property
    def _facts(self) -> str:
        if len(self.inputs) == 1:
            return f"; its input {self.inputs[0]}"
        told = [f"its {nth} input {fact}" for nth, fact in zip(ORDINALS, self.inputs, strict=False)]
        return "; " + ", ".join(told) if told else ""


@dataclass(frozen=True)
class StepReport:
    """One step looked at closely.

    Attributes:
        step: how many updates had been made before it.
        metrics: the loss and the metrics of this batch.
        grad_norms, update_norms, param_norms: the global norm of each leaf by its path.
        non_finite: the leaves that are not finite, by what they belong to: `batch`, `state`,
            `loss`, `gradients`, `updated_state`; none of them where all is well.
        origin: what was bad first, when the loss, the gradients or the updated state are.
    """

    step: int
    metrics: dict[str, float]
    grad_norms: dict[str, float]
    update_norms: dict[str, float]
    param_norms: dict[str, float]
    non_finite: dict[str, tuple[str, ...]]
    origin: Origin | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON can hold it: NaN and infinities become strings."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def lines(self, limit: int = 10) -> list[str]:
        """The report for people; of the norms those that are not finite, then the largest."""
        metrics = {"loss": self.metrics["loss"], **self.metrics}
        values = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        lines = [f"step {self.step}: {values}"]
        if self.origin is not None:
            lines.append(str(self.origin))
        elif any(self.non_finite[part] for part in ("loss", "gradients", "updated_state")):
            lines.append("one operation at a time the step is finite; only compiled it is not")
        for part, paths in self.non_finite.items():
            if paths:
                more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
                shown = ", ".join(paths[:3])
                lines.append(f"not finite: {part.replace('_', ' ')}: {shown}{more}")
        lines.append(f"{'gradient':>12} {'update':>12} {'parameter':>12}")
        for path in sorted(self.grad_norms, key=self._rank)[:limit]:
            norms = (self.grad_norms[path], self.update_norms[path], self.param_norms[path])
            lines.append(" ".join(f"{norm:12.4g}" for norm in norms) + f"  {path}")
        if len(self.grad_norms) > limit:
            lines.append(f"and {len(self.grad_norms) - limit} more with smaller gradients")
        return lines

    def _rank(self, path: str) -> tuple[bool, float]:
        norm = self.grad_norms[path]
        bad = not math.isfinite(norm + self.update_norms[path])
        return (False, 0.0) if bad else (True, -norm)


def examine(loss_fn: LossFn, state: TrainState, batch: Batch) -> StepReport:
    """What the step that `state` is about to make with `batch` does, and what goes wrong in it.

    Nothing is trained: the state stays as it is.

    Args:
        loss_fn: as for `fit`.
        state: before the step.
        batch: what the loss sees.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        measured, sound = jax.device_get(
            jax.jit(functools.partial(_measure, loss_fn))(state, batch)
        )
        non_finite = {
            part: tuple(sorted(path for path, good in sound[part].items() if not good))
            for part in PARTS
        }
        origin = _first_cause(loss_fn, state, batch, non_finite)
    numbers = {
        kind: {path: float(value) for path, value in values.items()}
        for kind, values in measured.items()
    }
    return StepReport(step=int(state.step), non_finite=non_finite, origin=origin, **numbers)


def find_origin(function: Callable[..., Any], *args: Any) -> Origin | None:
    """Where the first output of `function(*args)` that is not finite came from.

    The function is traced, and its equations are evaluated one by one, inside of compiled
    functions, rematerialisation, custom derivatives, branches and scans too. A `while_loop` is
    taken as one equation. Arguments are called by the names of the function's parameters.

    Returns:
        None when all outputs are finite.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        closed = jax.make_jaxpr(function)(*args)
        inputs = [
            _given(leaf, Origin("", name, "argument")) for name, leaf in _named(function, args)
        ]
        outputs = _run(closed, inputs, _Place())
    return next((output.origin for output in outputs if output.origin), None)


def _measure(
    loss_fn: LossFn, state: TrainState, batch: Batch
) -> tuple[dict[str, dict[str, Array]], dict[str, Flags]]:
    metrics, mutable, grads = differentiate(loss_fn, state, batch)
    extra_args = extra_args_of(loss_fn, state, batch, metrics, grads)
    updates, _ = update(state.tx, grads, state.opt_state, state.trainable, extra_args)
    after = state.apply_gradients(grads=grads, extra_args=extra_args, mutable=mutable)
    measured = {
        "metrics": metrics,
        "grad_norms": _norms(grads),
        "update_norms": _norms(updates),
        "param_norms": _norms(state.params),
    }
    sound = {
        "batch": _finite(batch),
        "state": sound_leaves(state),
        "loss": _finite({"loss": metrics["loss"]}),
        "gradients": _finite(grads),
        "updated_state": sound_leaves(after),
    }
    return measured, sound


def _norms(tree: PyTree) -> dict[str, Float[Array, ""]]:
    return {
        leaf_path(path): jnp.linalg.norm(jnp.abs(leaf).astype(jnp.float32).ravel())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if is_number(leaf)
    }


def _finite(tree: PyTree) -> Flags:
    return {
        leaf_path(path) or "all of it": jnp.isfinite(leaf).all()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _first_cause(
    loss_fn: LossFn, state: TrainState, batch: Batch, non_finite: Mapping[str, Sequence[str]]
) -> Origin | None:
    """The origin of what is bad first in the order of a step: loss, gradients, updated state."""

    def loss(params: PyTree, mutable: PyTree, batch: Batch) -> Any:
        return call_loss(loss_fn, params, batch, state.rngs, mutable)[0]["loss"]

    def gradients(params: PyTree, mutable: PyTree, batch: Batch) -> Any:
        return differentiate(loss_fn, state.replace(params=params, mutable=mutable), batch)[2]

    def updated(
        params: PyTree, mutable: PyTree, batch: Batch, opt_state: PyTree, ema: PyTree
    ) -> Any:
        before = state.replace(params=params, mutable=mutable, opt_state=opt_state, ema=ema)
        after = train_step(loss_fn)(before, batch)[0]
        leaves = jax.tree.leaves((after.params, after.opt_state, after.mutable, after.ema))
        # A scalar of the optimiser may be infinite by right: look at it when nothing else is bad.
        return sorted(leaves, key=lambda leaf: leaf.ndim == 0)

    seen = (state.params, state.mutable, batch)
    if non_finite["loss"]:
        return find_origin(loss, *seen)
    if non_finite["gradients"]:
        origin = find_origin(gradients, *seen)
        return origin and dataclasses.replace(origin, pass_="backward")
    if non_finite["updated_state"]:
        origin = find_origin(updated, *seen, state.opt_state, state.ema)
        return origin and (origin if origin.layer else dataclasses.replace(origin, pass_="update"))
    return None


class _Value(NamedTuple):
    """An array, which kinds of numbers that are not finite it holds, and where these began."""

    array: Any
    kinds: frozenset[str] = frozenset()
    origin: Origin | None = None


class _Place(NamedTuple):
    """Where in the program an equation stands."""

    scopes: str = ""
    source: str = ""
    iteration: int | None = None

    def of(self, equation: jaxprs.Equation) -> _Place:
        """The place of an equation that stands in the body of another one's."""
        scopes = f"{self.scopes}/{jaxprs.scopes(equation)}"
        return _Place(scopes, _line(equation) or self.source, self.iteration)

    def origin(self, primitive: str, kinds: Iterable[str], inputs: tuple[str, ...] = ()) -> Origin:
        """What is born here."""
        pass_: Literal["forward", "backward"] = (
            "backward" if "transpose(" in self.scopes else "forward"
        )
        layer = _layer(self.scopes)
        return Origin(_name(kinds), layer, primitive, self.source, pass_, inputs, self.iteration)


def _run(program: Any, inputs: Sequence[_Value], place: _Place) -> list[_Value]:
    """Evaluates a program that stands at `place`."""

    def apply(equation: jaxprs.Equation, operands: list[_Value]) -> list[_Value]:
        # Equations without results only watch, such as `jax.debug.print`.
        return _evaluate(equation, operands, place.of(equation)) if equation.outvars else []

    def constant(array: Any) -> _Value:
        return _given(array, Origin("", "an array that the function holds", "argument"))

    def literal(number: Any, equation: jaxprs.Equation | None) -> _Value:
        if not (kinds := _kinds(number)):
            return _Value(number)
        here = place.of(equation) if equation else place
        return _Value(number, kinds, here.origin("constant", kinds))

    return jaxprs.evaluate(program, inputs, apply, constant, literal)


def _evaluate(equation: jaxprs.Equation, operands: list[_Value], here: _Place) -> list[_Value]:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _run(inner, operands, here)
    if name == "cond":
        index = min(max(int(operands[0].array), 0), len(params["branches"]) - 1)
        return _run(params["branches"][index], operands[1:], here)
    arrays = jaxprs.bind(equation, [operand.array for operand in operands])
    kinds = [_kinds(array) for array in arrays]
    if name == "scan" and any(kinds):
        count = params["length"] * len(jaxprs.equations(params["jaxpr"]))
        if count <= UNROLLED_LIMIT:
            return _walk(equation, operands, arrays, here)
    return _judge(equation, operands, arrays, kinds, here)


def _judge(
    equation: jaxprs.Equation,
    operands: Sequence[_Value],
    arrays: Sequence[Any],
    kinds: Sequence[frozenset[str]],
    here: _Place,
) -> list[_Value]:
    """The results with their origins: here, or where that of the input began that shows in them.

    An input whose kind of badness does not show in a result may be innocent of it, as -inf is of
    the overflow of another element. It is when the result stays bad with harmless numbers instead.
    """
    bad = [operand for operand in operands if operand.kinds]

    @functools.cache
    def with_harmless() -> list[Any]:
        return jaxprs.bind(equation, [_harmless(v.array) if v.kinds else v.array for v in operands])

    def origin(index: int, found: frozenset[str]) -> Origin | None:
        alike = [operand for operand in bad if operand.kinds & found]
        if not alike and (not bad or _kinds(with_harmless()[index])):
            facts = tuple(_fact(operand.array) for operand in operands)
            return here.origin(equation.primitive.name, found, facts)
        spoiler = min(
            alike or bad, key=lambda v: v.origin is None or v.origin.primitive == "constant"
        )
        return spoiler.origin

    return [
        _Value(array, found, origin(index, found) if found else None)
        for index, (array, found) in enumerate(zip(arrays, kinds, strict=True))
    ]


def _walk(
    equation: jaxprs.Equation, operands: list[_Value], arrays: list[Any], here: _Place
) -> list[_Value]:
    """A scan, iteration by iteration; `arrays` are its results, of which the origins are missing.

    What is scanned over or stacked up has one axis more outside of the body than inside.
    """
    body, length = equation.params["jaxpr"], equation.params["length"]

    def outer_axis(outside: Iterable[Any], inside: Iterable[Any]) -> list[bool]:
        return [np.ndim(array) > aval.ndim for array, aval in zip(outside, inside, strict=True)]

    scanned = outer_axis((operand.array for operand in operands), body.in_avals)
    stacked = outer_axis(arrays, body.out_avals)
    carries = stacked.count(False)
    first_carry = scanned.count(False) - carries
    carry = operands[first_carry : first_carry + carries]
    origins: list[Origin | None] = [None] * len(arrays)
    for index in range(length)[:: -1 if equation.params["reverse"] else 1]:
        slices = [
            _part(v, index) for v, is_scanned in zip(operands, scanned, strict=True) if is_scanned
        ]
        inputs = [*operands[:first_carry], *carry, *slices]
        results = _run(body, inputs, here._replace(iteration=index))
        carry = results[:carries]
        origins[carries:] = [
            old or new.origin for old, new in zip(origins[carries:], results[carries:], strict=True)
        ]
    origins[:carries] = [value.origin for value in carry]
    kinds = [_kinds(array) for array in arrays]
    whole = _judge(equation, operands, arrays, kinds, here)
    return [
        value._replace(origin=origin) if value.kinds and origin else value
        for value, origin in zip(whole, origins, strict=True)
    ]


def _given(array: Any, origin: Origin) -> _Value:
    """A value that comes from outside."""
    kinds = _kinds(array)
    if not kinds:
        return _Value(array)
    return _Value(array, kinds, dataclasses.replace(origin, what=_name(kinds)))


def _part(value: _Value, index: int) -> _Value:
    array = value.array[index]
    kinds = _kinds(array) if value.kinds else frozenset[str]()
    return _Value(array, kinds, value.origin if kinds else None)


KINDS = ("nan", "inf", "-inf")


def _kinds(array: Any) -> frozenset[str]:
    """Which of NaN, infinity and minus infinity an array holds."""
    dtype = np.result_type(array) if isinstance(array, float) else getattr(array, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return frozenset()
    return frozenset(itertools.compress(KINDS, jax.device_get(_contains(array))))


@jax.jit
def _contains(array: Array) -> Bool[Array, " kinds"]:
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag])
    tests = (jnp.isnan(array), jnp.isposinf(array), jnp.isneginf(array))
    return jnp.stack([test.any() for test in tests])


@jax.jit
def _harmless(array: Array) -> Array:
    """A half in place of what is not finite: nearly every function is finite there."""
    return jnp.where(jnp.isfinite(array), array, jnp.asarray(0.5, array.dtype))


def _name(kinds: Iterable[str]) -> str:
    return next(kind for kind in KINDS if kind in kinds)


def _fact(array: Any) -> str:
    """What an input was, in a few words."""
    dtype = np.result_type(array) if isinstance(array, float) else array.dtype
    if not jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, jnp.complexfloating):
        return f"is {dtype}"
    values = np.asarray(array).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return "is not finite" if np.size(array) else "is empty"
    low, high = values.min() + 0.0, values.max() + 0.0  # No minus zero.
    return f"is {low:.6g}" if low == high else f"ranges from {low:.6g} to {high:.6g}"


def _named(function: Callable[..., Any], args: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Every leaf of the arguments, named in the words of a training step."""
    try:
        bound = inspect.signature(function).bind(*args).arguments
        names = list(bound) if len(bound) == len(args) else []
    except (TypeError, ValueError):
        names = []
    names = names or [str(index) for index in range(len(args))]
    named = []
    for name, arg in zip(names, args, strict=True):
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(arg):
            path = leaf_path(key_path)
            known = ARGUMENTS.get(name) if path else None
            outer = known or f"the argument {name}"
            named.append((f"{outer} {path}".rstrip(), leaf))
    return named


def _layer(scopes: str) -> str:
    """The named scopes alone, of `transpose(jvp(VAE))/encoder/jvp(VAE)/encoder/Dense_1`.

    Transformations are written around the first scope that they saw. What is rematerialised in
    the backward pass repeats the scopes of the forward pass behind its own.
    """
    parts = scopes.split("/")
    again = [at for at, part in enumerate(parts) if f"transpose({part})" in parts[:at]]
    names = [re.sub(r"^(?:\w+\()+|\)+$", "", part) for part in parts[again[-1] if again else 0 :]]
    return "/".join(name for name in names if name not in ("", "rematted_computation"))


def _line(equation: jaxprs.Equation) -> str:
    """`/path/vae.py:34`: the innermost line that is the user's own, if there is one."""
    lines = jaxprs.source_lines(equation)
    inside = list(itertools.takewhile(lambda line: not line.startswith(__file__), lines))
    own = (line for line in inside if not line.startswith(LIBRARIES))
    return next(own, inside[0] if inside else "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
