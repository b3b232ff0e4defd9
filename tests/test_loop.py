"""What `fit` and `training` promise: exact, resumable, honest, and in nobody's way."""

import dataclasses
import functools
import inspect
import json
import math
import pickle
import random
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.data import Dataset
from loopax.errors import ConfigError, DataError, NonFiniteError
from loopax.run.directory import RunDir
from tests.kills import kill, killed

QUIET = {"progress": False}
PLAIN = {"progress": False, "probe_every": None}


def ready_batches(dataset, size=2):
    """The dataset as a list of batches that were scaled beforehand."""
    images = dataset.columns["image"].astype(np.float32) / 255
    labels = dataset.columns["label"]
    return [
        {"image": images[first : first + size], "label": labels[first : first + size]}
        for first in range(0, len(labels), size)
    ]


class Stream:
    """An iterable that can be begun again and tells no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


SOURCES = {
    "resident": lambda dataset: dataset.batches(2, resident=True),
    "host": lambda dataset: dataset.batches(2, resident=False),
    "list": lambda dataset: ready_batches(dataset),
    "stream": lambda dataset: Stream(ready_batches(dataset)),
}


# --- The parameters are a function of seed, data and step alone ---------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset, loss_fn, new_state):
    """Runs of 250 steps (two epochs and a bit) by source and chunk size, each made once.

    Without a chunk size the loop chooses one, of up to 100 steps.
    """

    @functools.cache
    def run(source, chunk_steps=None):
        return loopax.fit(
            new_state(ema_decay=0.9),
            loss_fn,
            SOURCES[source](dataset),
            steps=250,
            chunk_steps=chunk_steps,
            run_dir=tmp_path_factory.mktemp("trained") / "run",
            **PLAIN,
        )

    return run


@pytest.mark.optimized
def test_the_result_does_not_depend_on_how_steps_are_grouped(trained, bits):
    one, other = trained("resident", 7), trained("resident")
    assert bits(one.state) == bits(other.state)
    assert one.history == other.history


@pytest.mark.optimized
def test_data_on_the_device_and_in_host_memory_train_the_same_bits(trained, bits):
    assert bits(trained("resident").state) == bits(trained("host").state)


@pytest.mark.optimized
def test_training_happened_and_another_seed_trains_other_parameters(
    trained, bits, dataset, loss_fn, new_state
):
    run, before = trained("resident"), new_state(ema_decay=0.9)
    assert int(run.state.step) == run.step == 250
    assert bits(before.params) != bits(run.state.params)
    same_start = new_state(seed=1, ema_decay=0.9).replace(params=before.params)
    one, other = (
        loopax.fit(state, loss_fn, SOURCES["resident"](dataset), steps=5, **PLAIN).state
        for state in (before, same_start)
    )
    assert bits(one.params) != bits(other.params)
    assert bits(other.key) == bits(same_start.key)


# --- Resumption is exact ------------------------------------------------------


@pytest.mark.optimized
@pytest.mark.parametrize("source", ["resident", "list", "stream"])
def test_250_steps_are_100_steps_and_150_after_a_resumption(
    tmp_path, trained, bits, dataset, loss_fn, new_state, source
):
    whole = trained(source)
    for steps in (100, 250):
        parts = loopax.fit(
            new_state(ema_decay=0.9),
            loss_fn,
            SOURCES[source](dataset),
            steps=steps,
            run_dir=tmp_path,
            **PLAIN,
        )
    starts = parts.dir.read_json("run.json")["starts"]
    assert [start["step"] for start in starts] == [0, 100]
    assert bits(parts.state) == bits(whole.state)
    assert parts.history == whole.history
    assert parts.dir.metrics_file.read_text() == whole.dir.metrics_file.read_text()


def test_a_run_may_be_extended_from_between_two_log_boundaries(
    tmp_path, bits, dataset, line_loss, line_state
):
    """The end writes a short row, which must make place for the whole one."""
    options = {"log_every": 10, "probe_every": 4, **QUIET}
    data = dataset.batches(2)
    fit = loopax.fit
    whole = fit(line_state(), line_loss, data, steps=30, run_dir=tmp_path / "whole", **options)
    short = fit(line_state(), line_loss, data, steps=17, run_dir=tmp_path / "parts", **options)
    means = [(row["step"], row["steps"]) for row in short.history if row["source"] == "train"]
    assert means == [(10, 10), (17, 7)]
    parts = fit(line_state(), line_loss, data, steps=30, run_dir=tmp_path / "parts", **options)
    assert bits(parts.state) == bits(whole.state)
    assert parts.dir.metrics_file.read_text() == whole.dir.metrics_file.read_text()


def test_an_interrupted_run_writes_the_metrics_of_one_that_was_not(
    tmp_path, bits, dataset, line_loss, line_state
):
    """The checkpoint, at step 15, lies in the middle of a logged interval."""

    def fit(name, *hooks):
        return loopax.fit(
            line_state(),
            line_loss,
            ready_batches(dataset),
            steps=45,
            run_dir=tmp_path / name,
            evaluation=loopax.Evaluation(dataset.batches(100), every=9),
            checkpoints=loopax.Checkpoints(every=15, seconds=None, best=None),
            log_every=10,
            probe_every=4,
            hooks=hooks,
            **QUIET,
        )

    whole = fit("whole")
    with killed():
        fit("parts", loopax.Hook(kill, 28))
    interrupted = RunDir.open(tmp_path / "parts")
    assert max(row["step"] for row in interrupted.metrics) > 15, "there are rows to be forgotten"
    parts = fit("parts")
    assert [start["step"] for start in parts.dir.read_json("run.json")["starts"]] == [0, 15]
    assert bits(parts.state) == bits(whole.state)
    assert parts.dir.metrics_file.read_text() == whole.dir.metrics_file.read_text()


def test_breaking_out_of_a_loop_saves_the_state_and_the_run_can_go_on(
    tmp_path, bits, dataset, line_loss, line_state
):
    def training(name):
        return loopax.training(
            line_state(),
            line_loss,
            dataset.batches(2),
            steps=30,
            run_dir=tmp_path / name,
            log_every=4,
            chunk_steps=3,
            **PLAIN,
        )

    with training("whole") as whole:
        *_, _ = whole
    with training("parts") as parts:
        for chunk in parts:
            if chunk.stop >= 9:
                break
    left_at = chunk.stop
    assert left_at % 4, "not at a logged row"
    store = loopax.CheckpointStore(RunDir.open(tmp_path / "parts").checkpoints)
    assert store.steps[-1] == left_at
    with training("parts") as parts:
        assert parts.step == left_at
        again, first, *_ = parts
    assert (again.start, again.stop, first.start) == (chunk.start, left_at, left_at)
    assert bits(parts.state) == bits(whole.state)
    assert parts.dir.metrics_file.read_text() == whole.dir.metrics_file.read_text()


def test_what_made_a_loop_stop_makes_it_stop_again_at_the_same_step(
    tmp_path, bits, dataset, line_loss, line_state
):
    """The chunk at which it was left comes first, with what the decision was made of."""

    def train(goal, *, use=loopax.training, steps=60):
        data, evaluation = dataset.batches(2), loopax.Evaluation(dataset.batches(120), every=5)
        return use(
            line_state(),
            line_loss,
            data,
            steps=steps,
            run_dir=tmp_path / "run",
            evaluation=evaluation,
            **PLAIN,
        )

    seen = []
    for goal in (20, 20, 35):
        with train(goal) as run:
            for chunk in run:
                seen.append((chunk.start, chunk.stop, chunk.metrics["loss"].tolist()))
                if run.latest("test").get("step", 0) >= goal:
                    break
        assert chunk.stop == run.step == int(run.state.step) == goal
    ends = [index for index, (_, stop, _) in enumerate(seen) if stop == 20]
    assert len(ends) == 3, "the loop was left there, left again, and then passed"
    assert len({str(seen[index]) for index in ends}) == 1, "with the same numbers"
    # Nor is it lost on who does not look, nor where nothing is left to train.
    with train(0, steps=35) as run:
        assert [chunk.stop for chunk in run] == [35]
    assert train(0, use=loopax.fit).step == 60
    with train(0) as run:
        assert (list(run), run.step) == ([], 60)


def test_a_loop_whose_body_raises_is_saved_and_the_error_carries_the_run(
    tmp_path, dataset, line_loss, line_state
):
    data, options = dataset.batches(2), {"steps": 30, "run_dir": tmp_path, "chunk_steps": 3}
    with (
        pytest.raises(ZeroDivisionError) as caught,
        loopax.training(line_state(), line_loss, data, **options, **PLAIN) as run,
    ):
        _ = [1 / (chunk.stop - 6) for chunk in run]
    assert caught.value.run is run
    assert run.step == 6
    assert loopax.CheckpointStore(tmp_path / "checkpoints").steps[-1] == 6
    assert not (tmp_path / "holder.json").exists()


@pytest.mark.parametrize(
    ("kind", "saved"),
    [
        (ValueError, True),
        (GeneratorExit, True),
        (StopIteration, False),
        (SystemExit, False),
    ],
)
def test_what_a_hook_raises_comes_out_as_it_is_with_what_was_trained(
    tmp_path, bits, dataset, line_loss, line_state, kind, saved
):
    def fit(*hooks, run_dir=tmp_path):
        data = dataset.batches(2)
        return loopax.fit(
            line_state(), line_loss, data, steps=12, run_dir=run_dir, hooks=hooks, **PLAIN
        )

    raised = kind("mine")

    def fail(run):
        raise raised

    with pytest.raises(kind) as caught:
        fit(loopax.Hook(fail, 7), run_dir=tmp_path if saved else None)
    assert caught.value is raised
    assert caught.value.run.step == int(caught.value.run.state.step) == 7
    if saved:
        assert loopax.CheckpointStore(tmp_path / "checkpoints").steps[-1] == 7
        parts, whole = fit(), fit(run_dir=None)
        assert [start["step"] for start in parts.dir.read_json("run.json")["starts"]] == [0, 7]
        assert bits(parts.state) == bits(whole.state)
        assert parts.history == whole.history


INTERRUPTED = """
import os, signal, sys
import jax.numpy as jnp, numpy as np, optax, loopax
state = loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.1))
loss = lambda params, batch, rngs: (params["w"] - batch) ** 2
press = lambda run: os.kill(os.getpid(), signal.SIGINT) if run.step == 3 else None
for run_dir in ("run", None):
    if run_dir is None:
        sys.ps1 = "> "  # as at a prompt
    try:
        hook = loopax.Hook(press, 3)
        loopax.fit(state, loss, [np.float32(1)], steps=9, hooks=hook, run_dir=run_dir)
    except (loopax.errors.Stopped, KeyboardInterrupt) as stopped:
        print(type(stopped).__name__, stopped.run.step, int(stopped.run.state.step))
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_gives_what_was_trained(tmp_path):
    """With the exception: in a script the one that ends it, at a prompt `KeyboardInterrupt`."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True
    )
    told = ["Stopped 3 3", "True", "KeyboardInterrupt 3 3", "True"]
    assert done.stdout.splitlines() == told, done.stderr
    assert loopax.CheckpointStore(tmp_path / "run" / "checkpoints").steps[-1] == 3


def test_data_that_fails_late_costs_no_step(tmp_path, line_loss, line_state, dataset):
    batches = ready_batches(dataset)[:7]
    with pytest.raises(DataError, match="the data ended after 7 batches") as caught:
        loopax.fit(line_state(), line_loss, iter(batches), steps=12, run_dir=tmp_path, **PLAIN)
    reached = caught.value.run.step
    assert 0 < reached <= 7
    assert loopax.CheckpointStore(tmp_path / "checkpoints").steps[-1] == reached


def test_errors_and_runs_travel_between_processes(tmp_path, dataset, line_loss, line_state):
    for error in (
        NonFiniteError("it is nan", step=3, metric="loss"),
        loopax.errors.Stopped(2, 5),
        ConfigError("no"),
        loopax.errors.ProgramError("no", exit_code=3),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    options = {"run_dir": tmp_path, "evaluation": dataset.batches(120), **PLAIN}
    for steps in (120, 130):  # with rows of an earlier start
        run = loopax.fit(line_state(), line_loss, dataset.batches(2), steps=steps, **options)
    error = ConfigError("no")
    error.run = run
    for again in (pickle.loads(pickle.dumps(run)), pickle.loads(pickle.dumps(error)).run):
        assert (again.step, again.history, again.dir.path) == (130, run.history, tmp_path)
        assert again.latest("test") == run.latest("test")
        for one, other in zip(
            jax.tree.leaves(again.state.params), jax.tree.leaves(run.state.params), strict=True
        ):
            assert isinstance(one, np.ndarray)
            np.testing.assert_array_equal(one, other)
    assert str(again).splitlines() == str(run).splitlines()


def test_a_run_prints_as_five_lines(tmp_path, dataset, line_loss, line_state):
    options = {"steps": 12, "evaluation": dataset.batches(120), **PLAIN}
    run = loopax.fit(line_state(), line_loss, dataset.batches(2), run_dir=tmp_path, **options)
    lines = repr(run).splitlines()
    assert len(lines) == 5
    for line, part in zip(
        lines,
        (
            "12 steps",
            str(tmp_path)[:60],
            "17 in 2 arrays",
            "train at step 12: loss",
            "test at step 12",
        ),
        strict=True,
    ):
        assert part in line
    in_memory = loopax.fit(line_state(), line_loss, dataset.batches(2), steps=2, **PLAIN)
    assert "only in memory" in repr(in_memory)
    assert "measured    nothing" in repr(in_memory)


def test_a_finished_run_is_given_back_as_it_is(tmp_path, bits, dataset, line_loss, line_state):
    def fit(steps):
        return loopax.fit(
            line_state(), line_loss, dataset.batches(2), steps=steps, run_dir=tmp_path, **PLAIN
        )

    first = fit(20)
    unfinished = tmp_path / ".partial-account.json"
    unfinished.write_text("{")  # as of a start that was killed behind its last save
    again, fewer = fit(20), fit(10)
    assert not unfinished.exists()
    assert again.step == fewer.step == 20
    assert bits(again.state) == bits(fewer.state) == bits(first.state)
    assert again.history == first.history


def test_a_run_with_another_configuration_is_not_continued(
    tmp_path, dataset, line_loss, line_state
):
    @dataclasses.dataclass
    class Config:
        width: int

    def fit(config):
        loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(2),
            steps=1,
            run_dir=tmp_path,
            config=config,
            **PLAIN,
        )

    fit(Config(8))
    assert RunDir.open(tmp_path).config == {"width": 8}
    with pytest.raises(ConfigError, match=r"width = 8, not 16"):
        fit(Config(16))


# --- Looking at a run does not change it --------------------------------------


@pytest.fixture(scope="module")
def unobserved(dataset, loss_fn, new_state, bits):
    """What 60 steps give when nobody looks on."""
    return bits(loopax.fit(new_state(), loss_fn, dataset.batches(2), steps=60, **PLAIN).state)


def draws_random_numbers(run):
    random.random()
    np.random.rand()
    return {"drawn": float(jax.random.uniform(run.state.key))}


def measures_the_parameters(run):
    return {"norm": optax.tree.norm(run.state.params)}


def writes_into_the_parameters(run):
    layer = run.state.params["params"]["Dense_0"]
    layer["kernel"] = jnp.zeros_like(layer["kernel"])


def moves_the_step(run):
    if run.step == 7:
        run.step = 3


MEDDLERS = (
    draws_random_numbers,
    measures_the_parameters,
    writes_into_the_parameters,
    moves_the_step,
)


@pytest.mark.optimized
def test_what_a_hook_does_changes_no_bit_and_is_not_saved(
    tmp_path, unobserved, bits, dataset, loss_fn, new_state
):
    """Half a run with hooks that meddle and checkpoints at the same steps, continued without."""

    def fit(steps, *hooks):
        return loopax.fit(
            new_state(),
            loss_fn,
            dataset.batches(2),
            steps=steps,
            run_dir=tmp_path,
            hooks=hooks,
            checkpoints=loopax.Checkpoints(every=10),
            chunk_steps=100,
            **PLAIN,
        )

    half = fit(30, *(loopax.Hook(meddle, every) for meddle in MEDDLERS for every in (7, 10)))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(half.state.params))
    assert bits(fit(60).state) == unobserved


def test_another_state_in_the_place_of_the_run_s_is_refused(line_state, line_loss, dataset):
    def reset(run):
        run.state = run.state.replace(params=jax.tree.map(jnp.zeros_like, run.state.params))

    data, options = dataset.batches(2), {"steps": 4, "log_every": 2, "chunk_steps": 2, **PLAIN}
    message = "set run.state, which changes nothing of what is trained"
    with pytest.raises(ConfigError, match=f"the hook reset {message}"):
        loopax.fit(line_state(), line_loss, data, hooks=reset, **options)

    def own_loop():
        with loopax.training(line_state(), line_loss, data, **options) as run:
            for _ in run:
                reset(run)

    with pytest.raises(ConfigError, match=f"the program {message}"):
        own_loop()


@pytest.mark.optimized
def test_evaluation_checkpoints_and_everything_at_once_change_no_bit(
    tmp_path, unobserved, bits, dataset, loss_fn, new_state
):
    run = loopax.fit(
        new_state(),
        loss_fn,
        dataset.batches(2),
        steps=60,
        run_dir=tmp_path,
        evaluation=loopax.Evaluation({"test": dataset.batches(100)}, every=11),
        checkpoints=loopax.Checkpoints(every=13),
        hooks=[loopax.Hook(draws_random_numbers, 17), loopax.Hook(measures_the_parameters, 5)],
        log_every=1,
        probe_every=4,
        progress=True,
        config={"why": "everything"},
    )
    assert bits(run.state) == unobserved
    assert {row["source"] for row in run.history} == {"train", "probe", "test", "hook"}


@pytest.mark.optimized
def test_more_logged_metrics_change_no_bit(unobserved, bits, dataset, model, loss_fn, new_state):
    def with_more(params, batch, rngs):
        loss, metrics = loss_fn(params, batch, rngs)
        logits = model.apply(params, batch["image"], rngs=rngs)
        return loss, {
            **metrics,
            "entropy_nats": -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean(),
            "params_norm": optax.tree.norm(params),
            "brightest": batch["image"].max(),
        }

    run = loopax.fit(new_state(), with_more, dataset.batches(2), steps=60, **PLAIN)
    assert bits(run.state) == unobserved
    assert {"accuracy", "entropy_nats", "params_norm", "brightest"} < run.latest("train").keys()


@pytest.mark.optimized
def test_a_moving_average_of_the_parameters_does_not_change_them(
    unobserved, bits, dataset, loss_fn, new_state
):
    run = loopax.fit(new_state(ema_decay=0.9), loss_fn, dataset.batches(2), steps=60, **PLAIN)
    averaged = bits(run.state)
    assert unobserved.items() < averaged.items()


def test_the_state_that_was_given_stays_usable(bits, dataset, line_loss, line_state):
    state = line_state(ema_decay=0.5)
    before = bits(state)
    first = loopax.fit(state, line_loss, dataset.batches(2), steps=20, **QUIET)
    assert bits(state) == before
    again = loopax.fit(state, line_loss, dataset.batches(2), steps=20, **QUIET)
    assert bits(again.state) == bits(first.state) != before


# --- The loop is the loop that one would write --------------------------------


def test_every_step_is_the_step_of_a_hand_written_scan(dataset, model, loss_fn, new_state):
    """The parameters, and the metrics of each step, against an independent `jax.lax.scan`."""
    state, optimizer, count = new_state(), optax.adam(1e-2), 130
    images = jnp.asarray(dataset.columns["image"], jnp.float32) / 255
    labels = jnp.asarray(dataset.columns["label"])

    def step(carry, index):
        params, opt_state = carry
        rows = (index * 2 + jnp.arange(2)) % len(dataset)
        batch = {"image": images[rows], "label": labels[rows]}
        rngs = state.replace(step=index).rngs
        value, grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, rngs)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), (value[0], value[1]["accuracy"])

    start = (state.params, optimizer.init(state.params))
    (params, _), (losses, accuracies) = jax.lax.scan(step, start, jnp.arange(count))

    chunks = []
    data = dataset.batches(2, shuffle=False)
    with loopax.training(state, loss_fn, data, steps=count, log_every=50, **PLAIN) as run:
        chunks.extend((chunk.start, chunk.stop, chunk.metrics) for chunk in run)
    covered = [step for start, stop, _ in chunks for step in range(start, stop)]
    assert covered == list(range(count)), "each step is in exactly one chunk"
    ours = {
        name: np.concatenate([metrics[name] for *_, metrics in chunks])
        for name in ("loss", "accuracy")
    }
    np.testing.assert_allclose(ours["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(ours["accuracy"], accuracies)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        run.state.params,
        params,
    )


def test_metrics_of_a_chunk_can_be_read_when_later_chunks_have_run(dataset, line_loss, line_state):
    with loopax.training(
        line_state(), line_loss, dataset.batches(2), steps=25, chunk_steps=4, **PLAIN
    ) as run:
        chunks = list(run)
    losses = np.concatenate([chunk.metrics["loss"] for chunk in chunks])
    run = loopax.fit(line_state(), line_loss, dataset.batches(2), steps=25, log_every=1, **PLAIN)
    assert losses.tolist() == [row["loss"] for row in run.history]


def test_a_logged_row_holds_the_means_of_its_interval(dataset, line_loss, line_state):
    each = loopax.fit(line_state(), line_loss, dataset.batches(2), steps=25, log_every=1, **PLAIN)
    rows = loopax.fit(
        line_state(), line_loss, dataset.batches(2), steps=25, log_every=10, **PLAIN
    ).history
    assert [(row["step"], row["steps"], row["source"]) for row in rows] == [
        (10, 10, "train"),
        (20, 10, "train"),
        (25, 5, "train"),
    ]
    for name in ("loss", "error"):
        singles = [row[name] for row in each.history]
        means = [np.mean(singles[:10]), np.mean(singles[10:20]), np.mean(singles[20:])]
        assert [row[name] for row in rows] == pytest.approx(means, rel=1e-12)
    assert [row["epoch"] for row in rows] == [round(step / 120, 4) for step in (10, 20, 25)]


def test_a_learning_rate_that_a_schedule_moves_is_logged_as_it_was_last(
    dataset, line_loss, line_state
):
    schedule = optax.linear_schedule(0.1, 0.0, 20)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    run = loopax.fit(line_state(tx), line_loss, dataset.batches(2), steps=20, log_every=10, **PLAIN)
    rates = [row["learning_rate"] for row in run.history]
    assert rates == pytest.approx([float(schedule(9)), float(schedule(19))])


def test_logged_norms_are_those_of_the_step_that_was_probed(dataset, line_loss, line_state):
    state = line_state(optax.sgd(0.5))
    data = dataset.batches(2, shuffle=False)
    run = loopax.fit(state, line_loss, data, steps=1, log_every=1, probe_every=1, progress=False)
    batch = ready_batches(dataset)[0]
    grads = jax.grad(lambda params: line_loss(params, batch, {})[0])(state.params)
    assert not {"grad_norm", "update_norm"} & run.latest("train").keys()
    row = run.latest("probe")
    assert row["step"] == 1
    assert row["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert row["update_norm"] == pytest.approx(0.5 * row["grad_norm"], rel=1e-5)


def test_hooks_are_called_when_due_and_at_the_end_and_what_they_return_is_logged(
    tmp_path, dataset, line_loss, line_state
):
    seen = []

    def look(run):
        seen.append((run.step, int(run.state.step), [*run.measured]))
        return {"twice_the_step": 2 * run.step}

    run = loopax.fit(
        line_state(),
        line_loss,
        dataset.batches(2),
        steps=25,
        hooks=[loopax.Hook(look, 10)],
        evaluation=loopax.Evaluation(dataset.batches(120), every=20),
        run_dir=tmp_path,
        **PLAIN,
    )
    assert seen == [(10, 10, []), (20, 20, ["test"]), (25, 25, ["test"])]
    logged = [row for row in run.dir.metrics if row["source"] == "hook"]
    assert [(row["step"], row["twice_the_step"]) for row in logged] == [
        (10, 20),
        (20, 40),
        (25, 50),
    ]
    assert run.latest("hook") == logged[-1]
    assert run.latest("nobody") == {}


class Calls:
    """A hook that is an object."""

    def __init__(self):
        self.seen = []

    def __call__(self, run):
        self.seen.append(run.step)

    def method(self, run):
        self(run)


def test_a_function_alone_is_a_hook_that_is_called_whenever_a_row_is_logged(
    dataset, line_loss, line_state
):
    calls = [Calls() for _ in range(5)]
    for hooks in (
        calls[0],
        [calls[1]],
        (hook for hook in [calls[2].method, functools.partial(Calls.method, calls[3])]),
        loopax.Hook(calls[4], 10),
    ):
        data = dataset.batches(2)
        loopax.fit(line_state(), line_loss, data, steps=25, log_every=10, hooks=hooks, **PLAIN)
    assert [hook.seen for hook in calls] == [[10, 20, 25]] * 5
    for wrong in (3, "print", [None], {"every": print}):
        with pytest.raises(ConfigError, match=r"hooks holds .*loopax\.Hook"):
            loopax.fit(line_state(), line_loss, data, steps=1, hooks=wrong, **PLAIN)


RETURNED = {
    "array of one": ({"a": np.ones(1), "b": jnp.ones(())}, {"a": 1.0, "b": 1.0}),
    "whole numbers": ({"a": 2**60, "b": np.uint8(3), "c": True}, {"a": 2**60, "b": 3, "c": True}),
    "nothing": ({}, None),
    "an array": ({"a": np.ones(3)}, r"returned a = an array of shape \(3,\); what is logged is"),
    "none": ({"a": None}, "returned a = None; what is logged is a number"),
    "a word": ({"a": "x"}, "returned a = 'x'"),
    "a float": (3.0, "returned 3.0; return numbers by name"),
    "text": ("x", "returned 'x'; return numbers by name"),
    "a name of ours": ({"step": 1.0}, "returned 'step', as the log calls a number of its own"),
    "no name": ({3: 1.0}, "returned a value named 3; names are strings"),
}


@pytest.mark.parametrize(("value", "expected"), RETURNED.values(), ids=RETURNED.keys())
def test_what_a_hook_returns_is_numbers_by_name_or_it_is_said(
    dataset, line_loss, line_state, value, expected
):
    def measure(run):
        return value

    def fit():
        data, hook = dataset.batches(2), loopax.Hook(measure, 3)
        return loopax.fit(line_state(), line_loss, data, steps=3, hooks=[hook], **PLAIN)

    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=f"the hook measure {expected}") as caught:
            fit()
        assert "\n" not in str(caught.value)
        return
    row = fit().latest("hook")
    measured = {name: row[name] for name in row if name not in ("step", "source", "epoch")}
    assert (measured or None) == expected


def test_a_budget_is_kept_and_one_that_is_too_short_makes_a_step_and_says_so(
    tmp_path, dataset, line_loss, line_state
):
    def fit(seconds, steps=10**9):
        data, run_dir = dataset.batches(2), tmp_path / f"{seconds}"
        return loopax.fit(
            line_state(),
            line_loss,
            data,
            steps=steps,
            run_dir=run_dir,
            max_seconds=seconds,
            **PLAIN,
        )

    for step in (1, 2):
        with pytest.warns(UserWarning, match=r"max_seconds = 1e-06 is too short for a step"):
            assert fit(1e-6).step == step
    assert fit(3600, steps=3).step == 3
    for wrong in (0, -1, math.nan, "1h", True):
        with pytest.raises(ConfigError, match=r"max_seconds is .*; it must be a number of seconds"):
            fit(wrong)


WRONG_KINDS = {
    "a model": (lambda state, loss, data: (nn.Dense(1), loss, data), "state is a Dense; make one"),
    "params": (
        lambda state, loss, data: (state.params, loss, data),
        r"state is a dict; make one of these parameters: loopax.TrainState.create\(params=",
    ),
    "loss first": (
        lambda state, loss, data: (loss, state, data),
        "state and loss_fn are swapped: .* the order is state, loss_fn, data",
    ),
    "data first": (lambda state, loss, data: (data, loss, state), "state and data are swapped"),
    "loss last": (
        lambda state, loss, data: (state, data, loss),
        "loss_fn and data are swapped; the order",
    ),
    "no loss": (lambda state, loss, data: (state, None, data), "loss_fn is None; it must be a"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_KINDS.values(), ids=WRONG_KINDS.keys())
def test_what_is_in_the_wrong_place_is_named(dataset, line_loss, line_state, arguments, message):
    given = arguments(line_state(), line_loss, dataset.batches(2))
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.fit(*given, steps=1, **PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [loopax.fit, loopax.training])
def test_the_signature_is_that_of_the_function_and_errors_come_at_the_call(function):
    assert list(inspect.signature(function).parameters)[:5] == [
        "state",
        "loss_fn",
        "data",
        "step",
        "steps",
    ]
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected .*num_epochs"):
        function(None, None, None, num_epochs=3)
    with pytest.raises(ConfigError, match="state is None"):
        function(None, print, [], steps=3)


# --- Whatever is trained ------------------------------------------------------


def test_batch_statistics_are_updated_and_do_not_depend_on_grouping(bits, dataset):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, image, train=True):
            x = nn.Dense(4)(image.reshape(image.shape[0], -1))
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

    model = Normed()

    def loss(params, batch, rngs, model_state):
        logits, model_state = model.apply(
            {**params, **model_state}, batch["image"], rngs=rngs, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {}, model_state

    state = loopax.TrainState.create(model, dataset, optax.sgd(0.0))
    data = dataset.batches(8, shuffle=False)
    single, grouped = (
        loopax.fit(state, loss, data, steps=12, chunk_steps=chunk_steps, **PLAIN)
        for chunk_steps in (1, 5)
    )
    assert bits(single.state) == bits(grouped.state)

    mean = np.zeros(4)
    kernel = np.asarray(state.params["params"]["Dense_0"]["kernel"])
    for batch in ready_batches(dataset, 8)[:12]:
        mean = 0.9 * mean + 0.1 * (batch["image"].reshape(8, -1) @ kernel).mean(0)
    stats = single.state.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-4, atol=1e-6)


def test_a_subclass_carries_the_latest_loss_through_observe(dataset, line_loss, line_state):
    class WithLoss(loopax.TrainState):
        latest_loss: jax.Array
        best_error: jax.Array

        def observe(self, loss, metrics):
            best = jnp.minimum(self.best_error, metrics["error"])
            return self.replace(latest_loss=loss, best_error=best)

    state = line_state(cls=WithLoss, latest_loss=jnp.float32(0), best_error=jnp.float32(jnp.inf))
    run = loopax.fit(state, line_loss, dataset.batches(2), steps=20, log_every=1, **PLAIN)
    assert isinstance(run.state, WithLoss)
    assert float(run.state.latest_loss) == run.latest("train")["loss"]
    assert float(run.state.best_error) == min(row["error"] for row in run.history)


def test_a_loss_may_close_over_a_numpy_array(dataset, line_loss, line_state):
    offsets = np.linspace(0, 1, 16, dtype=np.float32)

    def loss(params, batch, rngs):
        value, metrics = line_loss(params, batch, rngs)
        return value + jnp.square(params["weights"] - offsets).sum(), metrics

    run = loopax.fit(line_state(), loss, dataset.batches(2), steps=20, **QUIET)
    assert run.step == 20


def test_nothing_in_a_run_is_transferred_by_accident(tmp_path, dataset, line_loss, line_state):
    """The user's own guard, which holds for evaluation, checkpoints and hooks as well."""
    state = line_state()
    with jax.transfer_guard("disallow"):
        run = loopax.fit(
            state,
            line_loss,
            dataset.batches(2, resident=False),
            steps=25,
            run_dir=tmp_path,
            evaluation=dataset.batches(100),
            checkpoints=loopax.Checkpoints(every=10),
            hooks=[loopax.Hook(lambda run: {"seen": run.step}, 10)],
            log_every=10,
            probe_every=10,
            progress=False,
        )
    assert run.step == 25


