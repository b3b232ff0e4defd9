"""Batches that would make no update are counted before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.compute.accumulation import check_accumulation
from loopax.errors import ConfigError
from loopax.optimizer import Optimizer

PLAIN = {"progress": False, "probe_every": None}
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


# --- Batches count as much as they weigh ------------------------------------------


LENGTHS = (1, 7, 64, 3, 12, 2, 30, 5)


def sentences():
    """Batches of one sentence each, padded to 64 tokens."""
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.normal(size=(1, 64, 4)).astype(np.float32),
            "is_token": np.arange(64)[None] < length,
        }
        for length in LENGTHS
    ]


def together():
    """All of them in one batch."""
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *sentences())]


def of_tokens(params, batch, rngs):
    """A mean over the tokens that there are."""
    del rngs
    off = jnp.square(batch["x"] @ params["w"] - jnp.sin(batch["x"].sum(-1)))
    tokens = batch["is_token"].sum()
    return jnp.where(batch["is_token"], off, 0).sum() / tokens, {"weight": tokens}


def model(tx, **options):
    return loopax.TrainState.create(params={"w": 0.1 * jnp.ones(4)}, tx=tx, **options)


def clipped():
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05))


INNER = {
    "clip and adamw": clipped(),
    "polyak": optax.polyak_sgd(),
    "plateau": optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, rtol=0.5, factor=0.5)
    ),
}
AROUND = {
    "a GradientTransformation": lambda tx: over(8, tx),
    "the MultiSteps": lambda tx: optax.MultiSteps(tx, 8),
    "turning away none": lambda tx: optax.MultiSteps(
        tx, 8, should_skip_update_fn=optax.skip_not_finite
    ),
}


@pytest.mark.parametrize(
    ("inner", "around"), [*zip(INNER.values(), AROUND.values(), strict=True)], ids=INNER.keys()
)
def test_batches_of_unequal_lengths_make_the_step_of_all_at_once(inner, around):
    data = sentences()
    many = loopax.fit(model(around(inner)), of_tokens, data, steps=24, **PLAIN)
    once = loopax.fit(model(inner), of_tokens, together(), steps=3, **PLAIN)
    np.testing.assert_allclose(many.state.params["w"], once.state.params["w"], rtol=1e-5)
    assert loopax.evaluate(many.state, of_tokens, data) == pytest.approx(
        loopax.evaluate(once.state, of_tokens, together()), rel=1e-5
    )


@pytest.mark.parametrize("windows", [(1, 8), (8, 1), (2, 4)])
def test_a_group_that_accumulates_weighs_its_batches_too(windows):
    """Inside of an accumulation of all as well, whose windows weigh what their batches do."""
    of_all, of_group = windows
    group = loopax.Group(("w",), Optimizer("sgd", 0.3, accumulate=of_group))
    tx = Optimizer("sgd", 0.1, accumulate=of_all, groups=(group,))
    many = loopax.fit(model(tx), of_tokens, sentences(), steps=8, **PLAIN)
    once = loopax.fit(model(optax.sgd(0.3)), of_tokens, together(), steps=1, **PLAIN)
    np.testing.assert_allclose(many.state.params["w"], once.state.params["w"], rtol=1e-5)


@pytest.mark.parametrize("weight", [None, 32])
def test_batches_that_weigh_the_same_are_accumulated_as_optax_does(weight, bits):
    tx = optax.MultiSteps(clipped(), 4)
    state, params = model(tx), {"w": 0.1 * jnp.ones(4)}
    opt_state = tx.init(params)
    for seed in range(12):
        grads = {"w": jax.random.normal(jax.random.key(seed), (4,))}
        extra_args = {} if weight is None else {"weight": jnp.int32(weight)}
        state = state.apply_gradients(grads=grads, extra_args=extra_args)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert bits(state.params) == bits(params)


def test_what_weighs_nothing_moves_nothing():
    """The gradient of a mean over nothing is no number."""
    state = model(over(3, optax.sgd(1.0)))
    for grad, weight in ((1.0, 3), (jnp.nan, 0), (5.0, 1)):
        grads = {"w": jnp.full(4, grad)}
        state = state.apply_gradients(grads=grads, extra_args={"weight": jnp.int32(weight)})
    np.testing.assert_allclose(state.params["w"], 0.1 - (3 * 1.0 + 5.0) / 4, rtol=1e-6)


def test_a_batch_that_is_turned_away_weighs_nothing():
    tx = optax.MultiSteps(optax.sgd(1.0), 2, should_skip_update_fn=optax.skip_not_finite)
    state = model(tx)
    for grad, weight in ((1.0, 3), (jnp.inf, 100), (5.0, 1), (2.0, 1)):
        grads = {"w": jnp.full(4, grad)}
        state = state.apply_gradients(grads=grads, extra_args={"weight": jnp.int32(weight)})
    np.testing.assert_allclose(state.params["w"], 0.1 - 2.0, rtol=1e-6)


def test_a_run_that_stops_within_a_window_goes_on_with_its_weights(tmp_path, bits):
    data, tx = sentences(), over(8, INNER["polyak"])
    for steps in (11, 13, 16):
        run = loopax.fit(model(tx), of_tokens, data, steps=steps, run_dir=tmp_path, **PLAIN)
    assert bits(run.state) == bits(loopax.fit(model(tx), of_tokens, data, steps=16, **PLAIN).state)


BLIND = {
    "in a chain": optax.chain(optax.clip(1.0), over(8)),
    "one in another": over(2, over(4)),
    "sums": optax.MultiSteps(optax.adam(0.1), 8, use_grad_mean=False),
}


@pytest.mark.parametrize("tx", BLIND.values(), ids=BLIND.keys())
def test_a_window_that_cannot_know_of_weights_is_named(tx):
    with pytest.warns(UserWarning, match="'weight', and the gradients of w are accumulated withou"):
        loopax.fit(model(tx), of_tokens, sentences(), steps=8, **PLAIN)


def test_complex_gradients_are_accumulated_by_their_parts_or_refused():
    with pytest.raises(ConfigError, match=r"keeps gradients as float32, and z is complex64; put"):
        loopax.TrainState.create(params={"z": jnp.ones(2, jnp.complex64)}, tx=over(2))
    tx = optax.contrib.split_real_and_imaginary(over(2, optax.sgd(1.0)))
    state = loopax.TrainState.create(params={"z": jnp.zeros(2, jnp.complex64)}, tx=tx)
    for _ in range(2):
        state = state.apply_gradients(grads={"z": jnp.full(2, 1 + 2j)})
    np.testing.assert_allclose(state.params["z"], -1 - 2j)
