"""The errors a user can cause, each one line: what was wrong, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class LoopaxError(Exception):
    """Base of every error that loopax raises on purpose; the command line prints it as one line.

    `exit_code` is the status the command line ends with. One that comes out of a training carries
    it as `run`, with what was trained.
    """

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made again from `args` alone, which do not hold the fields of every class.
        return made_again, (type(self), self.args, self.__dict__)


class ConfigError(LoopaxError, ValueError):
    """A setting or an argument has a value that cannot work."""


class DataError(LoopaxError, ValueError):
    """A data file or a batch is not what it should be."""

    exit_code = 3


class RunDirError(LoopaxError):
    """A run directory cannot be written, or holds another run."""


class CheckpointError(LoopaxError):
    """A checkpoint is missing, damaged, or of another model or optimiser."""

    exit_code = 4


class RunInUseError(LoopaxError):
    """Another process is training in the run directory."""

    exit_code = 5


class StorageError(LoopaxError):
    """Something could not be written: the disk is full, read-only, or gone."""

    exit_code = 6


class NonFiniteError(LoopaxError, ArithmeticError):
    """The loss became NaN or infinite; `step` is the exact step, `metric` the first bad value."""

    exit_code = 7

    def __init__(self, message: str, *, step: int, metric: str) -> None:
        super().__init__(message)
        self.step = step
        self.metric = metric


class DeviceMemoryError(LoopaxError, MemoryError):
    """The device has too little memory for the step."""

    exit_code = 8


class ProcessError(LoopaxError):
    """Another process of the run failed, or was lost; the last checkpoint is intact."""

    exit_code = 9


class Stopped(SystemExit):
    """A signal ended the run politely, with everything saved; `step` is where it stands.

    As a `SystemExit` it ends a program with the status that shells expect, 128 plus the signal's
    number, and without a traceback. `run` is what was trained.
    """

    def __init__(self, signal_number: int, step: int, run: Any = None) -> None:
        super().__init__(128 + signal_number)
        self.step = step
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self.args[0]) - 128, self.step, self.run)


class ProgramError(LoopaxError):
    """A program that was run for a user failed; `exit_code` is its own."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def made_again(kind: type[LoopaxError], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    """An error of loopax from what it is made of."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """A line about a word that is not one of those known."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"there is no {kind} {word!r}; {hint}"
