"""`loopax doctor`: whether a run would go well on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from loopax.cli.parsing import parse


@dataclass(frozen=True)
class Doctor:
    """Say whether a run would go well here: versions, devices, cache, disk, and its speed.

    A small network is trained for a few seconds; nothing is left. Ends with status 1 when
    something would stop a run.
    """

    directory: Positional[Path] = Path("runs")
    """Where runs go."""
    seconds: float = 5.0
    """How long to measure the speed."""


def doctor(words: list[str]) -> int:
    """`loopax doctor`."""
    command = parse(Doctor, words, "loopax doctor")
    from loopax.doctor import findings

    stops = False
    for finding in findings(command.directory, command.seconds):
        print("\n".join(finding.lines()), flush=True)
        stops |= finding.stops
    print("a run would fail here" if stops else "a run would go well here")
    return int(stops)
