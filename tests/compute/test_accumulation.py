"""Batches that would make no update are counted before the first step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.compute.accumulation import check_accumulation
from loopax.errors import ConfigError
from loopax.optimizer import Optimizer

PARAMS = {"x": jnp.zeros(2), "y": jnp.zeros(3)}


def slope(params, batch, rngs):
    return params["x"].sum() + params["y"].sum()


def over(batches, tx=None):
    return optax.MultiSteps(tx or optax.adam(0.1), batches).gradient_transformation()


def sometimes(updates, step, params):
    """A window that turns away batches, by the gradients: here none of them."""
    return optax.tree.norm(updates) > 1e6, ()


WINDOWS = {
    "alone": (over(4), 10, 2),
    "without a rest": (over(5), 10, 0),
    "behind a clip": (optax.chain(optax.clip(1.0), over(4)), 10, 2),
    "masked": (optax.masked(over(4), {"x": True, "y": False}), 11, 3),
    "of a part": (
        optax.multi_transform({"a": over(3), "b": optax.sgd(1.0)}, {"x": "a", "y": "b"}),
        11,
        2,
    ),
    "of two parts": (
        optax.multi_transform({"a": over(3), "b": over(4)}, {"x": "a", "y": "b"}),
        11,
        3,
    ),
    "one in another": (over(2, over(3)), 16, 4),
    "growing": (Optimizer("sgd", 0.1, accumulate={0: 1, 2: 5}).build(), 11, 4),
    "turning away": (
        optax.MultiSteps(optax.sgd(1.0), 4, should_skip_update_fn=sometimes),
        10,
        2,
    ),
    "with the loss": (over(4, optax.polyak_sgd()), 10, 2),
    "injected": (optax.inject_hyperparams(lambda rate: over(4, optax.sgd(rate)))(rate=0.1), 10, 2),
}


@pytest.mark.parametrize(("tx", "steps", "unused"), WINDOWS.values(), ids=WINDOWS.keys())
def test_batches_that_make_no_update_are_counted(tx, steps, unused):
    state = loopax.TrainState.create(params=PARAMS, tx=tx)
    line = check_accumulation(state, steps)
    if not unused:
        assert line is None
    else:
        assert f"last {unused} batches make no update" in line


def test_of_a_resumed_run_the_open_window_counts():
    state = loopax.TrainState.create(params=PARAMS, tx=over(4))
    grads = {"x": jnp.ones(2), "y": jnp.ones(3)}
    for _ in range(6):
        state = state.apply_gradients(grads=grads)
    assert check_accumulation(state, 2) is None
    assert "last batch of this run makes no update" in check_accumulation(state, 3)
    assert "last 3 batches" in check_accumulation(state, 1)  # the two before it are lost as well


@pytest.mark.parametrize(
    ("tx", "path"),
    [
        (over(64), "x and 1 more"),
        (optax.multi_transform({"a": optax.sgd(1.0), "b": over(64)}, {"x": "a", "y": "b"}), "y"),
        (over(5, over(5)), "x and 1 more"),
    ],
    ids=["of all", "of a part", "one in another"],
)
def test_a_run_that_would_never_update_is_refused(tx, path):
    state = loopax.TrainState.create(params=PARAMS, tx=tx)
    with pytest.raises(ConfigError, match=f"than the 20 of this run, so that {path} would never"):
        loopax.fit(state, slope, [np.zeros(1)], steps=20, progress=False)


def test_what_is_lost_is_said_at_the_start():
    state = loopax.TrainState.create(params=PARAMS, tx=over(4))
    with pytest.warns(UserWarning, match="the last 2 batches make no update"):
        run = loopax.fit(state, slope, [np.zeros(1)], steps=10, progress=False)
    assert run.step == 10
