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
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core, source_info_util
from jaxtyping import Array, Bool, Float

from loopax import state as state_module
from loopax import step as step_module
from loopax.paths import PyTree, leaf_path
from loopax.soundness import sound_leaves
from loopax.state import TrainState
from loopax.step import Batch, LossFn, call_loss, differentiate, train_step

CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
CALLS |= {"custom_jvp_call", "custom_vjp_call"}
"""Equations that only evaluate others; `cond` is one as soon as its index is known."""

UNROLLED_LIMIT = 50_000
"""Equations up to which a scan is walked through; a longer one is named as a whole."""

ARGUMENTS = {
    "batch": "the batch's",
    "params": "the parameter",
    "mutable": "the collection",
    "opt_state": "the optimiser's state",
}


@dataclass(frozen=True)
class Origin:
    """Where a value that is not finite came from.

    Attributes:
        what: how it began: `nan`, `inf` or `-inf`.
        layer: the named scopes around the equation, which in Flax are the modules:
            `VAE/encoder/Dense_1`. For an argument the name of the leaf: `the batch's image`.
        primitive: the operation that made it from finite inputs, such as `log`; `constant` for a
            literal or an array that the function holds, `argument` for a leaf it was given.
        source: the line of the program, `/path/vae.py:34`; empty where it is not known.
        pass_: `update` is the optimiser's part of a step.
        inputs: the range of each numerical input; for an argument how many of its values are bad.
        iteration: in a scan, the iteration it happened in.
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
            return f"{self.what} comes in with {self.layer} ({self.inputs[0]})"
        scope = self.layer if self.iteration is None else f"{self.layer} [{self.iteration}]"
        place = f" in {scope}:" if scope else " in"
        born = f"{self.what} is {'a' if self.primitive == 'constant' else 'born'}{place}"
        if self.primitive == "constant":
            born = f"{self.what} is a constant{f' in {scope}' if scope else ''}"
        else:
            born += f" {self.primitive}"
        line = f" at {Path(self.source).name}" if self.source else ""
        facts = [self.pass_ if self.pass_ == "update" else f"{self.pass_} pass"]
        if len(self.inputs) == 1:
            facts.append(f"its input {self.inputs[0]}")
        elif self.inputs:
            facts.append("of its inputs one " + ", one ".join(self.inputs))
        return f"{born}{line} ({'; '.join(facts)})"
