"""Where the first number went bad: a step taken apart, equation by equation.

A NaN seldom shows where it was born. Here a function is evaluated one equation at a time, and each
value that is not finite carries its origin with it: an equation whose inputs are finite gives its
own place, any other passes on the origin of the input that spoiled it. So an infinity that never
reaches the result, such as that of an attention mask, is never blamed.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

import loopax.compute.state
import loopax.compute.step
import loopax.compute.updates
from loopax import jaxprs
from loopax.paths import leaf_path

CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}
"""Equations that only evaluate others; what is inside of any other one is not looked at."""

UNROLLED_LIMIT = 50_000
"""Equations up to which a scan is walked through; a longer one is named as a whole."""

# A line in one of these says less than the line that called it.
LIBRARIES = ("flax", "optax", "equinox", "haiku")
OURS = (
    loopax.compute.state.__file__,
    loopax.compute.step.__file__,
    loopax.compute.updates.__file__,
)
ARGUMENTS = {
    "batch": "the batch's",
    "params": "the parameter",
    "state": "the state's",
    "model_state": "the model state's",
    "opt_state": "the optimiser state",
    "ema": "the average of",
}
HERE = os.path.dirname(__file__) + os.sep
KINDS = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class NonFiniteOrigin:
    """Where a value that is not finite came from.

    Attributes:
        what: how it began: `nan`, `inf` or `-inf`.
        layer: the named scopes around the equation, which in Flax are the modules, such as
            `VAE/encoder/Dense_1`. For an argument its leaf: `the batch's image`.
        primitive: the operation that made it from finite inputs, such as `log`; `constant` for a
            literal or an array that the function holds, `argument` for what it was given.
        source: the line of the program, `/path/vae.py:34`; empty where it is not known.
        pass_: `backward` is the computation of the gradient, `update` that of the optimiser.
        inputs: what each input was: `0`, or `0 to 3.2`.
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
        facts = f"; inputs: {', '.join(self.inputs[:3])}" if self.inputs else ""
        return f"{self.what} {verb}{scope}{turn}{name}{line} ({part}{facts})"


def find_origin(function: Callable[..., Any], *args: Any) -> NonFiniteOrigin | None:
    """Where the first output of `function(*args)` that is not finite came from.

    The function is traced, and its equations are evaluated one by one, inside of compiled
    functions, rematerialisation, custom derivatives, branches and scans too. A `while_loop` is
    taken as one equation. Arguments are called by the names of the function's parameters.

    Returns:
        None when all outputs are finite.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        program = jax.make_jaxpr(function)(*args)
        inputs = [_given(leaf, name) for name, leaf in _named(function, args)]
        outputs = _evaluate(program, inputs, _Place())
    return next((output.origin for output in outputs if output.origin), None)


class _Value(NamedTuple):
    """An array, which kinds of numbers that are not finite it holds, and where these began."""

    array: Any
    kinds: frozenset[str] = frozenset()
    origin: NonFiniteOrigin | None = None


class _Place(NamedTuple):
    """Where in the program an equation stands."""

    scopes: str = ""
    source: str = ""
    iteration: int | None = None
    modules: str = ""

    def of(self, equation: jaxprs.Equation) -> _Place:
        """The place of an equation that stands in the body of another one's."""
        scopes = f"{self.scopes}/{jaxprs.scopes(equation)}"
        lines = _lines(equation)
        source = _own(line for line, _ in lines) or self.source
        return _Place(scopes, source, self.iteration, _modules(lines) or self.modules)

    def origin(
        self, primitive: str, kinds: Iterable[str], inputs: tuple[str, ...] = ()
    ) -> NonFiniteOrigin:
        """What is born here."""
        backward = "transpose(" in self.scopes
        return NonFiniteOrigin(
            what=_name(kinds),
            layer=_layer(self.scopes) or self.modules,
            primitive=primitive,
            source=self.source,
            pass_="backward" if backward else "forward",
            inputs=inputs,
            iteration=self.iteration,
        )


def _evaluate(program: jaxprs.Program, inputs: Sequence[_Value], place: _Place) -> list[_Value]:
    """The results of a program that stands at `place`."""

    def apply(equation: jaxprs.Equation, operands: list[_Value]) -> list[_Value]:
        # Equations without results only watch, such as `jax.debug.print`.
        return _apply(equation, operands, place.of(equation)) if equation.outvars else []

    def constant(array: Any) -> _Value:
        return _given(array, "an array that the function holds")

    def literal(number: Any, equation: jaxprs.Equation | None) -> _Value:
        if not (kinds := _kinds(number)):
            return _Value(number)
        here = place.of(equation) if equation else place
        return _Value(number, kinds, here.origin("constant", kinds))

    return jaxprs.evaluate(program, inputs, apply, constant, literal)


def _apply(equation: jaxprs.Equation, operands: list[_Value], here: _Place) -> list[_Value]:
    name, programs = equation.primitive.name, jaxprs.inner(equation)
    if name in CALLS:
        return _evaluate(programs[0], operands, here)
    if name == "cond":
        index = min(max(int(operands[0].array), 0), len(programs) - 1)
        return _evaluate(programs[index], operands[1:], here)
    arrays = jaxprs.bind(equation, [operand.array for operand in operands])
    results = _attributed(equation, operands, arrays, here)
    if name == "scan" and any(result.kinds for result in results):
        count = equation.params["length"] * len(jaxprs.equations(programs[0]))
        if count <= UNROLLED_LIMIT:
            return _unrolled(equation, operands, results, here)
    return results


