"""Numbers that go bad: the run stops or skips, and never keeps what they spoiled."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.data import Dataset
from loopax.errors import ConfigError, NonFiniteError
from loopax.run.directory import RunDir
from loopax.run.recorder import SKIP_LIMIT

PLAIN = {"progress": False, "probe_every": None}
EACH_TEN = loopax.Checkpoints(every=10, seconds=None, keep=9)


def marked(*steps, value=math.nan, usual=1.0, total=60):
    """Batches of a single example whose `x` is `value` at these steps and `usual` at all others."""
    column = np.full((total, 1), usual, np.float32)
    column[list(steps)] = value
    return Dataset({"x": column}).batches(1, shuffle=False)


def line_of(params, batch, rngs):
    """The loss itself is as bad as the batch is."""
    del rngs
    term = batch["x"].mean() * params["weights"][-1]
    return jnp.square(params["weights"]).sum() + term, {"calm": jnp.float32(1), "term": term}


class Distance(nn.Module):
    """Where its input is zero its output is zero, and the slope of its output is no number."""

    @nn.compact
    def __call__(self, x):
        return jnp.sqrt(jnp.square(x).sum())


class Ruler(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Distance(name="distance")(nn.Dense(3, use_bias=False, name="body")(x))


def slope(params, batch, rngs):
    return Ruler().apply(params, batch["x"], rngs=rngs)


def product(params, batch, rngs):
    del rngs
    return (params["weights"] * batch["x"].mean()).sum()


def counting(params, batch, rngs, model_state):
    """A collection that the loss does not depend on."""
    del rngs
    loss = jnp.square(params["weights"]).sum()
    return loss, {}, {"seen": model_state["seen"] + batch["x"].mean()}


@pytest.fixture(scope="module")
def problems(line_state):
    """By what goes bad: a state, a loss, and data in which it does so at the steps given."""

    def ruler(tx):
        return loopax.TrainState.create(Ruler(), np.ones((1, 1), np.float32), tx, seed=3)

    known = {
        "loss": (line_state(optax.sgd(0.01)), line_of, {}),
        "gradient": (ruler(optax.sgd(0.01)), slope, {"value": 0.0}),
        "accumulated gradient": (
            ruler(optax.MultiSteps(optax.sgd(0.01), 7).gradient_transformation()),
            slope,
            {"value": 0.0},
        ),
        # A gradient of 1e30 is finite, and its square in Adam is not.
        "optimiser": (line_state(optax.adam(1e-3)), product, {"value": 1e30}),
        "collection": (
            line_state(optax.sgd(0.01), model_state={"seen": jnp.zeros(2)}),
            counting,
            {},
        ),
    }

    def problem(name, *steps):
        state, loss, how = known[name]
        return state, loss, marked(*steps, **how)

    return problem


def is_finite(tree):
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return all(np.isfinite(leaf).all() for leaf in floats)


def starts_of(run_dir):
    return RunDir.open(run_dir).read_json("run.json")["starts"]


def stored(run_dir):
    return loopax.CheckpointStore(RunDir.open(run_dir).checkpoints)


# --- stop ---------------------------------------------------------------------

# What goes bad at step 23; the step and the name that are then told, and how it is explained.
STOPS = {
    "loss": (23, "term", "nan comes in with the batch's x"),
    "gradient": (24, "loss", "inf is born in Ruler/distance: div "),
    "accumulated gradient": (24, "loss", "inf is born in Ruler/distance: div "),
    "optimiser": (25, "opt_state/0/nu/weights", "inf is born: "),
    "collection": (25, "model_state/seen", "nan comes in with the batch's x"),
}


@pytest.mark.parametrize(("what", "told"), STOPS.items(), ids=STOPS.keys())
def test_the_run_stops_and_keeps_what_was_good_and_says_where_it_went_bad(
    tmp_path, problems, what, told
):
    state, loss, data = problems(what, 23)
    healthy = [{"x": np.ones((1, 1), np.float32)}]
    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(
            state,
            loss,
            data,
            steps=60,
            run_dir=tmp_path,
            evaluation=loopax.Evaluation(healthy, every=5),
            checkpoints=loopax.Checkpoints(every=5, seconds=None, keep=9),
            **PLAIN,
        )
    step, metric, why = told
    error = caught.value
    assert (error.step, error.metric) == (step, metric)
    assert "\n" not in str(error)
    (note,) = error.__notes__
    assert note.startswith("step 23: ")
    assert why in note
    assert str(tmp_path / "autopsy.json") in note
    autopsy = json.loads((tmp_path / "autopsy.json").read_text())
    assert autopsy["step"] == 23
    store = stored(tmp_path)
    assert store.steps == [5, 10, 15, 20], "and none after 23"
    for step in [*store.steps, "best", "latest"]:
        assert is_finite(store.restore(state, step)[0])


def test_the_last_update_of_a_run_is_looked_at_too(tmp_path, problems):
    """Nothing would notice it otherwise: no loss comes after."""
    state, loss, data = problems("gradient", 12)
    options = {"steps": 13, "checkpoints": EACH_TEN, **PLAIN}
    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(state, loss, data, run_dir=tmp_path, **options)
    assert (caught.value.step, caught.value.metric) == (13, "params/body/kernel")
    assert "after 13 steps" in str(caught.value)
    assert caught.value.__notes__[0].startswith("step 12: ")
    assert stored(tmp_path).steps == [10]
    # Also without a run directory, though nothing can be executed again then.
    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(state, loss, data, **options)
    assert caught.value.step == 13
    assert not hasattr(caught.value, "__notes__")


def test_an_earlier_step_is_found_though_many_came_after_it(tmp_path, problems):
    """Nothing depends on the collection, so nobody noticed for 58 steps."""
    state, loss, data = problems("collection", 1)
    never = loopax.Checkpoints(seconds=None)
    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(state, loss, data, steps=59, run_dir=tmp_path, checkpoints=never, **PLAIN)
    assert caught.value.step == 59
    assert caught.value.__notes__[0].startswith("step 1: nan comes in with the batch's x")


def plateau(**options):
    """Halves the updates when the gradient no longer shrinks; the best so far begins infinite."""
    wait = optax.contrib.reduce_on_plateau(0.5, **options)

    def update(updates, state, params=None):
        return wait.update(updates, state, params, value=optax.tree.norm(updates))

    return optax.GradientTransformation(wait.init, update)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_scalar_of_the_optimiser_may_be_infinite(tmp_path, line_state, nonfinite):
    """It is saved, restored and trained on for as long as nothing was measured yet."""
    state = line_state(optax.chain(optax.sgd(0.01), plateau(accumulation_size=40)))
    assert np.isinf(state.opt_state[1].best_value)
    for steps in (15, 30):
        run = loopax.fit(
            state,
            line_of,
            marked(),
            steps=steps,
            run_dir=tmp_path,
            checkpoints=EACH_TEN,
            nonfinite=nonfinite,
            **PLAIN,
        )
    assert np.isinf(run.state.opt_state[1].best_value)
    assert run.latest("train").get("skipped_steps", 0) == 0


# --- skip ---------------------------------------------------------------------


@pytest.mark.parametrize("what", STOPS)
def test_a_bad_step_is_as_if_it_had_not_been_but_is_counted(problems, bits, what):
    bad = (0, 5, 6, 11)
    state, loss, data = problems(what, *bad)
    before = bits(state)
    with loopax.training(
        state, loss, data, steps=12, chunk_steps=1, log_every=12, nonfinite="skip", **PLAIN
    ) as run:
        for chunk in run:
            after = bits(run.state)
            changed = {name for name in after if after[name] != before[name]}
            assert ".step" in changed
            assert (changed == {".step"}) == (chunk.start in bad), f"step {chunk.start}: {changed}"
            assert chunk.metrics["skipped"].tolist() == [float(chunk.start in bad)]
            before = after
    assert int(run.state.step) == 12
    assert is_finite(run.state)
    assert run.latest("train")["skipped_steps"] == len(bad)
    assert math.isfinite(run.latest("train")["loss"])


@pytest.mark.optimized
def test_where_nothing_goes_bad_a_run_that_would_skip_trains_the_same_bits(problems, bits):
    state, loss, data = problems("gradient")
    stop, skip = (
        loopax.fit(state, loss, data, steps=40, nonfinite=policy, **PLAIN)
        for policy in ("stop", "skip")
    )
    assert bits(stop.state) == bits(skip.state)
    assert [{**row, "skipped_steps": 0} for row in stop.history] == skip.history


def test_means_leave_out_what_was_skipped(problems):
    state, loss, data = problems("loss", 3, 4, 17, *range(20, 25))
    each, rows = (
        loopax.fit(state, loss, data, steps=30, log_every=n, nonfinite="skip", **PLAIN).history
        for n in (1, 5)
    )
    assert [row["skipped_steps"] for row in rows] == [2, 0, 0, 1, 5, 0]
    assert all("skipped" not in row for row in rows)
    for row in rows:
        inside = [one for one in each if row["step"] - 5 < one["step"] <= row["step"]]
        good = [one["loss"] for one in inside if not one["skipped_steps"]]
        assert row["steps"] == 5
        assert row.get("loss") == (pytest.approx(np.mean(good)) if good else None)
        assert ("term" in row) == bool(good)


def test_a_run_that_skips_is_continued_exactly(tmp_path, problems, bits):
    state, loss, data = problems("gradient", 2, 13, 14, 15, 31)

    def train(name, until=40):
        with loopax.training(
            state,
            loss,
            data,
            steps=40,
            chunk_steps=3,
            log_every=10,
            run_dir=tmp_path / name,
            nonfinite="skip",
            **PLAIN,
        ) as run:
            next(chunk for chunk in run if chunk.stop >= until)
        return run

    whole = train("whole")
    for until in (3, 14, 33):
        train("parts", until)
    parts = train("parts")
    assert len(starts_of(tmp_path / "parts")) == 4
    assert bits(parts.state) == bits(whole.state)
    one, other = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert one.read_text() == other.read_text()
    assert sum(row["skipped_steps"] for row in parts.history) == 5


def test_too_many_skipped_in_a_row_stop_the_run(tmp_path, problems):
    def fit(bad, run_dir=None):
        state, loss, _ = problems("loss")
        data = marked(*bad, total=SKIP_LIMIT + 20)
        return loopax.fit(state, loss, data, epochs=1, nonfinite="skip", run_dir=run_dir, **PLAIN)

    run = fit(range(10, 10 + SKIP_LIMIT))
    assert [row["skipped_steps"] for row in run.history] == [90, 10]
    # One good step between them begins the count anew.
    assert fit([*range(60), *range(61, SKIP_LIMIT + 20)]).step == SKIP_LIMIT + 20
    with pytest.raises(NonFiniteError, match="were skipped") as caught:
        fit(range(10, 11 + SKIP_LIMIT), tmp_path)
    assert caught.value.step == 10 + SKIP_LIMIT
    assert "\n" not in str(caught.value)
    assert "the batch's x" in caught.value.__notes__[0]


def test_steps_skipped_before_an_interruption_count(tmp_path, problems):
    state, loss, _ = problems("loss")
    data = marked(*range(10, 200), total=200)

    def fit(steps):
        loopax.fit(state, loss, data, steps=steps, run_dir=tmp_path, nonfinite="skip", **PLAIN)

    for steps in (40, 75):
        fit(steps)
    with pytest.raises(NonFiniteError, match="were skipped") as caught:
        fit(200)
    assert caught.value.step == 10 + SKIP_LIMIT


def test_a_metric_cannot_have_the_name_of_the_count(problems):
    state, _, data = problems("loss")

    def loss(params, batch, rngs):
        return line_of(params, batch, rngs)[0], {"skipped": jnp.float32(0)}

    with pytest.raises(ConfigError, match="'skipped', as the log calls a number of its own"):
        loopax.fit(state, loss, data, steps=1, nonfinite="skip", **PLAIN)


def test_a_policy_that_cannot_work_is_refused(line_state):
    with pytest.raises(ConfigError, match=r"nonfinite is 'ignore'; it must be stop or skip$"):
        loopax.fit(line_state(), line_of, marked(), steps=1, nonfinite="ignore", **PLAIN)


# --- Numbers that are only measured -------------------------------------------


def test_a_metric_that_is_no_number_is_logged_and_read_again_as_such(tmp_path, line_state):
    """The loss is finite, so it is nobody's fault; and no other number takes its place."""

    def loss(params, batch, rngs):
        value, _ = line_of(params, batch, rngs)
        return value, {"odd": batch["x"].mean() - batch["x"].mean() + jnp.nan, "vast": -jnp.inf}

    healthy = marked()
    run = loopax.fit(
        line_state(),
        loss,
        healthy,
        steps=3,
        log_every=2,
        run_dir=tmp_path,
        evaluation=loopax.Evaluation({"test": healthy}, every=2),
        **PLAIN,
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for logged, read in zip(run.history, RunDir.open(tmp_path).metrics, strict=True):
        assert logged.keys() == read.keys()
        assert math.isnan(read["odd"])
        assert read["vast"] == -math.inf
        assert logged["loss"] == read["loss"]
