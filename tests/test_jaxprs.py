"""Programs are walked, evaluated in other values, and cut down."""

import jax
import jax.numpy as jnp
import numpy as np

from loopax import jaxprs


def nested(x):
    def inner(carry, _):
        return jax.lax.cond(carry.sum() > 0, jnp.sin, jnp.cos, carry), None

    def outer(carry, _):
        return jax.lax.scan(inner, carry, length=2)

    return jax.jit(lambda x: jax.lax.scan(outer, x, length=3)[0])(x)


def test_a_walk_comes_to_every_equation_and_knows_those_around_it():
    program = jax.make_jaxpr(nested)(jnp.ones(2))
    places = {
        equation.primitive.name: [outer.primitive.name for outer in around]
        for equation, around in jaxprs.walk(program)
    }
    assert places["sin"] == places["cos"] == [*places["cond"], "cond"]
    assert places["cond"][-2:] == ["scan", "scan"]


def test_bound_with_the_same_operands_a_program_gives_the_same_bits():
    x = jnp.linspace(0, 1, 5)
    program = jax.make_jaxpr(nested)(x)
    (again,) = jaxprs.evaluate(program, [x], jaxprs.bind, lambda constant: constant)
    np.testing.assert_array_equal(again, nested(x))


def test_values_of_any_kind_and_no_more_of_them_than_are_needed():
    """Each value is the set of inputs that it depends on; a chain needs two of them at a time."""

    class Inputs(frozenset):
        alive = 0

        def __init__(self, *args):
            Inputs.alive += 1

        def __del__(self):
            Inputs.alive -= 1

    def chain(x, y):
        for _ in range(9):
            x = jnp.sin(x) * 2.0
        return x + y

    most = 0

    def apply(equation, operands):
        nonlocal most
        most = max(most, Inputs.alive)
        return [Inputs(frozenset().union(*operands))] * len(equation.outvars)

    program = jax.make_jaxpr(chain)(1.0, 2.0)
    inputs = [Inputs({"x"}), Inputs({"y"})]
    (result,) = jaxprs.evaluate(program, inputs, apply, lambda constant: Inputs())
    assert set(result) == {"x", "y"}
    assert most < 9


def test_what_is_needed_for_a_result_has_its_inputs_alone():
    program = jax.make_jaxpr(lambda x, y, z: (x * y, z + y))(2.0, 3.0, 5.0)
    part, used = jaxprs.needed(program, [False, True])
    assert used == [False, True, True]
    assert jaxprs.as_function(part)(3.0, 5.0) == [8.0]


def test_arrays_that_inner_programs_hold_are_found_and_those_of_an_outer_trace_are_not():
    held = np.arange(3.0)

    def function(x):
        inner = jax.make_jaxpr(lambda y: jax.jit(lambda y: y * held + x)(y))(1.0)
        arrays.extend(jaxprs.constants(inner))
        return x

    arrays = []
    jax.jit(function)(1.0)
    assert [array.tolist() for array in arrays] == [held.tolist()]
