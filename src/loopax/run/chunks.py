"""A chunk of steps, as whoever owns the loop is given it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Num

from loopax.run.run import Run


@dataclass(frozen=True)
class Chunk:
    """The steps from `start` up to `stop`, just dispatched; `run.state` comes after.

    Attributes:
        run: the run as far as it has come.
        start, stop: the steps of this chunk.
        read: gives `metrics`.
    """

    run: Run = field(repr=False)
    start: int
    stop: int
    read: Callable[[], dict[str, Num[np.ndarray, " steps"]]] = field(repr=False)

    @functools.cached_property
    def metrics(self) -> dict[str, Num[np.ndarray, " steps"]]:
        """Every metric of each of these steps. Reading them waits for the device."""
        return self.read()

    def to_json(self) -> dict[str, Any]:
        """The chunk without its run, for the checkpoint at which the caller has left the loop."""
        metrics = {name: [str(v.dtype), v.tolist()] for name, v in self.metrics.items()}
        return {"start": self.start, "stop": self.stop, "metrics": metrics}

    @classmethod
    def from_json(cls, run: Run, stored: Mapping[str, Any]) -> Chunk:
        """The chunk that `to_json` gave."""
        metrics = {name: np.asarray(v, dtype) for name, (dtype, v) in stored["metrics"].items()}
        return cls(run, stored["start"], stored["stop"], lambda: metrics)