def _attributed(
    equation: jaxprs.Equation, operands: Sequence[_Value], arrays: Sequence[Any], here: _Place
) -> list[_Value]:
    """The results with their origins: here, or where that of the input began that shows in them.

    An input whose kind of badness does not show in a result may be innocent of it, as -inf is of
    the overflow of another element. It is when the result stays bad with harmless numbers instead.
    """
    bad = [operand for operand in operands if operand.kinds]

    @functools.cache
    def with_harmless() -> list[Any]:
        return jaxprs.bind(equation, [_harmless(v.array) if v.kinds else v.array for v in operands])

    def origin(index: int, kinds: frozenset[str]) -> NonFiniteOrigin | None:
        alike = [operand for operand in bad if operand.kinds & kinds]
        if not alike and (not bad or _kinds(with_harmless()[index])):
            facts = tuple(_fact(operand.array) for operand in operands)
            return here.origin(equation.primitive.name, kinds, facts)
        spoilers = (operand.origin for operand in alike or bad)
        return min(spoilers, key=lambda it: it is None or it.primitive == "constant")

    kinds = [_kinds(array) for array in arrays]
    return [
        _Value(array, kinds, origin(index, kinds) if kinds else None)
        for index, (array, kinds) in enumerate(zip(arrays, kinds, strict=True))
    ]


def _unrolled(
    equation: jaxprs.Equation, operands: list[_Value], results: list[_Value], here: _Place
) -> list[_Value]:
    """The results of a scan with the origins that show when it is run iteration by iteration.

    What is scanned over or stacked up has one axis more outside of the body than inside.
    """
    (body,), params = jaxprs.inner(equation), equation.params

    def outer_axis(values: list[_Value], avals: Iterable[Any]) -> list[bool]:
        return [np.ndim(v.array) > aval.ndim for v, aval in zip(values, avals, strict=True)]

    scanned = outer_axis(operands, body.in_avals)
    carries = outer_axis(results, body.out_avals).count(False)
    first_carry = scanned.count(False) - carries
    carry = operands[first_carry : first_carry + carries]
    origins: list[NonFiniteOrigin | None] = [None] * len(results)
    for index in range(params["length"])[:: -1 if params["reverse"] else 1]:
        slices = [_part(v, index) for v in itertools.compress(operands, scanned)]
        inputs = [*operands[:first_carry], *carry, *slices]
        turn = _evaluate(body, inputs, here._replace(iteration=index))
        carry = turn[:carries]
        origins = [old or new.origin for old, new in zip(origins, turn, strict=True)]
    origins[:carries] = [value.origin for value in carry]
    return [
        value._replace(origin=origin) if value.kinds and origin else value
        for value, origin in zip(results, origins, strict=True)
    ]


def _given(array: Any, name: str) -> _Value:
    """A value that comes from outside."""
    kinds = _kinds(array)
    return _Value(array, kinds, NonFiniteOrigin(_name(kinds), name, "argument") if kinds else None)


def _part(value: _Value, index: int) -> _Value:
    array = value.array[index]
    kinds = _kinds(array) if value.kinds else frozenset[str]()
    return _Value(array, kinds, value.origin if kinds else None)


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
    return next((kind for kind in KINDS if kind in kinds), "")


def _fact(array: Any) -> str:
    """What an input was, in a few words."""
    dtype = np.result_type(array) if isinstance(array, float) else array.dtype
    if not jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, jnp.complexfloating):
        return str(dtype)
    values = np.asarray(array).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return "nothing finite" if np.size(array) else "nothing"
    low, high = values.min() + 0.0, values.max() + 0.0  # No minus zero.
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _named(function: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Every leaf of the arguments, named in the words of a training step."""
    for name, arg in inspect.signature(function).bind(*args).arguments.items():
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(arg):
            path, default = leaf_path(key_path), f"the argument {name}"
            yield f"{ARGUMENTS.get(name, default)} {path}" if path else default, leaf


def _layer(scopes: str) -> str:
    """The named scopes alone, of `transpose(jvp(VAE))/encoder/jvp(VAE)/encoder/Dense_1`.

    Transformations are written around the first scope that they saw. What is rematerialised in
    the backward pass repeats the scopes of the forward pass behind its own.
    """
    parts = scopes.split("/")
    again = [at for at, part in enumerate(parts) if f"transpose({part})" in parts[:at]]
    names = [re.sub(r"^(?:\w+\()+|\)+$", "", part) for part in parts[again[-1] if again else 0 :]]
    return "/".join(name for name in names if name not in ("", "rematted_computation"))


def _lines(equation: jaxprs.Equation) -> list[tuple[str, str]]:
    """The calls that led to an equation from what was looked at, innermost first."""
    lines = jaxprs.source_lines(equation)
    return list(itertools.takewhile(lambda line: not line[0].startswith(HERE), lines))


def _own(lines: Iterable[str]) -> str:
    """`/path/vae.py:34`: the innermost line that is the user's own, if there is one."""
    paths = (getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES)
    others = (*(os.path.dirname(path) + os.sep for path in paths if path), *OURS)
    inside = list(lines)
    return next((line for line in inside if not line.startswith(others)), "".join(inside[:1]))


def _modules(lines: Sequence[tuple[str, str]]) -> str:
    """`VAE/Linear`: the classes that were called, for modules without scopes as those of NNX."""
    ending = ".__call__"
    names = (name.removesuffix(ending) for _, name in reversed(lines) if name.endswith(ending))
    return "/".join(name.rpartition(".")[2] for name in names)
