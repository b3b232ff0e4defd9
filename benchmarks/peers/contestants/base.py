"""What surrounds a contestant in its own process: its clock, and the account of what it used."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.peers.task import Task, Weights


@dataclass
class Clock:
    """Hears how many steps are made, and when.

    Attributes:
        started: when the process was started, in seconds of `time.time()`.
        ticks: seconds since then, and steps made by then.
    """

    started: float
    ticks: list[tuple[float, int]] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        self.ticks.append((time.time() - self.started, step))

    def pace(self, after: float) -> float | None:
        """Steps a second of all that came later than so many seconds after the first tick."""
        begun = self.ticks[0][0] + after
        late = [tick for tick in self.ticks if tick[0] >= begun]
        if len(late) < 2 or late[-1][1] == late[0][1]:
            return None
        return (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0])


Train = Callable[[Task, Clock], Weights]
"""Trains, tells the clock about every hundred steps when their metrics are known, and returns what
it has come to."""


def contest(train: Train) -> None:
    """Reads the task from the command line, trains, and leaves figures and weights in files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    clock = Clock(given.started)
    weights = train(Task(given.folder, given.batch, given.steps), clock)
    wall = time.time() - given.started
    own, others = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    figures = {
        "steps": given.steps,
        "wall_s": wall,
        "first_s": clock.ticks[0][0],
        "pace": clock.pace(10.0) or clock.pace(0.0),
        "cpu_s": sum(each.ru_utime + each.ru_stime for each in (own, others)),
        "peak_mb": max(own.ru_maxrss, others.ru_maxrss) / 1024,
        "threads": os.cpu_count(),
    }
    arrays = {f"{name}/{i}": part for name, pair in weights.items() for i, part in enumerate(pair)}
    np.savez(given.out.with_suffix(".npz"), **arrays)
    given.out.write_text(json.dumps(figures))
