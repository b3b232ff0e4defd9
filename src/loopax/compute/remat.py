"""What a loss keeps for its gradient, and what is computed again there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from loopax import jaxprs
from loopax.errors import ConfigError

ENDING = "_saveable"
NAMES = tuple(
    name.removesuffix(ENDING) for name in dir(jax.checkpoint_policies) if name.endswith(ENDING)
)
"""JAX's policies by what they keep: `nothing`, `dots` and so on."""


def checked_remat(remat: Any) -> str | None:
    """The name of a policy, or None.

    Raises:
        ConfigError: JAX has none of that name.
    """
    if remat is not None and remat not in NAMES:
        raise ConfigError(
            f"remat is {remat!r}; it must be one of {', '.join(NAMES)}: what is kept for the "
            "gradient. For a policy of your own, give jax.checkpoint(loss_fn, policy=...) as loss"
        )
    return remat


def rematerialised(function: Callable[..., Any], remat: str | None) -> Callable[..., Any]:
    """The same function, whose gradient computes again what the policy does not keep.

    Where it scans, as over the layers of a network, each iteration is computed again by itself.
    Around a whole scan a policy saves nothing: all that its iterations need would be there at
    once when they are computed again.
    """
    if remat is None:
        return function
    policy = getattr(jax.checkpoint_policies, remat + ENDING)

    def again(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _scans(program):
            return jax.checkpoint(function, policy=policy)(*args)
        leaves = jaxprs.as_function(_by_iteration(program, policy))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return again


def _scans(program: jaxprs.Program) -> bool:
    return any(equation.primitive.name == "scan" for equation, _ in jaxprs.walk(program))


def _by_iteration(program: jaxprs.Program, policy: Any) -> jaxprs.Program:
    """The program with each outermost scan's body under the policy."""

    def body(program: jaxprs.Program) -> jaxprs.Program:
        # A loop keeps the compiler from undoing it, so that nothing else has to.
        function = jax.checkpoint(jaxprs.as_function(program), policy=policy, prevent_cse=False)
        return jax.make_jaxpr(function)(*program.in_avals)

    def applied(equation: jaxprs.Equation, operands: Sequence[Any]) -> list[Any]:
        if equation.primitive.name == "scan":
            return jaxprs.bind(equation, operands, jaxprs.with_inner(equation, body))
        if any(map(_scans, jaxprs.inner(equation))):
            inner = jaxprs.with_inner(equation, lambda inner: _by_iteration(inner, policy))
            return jaxprs.bind(equation, operands, inner)
        return jaxprs.bind(equation, operands)

    def again(*args: Any) -> Any:
        return jaxprs.evaluate(program, args, applied, lambda constant: constant)

    return jax.make_jaxpr(again)(*program.in_avals)