def test_a_loss_alone_without_metrics_is_enough(dataset, line_loss, line_state):
    run = loopax.fit(
        line_state(),
        lambda params, batch, rngs: line_loss(params, batch, rngs)[0],
        dataset.batches(2),
        epochs=1,
        **PLAIN,
    )
    assert run.step == 120
    assert run.latest("train").keys() == {"step", "source", "epoch", "steps", "loss"}


def test_a_generator_with_just_enough_batches_trains_to_the_end(
    bits, dataset, line_loss, line_state
):
    batches = ready_batches(dataset)
    one_shot = loopax.fit(
        line_state(), line_loss, (batch for batch in batches[:23]), steps=23, chunk_steps=7, **PLAIN
    )
    listed = loopax.fit(line_state(), line_loss, batches, steps=23, chunk_steps=7, **PLAIN)
    assert bits(one_shot.state) == bits(listed.state)


def test_a_generator_that_ends_too_early_is_a_data_error(dataset, line_loss, line_state):
    batches = (batch for batch in ready_batches(dataset)[:10])
    with pytest.raises(DataError, match=r"the data ended after 10 batches.*generator"):
        loopax.fit(line_state(), line_loss, batches, steps=11, chunk_steps=4, **PLAIN)


@pytest.mark.optimized
@pytest.mark.parametrize("sources", ["a list", "a dataset"])
def test_a_step_is_compiled_alike_wherever_its_batch_comes_from(
    sources, bits, dataset, line_loss, line_state
):
    """So small that XLA would fuse the gathering of the batch with the arithmetic on it."""
    if sources == "a list":
        places = [ready_batches(dataset, 2)]
    else:
        places = [dataset.batches(2, resident=resident) for resident in (True, False)]
    states = [
        loopax.fit(line_state(), line_loss, place, steps=10, chunk_steps=many, **PLAIN).state
        for place in places
        for many in (1, 2, 10)
    ]
    assert all(bits(state) == bits(states[0]) for state in states)


