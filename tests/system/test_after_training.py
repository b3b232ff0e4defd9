"""What follows a training: whatever ends it, nothing is lost and the same command goes on."""

import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.recipes.conftest import judged_in_haste
from tests.system.faults import outcome
from tests.system.processes import Process, left_over, make_images, until

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"


# --- Programs -----------------------------------------------------------------


def script(words, cache, gate=None, where=None, max_time=None):
    """The program `loopax WORDS`, which waits at the gate before it calls `where`.

    With a time limit the time is up there instead, and without a gate nobody reads it.
    """
    import importlib

    from loopax import cli, deadline

    os.environ["LOOPAX_CACHE"] = str(cache)
    cli.training.STARTED = time.monotonic()  # The imports were shared, and are older.

    def wait(*given, **named):
        (gate / "reached").touch()
        if max_time is None:
            until((gate / "open").exists, "the gate to open")
        else:
            deadline.time = SimpleNamespace(monotonic=lambda: math.inf)
        return whole(*given, **named)

    if gate is None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    else:
        module, name = where.rsplit(".", 1)
        owner = importlib.import_module(f"loopax.recipes.{module}")
        whole = getattr(owner, name)
        setattr(owner, name, wait)
    sys.argv = ["loopax", *words, *(["--max-time", max_time] if max_time else [])]
    with judged_in_haste():
        cli.script()


def collected(number):
    """The program is sent a signal while Python collects garbage, and would go on."""
    import gc

    from loopax import cli

    def during(phase, info):
        if phase == "start" and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    def main():
        gc.callbacks.append(during)
        gc.collect()

    sent = []
    cli.main = main
    cli.script()


# --- What follows the training of images ----------------------------------------

LEFT = ("results.json", "sampler.safetensors", "report.html", "pictures")
"""What a run directory has from then on; of the pictures only those of samples are older."""


def finished(run_dir):
    """All that a whole command leaves, by name."""
    return outcome(run_dir) | {
        name: (run_dir / name).read_bytes() for name in LEFT if (run_dir / name).is_file()
    }


def as_trained(run_dir):
    """Takes away what followed the training."""
    for name in LEFT:
        if (run_dir / name).is_file():
            (run_dir / name).unlink()
    for picture in run_dir.glob("pictures/*.png"):
        if not picture.name.startswith("samples-epoch"):
            picture.unlink()


@pytest.fixture
def run(tmp_path):
    """`run(words, ...)` is the program that trains in `run_dir`, started."""
    count = iter(range(100))

    def run(words, where=None, max_time=None):
        gate = where and tmp_path / f"gate-{next(count)}"
        if gate:
            gate.mkdir()
        log = tmp_path / f"log-{next(count)}"
        process = Process(script, words, tmp_path / "cache", gate, where, max_time, log=log)
        if gate:
            process.wait_for((gate / "reached").exists, where)
        return process

    return run


def ended(process, number):
    """Whether a signal ended it at once, in a line."""
    process.send(number)
    assert process.wait() == 128 + number, process.said
    said = f"loopax: stopped by {number.name}; the same command goes on from here\n"
    assert process.said.endswith(said)
    assert "Traceback" not in process.said


def test_whatever_ends_the_work_on_images_the_same_command_goes_on(run, tmp_path):
    run_dir, judges = tmp_path / "run", tmp_path / "cache" / "judges"
    words = f"train vae --data {make_images(tmp_path / 'images.npz')} --run-dir {run_dir} "
    words = f"{words} --epochs 3 --batch-size 20 --widths 256 --latent 2".split()
    with run(words) as process:
        assert process.wait() == 0, process.said
    undisturbed = finished(run_dir)
    assert undisturbed.keys() >= {"results.json", "sampler.safetensors", "report.html"}
    as_trained(run_dir)
    shutil.rmtree(judges)

    with run(words, "vae.trained.fit_mixtures", "1h") as process:
        assert process.wait() == 0, process.said
        assert "time is up; the same command does what is" in process.printed
    with run(words, "vae.judge.train_judge") as process:
        ended(process, signal.SIGTERM)
    assert list(judges.glob("*.safetensors")) == [], "a judge that was trained in half"
    with run(words, "vae.pictures.save_interpolation") as process:
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (run_dir / "results.json").exists()
    with run(words) as process:
        assert process.wait() == 0, process.said
    assert finished(run_dir) == undisturbed
    assert left_over(run_dir) == []


def test_whatever_ends_the_work_on_texts_the_same_command_goes_on(run, tmp_path):
    run_dir, table = tmp_path / "run", tmp_path / "texts.csv"
    rows = "".join(f"{word} film {index},{word}\n" for index in range(30) for word in ("a", "b"))
    table.write_text(f"text,label\n{rows}")
    words = f"train bert --data {table} --model {TINY} --run-dir {run_dir} --epochs 1".split()
    with run(words) as process:
        assert process.wait() == 0, process.said
    undisturbed = finished(run_dir)
    as_trained(run_dir)
    with run(words, "bert.report.write") as process:
        ended(process, signal.SIGHUP)
    assert not (run_dir / "results.json").exists()
    with run(words) as process:
        assert process.wait() == 0, process.said
    assert finished(run_dir) == undisturbed


# --- Signals that come at a bad time --------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_signal_is_lost_in_a_callback_of_the_garbage_collection(number, tmp_path):
    with Process(collected, number, log=tmp_path / "log") as process:
        assert process.wait() == 128 + number, process.said
        assert "Exception ignored" not in process.said
