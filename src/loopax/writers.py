"""Where logged rows go: JSON lines that are equal for equal runs, and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
"""`{"step": 100, "source": "train", "loss": 49.4, ...}`."""


class Writer(Protocol):
    """Anything that rows can be given to."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line; `kept` is what stays of a file that is continued."""

    def __init__(self, path: Path, kept: Iterable[Row] = ()) -> None:
        text = "".join(map(_line, kept))
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, row: Row) -> None:
        self._file.write(_line(row))

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[Row]:
    """The rows of a JSON lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoard:
    """Event files for TensorBoard; each metric is drawn as `<source>/<name>`."""

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        # Purging hides what a run that was cut short had logged beyond where it continues.
        self._writer = SummaryWriter(str(directory), purge_step=step, flush_secs=10)

    def write(self, row: Row) -> None:
        for name, value in values_of(row).items():
            self._writer.add_scalar(f"{row['source']}/{name}", value, row["step"])

    def close(self) -> None:
        self._writer.close()


def values_of(row: Row) -> Mapping[str, float]:
    """The measured values of a row, without what places it."""
    return {k: v for k, v in row.items() if k not in ("step", "epoch", "source", "steps")}


def _line(row: Row) -> str:
    # NaN and Infinity are not JSON; a reader of another language would refuse the whole file.
    safe = {k: repr(v) if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}
    return json.dumps(safe) + "\n"
