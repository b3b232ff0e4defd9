"""Disks that are full, read-only or gone: one line, status 6, and nothing lost that was saved.

A full disk is had in two ways: a small tmpfs, where one can be mounted, and a limit on the size of
files, which makes writing fail in the same places everywhere.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from loopax import digests
from tests.recipes.conftest import judged_in_haste
from tests.system.faults import outcome
from tests.system.processes import (
    TINY_VAE,
    Process,
    command_line,
    left_over,
    make_images,
    steps_in,
    until,
    vae_in_part,
)

KILOBYTE = 1024
SMALL = 100 * KILOBYTE
"""Enough for every file of a run but the arrays of its checkpoints."""
TOTAL = 160


# --- Programs -----------------------------------------------------------------


def walk(run_dir, at=None, on_failure="stop", log_every=10):
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
            log_every=log_every,
            probe_every=None,
        )
    except loopax.errors.LoopaxError as error:
        print(f"walk: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def limit(size):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def wait_for_the_save_before(run_dir, step):
    until(lambda: (step - 1) // 20 * 20 in steps_in(run_dir), "the save before")
    until(lambda: not (run_dir / "checkpoints" / ".saving").exists(), "its end")


def fill(run_dir, step):
    wait_for_the_save_before(run_dir, step)
    limit(SMALL)


def fill_at_once(run_dir, step):
    limit(SMALL)


def fill_up(run_dir, step):
    fill(run_dir, step)
    limit((run_dir / "metrics.jsonl").stat().st_size)


def make_room(run_dir, step):
    limit(resource.RLIM_INFINITY)


def remove_all(run_dir, step):
    wait_for_the_save_before(run_dir, step)
    # At once, for the run: it looks after its checkpoints while they are deleted one by one.
    gone = run_dir.with_name("gone")
    run_dir.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def fill_disk(run_dir, step):
    wait_for_the_save_before(run_dir, step)
    filled_to_the_brim(run_dir.parent / "filler")


def free_disk(run_dir, step):
    (run_dir.parent / "filler").unlink()


def filled_to_the_brim(filler):
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def stop(run_dir, step):
    os.kill(os.getpid(), signal.SIGTERM)


def as_anyone(program, *arguments):
    """Runs a program without the rights by which root ignores permissions."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    rights = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), rights) == 0
    return program(*arguments)


def measured_in_haste(words):
    with judged_in_haste():
        return command_line(words)


# --- What they share ----------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def start(tmp_path):
    """Starts a program."""
    count = iter(range(100))
    return lambda program, *words: Process(program, *words, log=tmp_path / f"log-{next(count)}")


@pytest.fixture
def finish(start):
    """Runs a program to its end; its status and what it said."""

    def finish(program, *words):
        with start(program, *words) as process:
            return process.wait(), process.said

    return finish


@pytest.fixture(scope="module")
def undisturbed(home):
    with Process(walk, home / "whole", log=home / "whole-log") as process:
        assert process.wait() == 0, process.said
    return outcome(home / "whole")


@pytest.fixture(scope="module")
def endless(home):
    """The command that trains a run for longer than any test, without its directory."""
    words = ["train", "vae", "--data", make_images(home / "images.npz"), "--epochs", "100000"]
    return [*words, "--batch-size", "20", "--widths", "256", "--latent", "2", "--run-dir"]


@pytest.fixture(scope="module")
def vae(home, endless):
    """A short run of the recipe."""
    vae_in_part(endless[endless.index("--data") + 1], home / "vae", 36, **TINY_VAE)
    return home / "vae"


@contextmanager
def read_only(directory):
    """Takes away every right to write below a directory."""
    entries = [directory, *directory.rglob("*")]
    modes = [entry.stat().st_mode for entry in entries]
    for entry in entries:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        yield
    finally:
        for entry, mode in zip(entries, modes, strict=True):
            entry.chmod(mode)


