"""`loopax.fit` beside the bare scan by hand, taking turns in one process: what the loop costs.

    python -m benchmarks.loop                                # eight minutes on two CPU cores
    python -m benchmarks.loop --batch 16 --seconds 5 --repeats 1

The bare scan logs nothing and saves nothing; `fit` has every default on. Both train the article's
VAE; of `iterable` the batches are gathered on the host. `benchmarks.peers` measures others too.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from benchmarks.peers.contestants import bare_scan, loopax_fit
from benchmarks.peers.contestants.base import Clock
from benchmarks.peers.task import Task, Weights, prepare

STEADY_SECONDS = 2.0
"""After the first chunk: what is earlier belongs to the start."""


@dataclass(frozen=True)
class Options:
    batch: tuple[int, ...] = (16, 256)  # Sizes of batch.
    seconds: float = 20.0  # About how long each call lasts.
    repeats: int = 3  # Timed calls of each, taking turns.


class HostBatches:
    """Batches of NumPy arrays, an epoch a pass."""

    def __init__(self, task: Task) -> None:
        self.task, (images, self.labels) = task, task.columns().values()
        self.images = images.reshape(-1, 28, 28, 1)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        order = np.random.default_rng(0).permutation(len(self.labels))
        full = len(order) // self.task.batch
        for rows in order[: full * self.task.batch].reshape(full, -1):
            image = self.images[rows].astype(np.float32) / 255
            yield {"image": image, "label": self.labels[rows]}


def iterable(task: Task, clock: Clock) -> Weights:
    return loopax_fit.train(task, clock, HostBatches(task))


LOOPS = {"bare scan": bare_scan.train, "fit": loopax_fit.train, "fit, iterable": iterable}


def timed(name: str, task: Task) -> tuple[float, float]:
    """Steps a second of a call: in its steady state, and of the whole call."""
    clock = Clock(task, time.time())
    LOOPS[name](task, clock)
    whole = task.steps / (time.time() - clock.started)
    return clock.pace(STEADY_SECONDS) or whole, whole


def measure(folder: Path, batch: int, options: Options) -> None:
    for name in LOOPS:  # Compiles.
        timed(name, Task(folder, batch, 200))
    steps = round(timed("bare scan", Task(folder, batch, 2000))[1] * options.seconds / 100) * 100
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
    for _, name in itertools.product(range(options.repeats), LOOPS):
        rates[name].append(timed(name, Task(folder, batch, steps)))
    medians = {
        name: [statistics.median(each) for each in zip(*taken, strict=True)]
        for name, taken in rates.items()
    }
    base = medians["bare scan"]
    print(f"batch {batch}, {steps:,} steps: steps/s in steady state and in all, beside the scan's")
    for name, (steady, whole) in medians.items():
        spread = f"{min(rates[name])[0]:,.0f} to {max(rates[name])[0]:,.0f}"
        ratios = f"{steady / base[0]:.2f}  {whole / base[1]:.2f}"
        print(f"{name:14} {steady:6,.0f} ({spread})  {whole:6,.0f}   {ratios}", flush=True)


if __name__ == "__main__":
    given = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="loopax-benchmark-") as scratch:
        prepare("article", Path(scratch))
        for size in given.batch:
            measure(Path(scratch), size, given)
