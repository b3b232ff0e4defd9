"""VAEs and BERT classifiers trained by loopax and by its peers, each in a process of its own.

    python -m benchmarks.peers                     # hours; what is in peers.json is not made again
    python -m benchmarks.peers --task article --batch 16 --seconds 5 --repeats 1 --json quick.json
    python -m benchmarks.peers.page peers.json docs/peers.md    # the page again, from the figures

All begin with the same values. First each makes the same number of steps, and what it has come to
is judged by one function: a contestant whose loss is another trains something else. Then they take
turns, for about so many seconds each. One that fails, or trains something else, is a line of the
table. What is compiled in the first part is found again in the second one, by all.

A file of figures is gone on with: only what is missing is measured, on the same machine alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from benchmarks.peers import environments, page
from benchmarks.peers.task import KINDS, Task, Weights, prepare, test_loss

ALIKE = 0.04
"""Losses may differ by such a part from that of the bare scan: orders and noises are others."""
IMAGES, ALL = ("article", "conv"), tuple(KINDS)
"""Tasks."""

USUAL = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment, with Python's bytecode kept as it usually is."""


class Contestant(NamedTuple):
    title: str
    environment: str
    module: str
    settings: Mapping[str, str] = MappingProxyType({})
    tasks: tuple[str, ...] = ("article",)


CONTESTANTS = {
    "scan": Contestant("bare scan by hand", "loopax", "bare_scan", tasks=ALL),
    "loopax": Contestant("loopax.fit", "loopax", "loopax_fit", tasks=ALL),
    "keras-100": Contestant(
        "Keras, 100 steps an execution",
        "keras",
        "keras_fit",
        {"STEPS_PER_EXECUTION": "100"},
        IMAGES,
    ),
    "torch-compile": Contestant(
        "PyTorch, torch.compile", "torch", "torch_loop", {"COMPILED": "1"}, ALL
    ),
    "lightning": Contestant("Lightning", "lightning", "lightning_fit", tasks=ALL),
    "torch": Contestant("PyTorch", "torch", "torch_loop", tasks=ALL),
    "keras": Contestant("Keras on JAX", "keras", "keras_fit"),
    "article": Contestant("the article's loop", "article", "article"),
    "nnx-cached": Contestant("Flax NNX, cached_partial", "loopax", "nnx", {"CACHED": "1"}),
    "nnx": Contestant("Flax NNX, nnx.jit", "loopax", "nnx"),
}
"""In the order in which they take turns."""


@dataclass(frozen=True)
class Options:
    task: tuple[str, ...] = tuple(KINDS)  # What is trained.
    batch: tuple[int, ...] = ()  # Sizes of batch; when left out, those of each task.
    seconds: float = 60.0  # About how long each trains.
    repeats: int = 3  # How often in all, taking turns.
    minutes: float = math.inf  # Begin no run later than this.
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="Contestants.")] = tuple(CONTESTANTS)
    environments: Path = Path("environments")  # Where their environments are, or are made.
    json: Path = Path("peers.json")  # Every figure, written after each run, and gone on with.
    page: Path | None = None  # Write a page of docs here, and a chart beside it.


class FailedError(Exception):
    """A contestant has not done what it was asked for."""


