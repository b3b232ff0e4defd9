"""Whole processes that are asked to stop, killed, or started twice: nothing is lost."""

import json
import re
import signal
import socket
import sys
import time

import pytest

import loopax
from tests.system.faults import PROGRAMS, outcome
from tests.system.processes import (
    Process,
    left_over,
    make_images,
    steps_in,
    until,
    vae_in_part,
)

TOTAL = 200


# --- Programs -----------------------------------------------------------------


def gated(run_dir, gate=None, where=None, max_seconds=None):
    """A user's program that waits at the gate: at step 60, in an evaluation, or in compiling.

    Nothing that is trained depends on it. The state has four megabytes, so that saving takes time.
    """
    import jax.numpy as jnp
    import numpy as np
    import optax

    import loopax

    def wait(here):
        if here == where and not (gate / "open").exists():
            (gate / "reached").touch()
            until((gate / "open").exists, "the gate to open")

    def loss_fn(params, batch, rngs):
        wait("compiling")
        return jnp.square(params["x"] - batch.mean()).sum()

    class Examples:
        def __iter__(self):
            for value in range(3):
                wait("an evaluation")
                yield np.full((2,), value, np.float32)

    def at_60(run):
        if run.step == 60:
            wait("a hook")
        if max_seconds is not None and run.step == 100:
            time.sleep(max_seconds)

    start = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    run = loopax.fit(
        loopax.TrainState.create(params={"x": start}, tx=optax.adam(1e-3)),
        loss_fn,
        [np.full((2,), value, np.float32) for value in range(1, 8)],
        steps=TOTAL,
        run_dir=run_dir,
        evaluation=loopax.Evaluation(Examples(), every=50),
        hooks=[loopax.Hook(at_60, every=20)],
        checkpoints=loopax.Checkpoints(every=20, seconds=None, keep=3, best=None),
        log_every=30,
        probe_every=None,
        max_seconds=max_seconds,
    )
    print(run.step)


# --- What they share ----------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("stops")


@pytest.fixture
def start(tmp_path):
    count = iter(range(100))
    return lambda program, *words: Process(program, *words, log=tmp_path / f"log-{next(count)}")


@pytest.fixture(scope="module")
def alone(home):
    """What a program comes to when nobody disturbs it."""
    known = {}

    def alone(program, make):
        if program not in known:
            run_dir = home / f"{program}-alone"
            log = home / f"{program}-log"
            with Process(*make(run_dir), log=log) as process:
                assert process.wait() == 0, process.said
            known[program] = outcome(run_dir)
        return known[program]

    return alone


@pytest.fixture
def gate(tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    return gate


def ended_politely(process, number, run_dir):
    """Whether it said in a few lines what it did; the step where it stopped."""
    assert process.wait() == 128 + number, process.said
    said = process.said
    assert "Traceback" not in said
    name = number.name
    assert said.count(f"{name}: finishing the chunk and saving; once more stops at once\n") == 1
    stopped = re.search(r"stopped at step ([\d,]+) of ([\d,]+); the same command continues", said)
    assert said.count("stopped at step") == 1
    step = int(stopped[1].replace(",", ""))
    assert left_over(run_dir) == []
    assert steps_in(run_dir)[-1:] == [step]
    return step


def goes_on_as_if_nothing_had_been(start, program, step, run_dir, undisturbed):
    with start(*program) as process:
        assert process.wait() == 0, process.said
        if step:
            assert f"continuing at step {step:,} of" in process.said
    assert outcome(run_dir) == undisturbed
    assert left_over(run_dir) == []


# --- One signal ---------------------------------------------------------------


def steps_of_starts(run_dir):
    starts = json.loads((run_dir / "run.json").read_text())["starts"]
    return [start["step"] for start in starts]


def vae(images, run_dir, steps):
    """As the program of the same name in `faults`, up to a step."""
    given = {"batch_size": 4, "widths": (32,), "latent": 4, "seed": 7, "log_every": 40}
    vae_in_part(images, run_dir, steps, epochs=30, **given)


def test_a_command_that_is_stopped_goes_on_as_if_it_had_not_been(start, tmp_path):
    images, run_dir = make_images(tmp_path / "images.npz"), tmp_path / "run"
    with start(PROGRAMS["vae"][0], images, run_dir, 30) as process:
        process.wait_for(lambda: steps_in(run_dir), "a checkpoint")
        process.send(signal.SIGINT)
        step = ended_politely(process, signal.SIGINT, run_dir)
    for place in (run_dir, tmp_path / "alone"):
        with start(vae, images, place, step + 100) as process:
            assert process.wait() == 0, process.said
    assert steps_of_starts(run_dir) == [0, step]
    parts, whole = outcome(run_dir), outcome(tmp_path / "alone")
    assert parts == whole


PLACES = {"an evaluation": 50, "compiling": 0}


@pytest.mark.parametrize(
    ("where", "number"),
    [("an evaluation", signal.SIGINT), ("compiling", signal.SIGHUP)],
    ids=PLACES,
)
def test_what_is_going_on_is_finished_and_saved(where, number, start, alone, gate, tmp_path):
    run_dir, undisturbed = tmp_path / "run", alone("gated", lambda run_dir: (gated, run_dir))
    with start(gated, run_dir, gate, where) as process:
        process.wait_for((gate / "reached").exists, "the gate")
        process.send(number)
        process.wait_for(lambda: "finishing the chunk" in process.said, "its answer")
        assert process.code is None
        (gate / "open").touch()
        stopped = ended_politely(process, number, run_dir)
    # What was being compiled is run, since it was dispatched.
    assert stopped == PLACES[where] or (where == "compiling" and stopped <= 20)
    goes_on_as_if_nothing_had_been(start, (gated, run_dir), stopped, run_dir, undisturbed)


def test_a_save_that_is_going_on_is_finished(start, alone, tmp_path):
    run_dir, undisturbed = tmp_path / "run", alone("gated", lambda run_dir: (gated, run_dir))
    with start(gated, run_dir) as process:
        saving = run_dir / "checkpoints" / ".saving"
        process.wait_for(lambda: next(saving.glob("*"), None), "a save")
        process.send(signal.SIGTERM)
        step = ended_politely(process, signal.SIGTERM, run_dir)
    goes_on_as_if_nothing_had_been(start, (gated, run_dir), step, run_dir, undisturbed)


# --- Two signals --------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "second"),
    [("a hook", signal.SIGINT), ("compiling", signal.SIGTERM)],
    ids=["a hook", "compiling"],
)
def test_a_second_signal_ends_it_at_once(where, second, start, alone, gate, tmp_path):
    run_dir, undisturbed = tmp_path / "run", alone("gated", lambda run_dir: (gated, run_dir))
    with start(gated, run_dir, gate, where) as process:
        process.wait_for((gate / "reached").exists, "the gate")
        if where != "compiling":
            process.wait_for(lambda: 40 in steps_in(run_dir), "the save before")
        process.send(signal.SIGTERM)
        process.wait_for(lambda: "once more stops at once" in process.said, "its answer")
        process.send(second)
        assert process.wait() == -second, process.said
        assert "Traceback" not in process.said
    if where == "compiling":
        assert steps_in(run_dir) == []
    else:
        assert steps_in(run_dir)[-1] == 40
        goes_on_as_if_nothing_had_been(start, (gated, run_dir), 40, run_dir, undisturbed)


