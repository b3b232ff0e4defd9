"""A whole step of one's own, over a state of one's own: all else is as with a loss."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.diagnose.replay import Replay
from loopax.errors import ConfigError, NonFiniteError
from loopax.randomness import Rngs

PLAIN = {"progress": False}
DATA = [{"x": np.full((2, 1), value, np.float32)} for value in range(1, 8)]
TX = optax.adam(0.1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    """Two networks, of which the second follows the first, and an optimiser."""

    first: dict
    second: dict
    moments: tuple
    best: jax.Array
    key: jax.Array
    step: jax.Array


def pair(seed=3):
    first = {"w": jnp.ones((1, 1))}
    second = {"w": jnp.zeros((1, 1))}
    return Pair(
        first, second, TX.init(first), jnp.float32(jnp.inf), jax.random.key(seed), jnp.int32(0)
    )


def follow(state, batch, rngs):
    def loss(first):
        noise = jax.random.normal(rngs["noise"], batch["x"].shape)
        return jnp.square(batch["x"] @ (first["w"] - state.second["w"]) + noise).mean()

    value, grads = jax.value_and_grad(loss)(state.first)
    updates, moments = TX.update(grads, state.moments, state.first)
    first = optax.apply_updates(state.first, updates)
    second = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.second, first)
    best = jnp.minimum(state.best, value)
    after = Pair(first, second, moments, best, state.key, state.step + 1)
    return after, {"loss": value, "grad_norm": optax.tree.norm(grads)}


def distance(state, batch, rngs):
    assert not rngs.training
    return {"distance": jnp.abs(state.first["w"] - state.second["w"]).sum()}


def test_it_trains_saves_resumes_evaluates_and_replays_as_a_loss_does(tmp_path, bits):
    def train(steps, name="run", **options):
        evaluation = loopax.Evaluation({"gap": DATA[:2]}, loss_fn=distance)
        return loopax.fit(
            pair(),
            data=DATA,
            step=follow,
            steps=steps,
            log_every=2,
            run_dir=tmp_path / name,
            evaluation=evaluation,
            **options,
            **PLAIN,
        )

    by_hand, jitted = pair(), jax.jit(follow)
    for batch in DATA:
        by_hand, metrics = jitted(by_hand, batch, Rngs(by_hand.key, by_hand.step))
    by_distance = loopax.Checkpoints(best="gap/distance")
    train(3, checkpoints=by_distance)
    run = train(7, checkpoints=by_distance)
    whole = train(7, "whole", chunk_steps=2)
    assert isinstance(run.state, Pair)
    assert bits(run.state) == bits(whole.state)
    np.testing.assert_allclose(run.state.second["w"], by_hand.second["w"], rtol=1e-6)
    assert run.latest("train")["loss"] == pytest.approx(float(metrics["loss"]))
    assert run.latest("gap")["distance"] > 0
    assert loopax.CheckpointStore(run.dir.checkpoints).step_of("best") in (3, 7)
    assert "grad_norm" in run.latest("train")
    assert "state       8 in 8 arrays" in repr(run)
    assert pickle.loads(pickle.dumps(run)).state.step == 7

    again = Replay(run.dir, pair(), None, DATA, step=follow).step(6)
    assert again.metrics["loss"] == run.latest("train")["loss"]
    assert not any(again.report.non_finite.values())
    with pytest.raises(ConfigError, match="a state of one's own, which has no params"):
        loopax.CheckpointStore(run.dir.checkpoints).weights()


def test_a_bad_step_is_explained_or_skipped(tmp_path):
    bad = [*DATA[:4], {"x": np.full((2, 1), np.nan, np.float32)}, *DATA[5:]]
    options = {"data": bad, "step": follow, "steps": 7, "log_every": 1, **PLAIN}
    with pytest.raises(NonFiniteError, match="at step 4") as caught:
        loopax.fit(pair(), run_dir=tmp_path, **options)
    assert "nan comes in with the batch's x" in caught.value.__notes__[0]
    run = loopax.fit(pair(), nonfinite="skip", **options)
    assert int(run.state.step) == 7
    assert np.isfinite(run.state.second["w"]).all()
    assert [row["skipped_steps"] for row in run.history if row["source"] == "train"][4] == 1


def with_step(change):
    def step(state, batch, rngs):
        after, metrics = follow(state, batch, rngs)
        return dataclasses.replace(after, step=change(state, after)), metrics

    return step


MISTAKES = {
    "no count": (pair, with_step(lambda old, new: old.step), "it goes from 0 to 0"),
    "twice": (pair, with_step(lambda old, new: old.step + 2), "it goes from 0 to 2"),
    "by a number": (
        pair,
        with_step(lambda old, new: jnp.where(new.best > 1, new.step, old.step)),
        r"step \+ 1: it depends on ",
    ),
    "no metrics": (pair, lambda state, batch, rngs: state, r"must return \(state, metrics\)"),
    "no rngs": (pair, lambda state, batch: (state, {}), r"the step takes \(state, batch\)"),
    "an old key": (
        lambda: dataclasses.replace(pair(), key=jax.random.PRNGKey(0)),
        follow,
        r"state.key of a Pair .*jax.random.key\(seed\)",
    ),
    "no state": (lambda: {"w": jnp.ones(1)}, follow, "state is a dict"),
}


@pytest.mark.parametrize(("state", "step", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_a_step_are_named(state, step, message):
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.fit(state(), data=DATA, step=step, steps=2, **PLAIN)
    assert "\n" not in str(caught.value)


def test_what_trains_is_one_of_two():
    with pytest.raises(ConfigError, match="either loss_fn or step"):
        loopax.fit(pair(), distance, DATA, step=follow, steps=1, **PLAIN)
    with pytest.raises(ConfigError, match="state is a Pair"):
        loopax.fit(pair(), distance, DATA, steps=1, **PLAIN)
    with pytest.raises(ConfigError, match=r"Evaluation\(data, loss_fn="):
        loopax.fit(pair(), data=DATA, step=follow, steps=1, evaluation=DATA, **PLAIN)


def test_the_steps_of_a_loss_stand_in_a_loop_of_ones_own():
    """In a scan over stacked batches they do what `fit` does, frozen parts and averages too."""

    def loss(params, batch, rngs):
        noise = jax.random.normal(rngs["noise"], batch["x"].shape)
        return jnp.square(batch["x"] * params["w"] + params["b"] + noise).mean(), {}

    params = {"w": jnp.ones(1), "b": jnp.ones(1)}
    state = loopax.TrainState.create(params=params, tx=TX, frozen=("b",), ema_decay=0.9)
    stacked = jax.tree.map(lambda *batches: np.stack(batches), *DATA)
    with jax.numpy_rank_promotion("allow"):
        scanned, metrics = jax.lax.scan(loopax.train_step(loss), state, stacked)
        run = loopax.fit(state, loss, DATA, steps=7, log_every=1, **PLAIN)
        measured = jax.jit(loopax.eval_step(loss))(scanned, DATA[0])
        evaluated = loopax.evaluate(scanned, loss, DATA[:1])
    assert int(scanned.step) == 7
    np.testing.assert_allclose(scanned.ema["w"], run.state.ema["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"][-1], run.latest("train")["loss"], rtol=1e-6)
    assert float(measured["loss"]) == pytest.approx(evaluated["loss"])
