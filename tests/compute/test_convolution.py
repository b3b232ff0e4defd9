"""Convolutions are put in order wherever they stand, and compute what they did."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax import jaxprs
from loopax.compute.convolution import with_ordered_convolutions
from loopax.data import Dataset
from loopax.placement import ONE

NHWC = "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"


def orders(function, *args):
    """The dimension numbers of every convolution in a computation, inner ones too."""
    text = str(jax.make_jaxpr(function)(*args))
    return [
        part.split(")\n")[0] for part in text.split("dimension_numbers=ConvDimensionNumbers(")[1:]
    ]


def convolved(x, kernel, **options):
    shape = {"window_strides": (1, 1), "padding": "SAME"}
    return jax.lax.conv_general_dilated(x, kernel, **{**shape, **options})


def plain(x, kernel):
    return convolved(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradient(x, kernel):
    return jax.grad(lambda kernel: jnp.square(plain(x, kernel)).sum())(kernel)


def scanned(x, kernel):
    return jax.lax.scan(lambda carry, _: (carry - gradient(x, carry), None), kernel, length=3)[0]


def branched(x, kernel):
    return jax.lax.cond(x.sum() > 0, gradient, lambda x, kernel: kernel, x, kernel)


def recomputed(x, kernel):
    inner = jax.checkpoint(lambda kernel: plain(jnp.tanh(plain(x, kernel)), kernel))
    return jax.grad(lambda kernel: inner(kernel).sum())(kernel)


def channels_first(x, kernel):
    return convolved(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))


def strided(x, kernel):
    options = {"window_strides": (2, 2), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return jax.grad(lambda x: jnp.sin(convolved(x, kernel, **options)).sum())(x)


def by_groups(x, kernel):
    options = {"feature_group_count": 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return jax.grad(lambda k: jnp.sin(convolved(x, k, **options)).sum())(kernel[:, :, :1])


@pytest.mark.parametrize(
    "function",
    [
        gradient,
        scanned,
        branched,
        recomputed,
        channels_first,
        strided,
        by_groups,
        jax.jit(gradient),
    ],
)
def test_every_convolution_is_in_order_and_gives_what_it_gave(function):
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 2))
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, 2, 2))
    assert any(NHWC not in order for order in orders(function, x, kernel))
    ordered, _ = jaxprs.traced(function, x, kernel, change=with_ordered_convolutions)
    found = orders(ordered, x, kernel)
    assert found
    assert all(NHWC in order for order in found)
    expected = jax.jit(function)(x, kernel)
    np.testing.assert_allclose(jax.jit(ordered)(x, kernel), expected, rtol=1e-4, atol=1e-5)


def test_a_training_step_has_no_convolution_out_of_order():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, image):
            x = nn.relu(nn.Conv(4, (3, 3), strides=2)(image))
            x = nn.relu(nn.ConvTranspose(2, (3, 3), strides=(2, 2))(x))
            return nn.Dense(1)(x.reshape(len(x), -1))

    from loopax.account import Account
    from loopax.compute.program import TrainProgram

    model = Model()
    data = Dataset({"image": np.ones((8, 6, 6, 1), np.float32)})
    state = loopax.TrainState.create(model, data, optax.adam(1e-3))
    batches = data.batches(4)
    train = TrainProgram(
        lambda params, batch, rngs: jnp.square(model.apply(params, batch["image"])).mean(),
        batches,
        Account(),
    )
    items = batches.feed([0], 0, 2).take(2)
    text = jax.make_jaxpr(train._chunk)(state, batches.resident(ONE), items.stacked, jnp.int32(2))
    orders = str(text).split("dimension_numbers=ConvDimensionNumbers(")[1:]
    assert orders
    assert all(NHWC in order for order in orders)
