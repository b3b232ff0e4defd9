"""Where the wall time of a run went: the loop accounts for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECTIONS = ("setup", "compute", "compile", "data", "evaluation", "checkpoint", "hooks", "host")

SHARED = ", shared with an earlier run"
WORTH_TELLING_SHARE = 0.05
WORTH_TELLING_SECONDS = 1.0


class Account:
    """Wall seconds by section, each moment counted once, and how often the host looked.

    Sections nest; time spent in an inner one is not counted in the outer. Host work and waiting
    for data that happen while the device is still busy cost nothing and count as compute; what is
    left under `host` and `data` is time in which the device stood still. Until the loop begins,
    time is `setup`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.reads = 0
        self.compilations: dict[str, list[str]] = {}
        self.device_is_busy: Callable[[], bool] = lambda: False
        self._section = "setup"
        self._since = time.perf_counter()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Counts the time inside as `name`."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def compiled(self, program: str, reason: str, seconds: float, *, shared: bool = False) -> None:
        """Notes a compilation that just took `seconds` of the running section.

        A `shared` one was only traced: the process had compiled the same program before.
        """
        reason += SHARED if shared else ""
        self.compilations.setdefault(program, []).append(reason)
        self._enter(self._section)
        self.seconds[self._section] -= seconds
        self.seconds["compile"] += seconds

    def training_seconds(self) -> float:
        """Seconds of the loop proper so far: without setup, compilation, and what comes between."""
        self._enter(self._section)
        return sum(self.seconds[name] for name in ("compute", "data", "host"))

    def report(self) -> dict[str, Any]:
        """Seconds by section, shares of the whole, compilations with their reasons, host reads."""
        self._enter(self._section)
        wall = sum(self.seconds.values())
        return {
            "wall_s": round(wall, 3),
            **{f"{name}_s": round(spent, 3) for name, spent in self.seconds.items()},
            "shares": {
                name: round(spent / wall, 4) if wall else 0.0
                for name, spent in self.seconds.items()
            },
            "compilations": self.compilations,
            "host_reads": self.reads,
        }

    def _enter(self, name: str) -> str:
        now = time.perf_counter()
        left, self._section = self._section, name
        idle = left in ("host", "data") and not self.device_is_busy()
        charged = left if idle or left not in ("host", "data") else "compute"
        self.seconds[charged] += now - self._since
        self._since = now
        return left


def waiting(report: dict[str, Any]) -> str:
    """One line where the device stood still for want of data; empty where it seldom did."""
    trained = sum(report[f"{name}_s"] for name in ("compute", "data", "host"))
    waited = report["data_s"]
    if waited < WORTH_TELLING_SECONDS or waited <= WORTH_TELLING_SHARE * trained:
        return ""
    return (
        f"the device waited for data {waited / trained:.0%} of the time; let several processes "
        "read (loopax.data.IterableBatches(source, workers=4)), or prepare the data beforehand"
    )


def summary(report: dict[str, Any]) -> str:
    """The account in one line, for people."""
    shares = ", ".join(
        f"{name} {share:.1%}" for name, share in report["shares"].items() if share >= 0.0005
    )
    counts = {
        name: sum(not reason.endswith(SHARED) for reason in reasons)
        for name, reasons in report["compilations"].items()
    }
    compiled = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return (
        f"{report['wall_s']:.1f} s: {shares}; compiled {compiled or 'nothing'}; "
        f"{report['host_reads']} host reads"
    )
