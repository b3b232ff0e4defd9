"""Every example counts exactly once, with the same noise each time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.data import Dataset
from loopax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def numbers():
    """101 numbers and their weights, of which no two are alike."""
    rng = np.random.default_rng(0)
    return Dataset({"x": rng.normal(size=101).astype(np.float32)})


@pytest.fixture(scope="module")
def half():
    """A state whose one parameter is 0.5."""
    return loopax.TrainState.create(params={"scale": jnp.full((), 0.5)}, tx=optax.sgd(0.1))


def scaled_mean(params, batch, rngs):
    del rngs
    return params["scale"] * batch["x"].mean(), {"squares": jnp.square(batch["x"]).mean()}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "host"])
@pytest.mark.parametrize("batch_size", [1, 10, 64, 100, 101])
def test_means_are_those_over_all_examples_whatever_the_batches(
    numbers, half, batch_size, resident
):
    means = loopax.evaluate(half, scaled_mean, numbers.batches(batch_size, resident=resident))
    x = numbers.columns["x"].astype(np.float64)
    assert means == pytest.approx({"loss": 0.5 * x.mean(), "squares": (x**2).mean()}, rel=1e-5)


def test_order_and_drop_last_play_no_part(numbers, half):
    plain = loopax.evaluate(half, scaled_mean, numbers.batches(10, shuffle=False))
    for options in ({"shuffle": True}, {"drop_last": True}, {"drop_last": False}):
        assert loopax.evaluate(half, scaled_mean, numbers.batches(10, **options)) == plain


def test_batches_of_an_iterable_weigh_as_many_examples_as_they_have(numbers, half):
    x = numbers.columns["x"]
    bounds = [0, 3, 4, 50, 90, 101]
    batches = [{"x": x[a:b]} for a, b in itertools.pairwise(bounds)]
    expected = {"loss": 0.5 * x.mean(), "squares": (x**2).mean()}
    assert loopax.evaluate(half, scaled_mean, batches) == pytest.approx(expected, rel=1e-5)
    assert loopax.evaluate(half, scaled_mean, iter(batches)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batches", [[], iter(())], ids=["list", "used up iterator"])
def test_nothing_to_evaluate_is_a_data_error(half, batches):
    with pytest.raises(DataError, match="there is no batch to evaluate"):
        loopax.evaluate(half, scaled_mean, batches)


def noisy(params, batch, rngs):
    noise = jax.random.normal(rngs["noise"], batch["x"].shape)
    return params["scale"] * noise.mean(), {"first": noise[0]}


def test_two_evaluations_see_the_same_noise_whatever_the_step(numbers, half):
    data = numbers.batches(10)
    first = loopax.evaluate(half, noisy, data)
    later = loopax.evaluate(half.replace(step=jnp.int32(1000)), noisy, data)
    assert first == later
    other_seed = half.replace(key=jax.random.key(1))
    assert loopax.evaluate(other_seed, noisy, data) != first


def test_each_batch_of_an_evaluation_has_noise_of_its_own(numbers, half):
    first = {"x": numbers.columns["x"][:10]}
    one = loopax.evaluate(half, noisy, [first])
    two = loopax.evaluate(half, noisy, [first, first])
    assert one["first"] != pytest.approx(two["first"])


def test_evaluation_noise_is_not_that_of_a_training_step(numbers, half):
    batch = {"x": numbers.columns["x"][:10]}
    evaluated = loopax.evaluate(half, noisy, [batch])["first"]
    trained = [
        float(noisy(half.params, batch, half.replace(step=step).rngs)[1]["first"])
        for step in range(5)
    ]
    assert evaluated not in trained


def test_the_moving_average_is_evaluated_where_there_is_one(numbers):
    state = loopax.TrainState.create(
        params={"scale": jnp.full((), 0.5), "other": jnp.ones(())},
        tx=optax.sgd(0.1),
        ema_decay=0.9,
        frozen=("other",),
    )
    state = state.replace(ema={"scale": jnp.full((), 3.0), "other": None})
    means = loopax.evaluate(
        state,
        lambda params, batch, rngs: (params["scale"], {"other": params["other"]}),
        numbers.batches(10),
    )
    assert means == {"loss": 3.0, "other": 1.0}


def test_a_run_logs_what_evaluate_gives(dataset, loss_fn, new_state):
    """By name, when due and at the end; its last row is that of the state that is returned."""
    parts = {"test": dataset.batches(100), "train": dataset.batches(60)}
    run = loopax.fit(
        new_state(ema_decay=0.9),
        loss_fn,
        dataset.batches(2),
        steps=25,
        evaluation=loopax.Evaluation({"test": parts["test"], "seen": parts["train"]}, every=10),
        progress=False,
        probe_every=None,
    )
    rows = [(row["step"], row["source"]) for row in run.history if row["source"] != "train"]
    assert rows == [(step, name) for step in (10, 20, 25) for name in ("test", "seen")]
    for name, data in (("test", parts["test"]), ("seen", parts["train"])):
        row = run.latest(name)
        assert {key: row[key] for key in ("loss", "accuracy")} == loopax.evaluate(
            run.state, loss_fn, data
        )


def test_without_every_an_epoch_is_the_distance(dataset, line_loss, line_state):
    run = loopax.fit(
        line_state(),
        line_loss,
        dataset.batches(40),
        epochs=3,
        evaluation=dataset.batches(60),
        progress=False,
        probe_every=None,
    )
    assert [row["step"] for row in run.history if row["source"] == "test"] == [6, 12, 18]


def test_another_loss_may_be_measured_than_is_trained(dataset, line_loss, line_state):
    run = loopax.fit(
        line_state(),
        line_loss,
        dataset.batches(2),
        steps=5,
        evaluation=loopax.Evaluation(
            dataset.batches(60), loss_fn=lambda params, batch, rngs: jnp.float32(7)
        ),
        progress=False,
        probe_every=None,
    )
    assert run.latest("test")["loss"] == 7.0


def test_collections_are_read_and_left_as_they_are(bits, numbers):
    state = loopax.TrainState.create(
        params={"scale": jnp.full((), 0.5)},
        mutable={"stats": {"offset": jnp.full((), 2.0)}},
        tx=optax.sgd(0.1),
    )
    before = bits(state)

    def loss(params, batch, rngs, mutable):
        offset = mutable["stats"]["offset"]
        return params["scale"] * offset, {}, {"stats": {"offset": offset + 1}}

    assert loopax.evaluate(state, loss, numbers.batches(10)) == {"loss": 1.0}
    assert bits(state) == before


def test_a_dataset_without_a_batch_size_is_refused(numbers, half):
    with pytest.raises(ConfigError, match=r"data\.batches\("):
        loopax.evaluate(half, scaled_mean, numbers)