def run(name: str, task: Task, folder: Path) -> tuple[dict[str, Any], Weights]:
    """One contestant's figures and weights, from a process of its own.

    Raises:
        FailedError: it ended by an error, which this is in a line.
    """
    contestant = CONTESTANTS[name]
    out = task.folder / f"{name}.json"
    command = [
        environments.python_of(contestant.environment, folder),
        "-m",
        f"benchmarks.peers.contestants.{contestant.module}",
        *(
            "--folder",
            task.folder,
            "--task",
            task.name,
            "--batch",
            task.batch,
            "--steps",
            task.steps,
            "--out",
            out,
        ),
        *(() if task.target is None else ("--target", task.target)),
        *("--started", repr(time.time())),
    ]
    variables = {
        **USUAL,
        **contestant.settings,
        "PYTHONPATH": f"{environments.ROOT}{os.pathsep}{environments.ROOT / 'src'}",
        "JAX_COMPILATION_CACHE_DIR": str(task.folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(task.folder / "inductor"),
    }
    done = subprocess.run(
        list(map(str, command)), env=variables, capture_output=True, text=True, cwd=task.folder
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
        raise FailedError((errors or lines)[-1][:200])
    with np.load(out.with_suffix(".npz")) as arrays:
        weights: Weights = {}
        for key in arrays:  # Of each layer they lie in order.
            layer = key.split("/")[0]
            weights[layer] = (*weights.get(layer, ()), arrays[key])
    return json.loads(out.read_text()), weights


def check(name: str, task: Task, folder: Path) -> dict[str, Any]:
    """A contestant's row: the loss that it comes to after the steps that all make, or why not."""
    row: dict[str, Any] = {"checked_steps": task.steps, "samples": []}
    try:
        figures, weights = run(name, task, folder)
    except FailedError as failure:
        return {**row, "failed": f"failed: {failure}"}
    return {**row, "check": figures, "loss": test_loss(weights, task, noise=False)}


def compare(rows: Mapping[str, dict[str, Any]]) -> None:
    """Takes those out of the race whose loss is another than that of the bare scan."""
    losses = {name: row["loss"] for name, row in rows.items() if "loss" in row}
    typical = losses.get("scan", float(np.median(list(losses.values()))) if losses else math.nan)
    for name, loss in losses.items():
        if abs(loss / typical - 1) > ALIKE:
            rows[name]["failed"] = f"trains something else: {loss:.3f}, not {typical:.3f}"


def sample(name: str, row: dict[str, Any], task: Task, folder: Path) -> None:
    """One more run of a contestant, kept in its row."""
    try:
        row["samples"].append(run(name, task, folder)[0])
    except FailedError as failure:
        row["failed"] = f"failed: {failure}"
    else:
        pace = row["samples"][-1]["pace"]
        print(f"{task.name}, batch {task.batch}: {name} {pace:,.4g} steps/s", flush=True)


class Measurement:
    """Figures in a file, to which every run adds.

    Attributes:
        found: what `page` shows: of each task and size of batch a row for each contestant.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.homes = options.environments.absolute()
        self.begun = time.monotonic()
        self.found = page.opened(options, {name: CONTESTANTS[name] for name in options.only})
        self.minutes = self.found["minutes"]
        self.compiled: set[tuple[str, str, int]] = set()

    def keep(self) -> None:
        self.found["minutes"] = self.minutes + (time.monotonic() - self.begun) / 60
        self.options.json.write_text(json.dumps(self.found, indent=1) + "\n")

    def races(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """A task for each size of batch, and its rows."""
        for name in self.options.task:
            for batch in self.options.batch or KINDS[name].checked:
                task = Task(self.folder, batch, KINDS[name].checked.get(batch, 200), name=name)
                yield task, self.found["results"].setdefault(name, {}).setdefault(str(batch), {})

    def entrants(self, task: Task) -> list[str]:
        return [name for name in self.options.only if task.name in CONTESTANTS[name].tasks]

    def check(self) -> None:
        """Lets each make the same steps, if it has not, and compares what they have come to."""
        for task, rows in self.races():
            for name in self.entrants(task):
                if "loss" in rows.get(name, {}):
                    rows[name].pop("failed", None)
                    continue
                row = rows[name] = check(name, task, self.homes)
                self.compiled.add((name, task.name, task.batch))
                said = row.get("failed") or f"a loss of {row['loss']:.3f}"
                where = f"{task.name}, batch {task.batch}"
                print(f"{where}: {name}, {task.steps:,} steps: {said}", flush=True)
                self.keep()
            compare(rows)

    def sample(self) -> None:
        """Lets them take turns until each has as many runs as are wanted, or the time is over."""
        for turn in range(self.options.repeats):
            for name in self.options.only:
                for task, rows in self.races():
                    row = rows.get(name, {"failed": "no entrant"})
                    if "failed" in row or len(row["samples"]) > turn:
                        continue
                    if time.monotonic() - self.begun > 60 * self.options.minutes:
                        return
                    if (key := (name, task.name, task.batch)) not in self.compiled:
                        # Compiled in an earlier measurement, whose caches are gone.
                        with suppress(FailedError):
                            run(name, replace(task, steps=2 * task.every), self.homes)
                        self.compiled.add(key)
                    made = row["check"]["pace"] * self.options.seconds / task.every
                    steps = max(2, round(made)) * task.every
                    sample(name, row, replace(task, steps=steps), self.homes)
                    self.keep()


def main(options: Options) -> None:
    for given, known in ((options.only, CONTESTANTS), (options.task, KINDS)):
        if unknown := set(given) - {*known}:
            raise SystemExit(f"{unknown.pop()} is unknown; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="loopax-peers-") as scratch:
        for name in options.task:
            prepare(name, Path(scratch))
        measurement = Measurement(options, Path(scratch))
        measurement.check()
        measurement.sample()
    print(page.text(measurement.found))
    if options.page:
        page.write(measurement.found, options.page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
