"""Every example counts exactly once, with the same noise each time."""

import itertools
import warnings

import flax.linen as nn
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
@pytest.mark.parametrize("batch_size", [1, 64, 101])
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
        model_state={"stats": {"offset": jnp.full((), 2.0)}},
        tx=optax.sgd(0.1),
    )
    before = bits(state)

    def loss(params, batch, rngs, model_state):
        offset = model_state["stats"]["offset"]
        return params["scale"] * offset, {}, {"stats": {"offset": offset + 1}}

    assert loopax.evaluate(state, loss, numbers.batches(10)) == {"loss": 1.0}
    assert bits(state) == before


def test_a_dataset_without_a_batch_size_is_refused(numbers, half):
    with pytest.raises(ConfigError, match=r"data\.batches\("):
        loopax.evaluate(half, scaled_mean, numbers)


# --- Arrays are added up ------------------------------------------------------


def counted(params, batch, rngs):
    metrics = {}
    if not rngs.training:
        label = batch["label"]
        metrics = {
            "count": jax.nn.one_hot(label, 3, dtype=jnp.int32).sum(0),
            "big": jnp.full(2, 2**30 + 1) * jnp.array([1, -1]),
            "float": jnp.full(1, 2.0**24 + 2),
            "seen": label > 0,
        }
    return params["scale"] * batch["x"].mean(), metrics


@pytest.mark.parametrize("batches", [3, 200], ids=["one chunk", "several"])
def test_arrays_are_added_up_over_an_evaluation_to_the_last_digit(half, batches):
    """int32 would overflow and float32 round: 2**30 + 1 and 2**24 + 2, batches times."""
    label = np.arange(4 * batches, dtype=np.int32).reshape(batches, 4) % 3
    data = [{"x": np.ones(4, np.float32), "label": row} for row in label]
    sums = loopax.evaluate(half, counted, data)
    assert sums["loss"] == 0.5
    assert sums["count"].tolist() == np.bincount(label.ravel()).tolist()
    assert sums["big"].tolist() == [batches * (2**30 + 1), -batches * (2**30 + 1)]
    assert sums["float"].tolist() == [batches * (2.0**24 + 2)]
    assert sums["seen"].tolist() == (label > 0).sum(0).tolist()
    assert {sums["count"].dtype, sums["float"].dtype} == {np.dtype("int64"), np.dtype("float64")}


def test_arrays_are_logged_as_lists_and_everything_beside_them_is_as_ever(tmp_path, half):
    data = [{"x": np.ones(4, np.float32), "label": np.int32([0, 1, 1, 2])}] * 2

    def loss(params, batch, rngs):
        nan = {} if rngs.training else {"nan": jnp.full(2, jnp.nan)}
        value, metrics = counted(params, batch, rngs)
        return value, metrics | nan

    run = loopax.fit(half, loss, data, steps=2, run_dir=tmp_path, evaluation=data, progress=False)
    row = run.latest("test")
    assert row["count"] == [2, 4, 2]
    logged = [row for row in run.dir.metrics if row["source"] == "test"][-1]
    assert {**logged, "nan": None} == {**row, "nan": None}
    assert all(np.isnan(logged["nan"]))
    assert "NaN" not in run.dir.metrics_file.read_text()
    resumed = loopax.fit(
        half, loss, data, steps=4, run_dir=tmp_path, evaluation=data, progress=False
    )
    assert resumed.latest("test")["count"] == [2, 4, 2]


# --- Without dropout ----------------------------------------------------------


class Dropping(nn.Module):
    """Dropout in plain sight, under `remat`, and inside of a scan over layers."""

    kind: str

    @nn.compact
    def __call__(self, x, train):
        if self.kind == "plain":
            return Thinned()(x, train)
        if self.kind == "remat":
            return nn.remat(Thinned, static_argnums=2)()(x, train)
        layers = nn.scan(
            ScannedLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=2,
        )
        return layers(train)(x, None)[0]


class Thinned(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))


class ScannedLayer(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        return nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(4)(x)), None


