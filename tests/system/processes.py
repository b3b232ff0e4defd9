"""Programs in processes of their own, which start in a second instead of five.

A server imports what they all need, once, and each program is forked from it. It starts no backend
of JAX: what a program does, from reading its arguments to its exit status, is its own.
"""

import atexit
import contextlib
import multiprocessing
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests import compiled

PATIENCE = 300.0
"""Seconds after which something that should have happened never will; no test waits for it."""
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(
    [
        "pytest",
        "loopax.cli",
        "loopax.fitting",
        "loopax.recipes.vae.report",
        "matplotlib.figure",
        "sklearn.decomposition",
        "sklearn.linear_model",
        "sklearn.mixture",
        "PIL.PngImagePlugin",
        "tensorboardX.event_file_writer",
    ]
)


class Process:
    """`program(*arguments)`, started; what it says goes to `<log>.out` and `<log>.err`.

    A program is a function that can be imported. It compiles as the process that starts it, and
    ends with its `SystemExit`, or with 1 and a traceback.
    """

    def __init__(self, program, *arguments, log: Path):
        self._log = log
        in_haste = compiled.in_haste
        self._process = _fork.Process(target=_be, args=(program, arguments, log, in_haste))
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()

    @property
    def code(self):
        """The status it ended with, negative for a signal that killed it; None while it runs."""
        return self._process.exitcode

    @property
    def said(self):
        """What it wrote to standard error so far."""
        return self._read("err")

    @property
    def printed(self):
        """What it wrote to standard output so far."""
        return self._read("out")

    def send(self, number):
        """Sends a signal, if it is still there to get one."""
        with contextlib.suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.pid, number)

    def wait(self):
        """Its status, when it has ended."""
        self._process.join(PATIENCE)
        assert self.code is not None, f"it goes on and on:\n{self.said}"
        return self.code

    def wait_for(self, condition, what):
        """Looks at `condition()` again and again until it holds, or the process has ended."""
        until(lambda: condition() or self.code is not None, what)
        assert condition(), f"ended with {self.code} before {what}:\n{self.said}"

    def _read(self, name):
        path = self._log.with_suffix(f".{name}")
        return path.read_text() if path.exists() else ""


class Together:
    """`program(port, count, index, *arguments)`, started so many times, with a port that is free.

    What number `index` says goes to `<home>/<count>-<index>`.
    """

    def __init__(self, program, count, home, *arguments):
        port = free_port()
        self.processes = [
            Process(program, port, count, index, *arguments, log=home / f"{count}-{index}")
            for index in range(count)
        ]

    def wait(self):
        """How each of them ended; none goes on after this."""
        try:
            return [process.wait() for process in self.processes]
        finally:
            for process in self.processes:
                process.__exit__()


def free_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(condition, what):
    """Looks at `condition()` again and again until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def _be(program, arguments, log, in_haste):
    """What the forked process does."""
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
    compiled.share(os.environ["JAX_COMPILATION_CACHE_DIR"])
    compiled.hasten(in_haste, known=True)
    try:
        sys.exit(program(*arguments))
    except Exception:
        # As the interpreter itself would, and not as `multiprocessing` does.
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # in which JAX leaves the other processes


def command_line(words):
    """The program `loopax WORDS`."""
    from loopax.cli import main

    return main([str(word) for word in words])


def vae_in_part(images, run_dir, steps, **settings):
    """What `loopax train vae` does up to a step, without what follows the training."""
    from loopax import recipe

    vae = recipe.find("vae")
    recipe.train(vae, replace(vae.preset(), data=str(images), **settings), run_dir, steps=steps)


TINY_VAE = {"epochs": 3, "batch_size": 20, "widths": (256,), "latent": 2}
"""Of three epochs of 18 steps."""


def steps_in(run_dir):
    """The numbered steps of a run, in order, as a user would list them."""
    directory = Path(run_dir) / "checkpoints"
    with contextlib.suppress(FileNotFoundError):
        return sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
    return []


def left_over(run_dir):
    """What a clean end must not leave: what is half made or half deleted, and the holder."""
    return sorted(
        str(path.relative_to(run_dir))
        for path in Path(run_dir).rglob("*")
        if path.name in (".saving", ".deleting", "holder.json") or path.name.startswith(".partial-")
    )


def make_images(path):
    """Four hundred images of 6 x 6 pixels in four classes, which get easier to tell for long."""
    generator = np.random.default_rng(0)
    label = np.arange(400) % 4
    ramp = np.linspace(0, 1, 36).reshape(6, 6)
    clean = np.stack([np.rot90(ramp, k) for k in range(4)])[label]
    shade = generator.random((400, 1, 1))
    image = 255 * np.clip(clean * shade + 0.05 * generator.normal(size=(400, 6, 6)), 0, 1)
    np.savez(path, image=image.astype(np.uint8), label=label)
    return path
