"""JAX's switches for debugging work around a run, and a bad number is told with its step."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.errors import NonFiniteError

SWITCHES = {
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "disable_jit": jax.disable_jit,
    "enable_x64": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "checking_leaks": jax.checking_leaks,
    "default_device": lambda: jax.default_device(jax.devices()[0]),
}


def batches():
    return [
        {"x": np.full((4, 3), i + 1, np.float32), "label": np.int32([0, 1, 2, i])} for i in range(6)
    ]


def loss(params, batch, rngs):
    del rngs
    return jnp.square(batch["x"] @ params["w"] - jnp.float32(1)).mean(), {"n": jnp.int32(4)}


def new_state():
    return loopax.TrainState.create(params={"w": jnp.zeros(3)}, tx=optax.sgd(1e-3))


def measured(run_dir=None, **options):
    run = loopax.fit(
        new_state(),
        loss,
        batches(),
        steps=6,
        log_every=4,
        probe_every=2,
        evaluation=batches(),
        run_dir=run_dir,
        progress=False,
        **options,
    )
    assert run.latest("test").items() >= loopax.evaluate(run.state, loss, batches()).items()
    return [run.latest(source)["loss"] for source in ("train", "test")]


@pytest.fixture(scope="module")
def expected():
    return measured()


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_sound_run_is_the_same_under_every_switch(tmp_path, expected, switch):
    with warnings.catch_warnings(), SWITCHES[switch]():
        assert measured(tmp_path) == pytest.approx(expected, rel=1e-6)


def test_a_loss_under_jax_checkpoint_trains_as_without(monkeypatch):
    expected = measured()
    monkeypatch.setitem(globals(), "loss", jax.checkpoint(loss))
    assert measured() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("switch", "kept"),
    [("none", True), ("debug_nans", True), ("debug_infs", True), ("debug_nans", False)],
)
def test_a_real_nan_is_told_with_its_step_under_every_switch(tmp_path, switch, kept):
    data = batches()
    bad = jnp.inf if switch == "debug_infs" else jnp.nan

    def poisoned(params, batch, rngs):
        value, metrics = loss(params, batch, rngs)
        return value + jnp.where(batch["label"][-1] == 4, bad, 0.0), metrics

    with (
        SWITCHES.get(switch, contextlib.nullcontext)(),
        pytest.raises(NonFiniteError, match="at step 4") as caught,
    ):
        loopax.fit(
            new_state(),
            poisoned,
            data,
            steps=6,
            chunk_steps=3,
            progress=False,
            run_dir=tmp_path if kept else None,
        )
    assert caught.value.step == 4


def broken(data, name, value):
    data[4][name] = data[4][name].astype(np.float32)
    data[4][name][1] = value
    return data


HOLDS_NAN = "the batch's 'x' holds NaN: look at the data"
HOLDS_INF = "learning rate .*the batch's 'x' holds infinities"
GOES_TOO_FAR = "learning rate .*'label' goes from 0 to 4: is a label or an index out of range?"


@pytest.mark.parametrize(
    ("nonfinite", "data", "message"),
    [
        ("stop", lambda: broken(batches(), "x", np.nan), HOLDS_NAN),
        ("stop", lambda: broken(batches(), "x", np.inf), HOLDS_INF),
        ("stop", batches, GOES_TOO_FAR),
        ("skip", batches, GOES_TOO_FAR),
    ],
    ids=["NaN", "infinity", "labels", "labels that are skipped"],
)
def test_the_batch_is_looked_at_before_the_learning_rate_is_blamed(data, message, nonfinite):
    def labelled(params, batch, rngs):
        logits = batch["x"][:, :1] * params["w"][None, :1] + jnp.ones((1, 4))
        label = batch["label"].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    stop = nonfinite == "stop"
    with pytest.raises(NonFiniteError, match=message):
        loopax.fit(
            new_state(),
            labelled,
            data() if stop else data()[4:5],
            steps=6 if stop else 102,
            nonfinite=nonfinite,
            progress=False,
        )
