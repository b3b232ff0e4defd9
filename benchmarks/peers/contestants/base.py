"""What surrounds a contestant in its own process: its clock, and the account of what it used."""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.peers.task import Task, Weights, test_loss

TOGETHER = 0.05
"""Seconds within which ticks count as one."""


class ReachedError(Exception):
    """The target is reached, with the weights that are its argument."""


@dataclass
class Clock:
    """Hears how many steps are made, and when.

    Attributes:
        task: what is trained.
        started: when the process was started, in seconds of `time.time()`.
        ticks: seconds since then, and steps made by then.
        losses: of the test images after each epoch, where the task has a target.
    """

    task: Task
    started: float
    ticks: list[tuple[float, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        self.ticks.append((time.time() - self.started, step))

    def epoch(self, weights: Callable[[], Weights]) -> None:
        """Hears that an epoch is over; of a task that has a target it looks whether it is reached.

        Raises:
            ReachedError: it is.
        """
        if self.task.target is not None:
            found = weights()
            self.losses.append(test_loss(found, self.task, noise=True))
            if self.losses[-1] <= self.task.target:
                raise ReachedError(found)

    def pace(self, after: float) -> float | None:
        """Steps a second of all that came later than so many seconds after the first tick.

        Ticks that come together, as of a chunk that is read at once, count as the last of them.
        """
        begun = next((at for at, _ in self.ticks if at >= self.ticks[0][0] + after), math.inf)
        first = max((tick for tick in self.ticks if tick[0] < begun + TOGETHER), default=None)
        last = self.ticks[-1]
        if begun == math.inf or first is None or first[1] == last[1]:
            return None
        return (last[1] - first[1]) / (last[0] - first[0])


Train = Callable[[Task, Clock], Weights]
"""Trains, tells the clock each `task.every` steps when their metrics are known, and returns what
it has come to."""


def contest(train: Train) -> None:
    """Reads the task from the command line, trains, and leaves figures and weights in files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--target", type=float)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    task = Task(given.folder, given.batch, given.steps, given.target, given.task)
    clock = Clock(task, given.started)
    try:
        weights = train(task, clock)
    except ReachedError as reached:
        (weights,) = reached.args
    wall = time.time() - given.started
    own, others = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    figures = {
        "steps": given.steps,
        "wall_s": wall,
        "first_s": clock.ticks[0][0],
        "pace": clock.pace(10.0) or clock.pace(0.0) or given.steps / wall,
        "cpu_s": sum(each.ru_utime + each.ru_stime for each in (own, others)),
        "peak_mb": max(own.ru_maxrss, others.ru_maxrss) / 1024,
        "losses": clock.losses,
    }
    arrays = {f"{name}/{i}": part for name, pair in weights.items() for i, part in enumerate(pair)}
    np.savez(given.out.with_suffix(".npz"), **arrays)
    given.out.write_text(json.dumps(figures))
