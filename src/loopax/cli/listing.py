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
from loopax.jsonlines import OWN_SOURCES
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
            step, latest, best = _reached(run)
        except (LoopaxError, OSError) as error:
            print(f"loopax: {error}", file=sys.stderr)
            continue
        yield str(path), recipe, f"{step:,}", latest, best


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
    """The step a run has come to, its latest evaluation, and the best by what ranks checkpoints."""
    ranks = _ranks(run.checkpoints)
    step, measured = max(ranks, default=0), "-"
    if run.metrics_file.is_file():
        for row in itertools.islice(rows_backwards(run.metrics_file), LOOK_BACK):
            step = max(step, row["step"])
            if row["source"] not in OWN_SOURCES and "loss" in row:
                measured = f"{row['source']}/loss {row['loss']:.4g}"
                break
    best = best_step(sorted(ranks), ranks)
    ranked = "-" if best is None else f"{ranks[best]['metric']} {ranks[best]['value']:.4g}"
    return step, measured, ranked


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
