"""The runs below a directory: found by what only a run has, and never read whole."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopax.errors import LoopaxError
from loopax.history import rows_backwards
from loopax.retention import Rank, best_step, checked_rank
from loopax.rundir import RunDir

INSIDE = {"checkpoints", "tensorboard", "pictures"}
"""Of a run, where no other run lies."""
LOOK_BACK = 10_000
"""Rows from the end in which an evaluation is looked for."""


def listing(directory: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """A line of the table for each run; one that is damaged is told of and hides no other."""
    for path in _runs_below(directory):
        run = RunDir(path)
        try:
            recipe = str(run.config.get("recipe", "-"))
            step, measured, value = _reached(run)
        except (LoopaxError, OSError) as error:
            print(f"loopax: {error}", file=sys.stderr)
            continue
        yield str(path), recipe, f"{step:,}", measured, value


def _runs_below(directory: Path) -> Iterator[Path]:
    """Links are followed, and no folder is looked at twice."""
    seen: set[str] = set()
    for folder, names, files in os.walk(directory, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:
            names.clear()
            continue
        seen.add(here)
        names.sort()
        path = Path(folder)
        if "config.json" in files and (run := RunDir(path)).is_run:
            names[:] = [name for name in names if name not in INSIDE]
            yield run.path


def _reached(run: RunDir) -> tuple[int, str, str]:
    """The step a run has come to, and the value of what ranks its checkpoints.

    Where nothing ranks them it is the loss of the latest evaluation.
    """
    ranks = _ranks(run.checkpoints)
    step, measured = max(ranks, default=0), ("-", "-")
    if run.metrics_file.is_file():
        rows = itertools.islice(rows_backwards(run.metrics_file), LOOK_BACK)
        latest = next(rows, None)
        if latest is not None:
            step = max(step, latest["step"])
            others = ("train", "probe", "hook")
            for row in itertools.chain([latest], rows):
                if row["source"] not in others and "loss" in row:
                    measured = f"{row['source']}/loss", f"{row['loss']:.4g}"
                    break
    best = best_step(sorted(ranks), ranks)
    if best is not None:
        measured = f"best {ranks[best]['metric']}", f"{ranks[best]['value']:.4g}"
    return step, *measured


def _ranks(checkpoints: Path) -> dict[int, Rank]:
    """The rank of each checkpoint, as its meta tells it; empty where it tells none."""
    ranks: dict[int, Rank] = {}
    with suppress(OSError):
        for path in checkpoints.iterdir():
            if path.name.isdecimal() and path.is_dir():
                ranks[int(path.name)] = {}
                with suppress(OSError, ValueError, KeyError, TypeError):
                    meta: Any = json.loads((path / "meta" / "metadata").read_text())
                    ranks[int(path.name)] = checked_rank(meta["rank"])
    return ranks
