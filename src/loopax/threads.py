"""Work in another thread, as if it were done by the caller."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax

_OF_A_THREAD = {
    "jax_default_device": jax.default_device,
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_debug_nans": jax.debug_nans,
    "jax_debug_infs": jax.debug_infs,
}
"""What `with jax.enable_x64(True):` and the like set for the caller's thread alone."""


def as_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for another thread, with the caller's context variables and settings of JAX."""
    settings = {name: getattr(jax.config, name) for name in _OF_A_THREAD}
    context = contextvars.copy_context()

    def called(*args: Any) -> Any:
        with ExitStack() as stack:
            for name, value in settings.items():
                stack.enter_context(_OF_A_THREAD[name](value))
            return context.run(function, *args)

    return called
