"""Too little memory, for real: the line says why, and what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import monitoring

import loopax
from loopax.account import Account
from loopax.batches.iterable import as_batches
from loopax.compute.memory import explaining_memory
from loopax.compute.program import TrainProgram
from loopax.errors import DeviceMemoryError


def hungry(params, batch, rngs):
    """A product with a matrix of four million by four million: it must be there as a whole.

    Not a sort, whose gradient in a loop crashes the compiler of jaxlib 0.12 at such sizes.
    """
    del rngs
    side = jnp.sin(jnp.arange(2**22, dtype=jnp.float32) * params["w"])
    return (jnp.sin(side[:, None] * side[None, :]) @ side)[3] * batch.mean()


def hungry_state():
    return loopax.TrainState.create(params={"w": jnp.float32(1)}, tx=optax.sgd(0.1))


def modest(params, batch, rngs):
    del rngs
    return params["w"].sum() * batch.mean()


def modest_state():
    return loopax.TrainState.create(params={"w": jnp.ones(1024)}, tx=optax.sgd(0.1))


WIDE = np.ones((16, 3), np.float32)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_a_step_that_does_not_fit_says_why_and_what_helps():
    with pytest.raises(DeviceMemoryError) as caught:
        loopax.diagnose.estimate(hungry_state(), hungry, [WIDE], seconds=0.01)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("out of memory: allocating ")
    assert "TiB (batch size 16, the state takes 16 B, a step needs " in message
    for remedy in (
        "batch size smaller",
        "accumulate",
        "optax.MultiSteps",
        "bfloat16",
        "jax.checkpoint",
    ):
        assert remedy in message
    assert "RESOURCE_EXHAUSTED" in str(caught.value.__cause__)
    assert caught.value.exit_code == 8


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_around_a_loop_it_explains_a_donated_state_without_compiling_again():
    batches = as_batches([WIDE])
    train = TrainProgram(hungry, batches, Account())
    items = batches.feed([0], 0, 1).take(1)
    items = items._replace(length=np.int32(items.length))
    state, compiled = hungry_state(), []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append((seconds, details))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        with (
            pytest.raises(DeviceMemoryError, match=r"a step needs \d+\.\d TiB beside it"),
            explaining_memory(train, lambda: (state, items)),
        ):
            jax.block_until_ready(train(state, items))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1


def test_before_the_first_items_and_for_the_host_it_says_what_it_knows():
    train = TrainProgram(modest, as_batches([WIDE]), Account())
    with (
        pytest.raises(
            DeviceMemoryError, match=r"Unable to allocate .*\(the state takes [\d.]+ KiB"
        ),
        explaining_memory(train, lambda: (modest_state(), None)),
    ):
        np.ones(2**55, np.uint8)


def test_other_errors_pass_as_they_are():
    train = TrainProgram(modest, as_batches([WIDE]), Account())
    for error in (jax.errors.JaxRuntimeError("INTERNAL: cable"), ValueError("other")):
        with (
            pytest.raises(type(error)) as caught,
            explaining_memory(train, lambda: (modest_state(), None)),
        ):
            raise error
        assert caught.value is error