def test_batches_may_differ_in_shape(bits, dataset, line_loss, line_state):
    """Pairs, then a quadruple, then pairs: as many updates as batches, each with its own batch."""
    pairs, quadruples = ready_batches(dataset, 2), ready_batches(dataset, 4)
    batches = [pairs[0], pairs[1], quadruples[1], pairs[4], quadruples[3]]
    state = line_state(optax.sgd(0.1))
    runs = [
        loopax.fit(state, line_loss, batches, steps=10, chunk_steps=chunk_steps, **PLAIN)
        for chunk_steps in (1, 4)
    ]
    assert bits(runs[0].state) == bits(runs[1].state)
    params = state.params
    for batch in batches * 2:
        grads = jax.grad(lambda params, batch=batch: line_loss(params, batch, {})[0])(params)
        params = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, params, grads)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        runs[0].state.params,
        params,
    )


# --- A loss that is not finite ------------------------------------------------


def poisoned(step, value):
    """Sixty steps of two examples, of which one in `step` makes `term` equal `value`."""
    column = np.ones((120, 1), np.float32)
    column[2 * step + 1] = value
    return Dataset({"x": column}).batches(2, shuffle=False)


def poisoned_loss(params, batch, rngs):
    del rngs
    term = batch["x"].mean() * params["weights"][-1]
    return jnp.square(params["weights"]).sum() + term, {"calm": jnp.float32(1), "term": term}


