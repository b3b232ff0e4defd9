"""How each kind of source is read: epoch after epoch, from any step, and where it then stands.

The kind is told by what a source can do, so that no library is imported that nobody uses: what can
be indexed is entered at any step; what has a state is put back into it; all else is read again.
"""

from __future__ import annotations

import inspect
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from loopax.batches.arrays import as_arrays, owned
from loopax.batches.positions import packed, unpacked
from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree

ENDLESS = 2**53
"""A length from which on it says that there is no end, as Grain has it for what is repeated."""
READ_AHEAD = 32
"""Batches that Grain's threads read ahead; its own 500 are meant for single examples."""
PATIENCE_SECONDS = 5.0
"""After which a source that is read again from its beginning says how long that takes."""
STATES = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
"""How sources call it: Grain, and then `datasets` and torchdata."""


class Place(NamedTuple):
    """Where a source with a state stands: in which epoch, and in which state, as JSON."""

    epoch: int
    state: Any


StateMethods = tuple[Callable[[], Any], Callable[[Any], Any]]
"""What gives a state, and what sets it."""
Batch = tuple[PyTree, Place | None]
"""A batch, and where the source stands after it; None where the step says that."""


class Reader(Protocol):
    """What `IterableBatches` reads from.

    Attributes:
        length: batches in an epoch; None where the source does not tell, or has no end.
        is_read_once: whether it cannot be begun again.
    """

    length: int | None
    is_read_once: bool

    def head(self, count: int) -> list[PyTree]:
        """The first batches, as arrays."""

    def read(self, start: int, place: Place | None = None) -> Iterator[Batch]:
        """Epoch after epoch from the batch of step `start`, before which it stood at `place`."""

    def once(self) -> Iterator[Batch]:
        """One epoch."""


def reader_of(source: Any, workers: int = 0) -> Reader:
    """The reader for this kind of source; `workers` processes read for it, where that is asked.

    Raises:
        ConfigError: `workers` are asked for a source that Grain cannot give them.
    """
    if _is_of("grain", "MapDataset", source):
        return GrainReader(source, workers)
    if _is_of("grain", "IterDataset", source) or _is_of("grain", "DataLoader", source):
        _mark_flags_as_parsed()
    length, source = _length(source), _giving_arrays(source)
    if length is None or not hasattr(source, "__getitem__"):
        if workers:
            raise ConfigError(
                f"workers is {workers}, and {type(source).__name__} cannot be indexed; give a "
                "sequence or a grain.MapDataset, or let the source start its own processes"
            )
        return StreamReader(source, length)
    if workers:
        import grain

        return GrainReader(grain.MapDataset.source(source), workers)
    return IndexReader(source, length)


