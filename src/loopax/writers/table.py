"""Rows as a table that spreadsheets open."""

from __future__ import annotations

import csv
import os

from loopax.jsonlines import Row, values_of
from loopax.run.logs import directory_of
from loopax.run.run import Run


class CSV:
    """`metrics.csv` in the run directory: a line for each number, so that any metric has a place.

    It holds what `metrics.jsonl` holds but for arrays, under `step,epoch,source,metric,value`.
    """

    def open(self, run: Run, step: int) -> None:
        self._file = (directory_of(run, self).path / "metrics.csv").open("w", newline="")
        self._lines = csv.writer(self._file)
        self._lines.writerow(("step", "epoch", "source", "metric", "value"))
        for row in run.history:  # which ends with the step that the run goes on from
            self.write(row)

    def write(self, row: Row) -> None:
        if row["source"] != "time":
            place = (row["step"], row.get("epoch", ""), row["source"])
            self._lines.writerows((*place, *item) for item in values_of(row).items())

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
