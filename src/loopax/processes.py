"""Several processes of one run: which of them this is, and how all come to one answer.

JAX runs the same program in each (`jax.distributed.initialize`); whatever follows from a clock, a
signal or a disk is decided by process 0 and told to the others. That goes through the key-value
store of JAX's coordination service and not through the devices, where it would wait behind the
chunk that is running. Every process must ask the same questions in the same order. In a program of
one process all of this returns at once.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from loopax import errors
from loopax.errors import ConfigError, LoopaxError, ProcessError

T = TypeVar("T")

SLICE_SECONDS = 1
"""How long one look for an answer waits; between two of them Python may handle a signal."""
TOLD_SECONDS, PATIENCE_SECONDS = 60, 3600
"""After how long it is said whom one waits for, and after how long one waits no more."""
ROUND = 64
"""Answers after which all processes meet, so that the old ones can be deleted."""
FAILED = "loopax/failed/"

_numbers: Counter[str] = Counter()
_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)


def index() -> int:
    """Which process this is, from 0."""
    return _state().process_id


def count() -> int:
    """How many processes train together; 1 in what process 0 does by itself."""
    # The number of `jax.process_count`, which would open the devices.
    return 1 if "jax" not in sys.modules or _is_alone.get() else _state().num_processes


def is_alone() -> bool:
    """Whether this is one of several, and does something by itself (`by_one`)."""
    return _is_alone.get()


def is_writer() -> bool:
    """Whether this process writes the files of a run."""
    return count() == 1 or index() == 0


def are_connected() -> bool:
    """Whether `jax.distributed.initialize` was called, be it for one process."""
    return "jax" in sys.modules and client() is not None


def devices() -> list[Any]:
    """Those of all processes that train together."""
    import jax

    return jax.local_devices() if _is_alone.get() else jax.devices()


def agree(name: str, value: T, patience: float = PATIENCE_SECONDS) -> T:
    """The answer of process 0, as JSON carries it: whole numbers, floats, texts, lists.

    Args:
        name: what is asked.
        value: what this process would answer.
        patience: seconds to wait for it.

    Raises:
        ProcessError: process 0 failed, or does not answer.
    """
    if count() == 1:
        return value
    number = _next(name)
    rounds, place = divmod(number, ROUND)
    if rounds and not place:
        everyone(f"{name} so far", rounds)
        if is_writer():
            client().key_value_delete(f"loopax/{name}/{rounds - 1}/")
    key = f"loopax/{name}/{rounds}/{place}"
    if is_writer():
        client().key_value_set(key, json.dumps(value))
        return value
    answer: T = json.loads(_answer(key, name, 0, patience))
    return answer


def everyone(name: str, value: T) -> list[T]:
    """What each process answers, in their order; all must be there for it.

    Raises:
        ProcessError: one failed, or does not answer.
    """
    if count() == 1:
        return [value]
    number = _next(name)
    key = f"loopax/{name}/{number}/"
    client().key_value_set(f"{key}{index()}", json.dumps(value))
    if is_writer():
        answers = [_answer(f"{key}{process}", name, process) for process in range(count())]
        # Who has answered this time has read what was answered the time before.
        if number:
            client().key_value_delete(f"loopax/{name}/{number - 1}/")
        client().key_value_set(f"{key}all", f"[{','.join(answers)}]")
    found: list[T] = json.loads(_answer(f"{key}all", name, 0))
    return found


def same(values: Mapping[str, Any]) -> None:
    """Makes sure that all processes have the same.

    Raises:
        ConfigError: one has something else than process 0.
    """
    if count() == 1:
        return
    first, *others = everyone("same", dict(_flat(values)))
    for process, other in enumerate(others, 1):
        for name in {**first, **other}:
            one, two = first.get(name, "absent"), other.get(name, "absent")
            if one != two:
                raise ConfigError(
                    f"{name} is {one} in process 0 and {two} in process {process}; start all "
                    "processes with the same program, arguments and versions"
                )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Each value as a text, by a name like `config: seed`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}", str(value)


def by_one(name: str, action: Callable[[], T], patience: float = PATIENCE_SECONDS) -> T:
    """Process 0 does it by itself; what it gives or raises is what all processes get.

    The others wait, so that it asks nothing of them, and trains on its own devices if it does.

    Args:
        name: what is done.
        action: does it.
        patience: seconds that the others wait.

    Raises:
        ProcessError: process 0 raised what is no error of loopax.
    """
    if count() == 1:
        return action()
    result, failure = None, None
    if is_writer():
        before = _is_alone.set(True)
        try:
            result = action()
        except Exception as error:
            failure = error
        finally:
            _is_alone.reset(before)
    answer, told = agree(name, (result, None if failure is None else _told(failure)), patience)
    if failure is not None:
        raise failure
    if told is not None:
        raise _retold(told)
    # None only where there was a failure, which was raised.
    return answer  # type: ignore[return-value]


def by_all(name: str, action: Callable[[], Any]) -> None:
    """Each process does it, and waits for the others; what one of them raises, all raise.

    Raises:
        ProcessError: another process raised what is no error of loopax.
    """
    failure = None
    try:
        action()
    except Exception as error:
        if count() == 1:
            raise
        failure = error
    told = everyone(name, None if failure is None else _told(failure))
    if failure is not None:
        raise failure
    for process, other in enumerate(told):
        if other is not None:
            raise _retold(other, f"process {process}: ")


class Wish:
    """A whole number that any process may ask of all of them; process 0 comes to see it."""

    def __init__(self, name: str) -> None:
        self._key = f"loopax/{name}/{_next(name)}/" if count() > 1 else ""
        self._made = 0

    def make(self, value: int) -> None:
        """Asks for it, unless this process has done so already."""
        if self._key and not self._made:
            self._made = value
            client().key_value_set(f"{self._key}{index()}", str(value))

    @property
    def value(self) -> int:
        """What a process has asked for, or 0."""
        asked = client().key_value_dir_get(self._key) if self._key else ()
        return next((int(value) for _, value in asked), 0)


def begin() -> None:
    """A run begins, and what ended the one before counts no more."""
    if count() > 1:
        client().key_value_delete(f"{FAILED}{index()}")


def failed(error: BaseException) -> None:
    """Tells the others that this process ends, and why."""
    if count() > 1:
        said = (str(error).splitlines() or [""])[0]
        line = said if isinstance(error, LoopaxError) else f"{type(error).__name__}: {said}"
        client().key_value_set(f"{FAILED}{index()}", line, allow_overwrite=True)


def _answer(key: str, name: str, process: int, patience: float = PATIENCE_SECONDS) -> str:
    """Waits for what a process sets, and says so where that takes long."""
    import jax

    for second in itertools.count(0, SLICE_SECONDS):
        if second >= patience:
            break
        try:
            found: str = client().blocking_key_value_get(key, 1000 * SLICE_SECONDS)
            return found
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise ProcessError(f"process {process} is lost ({name}): {error}") from error
        _check_others()
        if second and second % TOLD_SECONDS == 0:
            waited = f"process {index()} has waited {second} s for process {process} ({name})"
            print(f"loopax: {waited}", file=sys.stderr)
    raise ProcessError(f"process {process} has not answered for {patience:g} s ({name})")


def _check_others() -> None:
    for key, line in client().key_value_dir_get(FAILED):
        process = int(key.rpartition("/")[2])
        if process != index():
            # What another one has heard of a third names that.
            is_told = line.startswith("process ")
            raise ProcessError(line if is_told else f"process {process} ended: {line}")


def _told(error: Exception) -> tuple[str, Sequence[Any], dict[str, Any]]:
    """An error of loopax as JSON carries it; of any other one its name and message."""
    if isinstance(error, LoopaxError):
        kind, (_, arguments, fields) = type(error).__name__, error.__reduce__()[1]
        return kind, [str(each) for each in arguments], _plain(fields)
    return ProcessError.__name__, [f"{type(error).__name__}: {error}"], {}


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if isinstance(value, int | str)}


def _retold(told: Sequence[Any], prefix: str = "process 0: ") -> Exception:
    kind, arguments, fields = told
    said = f"{prefix}{' '.join(arguments)}"
    error: Exception = errors.made_again(getattr(errors, kind, ProcessError), (said,), fields)
    return error


def _next(name: str) -> int:
    """How many times `name` was asked before; the same in all processes."""
    _numbers[name] += 1
    return _numbers[name] - 1


def client() -> Any:
    """JAX's way to its coordination service; None where there is none, or none any more."""
    return _state().client


def coordinator() -> str:
    """The host and port of process 0."""
    return str(_state().coordinator_address)


def failures() -> list[tuple[str, str]]:
    """Which processes have told that a run ended in them, and why."""
    return list(client().key_value_dir_get(FAILED))


def _state() -> Any:
    # JAX has no public way to its coordination service; Orbax takes this one too:
    # https://github.com/google/orbax/blob/main/checkpoint/orbax/checkpoint/_src/multihost/multihost.py
    from jax._src.distributed import global_state

    return global_state
