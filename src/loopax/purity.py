"""Whether a function that is being traced draws random numbers that only the trace sees.

What NumPy or `random` draw while a function is compiled becomes a constant of the program: what
should be noise is the same number in every step. So the generators of the host must stand still
during a trace, and two traces of one function must be the same program.
"""

from __future__ import annotations

import functools
import pickle
import random
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from loopax import jaxprs
from loopax.errors import ConfigError

TRACES = 6
"""Traces that are compared where a generator moved; another thread may have moved it."""
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def calling_purely(
    what: str, cure: str, function: Callable[..., Any], *args: Any, traces: int = 0
) -> Any:
    """`function(*args)`, to be called while something is traced.

    Args:
        what: the function in words, for the message.
        cure: what its author should do instead.
        function: what is called; it is traced again to compare where a generator has moved.
        args: PyTrees of arrays or tracers; traces that are compared get trees of their own.
        traces: how many traces to compare in any case; a clock is seen only where two of them
            read numbers that differ in the type that they are computed in.

    Raises:
        ConfigError: it is another program each time it is traced.
    """
    before = _drawn_so_far(function)
    result = function(*(_copied(args) if traces else args))
    if _drawn_so_far(function) != before:
        traces = TRACES
    programs = (_program(function, args, number) for number in range(traces))
    if len(set(programs)) > 1:
        raise ConfigError(
            f"{what} draws random numbers, or reads the clock, while it is compiled: what it got "
            f"then would be the same in every step; {cure}"
        )
    return result


def _program(function: Callable[..., Any], args: Any, number: int) -> tuple[Any, ...]:
    """The program that a trace of the function gives, in a form that can be compared."""

    def arrays(*args: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(function(*args)) if hasattr(leaf, "dtype")]

    # Another number is another context, in which what is jitted inside is traced again as well.
    with set_xla_metadata(loopax_trace=str(number)):
        program = jax.make_jaxpr(arrays)(*_copied(args))
    # Functions are printed with their addresses.
    text = re.sub("0x[0-9a-f]+", "", str(program))
    return text, *jaxprs.contents(program)


def _copied(args: Any) -> Any:
    """The same leaves in trees of their own, so that the function may change these."""
    return jax.tree.map(lambda leaf: leaf, args)


def _drawn_so_far(function: Callable[..., Any]) -> bytes:
    """The states of the process's generators, and of those that the function holds."""
    held = [
        one.bit_generator.state
        if isinstance(one, np.random.Generator)
        else one.getstate()
        if isinstance(one, random.Random)
        else one.get_state(legacy=False)
        for one in _generators(function)
    ]
    return pickle.dumps((random.getstate(), np.random.get_state(legacy=False), held))


def _generators(function: Callable[..., Any]) -> Iterator[Any]:
    """Those in its closure, globals, defaults and object, and in what it uses of its own module."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    home = getattr(inner, "__module__", None)
    waiting: list[Any] = [function]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, random.SystemRandom):
            continue
        if isinstance(one, _GENERATORS):
            yield one
        elif isinstance(one, FunctionType) and one.__module__ == home:
            cells = [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
            used = (one.__globals__.get(name) for name in _names(one.__code__))
            waiting += [*cells, *used, *(one.__defaults__ or ()), *vars(one).values()]
        elif isinstance(one, MethodType):
            waiting += [one.__func__, one.__self__]
        elif isinstance(one, functools.partial):
            waiting += [one.func, *one.args, *one.keywords.values()]
        elif not isinstance(one, FunctionType | ModuleType | type):
            # What is jitted holds the function that it was made of.
            own = callable(one) or type(one).__module__ == home
            waiting += getattr(one, "__dict__", {}).values() if own else ()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_filled(cell: Any) -> bool:
    # Only reading an empty cell tells that it is empty.
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
