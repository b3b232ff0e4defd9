"""The article's VAE trained by loopax and by its peers, each in a process of its own.

    python -m benchmarks.peers                     # half an hour for each size of batch and repeat
    python -m benchmarks.peers --batch 16 --seconds 5 --repeats 1 --only loopax scan keras-100
    python -m benchmarks.peers.page peers.json docs/peers.md    # the page again, from the figures

All begin with the same values. First each makes the same number of steps, and what it has come to
is judged by one function: a contestant whose loss is another trains something else. Then they take
turns, for about so many seconds each. One that fails, or trains something else, is a line of the
table. What is compiled in the first part is found again in the second one, by all.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from benchmarks.peers import environments, page
from benchmarks.peers.task import Task, Weights, prepare, test_loss

CHECKED = {16: 3750, 64: 1900, 256: 900, 1024: 230}
"""Steps after which losses are compared, by size of batch; less where it is another."""
ALIKE = 0.04
"""Losses may differ by such a part from that of the bare scan: orders and noises are others."""


USUAL = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment, with Python's bytecode kept as it usually is."""


class Contestant(NamedTuple):
    title: str
    environment: str
    module: str
    settings: Mapping[str, str] = MappingProxyType({})


CONTESTANTS = {
    "scan": Contestant("bare scan by hand", "loopax", "bare_scan"),
    "loopax": Contestant("loopax.fit", "loopax", "loopax_fit"),
    "keras-100": Contestant(
        "Keras, 100 steps an execution", "keras", "keras_fit", {"STEPS_PER_EXECUTION": "100"}
    ),
    "torch-compile": Contestant("PyTorch, torch.compile", "torch", "torch_loop", {"COMPILED": "1"}),
    "lightning": Contestant("Lightning", "lightning", "lightning_fit"),
    "torch": Contestant("PyTorch", "torch", "torch_loop"),
    "keras": Contestant("Keras on JAX", "keras", "keras_fit"),
    "article": Contestant("the article's loop", "article", "article"),
    "nnx-cached": Contestant("Flax NNX, cached_partial", "loopax", "nnx", {"CACHED": "1"}),
    "nnx": Contestant("Flax NNX, nnx.jit", "loopax", "nnx"),
}
"""In the order in which they take turns."""


@dataclass(frozen=True)
class Options:
    batch: tuple[int, ...] = (16, 64, 256, 1024)  # Sizes of batch.
    seconds: float = 60.0  # About how long each trains.
    repeats: int = 3  # How often, taking turns.
    minutes: float = math.inf  # Begin no run later than this.
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="Contestants.")] = tuple(CONTESTANTS)
    environments: Path = Path("environments")  # Where their environments are, or are made.
    json: Path = Path("peers.json")  # Every figure, written after each run.
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
        *("--folder", task.folder, "--batch", task.batch, "--steps", task.steps, "--out", out),
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
        names = dict.fromkeys(key.split("/")[0] for key in arrays)
        weights = {name: (arrays[f"{name}/0"], arrays[f"{name}/1"]) for name in names}
    return json.loads(out.read_text()), weights


def check(name: str, task: Task, folder: Path) -> dict[str, Any]:
    """A contestant's row: the loss that it comes to after the steps that all make, or why not."""
    row: dict[str, Any] = {"checked_steps": task.steps, "samples": []}
    try:
        figures, weights = run(name, task, folder)
    except FailedError as failure:
        return {**row, "failed": f"failed: {failure}"}
    return {**row, "check": figures, "loss": test_loss(weights, task, noise=False)}


def compare(results: Mapping[str, dict[str, Any]]) -> None:
    """Takes those out of the race whose loss is another than that of the bare scan."""
    losses = {name: row["loss"] for name, row in results.items() if "loss" in row}
    typical = losses.get("scan", float(np.median(list(losses.values()))) if losses else math.nan)
    for name, loss in losses.items():
        if abs(loss / typical - 1) > ALIKE:
            results[name]["failed"] = f"trains something else: {loss:.3f}, not {typical:.3f}"


def sample(name: str, row: dict[str, Any], task: Task, folder: Path) -> None:
    """One more run of a contestant, kept in its row."""
    try:
        row["samples"].append(run(name, task, folder)[0])
    except FailedError as failure:
        row["failed"] = f"failed: {failure}"
    else:
        print(f"batch {task.batch}: {name} {row['samples'][-1]['pace']:,.0f} steps/s", flush=True)


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Every figure; the file of them is written anew after each run."""
    begun = time.monotonic()
    homes = options.environments.absolute()
    results: dict[str, dict[str, Any]] = {str(batch): {} for batch in options.batch}
    found = {**page.facts(options, {n: CONTESTANTS[n] for n in options.only}), "results": results}

    def keep() -> None:
        found["minutes"] = (time.monotonic() - begun) / 60
        options.json.write_text(json.dumps(found, indent=1) + "\n")

    for batch in options.batch:
        task, rows = Task(folder, batch, CHECKED.get(batch, 200)), results[str(batch)]
        for name in options.only:
            rows[name] = check(name, task, homes)
            said = rows[name].get("failed") or f"a loss of {rows[name]['loss']:.3f}"
            print(f"batch {batch}: {name}, {task.steps:,} steps: {said}", flush=True)
            keep()
        compare(rows)
    turns = [(name, batch) for name in options.only for batch in options.batch]
    for name, batch in turns * options.repeats:
        row = results[str(batch)][name]
        if "failed" not in row and time.monotonic() - begun < 60 * options.minutes:
            steps = max(2, round(row["check"]["pace"] * options.seconds / 100)) * 100
            sample(name, row, Task(folder, batch, steps), homes)
            keep()
    return found


def main(options: Options) -> None:
    if unknown := set(options.only) - {*CONTESTANTS}:
        raise SystemExit(f"--only {unknown.pop()}; there are {', '.join(CONTESTANTS)}")
    with tempfile.TemporaryDirectory(prefix="loopax-peers-") as scratch:
        prepare(Path(scratch))
        found = measure(options, Path(scratch))
    print(page.text(found))
    if options.page:
        page.write(found, options.page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
