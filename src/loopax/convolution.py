"""Convolutions laid out as XLA's CPU compiler can run them fast inside of a loop.

XLA brings the axes of a convolution into the order that its fast kernels need, but on CPUs only
outside of loops. The gradients of a convolution have another order, and inside of a loop they then
run through a slow one: 17 times as slow a step, measured for a small classifier of digits. So the
step's convolutions are put in order before they are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def with_ordered_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every convolution, also in its inner loops and calls, in the order NHWC.

    Where there is nothing to do, and on other devices, it is what it was.
    """

    def ordered(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _has_work(closed):
            return function(*args)
        leaves = core.jaxpr_as_fun(_ordered(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return ordered


def _has_work(jaxpr: Any) -> bool:
    return any(
        _is_disordered(eqn) or any(_has_work(inner) for inner in _inner(eqn.params))
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def _inner(params: dict[str, Any]) -> list[Any]:
    values = [value if isinstance(value, tuple | list) else [value] for value in params.values()]
    return [
        one for many in values for one in many if isinstance(one, core.ClosedJaxpr | core.Jaxpr)
    ]


def _is_disordered(eqn: core.JaxprEqn) -> bool:
    if eqn.primitive is not jax.lax.conv_general_dilated_p:
        return False
    found = eqn.params["dimension_numbers"]
    return tuple(map(tuple, found)) != tuple(map(tuple, _order(len(found.lhs_spec))))


def _order(ndim: int) -> jax.lax.ConvDimensionNumbers:
    """NHWC for images, HWIO for kernels, with any number of spatial axes."""
    spatial = range(1, ndim - 1)
    images = (0, ndim - 1, *spatial)
    return jax.lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)


def _ordered(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same computation, traced again from what its equations say."""

    def again(*args: Any) -> Any:
        return _evaluated(closed.jaxpr, closed.consts, args)

    return jax.make_jaxpr(again)(*closed.in_avals)


def _evaluated(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        given = [value(atom) for atom in eqn.invars]
        if _is_disordered(eqn):
            made = [_convolved(*given, **eqn.params)]
        else:
            params = eqn.params
            if any(map(_has_work, _inner(params))):
                params = {name: _replaced(inner) for name, inner in params.items()}
            with eqn.ctx.manager:
                found = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(params))
            made = found if eqn.primitive.multiple_results else [found]
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _replaced(inner: Any) -> Any:
    if isinstance(inner, core.ClosedJaxpr):
        return _ordered(inner)
    if isinstance(inner, core.Jaxpr) and not inner.constvars:
        return _ordered(core.ClosedJaxpr(inner, ())).jaxpr
    if isinstance(inner, tuple | list):
        return type(inner)(map(_replaced, inner))
    return inner


def _convolved(
    images: Any, kernel: Any, *, dimension_numbers: jax.lax.ConvDimensionNumbers, **params: Any
) -> Any:
    old, new = dimension_numbers, _order(images.ndim)
    images = jnp.transpose(images, _moves(old.lhs_spec, new.lhs_spec))
    kernel = jnp.transpose(kernel, _moves(old.rhs_spec, new.rhs_spec))
    made = jax.lax.conv_general_dilated_p.bind(images, kernel, dimension_numbers=new, **params)
    return jnp.transpose(made, _moves(new.out_spec, old.out_spec))


def _moves(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The axes of `source` in the order of `target`; both name the place of each kind of axis."""
    places = dict(zip(target, source, strict=True))
    return [places[axis] for axis in range(len(places))]
