"""Whole processes: a run that is killed or interrupted and started again loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

WORDS = ["--epochs", "40", "--batch-size", "4", "--widths", "16", "--latent", "2", "--seed", "7"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (400, 6, 6), np.uint8)
    np.savez(path, image=image, label=np.arange(400) % 4)
    return path


def command(images, run_dir):
    # The console script's own entry point, in a process of its own.
    program = "import sys; from loopax.cli import main; sys.exit(main())"
    words = ["train", "vae", "--data", str(images), "--run-dir", str(run_dir), *WORDS]
    return [sys.executable, "-c", program, *words]


def start(images, run_dir):
    return subprocess.Popen(
        command(images, run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(process, run_dir):
    """Until the run has saved something it can go on from."""
    for _ in range(1200):
        steps = [path for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
        if steps or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint within a minute")


def outcome(run_dir):
    rows = (run_dir / "metrics.jsonl").read_text()
    return rows, json.loads((run_dir / "results.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(command(images, run_dir), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return outcome(run_dir)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_stopped_run_ends_as_if_it_had_not_been(how, images, undisturbed, tmp_path):
    run_dir = tmp_path / "stopped"
    process = start(images, run_dir)
    wait_for_checkpoint(process, run_dir)
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert "continues" in said
    again = subprocess.run(command(images, run_dir), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "continuing at step" in again.stderr
    assert outcome(run_dir) == undisturbed
    starts = json.loads((run_dir / "run.json").read_text())["starts"]
    assert [start["step"] > 0 for start in starts] == [False, True]
