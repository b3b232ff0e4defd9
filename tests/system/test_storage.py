"""Disks that are full, read-only or gone: one line, status 6, and nothing lost that was saved.

A full disk is had in two ways: a small tmpfs, where one can be mounted, and a limit on the size of
files, which makes writing fail in the same places everywhere.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from loopax import digests
from tests.system.faults import outcome
from tests.system.processes import Process, command_line, left_over, make_images, steps_in, until

KILOBYTE = 1024
SMALL = 100 * KILOBYTE
"""Enough for every file of a run but the arrays of its checkpoints."""
TOTAL = 160


# --- Programs -----------------------------------------------------------------


def walk(run_dir, at=None, on_failure="stop"):
    """A user's program with three megabytes of state and a checkpoint each 20 steps.

    `at` names functions of this module to be called with the directory at a step, before its save.
    """
    import jax.numpy as jnp
    import numpy as np
    import optax

    import loopax

    def loss_fn(params, batch, rngs):
        return jnp.square(params["x"] - batch.mean()).sum()

    def disturb(run):
        if at and run.step in at:
            globals()[at[run.step]](run_dir, run.step)

    # Not zeros, which would fit on any disk.
    start = np.random.default_rng(0).normal(size=250_000).astype(np.float32)
    data = [np.full((2,), value, np.float32) for value in range(1, 8)]
    try:
        loopax.fit(
            loopax.TrainState.create(params={"x": start}, tx=optax.adam(1e-3)),
            loss_fn,
            data,
            steps=TOTAL,
            run_dir=run_dir,
            hooks=[loopax.Hook(disturb, every=10)],
            checkpoints=loopax.Checkpoints(
                every=20, seconds=None, keep=2, best=None, on_failure=on_failure
            ),
            log_every=10,
            probe_every=None,
        )
    except loopax.LoopaxError as error:
        print(f"walk: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def limit(size):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def fill(run_dir, step):
    """Once what was to be saved before is on the disk."""
    until(lambda: (step - 1) // 20 * 20 in steps_in(run_dir), "the save before")
    limit(SMALL)


def fill_at_once(run_dir, step):
    limit(SMALL)


def fill_up(run_dir, step):
    fill(run_dir, step)
    limit((run_dir / "metrics.jsonl").stat().st_size)


def make_room(run_dir, step):
    limit(resource.RLIM_INFINITY)


def remove_all(run_dir, step):
    shutil.rmtree(run_dir)


def as_anyone(program, *arguments):
    """Runs a program without the rights by which root ignores permissions."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    rights = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), rights) == 0
    return program(*arguments)


# --- What they share ----------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def start(home, tmp_path):
    count = iter(range(100))
    return lambda program, *words: Process(
        program, *words, log=tmp_path / f"log-{next(count)}", cache=home / "cache"
    )


@pytest.fixture
def finish(start):
    """Runs a program to its end; its status and what it said."""

    def finish(program, *words):
        with start(program, *words) as process:
            return process.wait(), process.said

    return finish


@pytest.fixture(scope="module")
def undisturbed(home):
    with Process(walk, home / "whole", log=home / "whole-log", cache=home / "cache") as process:
        assert process.wait() == 0, process.said
    return outcome(home / "whole")


@pytest.fixture(scope="module")
def vae_words(home):
    words = ["train", "vae", "--data", make_images(home / "images.npz"), "--epochs", "3000"]
    return [*words, "--batch-size", "20", "--widths", "8", "--latent", "2"]


@pytest.fixture(scope="module")
def vae(home, vae_words):
    """A short run of the recipe."""
    words = [*vae_words, "--epochs", "3", "--run-dir", home / "vae"]
    with Process(command_line, words, log=home / "vae-log", cache=home / "cache") as process:
        assert process.wait() == 0, process.said
    return home / "vae"


def is_one_line(said, *parts):
    """Whether the last line is the error, alone, with all of these parts."""
    assert "Traceback" not in said
    assert "Error" not in said
    last = said.splitlines()[-1]
    assert all(part in last for part in parts), said
    assert said.count(last) == 1


def all_whole(run_dir):
    steps = steps_in(run_dir)
    assert [digests.damage(run_dir / "checkpoints" / str(step)) for step in steps] == [[]] * len(
        steps
    )
    return steps


# --- A disk that is full ------------------------------------------------------


def test_a_full_disk_during_a_save_ends_the_run_and_spares_what_was_saved(
    finish, undisturbed, tmp_path
):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {60: "fill"})
    assert code == 6
    is_one_line(said, f"{run_dir}/checkpoints: the checkpoint of step 60", "File too large")
    assert all_whole(run_dir) == [20, 40]
    assert left_over(run_dir) == []
    code, said = finish(walk, run_dir)
    assert code == 0, said
    assert "continuing at step 40 of 160" in said
    assert outcome(run_dir) == undisturbed


def test_a_disk_that_fills_up_in_the_middle_of_a_save(finish, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {50: "fill_at_once"})
    assert code == 6
    is_one_line(said, f"{run_dir}/checkpoints: the checkpoint of step ", "File too large")
    assert all_whole(run_dir) in ([20], [20, 40])
    assert left_over(run_dir) == []
    assert finish(walk, run_dir)[0] == 0
    assert outcome(run_dir) == undisturbed


def test_a_run_that_may_go_on_without_a_save_saves_when_there_is_room_again(
    finish, undisturbed, tmp_path
):
    run_dir = tmp_path / "run"
    at = {60: "fill", 110: "make_room"}
    code, said = finish(walk, run_dir, at, "go_on")
    assert code == 0, said
    for step in (60, 80, 100):
        assert said.count(f"the checkpoint of step {step} could not be saved") == 1
    assert said.count("going on without it") == 3
    assert "Traceback" not in said
    assert all_whole(run_dir) == [140, 160]
    assert left_over(run_dir) == []
    assert outcome(run_dir) == undisturbed


@pytest.mark.parametrize("on_failure", ["stop", "go_on"])
@pytest.mark.parametrize("since", [160, 150, 60])
def test_a_run_whose_last_save_fails_has_failed(on_failure, since, finish, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {since: "fill"}, on_failure)
    assert code == 6, said
    is_one_line(said, "could not be saved", "File too large")
    assert left_over(run_dir) == []
    assert all_whole(run_dir)[-1] == (40 if since == 60 else 140)
    assert finish(walk, run_dir)[0] == 0
    assert outcome(run_dir) == undisturbed


def test_a_full_disk_while_rows_are_written(finish, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {70: "fill_up"})
    assert code == 6, said
    is_one_line(said, str(run_dir), "cannot be written")
    assert all_whole(run_dir) == [40, 60]
    assert finish(walk, run_dir)[0] == 0
    assert outcome(run_dir) == undisturbed
    assert left_over(run_dir) == []


def test_a_full_disk_from_the_start(finish, tmp_path):
    code, said = finish(full, tmp_path / "run")
    assert code == 6, said
    is_one_line(said, f"{tmp_path / 'run'}: cannot be written (File too large)")


def full(run_dir):
    # Standard error is a file here, which nothing could be written to either.
    reading, writing = os.pipe()
    said = os.dup(2)
    os.dup2(writing, 2)
    limit(0)
    code = walk(run_dir)
    limit(resource.RLIM_INFINITY)
    os.write(said, os.read(reading, 100_000))
    return code
