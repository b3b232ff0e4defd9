"""What tells arrays apart: any bit, any place, any form and any name, whatever the type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopax.run.fingerprint import fingerprint

TYPES = ("bool", "int4", "int8", "uint16", "int32", "float8_e5m2", "bfloat16", "float16", "float32")


@pytest.mark.parametrize("dtype", [*TYPES, "complex64"])
def test_arrays_of_any_type_are_told_apart_by_one_value_and_by_its_place(dtype):
    ones = jnp.ones(1000, dtype)
    others = [ones.at[place].set(jnp.zeros((), dtype)) for place in (0, 1, 999)]
    names = {fingerprint({"x": each}) for each in (ones, *others)}
    assert len(names) == 4
    assert fingerprint({"x": jnp.ones(1000, dtype)}) in names


ALIKE = {
    "another name": {"y": jnp.ones(6)},
    "another shape": {"x": jnp.ones((2, 3))},
    "another type": {"x": jnp.ones(6, jnp.int32)},
    "in two": {"x": jnp.ones(3), "y": jnp.ones(3)},
    "minus zero": {"x": jnp.ones(6).at[0].set(-0.0)},
}


@pytest.mark.parametrize("tree", ALIKE.values(), ids=ALIKE.keys())
def test_trees_that_hold_nearly_the_same_are_told_apart(tree):
    others = [{"x": jnp.ones(6)}, {"x": jnp.ones(6).at[0].set(0.0)}]
    assert fingerprint(tree) not in map(fingerprint, others)


def test_keys_and_numbers_without_axes_have_one_too():
    trees = [{"k": jax.random.key(seed), "x": jnp.float32(seed)} for seed in (0, 1)]
    assert fingerprint(trees[0]) != fingerprint(trees[1])
    assert fingerprint(trees[0]) == fingerprint({"k": jax.random.key(0), "x": jnp.float32(0)})


def test_every_bit_of_random_numbers_counts():
    noise = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    names = set()
    for bit in range(32):
        changed = noise.copy()
        changed[500] ^= np.uint32(1 << bit)
        names.add(fingerprint({"x": jnp.asarray(changed)}))
    assert len(names) == 32
