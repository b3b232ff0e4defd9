"""What the loss measured reaches the log under its own name, exact, and weighed as it says."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.compute.rows import RESERVED, Rows, means
from loopax.errors import ConfigError, DataError

QUIET = {"progress": False, "probe_every": None}
PLACES = ("step", "source", "epoch", "steps")


def new_state(tx=None):
    return loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=tx or optax.sgd(0.0))


def values(row):
    return {name: value for name, value in row.items() if name not in PLACES}


def numbers(*sizes):
    """Batches of these sizes, which hold the numbers from 0 on."""
    ends = np.cumsum(sizes)
    return [
        {"x": np.arange(end - size, end, dtype=np.float32)}
        for size, end in zip(sizes, ends, strict=True)
    ]


def by_shape(params, batch, rngs):
    """A loss whose metrics depend on the shape of the batch."""
    del rngs
    size = len(batch["x"])
    names = {10: {"ten": 10.0}, 20: {"twenty": 20.0, "more": batch["x"].mean()}}[size]
    return params["w"] ** 2 + size, names


@pytest.mark.parametrize("log_every", [1, 3, 4])
def test_each_shape_of_batch_keeps_the_names_of_its_own_metrics(log_every):
    """They come back to a shape that was compiled before another one."""
    data = numbers(10, 20, 10, 20)
    run = loopax.fit(new_state(), by_shape, data, steps=12, log_every=log_every, **QUIET)
    for row in run.history:
        steps = range(row["step"] - row["steps"], row["step"])
        rows = [by_shape({"w": 0.0}, data[step % 4], None) for step in steps]
        expected = {"loss": np.mean([loss for loss, _ in rows])}
        for name in ("ten", "twenty", "more"):
            if column := [metrics[name] for _, metrics in rows if name in metrics]:
                expected[name] = np.mean(column)
        assert values(row) == pytest.approx(expected)


def test_a_resumed_run_logs_metrics_that_only_some_steps_have_as_an_undisturbed_one(tmp_path):
    data = numbers(10, 20, 20)

    def fit(run_dir, steps):
        loopax.fit(new_state(), by_shape, data, steps=steps, run_dir=run_dir, log_every=6, **QUIET)
        return (run_dir / "metrics.jsonl").read_text()

    fit(tmp_path / "parts", 8)
    assert fit(tmp_path / "parts", 14) == fit(tmp_path / "whole", 14)


def test_numbers_of_every_kind_are_logged_as_they_are():
    """Counts beyond 2**24, which float32 would round, and booleans as the share of true ones."""

    def loss(params, batch, rngs):
        x = batch["x"][0]
        return params["w"] ** 2, {
            "count": jnp.int32(2**30 + 1),
            "unsigned": jnp.uint32(2**32 - 1),
            "small": jnp.int8(-3),
            "half": jnp.bfloat16(1.5),
            "above": x > 2,
            "float": 1.25,
            "int": 3,
            "bool": True,
            "numpy": np.float64(0.5),
        }

    data = numbers(*[1] * 4)
    run = loopax.fit(new_state(), loss, data, steps=4, log_every=4, evaluation=data, **QUIET)
    expected = {
        "count": 2**30 + 1,
        "unsigned": 2**32 - 1,
        "small": -3,
        "half": 1.5,
        "above": 0.25,
        "float": 1.25,
        "int": 3,
        "bool": 1,
        "numpy": 0.5,
        "loss": 0,
    }
    assert values(run.latest("train")) == expected
    assert values(run.latest("test")) == expected


def test_rows_that_were_not_reached_are_zeros_and_each_type_has_one_buffer():
    rows = Rows.empty({"loss": jnp.float32(0), "n": jnp.int32(0), "a": jnp.float32(0)}, 3)
    rows = rows.with_row(0, {"loss": jnp.float32(2), "n": jnp.int32(7), "a": jnp.float32(1)})
    assert rows.names == (("loss", "a"), ("n",))
    assert rows.steps(2) == [{"loss": 2, "a": 1, "n": 7}, {"loss": 0, "a": 0, "n": 0}]


# Eight tokens whose mean is 2.8.
TOKENS = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0], [1.4]]


def token_mean(params, batch, rngs):
    """Padded to six, as sequences are: means over the tokens there are."""
    del rngs
    mask = jnp.arange(6)[None] < batch["length"][:, None]
    count = mask.sum()
    mean = jnp.where(mask, batch["tokens"], 0).sum() / count
    return params["w"] ** 2 + mean, {"mean": mean, "weight": count}


def padded():
    return [
        {
            "tokens": np.float32([tokens + [99.0] * (6 - len(tokens))]),
            "length": np.int32([len(tokens)]),
        }
        for tokens in TOKENS
    ]


def test_means_over_tokens_are_weighed_by_their_number():
    """Examples and steps would count alike otherwise: 1.6 instead of 2.8."""
    run = loopax.fit(
        new_state(), token_mean, padded(), steps=3, log_every=3, evaluation=padded(), **QUIET
    )
    true = pytest.approx({"loss": 2.8, "mean": 2.8})
    assert values(run.latest("train")) == true
    assert values(run.latest("test")) == true
    assert loopax.evaluate(run.state, token_mean, padded()) == true


def test_what_weighs_nothing_counts_nothing_even_where_it_is_no_number():
    """As the accuracy over the masked tokens of a batch that has none."""
    rows = [{"loss": 1.0, "a": np.nan, "weight": 0}, {"loss": 4.0, "a": 2.0, "weight": 3}]
    assert means(rows) == {"loss": 4.0, "a": 2.0}
    assert np.isnan(means(rows[:1])["a"])


def test_an_evaluation_in_which_nothing_weighs_anything_is_refused():
    def loss(params, batch, rngs):
        return params["w"] ** 2, {"weight": 0}

    with pytest.raises(DataError, match="all batches weigh 0"):
        loopax.evaluate(new_state(), loss, numbers(2, 2))


def test_a_training_in_which_nothing_weighs_anything_says_so_once():
    def weightless(params, batch, rngs):
        return params["w"] ** 2, {"weight": 0}

    with pytest.warns(UserWarning, match="the weight 0 for each of the 2 steps up to 2") as said:
        loopax.fit(new_state(), weightless, numbers(2), steps=6, log_every=2, **QUIET)
    assert len(said) == 1


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_a_weight_that_is_no_count_is_refused(weight):
    def loss(params, batch, rngs):
        return params["w"] ** 2, {"weight": jnp.float32(weight)}

    with pytest.raises(ConfigError, match="so it is finite and not negative"):
        loopax.evaluate(new_state(), loss, numbers(2))
    with pytest.raises(ConfigError, match="so it is finite and not negative"):
        loopax.fit(new_state(), loss, numbers(2), steps=1, **QUIET)


def test_a_weight_for_only_some_batches_is_refused():
    def loss(params, batch, rngs):
        value = params["w"] ** 2
        return value, {"weight": 2} if len(batch["x"]) == 2 else {}

    with pytest.raises(ConfigError, match="'weight' for 1 of 2 batches; return it for all"):
        loopax.evaluate(new_state(), loss, numbers(2, 1))


@pytest.mark.parametrize(
    ("other", "well"),
    [
        (lambda n: {}, True),
        (lambda n: {"rate": np.float32(0.5), "label": np.arange(n)}, True),
        (lambda n: {"a_table": np.ones((7, 2), np.float32)}, False),
        (lambda n: {"z_series": np.ones((5, n), np.float32)}, False),
    ],
    ids=["alone", "beside a number and labels", "a table first", "time first, last"],
)
def test_a_batch_weighs_its_examples_or_is_refused_where_its_leaves_disagree(other, well):
    data = [{**batch, **other(len(batch["x"]))} for batch in numbers(32, 3)]

    def loss(params, batch, rngs):
        return params["w"] ** 2 + batch["x"].mean()

    def weighted(params, batch, rngs):
        return loss(params, batch, rngs), {"weight": len(batch["x"])}

    true = pytest.approx({"loss": 17.0})
    assert loopax.evaluate(new_state(), weighted, data) == true
    if well:
        assert loopax.evaluate(new_state(), loss, data) == true
    else:
        with pytest.raises(ConfigError, match=r"\(.*x 32.*\); return 'weight' among the loss's"):
            loopax.evaluate(new_state(), loss, data)


# --- Names and kinds ----------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"v": "a"}, "'v' is 'a'; the loss and its metrics are numbers"),
        ({"v": None}, "'v' is None"),
        ({"v": {"a": 1.0}}, "'v' is {'a': 1.0}"),
        ({"v": 2**40}, "'v' is 1099511627776"),
        ({"v": np.int64(2**40)}, "'v' is .*1099511627776"),
        ({"v": 1j}, "'v' is of type complex64; .* real"),
        ({1: 1.0}, "named 1; names are strings"),
        ({"": 1.0}, "named ''; names are strings"),
        (
            {"weight": jnp.ones(3)},
            r"'weight' has shape \(3,\); the loss and its metrics are scalars",
        ),
        *(({name: 1.0}, f"the loss returned '{name}', as the log calls") for name in RESERVED),
        ({"learning_rate/head": 1.0}, "returned 'learning_rate/head'"),
    ],
)
@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_metric_that_cannot_be_logged_is_named_at_once(where, metrics, message):
    def loss(params, batch, rngs):
        return params["w"] ** 2, metrics if rngs.training == (where == "training") else {}

    def measure():
        if where == "training":
            return loopax.fit(new_state(), loss, numbers(2), steps=1, **QUIET)
        return loopax.evaluate(new_state(), loss, numbers(2))

    with pytest.raises(ConfigError, match=message):
        measure()


@pytest.mark.parametrize("name", ["step", "source", "learning_rate"])
def test_what_measures_alone_returns_no_name_of_the_log_either(name):
    def metrics(params, batch, rngs):
        return {"loss": params["w"] ** 2, name: 1.0}

    with pytest.raises(ConfigError, match=f"the loss returned '{name}', as the log calls"):
        loopax.evaluate(new_state(), metrics, numbers(2))


@pytest.mark.parametrize("shape", [(1,), (3, 3)])
def test_arrays_are_refused_in_training_and_it_is_said_where_they_may_be(shape):
    def loss(params, batch, rngs):
        return params["w"] ** 2, {"v": jnp.ones(shape)}

    with pytest.raises(ConfigError, match=r"'v' has shape .*added up .*if not rngs\.training:"):
        loopax.fit(new_state(), loss, numbers(2), steps=1, **QUIET)


def test_a_probe_has_the_norms_and_the_rate_of_one_update_in_a_row_of_its_own():
    """In a row of means they would be beside the rate of another step."""
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.1, 2: 0.1, 3: 0.1})
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)

    def loss(params, batch, rngs):
        return 3.0 * params["w"] + batch["x"].mean()

    run = loopax.fit(
        new_state(tx), loss, numbers(2), steps=4, log_every=4, probe_every=2, progress=False
    )
    probes = [
        values(row) | {"step": row["step"]} for row in run.history if row["source"] == "probe"
    ]
    assert probes == [
        pytest.approx(
            {"step": step, "grad_norm": 3, "update_norm": 3 * rate, "learning_rate": rate}
        )
        for step, rate in ((2, 0.1), (4, 0.001))
    ]
    assert values(run.latest("train")).keys() == {"loss", "learning_rate"}
    assert run.latest("train")["learning_rate"] == pytest.approx(0.001)
