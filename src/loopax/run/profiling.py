"""JAX's profiler over some steps of a run: a trace that TensorBoard and Perfetto open."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from loopax.errors import ConfigError
from loopax.run.run import Run
from loopax.run.turns import Turn


class Steps(NamedTuple):
    """The updates that are profiled: those made after `first` others, up to `last` in all."""

    first: int
    last: int

    @classmethod
    def of(cls, profile: Any) -> Steps | None:
        """What `fit` was given: `"100:110"`, two numbers, or None.

        Raises:
            ConfigError: it is something else.
        """
        if profile is None:
            return None
        numbers = re.fullmatch(r"(\d+):(\d+)", profile) if isinstance(profile, str) else None
        match numbers.groups() if numbers else profile:
            case (first, last) if str(first).isdecimal() and str(last).isdecimal():
                if int(first) < int(last):
                    return cls(int(first), int(last))
        raise ConfigError(
            f"profile is {profile!r}; it must be two steps, the first below the second, such as "
            "'100:110'"
        )


class Profile:
    """Traces these steps of a run into its directory, in the folder `profile`.

    It is entered before the first step. A run that ends on the way leaves the trace up to there.
    """

    every = None
    section = "host"

    def __init__(self, run: Run, steps: Steps | None, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self.steps: tuple[int, ...] = steps or ()
        self._folder: Path | None = None
        self._is_traced = False

    def __enter__(self) -> Profile:
        self.act()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self.steps and not self._is_traced:
            self._say(f"profile: no step from {self.steps[0]:,} to {self.steps[1]:,} was made")

    def is_due(self, step: int, total: int, turn: Turn) -> bool:
        """Whether to begin or to end here."""
        del total, turn
        return step in self.steps

    def act(self) -> None:
        """Begins or ends, as the step of the run says.

        Raises:
            ConfigError: something else in the process is tracing already.
        """
        self._end()
        if not self.steps or not self.steps[0] <= self._run.step < self.steps[1]:
            return
        run = self._run.dir
        within = tempfile.mkdtemp(prefix="loopax-") if run is None else run.path
        folder = Path(within, "profile")
        try:
            jax.profiler.start_trace(folder)
        except RuntimeError as error:
            raise ConfigError(f"profile: {error}; end the other trace first") from error
        self._folder, self._is_traced = folder, True

    def _end(self) -> None:
        if self._folder is not None:
            jax.profiler.stop_trace()
            self._say(f"{self._folder}: a trace of steps up to {self._run.step:,}")
            self._folder = None
