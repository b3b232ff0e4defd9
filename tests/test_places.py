"""Where and how programs run: threads, event loops, forks, closed and narrow streams, paths."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import jax.numpy as jnp, numpy as np, optax, loopax
state = loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.1))
loss = lambda params, batch, rngs: ((params["w"] - batch) ** 2, {"pr\\u00e4zision": params["w"]})
def fit(run_dir="run", **options):
    data = [np.float32(1)] * 4
    return loopax.fit(state, loss, data, steps=9, run_dir=run_dir, **options).step
def refused(call):
    try:
        call()
    except loopax.errors.LoopaxError as error:
        return str(error)
"""
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STREAMS = {
    "none": "sys.stdout = sys.stderr = sys.stdin = None; fit()",
    "closed": "[os.close(number) for number in (0, 1, 2)]; fit()",
    "a full disk behind stderr": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2); fit(log_every=1)",
}
PLACES = """
import asyncio, threading
def fit_in_threads(*names):
    threads = [threading.Thread(target=fit, args=[name]) for name in names]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
async def main():
    fit("in an event loop")
    await asyncio.to_thread(fit, "in its thread")
fit_in_threads("in a thread")
fit_in_threads("in one of two threads", "in the other")
asyncio.run(main())
fit(b"along bytes")
os.environ["HOME"] = os.getcwd()
fit("~/from home/")
fit("in another working directory", hooks=lambda run: os.chdir("/"), log_every=3)
"""


def run(program, folder, **env):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


def trained(done, *run_dirs):
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert [name for name in run_dirs if not (name / "checkpoints" / "9").exists()] == []


@pytest.mark.parametrize("program", STREAMS.values(), ids=STREAMS.keys())
def test_it_trains_with_such_streams(tmp_path, program):
    trained(run(program, tmp_path), tmp_path / "run")


def test_it_trains_in_threads_and_event_loops_and_along_any_path(tmp_path):
    done = run(PLACES, tmp_path)
    places = "a thread", "one of two threads", "the other", "an event loop", "its thread"
    names = [f"in {place}" for place in (*places, "another working directory")]
    trained(done, *(tmp_path / name for name in [*names, "along bytes", "from home"]))


def test_a_terminal_without_an_encoding_and_a_path_that_it_cannot_write(tmp_path):
    program = "fit(log_every=1); print(refused(lambda: fit('r\\u00fcn')))"
    done = run(program, tmp_path, TERM="dumb", **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run_dir is 'r\\xfcn', which the ascii of this system cannot")
    assert (tmp_path / "run" / "checkpoints" / "9").exists()


def test_a_child_that_was_forked_after_jax_had_started_is_refused(tmp_path):
    """Else it would wait for ever."""
    program = """
if os.fork() == 0:
    print(refused(fit), flush=True)
    os._exit(0)
os.wait()
assert fit() == 9
"""
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this process was forked from one in which JAX had started" in done.stdout


def test_what_is_no_path_is_named(tmp_path):
    program = """
open("file", "w").close()
for path in ("file", "file/run", 3, "", "a\\0b", True, "x" * 300):
    print(refused(lambda: fit(path)))
"""
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ["not a directory"] * 2 + ["must be a path"] * 4 + ["File name too long"]
    assert len(done.stdout.splitlines()) == len(expected)
    for line, part in zip(done.stdout.splitlines(), expected, strict=True):
        assert part in line


def test_a_reader_that_has_left_is_no_failure(tmp_path):
    command = f"{sys.executable} -m loopax data list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
