"""Functions whose results go bad: the first operation that did it is found wherever it stands."""

import jax
import jax.numpy as jnp
import numpy as np
from tests.marks import line_of

from loopax.diagnose.origins import find_origin


def test_an_overflow_beside_a_mask_is_named_and_the_mask_is_not():
    def spread(scores):
        masked = jnp.where(jnp.arange(3) < 2, scores, -jnp.inf)
        return jnp.exp(masked).sum()  # born: beside the mask

    origin = find_origin(spread, jnp.array([1.0, 1000.0, 2.0]))
    assert (origin.what, origin.primitive) == ("inf", "exp")
    assert origin.source == line_of(__file__, "beside the mask")


def test_of_two_infinities_that_cancel_the_computed_one_is_named():
    def difference(scores):
        masked = jnp.where(scores > 0, scores, -jnp.inf)
        return masked - jnp.log(scores)  # born: cancelled

    origin = find_origin(difference, jnp.array([0.0, 1.0]))
    assert (origin.what, origin.primitive) == ("-inf", "log")
    assert origin.source == line_of(__file__, "cancelled")


def test_a_mask_that_reaches_the_result_is_named_as_the_constant_it_is():
    def worst(scores):
        return jnp.where(scores > 0, scores, -jnp.inf).min()  # born: reaching

    origin = find_origin(worst, jnp.array([1.0, -1.0]))
    assert (origin.what, origin.primitive) == ("-inf", "constant")
    assert origin.source == line_of(__file__, "reaching")
    assert str(origin).startswith("-inf is a constant at test_origins.py:")


def test_an_argument_of_any_function_is_named_by_parameter_and_path():
    origin = find_origin(lambda tree: tree["a"][1] * 2, {"a": [jnp.ones(1), jnp.array([-jnp.inf])]})
    assert str(origin) == "-inf comes in with the argument tree a/1"


def test_an_array_that_the_function_holds_is_named():
    held = np.array([1.0, np.inf], np.float32)
    origin = find_origin(lambda x: x + jnp.asarray(held), jnp.ones(2))
    assert str(origin) == "inf comes in with an array that the function holds"


def test_inside_of_a_reversed_scan_the_iteration_keeps_its_index():
    def backwards(xs):
        return jax.lax.scan(lambda c, x: (c + 1 / x, c), 0.0, xs, reverse=True)

    origin = find_origin(backwards, jnp.array([1.0, 0.0, 2.0, 0.0, 3.0]))
    assert (origin.what, origin.primitive, origin.iteration) == ("inf", "div", 3)


def test_a_branch_is_followed_and_the_one_not_taken_is_not():
    def choose(flag, x):
        return jax.lax.cond(flag, lambda x: 1 / x, lambda x: jnp.log(x), x)

    assert find_origin(choose, True, jnp.float32(0)).primitive == "div"
    assert find_origin(choose, False, jnp.float32(0)).primitive == "log"
    assert find_origin(choose, True, jnp.float32(2)) is None


def test_a_while_loop_is_named_as_a_whole():
    def shrink(x):
        return jax.lax.fori_loop(0, jnp.int32(3), lambda i, x: jnp.log(x), x)

    assert find_origin(shrink, jnp.float32(1)).primitive == "while"


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def reciprocal(x):
        return 1 / x  # born: custom

    reciprocal.defvjp(lambda x: (reciprocal(x), x), lambda x, g: (-g / x**2,))
    assert find_origin(reciprocal, jnp.zeros(2)).source == line_of(__file__, "custom")