# --- Time that is up ----------------------------------------------------------


def test_a_run_whose_time_is_up_is_saved_and_goes_on_exactly(start, alone, tmp_path):
    run_dir, undisturbed = tmp_path / "run", alone("gated", lambda run_dir: (gated, run_dir))
    with start(gated, run_dir, None, None, 3.0) as process:
        assert process.wait() == 0, process.said
        step = int(process.printed)
        # It waited at step 100 until its time was up, if it came so far.
        assert step <= 100
        assert steps_in(run_dir)[-1:] == [step]
        assert f"stopped at step {step} of 200; the same command continues" in process.said
        assert left_over(run_dir) == []
    goes_on_as_if_nothing_had_been(start, (gated, run_dir), step, run_dir, undisturbed)


def test_time_that_is_too_short_for_anything_makes_a_step_and_says_so(start, tmp_path):
    run_dir = tmp_path / "run"
    with start(gated, run_dir, None, None, 0.001) as process:
        assert process.wait() == 0, process.said
        assert process.printed == "1\n"
        assert "stopped at step 1 of 200; the same command continues" in process.said
        assert "max_seconds = 0.001 is too short for a step and a save" in process.said
    assert steps_in(run_dir) == [1]
    assert left_over(run_dir) == []


# --- Two trainers -------------------------------------------------------------


def told(run_dir):
    """The program, with its errors as the command line shows them."""
    from loopax.errors import LoopaxError

    try:
        return gated(run_dir)
    except LoopaxError as error:
        print(f"loopax: {error}", file=sys.stderr)
        return error.exit_code


def test_a_second_trainer_is_turned_away_until_the_first_is_gone(start, alone, gate, tmp_path):
    run_dir, undisturbed = tmp_path / "run", alone("gated", lambda run_dir: (gated, run_dir))
    with start(gated, run_dir, gate, "a hook") as first:
        first.wait_for((gate / "reached").exists, "the gate")
        first.wait_for(lambda: 40 in steps_in(run_dir), "the save before")
        with loopax.CheckpointStore(run_dir / "checkpoints") as store:
            assert int(store.read()[0]["step"]) == 40, "others may read it meanwhile"
        before = {path: path.stat().st_mtime_ns for path in run_dir.glob("**/*.json*")}
        with start(told, run_dir) as second:
            assert second.wait() == 5
            assert second.said.count("\n") == 1
            holder = f"{run_dir}: is in use by process {first.pid} on {socket.gethostname()}, since"
            assert holder in second.said
        assert first.code is None
        held = run_dir / "holder.json"
        assert before.keys() - {held} == set(run_dir.glob("**/*.json*")) - {held}
        assert all(path.stat().st_mtime_ns == before[path] for path in before.keys() - {held})
        first.send(signal.SIGKILL)
        first.wait()
    with start(told, run_dir) as third:
        assert third.wait() == 0, third.said
        assert f"was left by process {first.pid} on" in third.said
        assert "taken over" in third.said
        assert "continuing at step 40 of 200" in third.said
    assert outcome(run_dir) == undisturbed
    assert left_over(run_dir) == []
