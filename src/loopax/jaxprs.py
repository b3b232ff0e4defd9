"""Programs as JAX traces them: the only module that knows the inside of a jaxpr.

A program is a list of equations, each with a primitive and its parameters. Some of these hold
programs of their own: the body of a loop, branches, a function that is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.extend import core, source_info_util
from jax.interpreters import partial_eval

Equation = core.JaxprEqn
Program = core.ClosedJaxpr
T = TypeVar("T")

as_function = core.jaxpr_as_fun


def equations(program: Program | core.Jaxpr) -> Sequence[Equation]:
    """Those of the program itself, in the order in which they are executed."""
    return getattr(program, "jaxpr", program).eqns


def inner(equation: Equation) -> list[Program | core.Jaxpr]:
    """The programs that an equation holds."""
    values = (v if isinstance(v, tuple | list) else [v] for v in equation.params.values())
    return [v for several in values for v in several if isinstance(v, Program | core.Jaxpr)]


def walk(
    program: Program | core.Jaxpr, around: tuple[Equation, ...] = ()
) -> Iterator[tuple[Equation, tuple[Equation, ...]]]:
    """Every equation, those of inner programs too, each with the equations that it stands in."""
    for equation in equations(program):
        yield equation, around
        for body in inner(equation):
            yield from walk(body, (*around, equation))


def constants(program: Program) -> Iterator[Any]:
    """The arrays that a program and its inner programs hold, but for those of an outer trace."""
    bodies = [body for equation, _ in walk(program) for body in inner(equation)]
    for body in (program, *bodies):
        for constant in getattr(body, "consts", ()):
            if not isinstance(constant, jax.core.Tracer):
                yield constant


def evaluate(
    program: Program | core.Jaxpr,
    inputs: Sequence[T],
    apply: Callable[[Equation, list[T]], Sequence[T]],
    constant: Callable[[Any], T],
    literal: Callable[[Any, Equation | None], T] | None = None,
) -> list[T]:
    """The results of a program in values of any kind; what no other equation needs is let go.

    Args:
        program: what is evaluated.
        inputs: a value for each of its inputs.
        apply: gives the results of an equation for the values of its operands.
        constant: gives the value of an array that the program holds.
        literal: the same for a number that is written in an equation, or (None) in the results;
            as `constant` when left out.
    """
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    held = getattr(program, "consts", ())
    values.update(zip(jaxpr.constvars, map(constant, held), strict=True))
    last = {var: at for at, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))

    def read(atom: Any, equation: Equation | None) -> T:
        if not isinstance(atom, core.Literal):
            return values[atom]
        return literal(atom.val, equation) if literal else constant(atom.val)

    for at, eqn in enumerate(jaxpr.eqns):
        results = apply(eqn, [read(atom, eqn) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
        for var in _variables((*eqn.invars, *eqn.outvars)):
            if last.get(var, -1) <= at:
                values.pop(var, None)
    return [read(atom, None) for atom in jaxpr.outvars]


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def bind(
    equation: Equation, operands: Sequence[Any], params: Mapping[str, Any] | None = None
) -> list[Any]:
    """The results of an equation for other operands, and other parameters where they are given."""
    primitive = equation.primitive
    params = primitive.get_bind_params(equation.params if params is None else params)
    with equation.ctx.manager:
        results = primitive.bind(*operands, **params)
    return list(results) if primitive.multiple_results else [results]


def with_inner(equation: Equation, change: Callable[[Program], Program]) -> dict[str, Any]:
    """The parameters of an equation, the programs among them changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, Program):
            return change(value)
        if isinstance(value, core.Jaxpr) and not value.constvars:
            return change(Program(value, ())).jaxpr
        return type(value)(map(changed, value)) if isinstance(value, tuple | list) else value

    return {name: changed(value) for name, value in equation.params.items()}


def needed(program: Program, results: Sequence[bool]) -> tuple[Program, list[bool]]:
    """The part of a program that these of its results need, and which inputs that part has."""
    jaxpr, used = partial_eval.dce_jaxpr(program.jaxpr, list(results))
    return Program(jaxpr, program.consts), used


def scopes(equation: Equation) -> str:
    """The named scopes around an equation, such as `VAE/encoder/Dense_1`."""
    return str(equation.source_info.name_stack)


def source_lines(equation: Equation) -> list[str]:
    """`/path/vae.py:34` for each call that led to an equation, innermost first."""
    summary = source_info_util.summarize(equation.source_info, num_frames=100)
    frames = (re.match(r"(.*?:\d+)(?::\d+)? \(", frame) for frame in summary.splitlines()[::-1])
    return [frame[1] for frame in frames if frame]
