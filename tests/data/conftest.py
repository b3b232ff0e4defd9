import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from loopax.errors import DataError, LoopaxError

Refuses = Callable[..., AbstractContextManager[None]]


@contextmanager
def _refuses(*parts: object, error: type[LoopaxError] = DataError) -> Iterator[None]:
    with pytest.raises(LoopaxError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert len(message.splitlines()) == 1
    for part in parts:
        assert str(part) in message


@contextmanager
def _within(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """The block must raise an error of one line with all these parts in it."""
    return _refuses


def _outcome(read: Callable[[Path], object], path: Path) -> object:
    try:
        return read(path)
    except DataError as error:
        return str(error)


@pytest.fixture(scope="session")
def outcome() -> Callable[..., object]:
    """What a reader returns for a path, or what its `DataError` says."""
    return _outcome


@pytest.fixture(scope="session")
def within() -> Callable[[int], AbstractContextManager[None]]:
    """The block must not take more memory than this at any moment."""
    return _within


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the examples of one property, which overwrite each other's files."""
    return tmp_path_factory.mktemp("scratch")
