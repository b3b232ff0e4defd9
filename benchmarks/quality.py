"""Time to quality: from typing the command until the loss of the test images is the article's.

    python -m benchmarks.quality --environments environments    # a quarter of an hour

Whole processes, start to finish: a first one that has to compile, then others that find what it has
compiled. After each epoch the loss is measured, with drawn latents, by each in its own way in a run
of loopax and by one function for its peers; the first epoch that has reached it ends the training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from benchmarks.peers import __main__ as peers
from benchmarks.peers import page
from benchmarks.peers.task import Task, prepare

BATCH, EPOCHS = 16, 20
"""Of the article, and at most."""
PRESETS = {
    "preset-wide": "loopax train vae --preset wide",
    "preset-wide-64": "loopax train vae --preset wide --batch-size 64 --epochs 1",
    "preset-article": "loopax train vae --preset article --epochs 20",
}
PEERS = ("article", "keras-100", "keras", "torch-compile", "torch", "lightning", "nnx-cached")


@dataclass(frozen=True)
class Options:
    target: float = 14.2  # The article's loss after its ten epochs.
    repeats: int = 2  # Of which the first one has to compile.
    only: tuple[str, ...] = (*PRESETS, *PEERS)
    environments: Path = Path("environments")  # Where the peers' environments are, or are made.
    json: Path | None = None  # Add every figure to this file, as one of benchmarks.peers.


def of_preset(command: str, folder: Path, target: float) -> tuple[float, float]:
    """Seconds until a command of loopax has logged such a loss, and the loss."""
    variables = {**peers.USUAL, "LOOPAX_CACHE": str(folder / "cache")}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        words = [*command.split()[1:], "--run-dir", f"{place}/run"]
        found: list[float] = []
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "loopax", *words],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                found = losses(Path(place, "run", "metrics.jsonl"))
                if found and found[-1] <= target:
                    return time.perf_counter() - begun, found[-1]
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    if found:
        raise peers.FailedError(f"comes to {min(found):.2f}")
    raise peers.FailedError(f"ended with status {process.returncode}")


def losses(file: Path) -> list[float]:
    """Those of the test images in the rows that are whole."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0].splitlines()
    rows = [json.loads(line) for line in whole if '"test"' in line]
    return [row["loss"] for row in rows if row["source"] == "test"]


def of_peer(name: str, folder: Path, options: Options) -> tuple[float, float]:
    """The same of a contestant of `benchmarks.peers`."""
    steps = EPOCHS * (60_000 // BATCH)
    task = Task(folder, BATCH, steps, options.target)
    figures, _ = peers.run(name, task, options.environments.absolute())
    loss = figures["losses"][-1]
    if loss > options.target:
        raise peers.FailedError(f"has come to {loss:.2f} after {EPOCHS} epochs")
    return figures["wall_s"], loss


def measured(options: Options, folder: Path) -> dict[str, Any]:
    """A row for each: what it is called, its seconds, and its loss or why it has none."""
    found: dict[str, Any] = {}
    for name in options.only:
        title = PRESETS.get(name) or peers.CONTESTANTS[name].title
        found[name] = {"title": f"`{title}`" if name in PRESETS else title, "seconds": []}
        try:
            for _ in range(options.repeats):
                if name in PRESETS:
                    spent, loss = of_preset(PRESETS[name], folder, options.target)
                else:
                    spent, loss = of_peer(name, folder, options)
                found[name]["seconds"].append(spent)
                print(f"{name}: {loss:.2f} after {spent:.1f} s", flush=True)
            found[name]["loss"] = loss
        except peers.FailedError as failure:
            found[name]["failed"] = str(failure)
            print(f"{name}: {failure}", flush=True)
    return found


def main(options: Options) -> None:
    known = {*PRESETS, *peers.CONTESTANTS}
    if unknown := set(options.only) - known:
        raise SystemExit(f"--only {unknown.pop()}; there are {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory(prefix="loopax-quality-") as scratch:
        prepare("article", Path(scratch))
        found = {"target": options.target, "rows": measured(options, Path(scratch))}
    print(page.quality(found))
    if options.json:
        others = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps({**others, "quality": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
