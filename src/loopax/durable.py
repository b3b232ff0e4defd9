"""Files that are there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopax.errors import StorageError

PARTIAL = ".partial-"
"""How the name of an unfinished file begins; its end, and so its type, is that of the file."""


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
