"""Convolutions laid out as XLA's CPU compiler can run them fast inside of a loop.

XLA brings the axes of a convolution into the order that its fast kernels need, but on CPUs only
outside of loops. The gradients of a convolution have another order, and inside of a loop they then
run through a slow one: 17 times as slow a step, measured for a small classifier of digits. So the
step's convolutions are put in order before they are compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from loopax import jaxprs


def with_ordered_convolutions(program: jaxprs.Program) -> jaxprs.Program:
    """A program with every convolution, also in its inner loops and calls, in the order NHWC.

    On other devices it stays as it is.
    """
    return _ordered(program) if jax.default_backend() == "cpu" and _has_work(program) else program


def _has_work(program: Any) -> bool:
    return any(_is_disordered(equation) for equation, _ in jaxprs.walk(program))


def _is_disordered(equation: jaxprs.Equation) -> bool:
    if equation.primitive is not jax.lax.conv_general_dilated_p:
        return False
    order = equation.params["dimension_numbers"]
    return tuple(map(tuple, order)) != tuple(map(tuple, _order(len(order.lhs_spec))))


def _order(ndim: int) -> jax.lax.ConvDimensionNumbers:
    """NHWC for images, HWIO for kernels, with any number of spatial axes."""
    spatial = range(1, ndim - 1)
    images = (0, ndim - 1, *spatial)
    return jax.lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)


def _ordered(program: jaxprs.Program) -> jaxprs.Program:
    """The same computation, traced again from what its equations say."""

    def again(*args: Any) -> Any:
        return jaxprs.evaluate(program, args, _applied, lambda constant: constant)

    return jax.make_jaxpr(again)(*program.in_avals)


def _applied(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
    if _is_disordered(equation):
        return [_convolved(*operands, **equation.params)]
    if any(map(_has_work, jaxprs.inner(equation))):
        return jaxprs.bind(equation, operands, jaxprs.with_inner(equation, _ordered))
    return jaxprs.bind(equation, operands)


def _convolved(
    images: Any, kernel: Any, *, dimension_numbers: jax.lax.ConvDimensionNumbers, **params: Any
) -> Any:
    old, new = dimension_numbers, _order(images.ndim)
    images = jnp.transpose(images, _moves(old.lhs_spec, new.lhs_spec))
    kernel = jnp.transpose(kernel, _moves(old.rhs_spec, new.rhs_spec))
    result = jax.lax.conv_general_dilated_p.bind(images, kernel, dimension_numbers=new, **params)
    return jnp.transpose(result, _moves(new.out_spec, old.out_spec))


def _moves(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The axes of `source` in the order of `target`; both name the place of each kind of axis."""
    places = dict(zip(target, source, strict=True))
    return [places[axis] for axis in range(len(places))]