@pytest.fixture
def tmpfs(tmp_path):
    """A disk of sixteen megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here, which needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def is_one_line(said, *parts):
    """Whether the last line is the error, said once and with all of these parts."""
    assert "Traceback" not in said
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


def test_a_disk_that_fills_up_in_the_middle_of_a_save(finish, tmp_path):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {50: "fill_at_once"})
    assert code == 6
    is_one_line(said, f"{run_dir}/checkpoints: the checkpoint of step ", "File too large")
    assert all_whole(run_dir) in ([20], [20, 40])
    assert left_over(run_dir) == []


def test_a_run_that_may_go_on_without_a_save_saves_when_there_is_room_again(
    finish, undisturbed, tmp_path
):
    run_dir = tmp_path / "run"
    at = {60: "fill", 110: "make_room"}
    code, said = finish(walk, run_dir, at, "go_on")
    assert code == 0, said
    for step in (60, 80):
        assert said.count(f"the checkpoint of step {step} could not be saved") == 1
    assert said.count("could not be saved") == said.count("going on without it")
    assert "Traceback" not in said
    assert all_whole(run_dir) == [140, 160]
    assert left_over(run_dir) == []
    assert outcome(run_dir) == undisturbed


@pytest.mark.parametrize(("on_failure", "since"), [("stop", 160), ("go_on", 60)])
def test_a_run_whose_last_save_fails_has_failed(on_failure, since, finish, tmp_path):
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {since: "fill"}, on_failure)
    assert code == 6, said
    is_one_line(said, "could not be saved", "File too large")
    assert left_over(run_dir) == []
    assert all_whole(run_dir)[-1] == (40 if since == 60 else 140)


def test_a_run_that_is_stopped_and_cannot_be_saved_has_failed(finish, tmp_path):
    """A signal, and nothing more to come that would save it."""
    run_dir = tmp_path / "run"
    code, said = finish(walk, run_dir, {50: "remove_all", 60: "stop"}, "go_on")
    assert code == 6, said
    is_one_line(said, str(run_dir))


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


def test_the_command_line_on_a_disk_with_limits(start, endless, tmp_path):
    run_dir = tmp_path / "run"
    with start(command_line, [*endless, run_dir]) as process:
        process.wait_for(lambda: steps_in(run_dir), "a checkpoint")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        assert process.wait() == 6
        is_one_line(process.said, f"loopax: {run_dir}", "File too large")
    assert all_whole(run_dir)
    assert left_over(run_dir) == []


def test_a_run_that_may_go_on_forgets_a_full_disk(finish, undisturbed, tmpfs):
    """Also what Orbax keeps of it."""
    run_dir = tmpfs / "run"
    at = {60: "fill_disk", 90: "free_disk"}
    code, said = finish(walk, run_dir, at, "go_on", 1000)
    assert code == 0, said
    assert "Traceback" not in said
    assert "the checkpoint of step 60 could not be saved: No space left on device" in said
    failed = re.findall(r"the checkpoint of step (\d+) could not be saved", said)
    assert failed in (["60"], ["60", "80"])
    assert said.count("going on without it") == len(failed)
    assert all_whole(run_dir) == [140, 160]
    assert left_over(run_dir) == []
    parts = ("latest", "best")
    mine = {name: value for name, value in outcome(run_dir).items() if name.startswith(parts)}
    assert mine.items() <= undisturbed.items()


def test_the_command_line_on_a_disk_that_is_full(start, endless, tmpfs):
    run_dir, filler = tmpfs / "run", tmpfs / "filler"
    with start(command_line, [*endless, run_dir]) as process:
        process.wait_for(lambda: steps_in(run_dir), "a checkpoint")
        filled_to_the_brim(filler)
        # Deleting an old checkpoint or replacing a file makes room, until that is full as well.
        while process.code is None:
            filled_to_the_brim(filler)
        assert process.code == 6, process.said
        is_one_line(process.said, f"loopax: {run_dir}", "No space left on device")
    assert all_whole(run_dir)
    # While it is full a run cannot begin, and says so.
    with start(command_line, [*endless, run_dir]) as process:
        assert process.wait() == 6, process.said
        is_one_line(process.said, f"loopax: {run_dir}", "No space left on device")


# --- A disk that is read-only, or gone ----------------------------------------


@pytest.mark.parametrize("name", ["new/run", "vae"])
def test_nothing_is_trained_where_nothing_can_be_written(name, finish, vae, endless, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(vae, place / "vae")
    before = everything(place)
    with read_only(place):
        words = [*endless, place / name, "--epochs", "3"]
        code, said = finish(as_anyone, command_line, words)
    assert code == 6, said
    is_one_line(said, f"loopax: {place / name}: cannot be written (Permission denied)")
    assert said.count("\n") == 1
    assert everything(place) == before


def everything(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize("command", ["sample", "evaluate", "runs"])
def test_what_only_reads_works_on_a_run_that_is_read_only(command, finish, vae, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(vae, place / "vae")
    before = everything(place)
    drawn = command == "sample"
    options = ["--out", tmp_path / "picture.png"] if drawn else []
    if command == "evaluate":
        options = ["--importance-samples", "5", "--draws", "1"]
    with read_only(place):
        where = place if command == "runs" else place / "vae"
        code, said = finish(as_anyone, measured_in_haste, [command, where, *options])
    assert code == 0, said
    assert everything(place) == before
    assert not drawn or (tmp_path / "picture.png").stat().st_size > 0


def test_a_picture_without_a_place_is_one_line(finish, vae, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(vae, place)
    with read_only(place):
        code, said = finish(as_anyone, command_line, ["sample", place])
    assert code in (2, 6), said
    is_one_line(said, f"loopax: {place}/pictures/samples.png", "cannot be written")


def test_the_command_line_whose_directory_is_removed(start, endless, tmp_path):
    run_dir = tmp_path / "run"
    with start(command_line, [*endless, run_dir]) as process:
        process.wait_for(lambda: steps_in(run_dir), "a checkpoint")
        run_dir.rename(tmp_path / "moved")
        assert process.wait() == 6, process.said
        is_one_line(process.said, f"loopax: {run_dir}")
    assert all_whole(tmp_path / "moved")


def test_a_run_whose_directory_is_moved_within_a_save_says_so(finish, tmp_path):
    """Orbax makes the folders above the one it saves to, and so the run's directory, anew."""
    run_dir = tmp_path / "run"
    code, said = finish(moved_within_a_save, run_dir)
    assert code == 6, said
    is_one_line(said, f"{run_dir}: cannot be written", "removed or moved")
    assert steps_in(run_dir) == []
    assert all_whole(tmp_path / "moved") == [40, 60]
    assert finish(walk, tmp_path / "moved")[0] == 0


def moved_within_a_save(run_dir):
    import orbax.checkpoint as ocp

    save = ocp.AsyncCheckpointer.save

    def move_and_save(self, path, **kwargs):
        if path.name == "80":
            run_dir.rename(run_dir.with_name("moved"))
        save(self, path, **kwargs)

    ocp.AsyncCheckpointer.save = move_and_save
    return walk(run_dir, on_failure="go_on")