def _is_of(module: str, name: str, source: Any) -> bool:
    """Whether it is of a class of a library; one that nobody has imported is not imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


def _mark_flags_as_parsed() -> None:
    """So that Grain can start processes in a program that has no flags of absl.

    https://github.com/google/grain/issues/1355
    """
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class IndexReader:
    """A sequence: batch `i` of each epoch is `source[i]`."""

    is_read_once = False

    def __init__(self, source: Any, length: int) -> None:
        self._source, self._count = source, length
        self.length = _finite(length)

    def head(self, count: int) -> list[PyTree]:
        return [as_arrays(batch) for batch, _ in itertools.islice(self.once(), count)]

    def read(self, start: int, place: Place | None = None) -> Iterator[Batch]:
        del place
        _check_some(self._count, self._source)
        return ((self._source[step % self._count], None) for step in itertools.count(start))

    def once(self) -> Iterator[Batch]:
        return ((self._source[index], None) for index in range(self._count))


class GrainReader:
    """A `grain.MapDataset`, which Grain reads with threads, or with processes.

    Epoch after epoch is what `repeat()` gives: shuffled anew in each where Grain shuffles.
    """

    is_read_once = False

    def __init__(self, source: Any, workers: int) -> None:
        self._source, self._workers = source, workers
        self.length = _finite(len(source))

    def head(self, count: int) -> list[PyTree]:
        return [as_arrays(self._source[index]) for index in range(min(count, len(self._source)))]

    def read(self, start: int, place: Place | None = None) -> Iterator[Batch]:
        del place
        _check_some(len(self._source), self._source)
        endless = self._source if self.length is None else self._source.repeat()
        return ((batch, None) for batch in self._iterator(endless[start:]))

    def once(self) -> Iterator[Batch]:
        return ((batch, None) for batch in self._iterator(self._source))

    def _iterator(self, source: Any) -> Any:
        import grain

        options = grain.ReadOptions(prefetch_buffer_size=READ_AHEAD)
        # What a filter has left out would shift all that follows.
        stream = source.to_iter_dataset(options, allow_nones=True)
        if self._workers:
            _mark_flags_as_parsed()
            processes = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers)
            stream = stream.mp_prefetch(processes, worker_init_fn=_begin_worker)
        return iter(stream)


def _begin_worker(worker: int, count: int) -> None:
    """Lets a process that reads use no accelerator, and end when the process that started it does.

    When it uses JAX it else takes memory of the accelerator
    (https://github.com/google/grain/issues/1199), and it waits for ever when its parent was killed.
    A signal to all of them, as Ctrl-C is, would end it before the run has saved.
    """
    import jax

    del worker, count
    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class StreamReader:
    """Whatever can be iterated; where it has a state, it is put back into that."""

    def __init__(self, source: Any, length: int | None) -> None:
        self._source, self._kind = source, type(source).__name__
        self.length = _finite(length)
        self.is_read_once = isinstance(source, Iterator)
        self._was_begun = (
            inspect.isgenerator(source) and inspect.getgeneratorstate(source) != "GEN_CREATED"
        )
        self._is_used = False
        self._has_exact_state = not _loses_a_buffer(source)
        self._begun: tuple[list[Batch], Iterator[PyTree]] | None = None

    def head(self, count: int) -> list[PyTree]:
        """The first batches, as arrays.

        They are kept for the first epoch: begun twice, a loader would start its workers twice, and
        an iterator would have lost them.
        """
        if self._begun is None:
            iterator = self._begin(0, None)
            read = (
                (owned(as_arrays(batch)), self._place(0, iterator))
                for batch in itertools.islice(iterator, count)
            )
            self._begun = list(read), iterator
        return [batch for batch, _ in self._begun[0]]

    def read(self, start: int, place: Place | None = None) -> Iterator[Batch]:
        if start and place is None and self._was_begun:
            raise DataError(
                f"data is a {self._kind} from which something was read already, so that the batch "
                f"of step {start:,} cannot be found; pass one that has not begun"
            )
        epoch, state, step = (0, None, 0) if place is None else (*place, start)
        again = _ReadAgain(self._kind, start)
        while True:
            first = step
            for batch, stands in self._epoch(epoch, state):
                step += 1
                if step > start:
                    yield batch, stands
                else:
                    again.passed(step)
            if step == first and state is None:
                raise DataError(self._ended(step))
            epoch, state = epoch + 1, None

    def once(self) -> Iterator[Batch]:
        return self._epoch(0, None)

    def _epoch(self, epoch: int, state: Any) -> Iterator[Batch]:
        """The batches of one epoch, from a state in it or from its beginning."""
        if self.is_read_once and epoch:
            return
        begun, self._begun = self._begun, None
        if begun is not None and not epoch and state is None:
            head, iterator = begun
            yield from head
        else:
            iterator = self._begin(epoch, state)
        for batch in iterator:
            yield batch, self._place(epoch, iterator)

    def _begin(self, epoch: int, state: Any) -> Iterator[PyTree]:
        """An iterator over an epoch.

        Raises:
            DataError: the source can be read only once and was, or it does not take the state.
        """
        if self.is_read_once and self._is_used and state is None:
            raise DataError(
                f"{self._kind} can be read only once, and cannot be begun again; pass something "
                "that can be iterated more than once"
            )
        self._is_used = True
        if hasattr(self._source, "set_epoch"):
            self._source.set_epoch(epoch)
        methods = state_methods(self._source)
        if state is not None and methods is not None:
            self._put(methods, state)
        iterator = iter(self._source)
        if state is not None and methods is None:
            self._put(state_methods(iterator), state)
        return iterator

    def _put(self, methods: StateMethods | None, state: Any) -> None:
        if methods is None:
            raise DataError(f"the checkpoint has the state of a source, and {self._kind} has none")
        try:
            methods[1](unpacked(state))
        except Exception as error:
            raise DataError(
                f"{self._kind} does not take the state that the checkpoint has of it: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _place(self, epoch: int, iterator: Iterator[PyTree]) -> Place | None:
        """Where the source stands; None where it cannot be put there again exactly."""
        methods = state_methods(self._source) or state_methods(iterator)
        if methods is None or not self._has_exact_state:
            return None
        try:
            return Place(epoch, packed(methods[0]()))
        except (DataError, NotImplementedError):
            self._has_exact_state = False
            return None

    def _ended(self, step: int) -> str:
        if not step:
            return f"there is no batch to train on; {self._kind} is empty or used up"
        return (
            f"the data ended after {step} batches, and {self._kind} cannot be begun again; train "
            "for fewer steps, or pass something that can be iterated more than once"
        )


class _ReadAgain:
    """Says, once, how long it takes to read a source again up to where a run goes on."""

    def __init__(self, kind: str, start: int) -> None:
        self._kind, self._start, self._since, self._is_told = kind, start, time.monotonic(), False

    def passed(self, step: int) -> None:
        spent = time.monotonic() - self._since
        if not self._is_told and spent > PATIENCE_SECONDS:
            self._is_told = True
            left = spent / step * (self._start - step)
            warnings.warn(
                f"{self._kind} is read again from its beginning up to step {self._start:,}: "
                f"{step:,} batches in {spent:.0f} s, and about {left:.0f} s to go",
                stacklevel=2,
            )


def state_methods(thing: Any) -> StateMethods | None:
    """How the state of a source or an iterator is read and set; None where it has none."""
    for get, put in STATES:
        if hasattr(thing, get) and hasattr(thing, put):
            return getattr(thing, get), getattr(thing, put)
    return None


def _loses_a_buffer(source: Any) -> bool:
    """Whether it is a stream of `datasets` that shuffles, whose state leaves the buffer out.

    https://huggingface.co/docs/datasets/stream#save-a-dataset-checkpoint-and-resume-iteration
    """
    waiting: list[Any] = [getattr(getattr(source, "dataset", source), "_ex_iterable", None)]
    while waiting:
        part: Any = waiting.pop()
        if type(part).__name__.startswith("BufferShuffled"):
            return True
        if hasattr(part, "ex_iterable"):
            waiting.append(part.ex_iterable)
        waiting += getattr(part, "ex_iterables", ())
    return False


def _giving_arrays(source: Any) -> Any:
    """What it was, but of `datasets`, which gives lists as long as no format is said.

    Raises:
        ConfigError: its rows are examples.
    """
    if not type(source).__module__.startswith("datasets."):
        return source
    is_stream = not hasattr(source, "format")
    if (source._formatting if is_stream else source.format["type"]) is None:
        source = source.with_format("numpy")
    if not is_stream and len(source):
        scalars = [name for name, value in source[0].items() if not np.ndim(value)]
        if scalars:
            raise ConfigError(
                f"data is a {type(source).__name__} whose rows are examples ({scalars[0]!r} is one "
                "value a row); give data.batch(16), or grain.MapDataset.source(data).batch(16)"
            )
    return source


def _check_some(count: int, source: Any) -> None:
    if not count:
        raise DataError(
            f"there is no batch to train on; {type(source).__name__} is empty or used up"
        )


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _finite(length: int | None) -> int | None:
    return None if length is None or length >= ENDLESS else length
