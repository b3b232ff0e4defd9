"""How far a run has come, by the files of its directory, which are never read whole."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopax.jsonlines import OWN_SOURCES, rows_backwards
from loopax.run.directory import RunDir
from loopax.run.retention import Rank, best_step, checked_rank

INSIDE = {"checkpoints", "tensorboard", "pictures"}
"""Of a run, where no other run lies."""
LOOK_BACK = 10_000
"""Rows from the end in which a metric is looked for."""


@dataclass(frozen=True)
class Standing:
    """How far a run has come.

    Attributes:
        step: the last one that is known of.
        ranks: what each checkpoint was measured by, by its step; empty where it was not.
        best: the step of the best checkpoint; None where none was measured.
        metric: what ranks the checkpoints, as `test/loss`, or else the loss of an evaluation or of
            training; None where there is no row.
        latest: the newest value of `metric`.
    """

    step: int
    ranks: Mapping[int, Rank]
    best: int | None
    metric: str | None
    latest: float | None

    @property
    def best_value(self) -> float | None:
        """The value of `metric` at the best checkpoint."""
        return None if self.best is None else float(self.ranks[self.best]["value"])

    @classmethod
    def of(cls, run: RunDir) -> Standing:
        """Of a run, which may be damaged.

        Raises:
            StorageError: a file cannot be read.
        """
        ranks = _ranks(run.checkpoints)
        best = best_step(sorted(ranks), ranks)
        ranked_by = None if best is None else str(ranks[best]["metric"])
        step, metric, latest = _newest(run, ranked_by)
        return cls(max([step, *ranks]), ranks, best, metric, latest)


def runs_below(directory: Path) -> Iterator[RunDir]:
    """The runs in a directory and below it; links are followed, and no folder is seen twice."""
    seen: set[str] = set()
    for folder, names, files in os.walk(directory, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:
            names.clear()
            continue
        seen.add(here)
        names.sort()
        if "config.json" in files and (run := RunDir(folder)).is_run:
            names[:] = [name for name in names if name not in INSIDE]
            yield run


def _newest(run: RunDir, metric: str | None) -> tuple[int, str | None, float | None]:
    """The last step that was logged, and the newest value of a metric, or else of a loss."""
    if not run.metrics_file.is_file():
        return 0, metric, None
    step, trained = 0, None
    for row in itertools.islice(rows_backwards(run.metrics_file), LOOK_BACK):
        step, source = max(step, row["step"]), row["source"]
        if metric is not None:
            name = metric.removeprefix(f"{source}/")
            if name != metric and name in row:
                return step, metric, row[name]
        elif "loss" in row and source not in OWN_SOURCES:
            return step, f"{source}/loss", row["loss"]
        elif "loss" in row and source == "train" and trained is None:
            trained = row["loss"]
    if metric is None and trained is not None:
        return step, "train/loss", trained
    return step, metric, None


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