def dropping(kind, aware):
    model = Dropping(kind)
    state = loopax.TrainState.create(
        params=model.init(jax.random.key(0), jnp.ones((1, 4)), False), tx=optax.sgd(0.1)
    )

    def loss(params, batch, rngs):
        train = rngs.training if aware else True
        return jnp.square(model.apply(params, batch["x"], train, rngs=rngs)).mean()

    data = [{"x": np.ones((4, 4), np.float32)}]
    return state, loss, data


@pytest.mark.parametrize("kind", ["plain", "remat", "scan"])
def test_a_loss_that_evaluates_with_dropout_is_told_so_and_another_is_not(kind):
    state, loss, data = dropping(kind, aware=False)
    with pytest.warns(UserWarning, match="loopax.evaluate: the loss still draws from the stream"):
        loopax.evaluate(state, loss, data)
    state, loss, data = dropping(kind, aware=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = loopax.evaluate(state, loss, data)
    plain = jnp.square(Dropping(kind).apply(state.params, data[0]["x"], False)).mean()
    assert means["loss"] == pytest.approx(float(plain))


def test_a_run_says_once_that_it_evaluates_with_dropout(capsys):
    state, loss, data = dropping("plain", aware=False)
    options = {"steps": 3, "evaluation": loopax.Evaluation(data, every=1), "probe_every": None}
    loopax.fit(state, loss, data, **options)
    assert capsys.readouterr().err.count("evaluation 'test': the loss still draws from") == 1
    with pytest.warns(UserWarning, match="evaluation 'test': the loss still draws") as told:
        loopax.fit(state, loss, data, progress=False, **options)
    assert len(told) == 1
    state, loss, data = dropping("plain", aware=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loopax.fit(state, loss, data, progress=False, **options)


def test_noise_of_other_streams_is_no_dropout(numbers, half):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loopax.evaluate(half, noisy, numbers.batches(10))


# --- At the door --------------------------------------------------------------


def plain(params, batch, rngs):
    return params["scale"] * batch["x"].mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda state, data: ({"scale": 1.0}, plain, data), "state is a dict"),
        (lambda state, data: (nn.Dense(2), plain, data), r"make one of it: .*TrainState\.create"),
        (lambda state, data: (plain, state, data), "state and loss_fn are swapped"),
        (lambda state, data: (state, data, plain), "loss_fn and data are swapped"),
        (lambda state, data: (state, plain, plain), "data is the function plain, and no batches"),
        (lambda state, data: (state, plain, 5), "data is int; it must be"),
        (lambda state, data: (state, plain, loopax.data.mnist()), r"Splits; say .*\.test\.batches"),
    ],
)
def test_wrong_or_swapped_arguments_of_evaluate_are_named(numbers, half, arguments, message):
    with pytest.raises(ConfigError, match=message):
        loopax.evaluate(*arguments(half, numbers.batches(10)))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (lambda data: (batch for batch in [data]), {}, "'test' is a generator, which can be read"),
        (lambda data: {"val": iter([])}, {}, "'val' is a list_iterator, which can be read only"),
        (lambda data: {"train": data}, {}, "an evaluation is named 'train'; .* none of train"),
        (lambda data: {"time": data}, {}, "named 'time'"),
        (lambda data: {"a/b": data}, {}, "named 'a/b'; its name must be a word without a slash"),
        (lambda data: {1: data}, {}, "named 1"),
        (lambda data: {}, {}, "the evaluation has no data"),
        (lambda data: {"val": loopax.data.mnist()}, {}, "'val' is Splits; say which part"),
        (lambda data: data, {"every": 2.5}, "every is 2.5; it must be a whole number"),
        (lambda data: data, {"every": True}, "every is True"),
        (lambda data: data, {"every": "2"}, "every is '2'"),
        (lambda data: data, {"loss_fn": 3}, "loss_fn is 3; it must be a function"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_before_the_first_step(
    tmp_path, numbers, half, data, options, message
):
    given = data(numbers.batches(10))

    def fit():
        return loopax.fit(
            half,
            plain,
            numbers.batches(10),
            steps=1,
            evaluation=loopax.Evaluation(given, **options) if options else given,
            run_dir=tmp_path / "run",
            hooks=[loopax.Hook(lambda run: pytest.fail("a step was made"), 1)],
            progress=False,
        )

    with pytest.raises(ConfigError, match=message):
        fit()
    assert not (tmp_path / "run").exists()
