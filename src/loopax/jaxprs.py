"""Programs as JAX traces them: the only module that knows the inside of a jaxpr.

A program is a list of equations, each with a primitive and its parameters. Some of these hold
programs of their own: the body of a loop, branches, a function that is called.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util
from jax.interpreters import partial_eval

Equation = core.JaxprEqn
Program = core.ClosedJaxpr
T = TypeVar("T")

as_function = core.jaxpr_as_fun


def equations(program: Program) -> Sequence[Equation]:
    """Those of the program itself, in the order in which they are executed."""
    return program.jaxpr.eqns


def inner(equation: Equation) -> list[Program]:
    """The programs that an equation holds."""
    values = (v if isinstance(v, tuple | list) else [v] for v in equation.params.values())
    return [program for v in itertools.chain(*values) if (program := _as_program(v))]


def _as_program(value: Any) -> Program | None:
    """A parameter of an equation as the program that it is; None for any other one."""
    if isinstance(value, core.Jaxpr) and not value.constvars:
        return Program(value, ())
    return value if isinstance(value, Program) else None


def walk(
    program: Program, around: tuple[Equation, ...] = ()
) -> Iterator[tuple[Equation, tuple[Equation, ...]]]:
    """Every equation, those of inner programs too, each with the equations that it stands in."""
    for equation in equations(program):
        yield equation, around
        for body in inner(equation):
            yield from walk(body, (*around, equation))


def constants(program: Program) -> Iterator[Any]:
    """The arrays that a program and its inner programs hold, but for those of an outer trace."""
    bodies = (body for equation, _ in walk(program) for body in inner(equation))
    for body in (program, *bodies):
        yield from (const for const in body.consts if not isinstance(const, jax.core.Tracer))


def contents(program: Program) -> Iterator[bytes]:
    """The bytes of each of these arrays, in the host's memory."""
    for constant in constants(program):
        is_key = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        yield np.asarray(jax.random.key_data(constant) if is_key else constant).tobytes()


def traced(
    function: Callable[..., Any], *args: Any, change: Callable[[Program], Program] = lambda it: it
) -> tuple[Callable[..., Any], Any]:
    """`function` for arguments of this form, which calls it no more, and the form of its results.

    A large one takes seconds to trace. Where compilation is disabled it is what it was: whoever
    does that wants to see the numbers of each operation.

    Args:
        function: is traced here; JAX keeps what it has traced.
        args: arrays, or what has their form.
        change: is given its program, and gives the one that is executed instead.
    """
    if _is_disabled():
        return function, jax.eval_shape(function, *args)
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    program = change(program)

    def called(*args: Any) -> Any:
        leaves = as_function(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return called, shapes


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which is called once for all traces that use it with arguments of one form."""

    def called(*args: Any) -> Any:
        return function(*args) if _is_disabled() else traced(function, *args)[0](*args)

    return called


def _is_disabled() -> bool:
    # JAX makes its flags at run time, so that no checker of types knows them.
    return bool(jax.config.jax_disable_jit)  # type: ignore[attr-defined]


def evaluate(
    program: Program,
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
    jaxpr, values = program.jaxpr, dict(zip(program.jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, map(constant, program.consts), strict=True))
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
        if type(value) in (tuple, list):
            return type(value)(map(changed, value))
        if (program := _as_program(value)) is None:
            return value
        return change(program) if isinstance(value, Program) else change(program).jaxpr

    return {name: changed(value) for name, value in equation.params.items()}


def is_traced(tree: Any) -> bool:
    """Whether some leaf stands for a value that is not there yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def depends(result: Any, inputs: Any) -> bool:
    """Whether a result is differentiated along with some input, inside of `jax.grad`."""
    traces = [getattr(leaf, "_trace", None) for leaf in jax.tree.leaves(inputs)]
    return any(trace is getattr(result, "_trace", None) for trace in traces)


def needed(program: Program, results: Sequence[bool]) -> tuple[Program, list[bool]]:
    """The part of a program that these of its results need, and which inputs that part has."""
    jaxpr, used = partial_eval.dce_jaxpr(program.jaxpr, list(results))
    return Program(jaxpr, program.consts), used


def scopes(equation: Equation) -> str:
    """The named scopes around an equation, such as `VAE/encoder/Dense_1`."""
    return str(equation.source_info.name_stack)


def source_lines(equation: Equation) -> list[tuple[str, str]]:
    """`("/path/vae.py:34", "VAE.__call__")` for each call that led to an equation, innermost first.

    The second is the function that the line is of.
    """
    summary = source_info_util.summarize(equation.source_info, num_frames=100)
    frames = (re.match(r"(.*?:\d+)(?::\d+)? \((.*)\)", f) for f in summary.splitlines()[::-1])
    return [(frame[1], frame[2]) for frame in frames if frame]
