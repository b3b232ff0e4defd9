"""The article's VAE trained by loopax and by its peers, each in a process of its own.

    python -m benchmarks.peers                     # half an hour for each size of batch
    python -m benchmarks.peers --batch 16 --seconds 5 --repeats 1 --only loopax scan keras

All begin with the same values. First each makes the same number of steps, and what it has come to
is judged by one function: a contestant whose loss is another trains something else. Then they take
turns, for about so many seconds each.
"""

from __future__ import annotations

import json
import os
import subprocess
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


class Contestant(NamedTuple):
    title: str
    environment: str
    module: str
    settings: Mapping[str, str] = MappingProxyType({})


CONTESTANTS = {
    "scan": Contestant("bare scan by hand", "loopax", "bare_scan"),
    "loopax": Contestant("loopax.fit", "loopax", "loopax_fit"),
    "article": Contestant("the article's loop", "article", "article"),
    "nnx": Contestant("Flax NNX, nnx.jit", "loopax", "nnx"),
    "nnx-cached": Contestant("Flax NNX, cached_partial", "loopax", "nnx", {"CACHED": "1"}),
    "keras": Contestant("Keras on JAX", "keras", "keras_fit"),
    "keras-100": Contestant(
        "Keras, 100 steps an execution", "keras", "keras_fit", {"STEPS_PER_EXECUTION": "100"}
    ),
    "torch": Contestant("PyTorch", "torch", "torch_loop"),
    "torch-compile": Contestant("PyTorch, torch.compile", "torch", "torch_loop", {"COMPILED": "1"}),
    "lightning": Contestant("Lightning", "lightning", "lightning_fit"),
}


@dataclass(frozen=True)
class Options:
    batch: tuple[int, ...] = (16, 64, 256, 1024)  # Sizes of batch.
    seconds: float = 60.0  # About how long each trains.
    repeats: int = 3  # How often, taking turns.
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="Contestants.")] = tuple(CONTESTANTS)
    environments: Path = Path("environments")  # Where their environments are, or are made.
    json: Path | None = None  # Write every figure here.
    page: Path | None = None  # Write a page of docs here, and a chart beside it.


def run(name: str, task: Task, options: Options) -> tuple[dict[str, Any], Weights]:
    """One contestant's figures and weights, from a process of its own."""
    contestant = CONTESTANTS[name]
    python = environments.python_of(contestant.environment, options.environments.absolute())
    out = task.folder / f"{name}.json"
    command = [
        python,
        "-m",
        f"benchmarks.peers.contestants.{contestant.module}",
        *("--folder", task.folder, "--batch", task.batch, "--steps", task.steps, "--out", out),
        *("--started", repr(time.time())),
    ]
    variables = {**os.environ, **contestant.settings, "PYTHONPATH": str(environments.ROOT)}
    done = subprocess.run(
        list(map(str, command)), env=variables, capture_output=True, text=True, cwd=task.folder
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    with np.load(out.with_suffix(".npz")) as arrays:
        names = dict.fromkeys(key.split("/")[0] for key in arrays)
        weights = {name: (arrays[f"{name}/0"], arrays[f"{name}/1"]) for name in names}
    return json.loads(out.read_text()), weights


def measure(folder: Path, batch: int, options: Options) -> dict[str, Any]:
    """The loss that each comes to after the same steps, and the figures of each repeat."""
    checked = CHECKED.get(batch, 200)
    results: dict[str, Any] = {}
    for name in options.only:
        figures, weights = run(name, Task(folder, batch, checked), options)
        loss = test_loss(weights, Task(folder, batch, checked))
        results[name] = {"checked_steps": checked, "loss": loss, "check": figures, "samples": []}
        print(f"batch {batch}: {name} has a loss of {loss:.3f} after {checked:,} steps")
    losses = {name: row["loss"] for name, row in results.items()}
    typical = losses.get("scan", float(np.median(list(losses.values()))))
    for name, loss in losses.items():
        if abs(loss / typical - 1) > ALIKE:
            raise SystemExit(f"{name} trains something else: {loss:.3f}, not {typical:.3f}")
    for repeat in range(options.repeats):
        first = repeat % len(options.only)
        for name in (*options.only[first:], *options.only[:first]):
            pace = results[name]["check"]["pace"]
            steps = max(2, round(pace * options.seconds / 100)) * 100
            figures, _ = run(name, Task(folder, batch, steps), options)
            results[name]["samples"].append(figures)
            print(f"batch {batch}: {name} {figures['pace']:,.0f} steps/s")
    return results


def main(options: Options) -> None:
    import tempfile

    if unknown := set(options.only) - {*CONTESTANTS}:
        raise SystemExit(f"--only {unknown.pop()}; there are {', '.join(CONTESTANTS)}")
    with tempfile.TemporaryDirectory(prefix="loopax-peers-") as scratch:
        folder = Path(scratch)
        prepare(folder)
        results = {batch: measure(folder, batch, options) for batch in options.batch}
    facts = page.facts(options, {name: CONTESTANTS[name] for name in options.only})
    print(page.text(results, facts))
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    if options.page:
        page.write(results, facts, options.page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