@pytest.mark.parametrize(("chunk_steps", "value"), [(1, math.nan), (7, math.inf)])
def test_the_exact_step_of_a_loss_that_is_not_finite_is_reported(line_state, chunk_steps, value):
    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(
            line_state(optax.sgd(0.01)),
            poisoned_loss,
            poisoned(37, value),
            steps=60,
            chunk_steps=chunk_steps,
            **PLAIN,
        )
    assert caught.value.step == 37
    assert caught.value.metric == "term"
    assert f"the loss became {value} at step 37" in str(caught.value)
    assert "the step before had" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [29, 30, 37], ids=lambda step: f"step {step}")
def test_after_a_loss_that_is_not_finite_the_checkpoints_are_from_before_it(
    tmp_path, line_state, step
):
    with pytest.raises(NonFiniteError):
        loopax.fit(
            line_state(optax.sgd(0.01)),
            poisoned_loss,
            poisoned(step, math.nan),
            steps=60,
            run_dir=tmp_path,
            checkpoints=loopax.Checkpoints(every=10, seconds=None, best=None),
            **PLAIN,
        )
    store = loopax.CheckpointStore(RunDir.open(tmp_path).checkpoints)
    assert store.steps == [step // 10 * 10 - 10, step // 10 * 10] if step != 29 else [10, 20]
    state, _ = store.restore(line_state(optax.sgd(0.01)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_the_loss_before_is_told_where_it_was_seen_in_an_earlier_chunk(line_state):
    with pytest.raises(NonFiniteError, match=r"at step 0 \((?!.*the step before)"):
        loopax.fit(line_state(), poisoned_loss, poisoned(0, math.nan), steps=5, **PLAIN)
    with pytest.raises(NonFiniteError, match="the step before had"):
        loopax.fit(
            line_state(), poisoned_loss, poisoned(8, math.nan), steps=20, chunk_steps=4, **PLAIN
        )


# --- Bad input: one line that names the field, the value and what would be right


COUNTS = {
    "no steps": ({"steps": 0}, "steps is 0"),
    "nan steps": ({"steps": math.nan}, "steps is nan"),
    "steps in words": ({"steps": "ten"}, "steps is .*ten"),
    "true steps": ({"steps": True}, "steps is True"),
    "no epochs": ({"epochs": 0}, "epochs is 0"),
    "a fraction of an epoch": ({"epochs": 1.5}, "epochs is 1.5.*for a part of an epoch give steps"),
    "both": ({"steps": 10, "epochs": 1}, "either steps or epochs"),
    "neither": ({}, "either steps or epochs"),
    "log never": ({"steps": 1, "log_every": 0}, "log_every is 0"),
    "probe never": ({"steps": 1, "probe_every": 0}, "probe_every is 0"),
    "empty chunks": ({"steps": 1, "chunk_steps": 0}, "chunk_steps is 0"),
}


@pytest.mark.parametrize(("options", "message"), COUNTS.values(), ids=COUNTS.keys())
def test_a_count_that_cannot_work_is_named_and_nothing_is_left_behind(
    tmp_path, dataset, line_loss, line_state, options, message
):
    batches, run_dir = dataset.batches(2), tmp_path / "run"
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.fit(line_state(), line_loss, batches, run_dir=run_dir, progress=False, **options)
    assert "\n" not in str(caught.value)
    assert not run_dir.exists()


@pytest.mark.parametrize("every", [0, -1])
def test_a_hook_or_an_evaluation_every_no_steps_is_refused(dataset, every):
    with pytest.raises(ConfigError, match=f"hook.every is {every}"):
        loopax.Hook(print, every)
    with pytest.raises(ConfigError, match=f"evaluation.every is {every}"):
        loopax.Evaluation(dataset.batches(2), every=every)


WRONG_DATA = {
    "a dataset": (lambda dataset: dataset, {"steps": 1}, ConfigError, r"data\.batches\("),
    "a number": (lambda _: 3, {"steps": 1}, ConfigError, "data is int"),
    "epochs of unknown length": (
        lambda dataset: Stream(ready_batches(dataset)),
        {"epochs": 1},
        ConfigError,
        "epochs needs data whose length is known",
    ),
    "no batches": (lambda _: [], {"steps": 1}, DataError, "there is no batch to train on"),
    "epochs of nothing": (lambda _: [], {"epochs": 1}, (ConfigError, DataError), "batch"),
    "text": (
        lambda _: [{"text": np.array(["a"])}],
        {"steps": 1},
        DataError,
        "'text' is <U1, not numbers",
    ),
    "objects": (lambda _: [{"x": np.array([None])}], {"steps": 1}, DataError, "is object"),
}


@pytest.mark.parametrize(
    ("data", "length", "error", "message"), WRONG_DATA.values(), ids=WRONG_DATA.keys()
)
def test_data_that_cannot_be_trained_on_is_named(
    dataset, line_loss, line_state, data, length, error, message
):
    with pytest.raises(error, match=message) as caught:
        loopax.fit(line_state(), line_loss, data(dataset), **length, **PLAIN)
    assert "\n" not in str(caught.value)


WRONG_LOSSES = {
    "three values": (lambda loss: (loss, {}, {}), r"must return loss or \(loss, metrics\)"),
    "metrics in a list": (lambda loss: (loss, [loss]), "with metrics a dict"),
    "a metric called loss": (lambda loss: (loss, {"loss": loss}), "another name"),
    "a loss per example": (lambda loss: jnp.stack([loss, loss]), r"'loss' has shape \(2,\)"),
    "a metric per example": (
        lambda loss: (loss, {"each": jnp.stack([loss, loss])}),
        r"'each' has shape \(2,\)",
    ),
    "nothing": (lambda loss: None, "returned nothing"),
    "a metric in words": (lambda loss: (loss, {"note": "low"}), "note"),
}


@pytest.mark.parametrize(("result", "message"), WRONG_LOSSES.values(), ids=WRONG_LOSSES.keys())
def test_what_a_loss_must_return_is_said_when_it_does_not(
    dataset, line_loss, line_state, result, message
):
    def loss(params, batch, rngs):
        return result(line_loss(params, batch, rngs)[0])

    with pytest.raises(ConfigError, match=message) as caught:
        loopax.fit(line_state(), loss, dataset.batches(2), steps=1, **PLAIN)
    assert "\n" not in str(caught.value)


def test_a_loss_that_takes_collections_must_give_them_back(dataset, line_loss, line_state):
    def loss(params, batch, rngs, model_state):
        return line_loss(params, batch, rngs)

    with pytest.raises(ConfigError, match=r"must return \(loss, metrics, model_state\)"):
        loopax.fit(
            line_state(model_state={"seen": jnp.zeros(1)}),
            loss,
            dataset.batches(2),
            steps=1,
            **PLAIN,
        )


class WithSetup(nn.Module):
    def setup(self):
        self.out = nn.Dense(1)

    def __call__(self, image):
        return self.out(image.reshape(image.shape[0], -1))


class WithCompact(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(1)(image.reshape(image.shape[0], -1))


@pytest.mark.parametrize("module", [WithSetup, WithCompact])
def test_calling_a_module_without_parameters_is_explained(dataset, module):
    model = module()
    state = loopax.TrainState.create(model, dataset, optax.sgd(0.1))
    with pytest.raises(ConfigError, match=rf"{module.__name__} itself.*model\.apply") as caught:
        loopax.fit(
            state,
            lambda params, batch, rngs: model(batch["image"]).mean(),
            dataset.batches(2),
            steps=1,
            **PLAIN,
        )
    assert "\n" not in str(caught.value)


def test_an_attribute_error_of_the_users_own_is_left_alone(dataset, line_state):
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        loopax.fit(
            line_state(),
            lambda params, batch, rngs: batch.nothing,
            dataset.batches(2),
            steps=1,
            **PLAIN,
        )


class Changeling(loopax.TrainState):
    """Counts in whole numbers, and then does not."""

    count: jax.Array

    def observe(self, loss, metrics):
        return self.replace(count=self.count + loss)


def test_a_step_that_changes_a_type_in_the_state_is_refused(dataset, line_loss, line_state):
    state = line_state(cls=Changeling, count=jnp.int32(0))
    with pytest.raises(
        ConfigError, match=r"changed the state's count from int32\[\] to float32\[\]"
    ) as caught:
        loopax.fit(state, line_loss, dataset.batches(2), steps=1, **PLAIN)
    assert "\n" not in str(caught.value)


# --- The loop accounts for itself ---------------------------------------------


def test_the_account_divides_the_whole_run_among_its_sections(
    tmp_path, dataset, line_loss, line_state
):
    began = time.perf_counter()
    run = loopax.fit(
        line_state(),
        line_loss,
        dataset.batches(2),
        steps=40,
        chunk_steps=10,
        run_dir=tmp_path,
        evaluation=loopax.Evaluation(dataset.batches(100), every=20),
        hooks=[loopax.Hook(lambda run: None, 20)],
        **QUIET,
    )
    elapsed = time.perf_counter() - began
    account = run.account
    seconds = [account[f"{name}_s"] for name in account["shares"]]
    assert sum(seconds) == pytest.approx(account["wall_s"], abs=0.01)
    assert min(seconds) >= 0
    assert 0 < account["wall_s"] <= elapsed + 0.001
    assert sum(account["shares"].values()) == pytest.approx(1, abs=0.01)
    assert account["compile_s"] > 0
    assert account["checkpoint_s"] > 0
    assert account["host_reads"] == 4 + 2, "one for each chunk and one for each evaluation"
    assert [each.split(",")[0] for each in account["compilations"]["train"]] == ["first use"]
    assert json.loads((tmp_path / "account.json").read_text()) == account


def test_a_chunk_ends_for_a_hook_and_not_for_a_row(dataset, line_loss, line_state):
    def reads(**options):
        run = loopax.fit(line_state(), line_loss, dataset.batches(2), steps=100, **PLAIN | options)
        return run.account["host_reads"]

    # A few more than one for each hook, until it is known how many steps take a second.
    assert 20 <= reads(hooks=[loopax.Hook(lambda run: None, 5)]) < 25
    assert reads(log_every=5) < 20
