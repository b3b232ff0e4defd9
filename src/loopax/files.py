"""Files that are there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopax.errors import StorageError

PARTIAL = ".partial-"
"""How the name of an unfinished file begins; its end, and so its type, is that of the file."""

_removed: deque[int] = deque()
"""Descriptors of folders that were removed while others may still write there."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tells a user in one line what could not be written.

    Raises:
        StorageError: the body raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); make room or name another run directory"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file then takes the place of `path` in one instant.

    When the body raises, the unfinished file is removed and `path` is as it was.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    # What lies there could be a link that leads elsewhere; it is removed, never written through.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # which a failing write does not know
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a whole small file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def free_name(path: Path) -> Path:
    """`path`, or with the first number from 2 behind it that nothing is called yet."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


def sync(path: Path) -> None:
    """Returns when a file's content, or a directory's list of names, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """`sync` for everything below `directory` and for itself."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


class OpenFolder:
    """A new folder in which others write, and which nobody can bring back once it was removed.

    TensorStore may still write to a save after it has told that it failed, and makes the folders
    that it misses anew. So it is given the folder's open descriptor instead of its name: inside of
    a folder that was removed, the kernel lets nobody make anything. Where descriptors have no path
    (not on Linux) it is given the name, and what comes late is removed by the next run.

    Attributes:
        path: where it lies.
        inside: the path by which to write there.
    """

    def __init__(self, path: Path) -> None:
        remove(path)
        path.mkdir()
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        inside = Path(f"/proc/self/fd/{self._descriptor}")
        self.inside = inside if inside.is_dir() else path

    def remove(self, *, failed: bool) -> None:
        """Removes it with all that is in it, for good; `failed`: others may still write there."""
        remove(self.path)
        if not failed:
            os.close(self._descriptor)
            return
        # They go by the descriptor's number, which another file must not get while they do.
        _removed.append(self._descriptor)
        if len(_removed) > 16:
            os.close(_removed.popleft())


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, though others still write there; or a file or link.

    What cannot be removed stays.
    """
    for _ in range(100):
        if path.is_symlink() or path.is_file():
            with suppress(OSError):
                path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.01)
