"""Paths and files of the user: how they are found and opened, and errors that name them."""

from __future__ import annotations

import glob
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from loopax.data.words import shown
from loopax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from _typeshed import SupportsRead

VALIDATION_NAMES = ("val", "valid", "validation")
"""What the part to choose by may be called."""
PART_NAMES = ("train", "test", *VALIDATION_NAMES)
"""What a part may be called, in names of folders, files and arrays."""

_FOREIGN = (
    *("__macosx", "icon\r"),  # macOS, in zip files and folders
    *("desktop.ini", "thumbs.db", "$recycle.bin", "system volume information"),  # Windows
    *("@eadir", "lost+found", "__pycache__"),  # Synology, Linux, Python
)


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path as people type it, with `~` for the home folder, or as a URL that begins `file://`.

    What exists as it is written is meant.

    Raises:
        ConfigError: it is empty, which would be the folder one happens to be in, or no path.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"the path is {path!r}; it must be that of a file or a folder")
    found = Path(path)
    if os.path.lexists(found):
        return found
    text = str(path)
    return Path(os.path.expanduser(unquote(text[7:]) if text.startswith("file://") else text))


def absolute(name: str) -> str:
    """What exists, or a pattern, as a path that holds from any folder; any other name as it is.

    Raises:
        ConfigError: it is empty.
    """
    path = as_path(name)
    return os.path.abspath(path) if os.path.lexists(path) or is_pattern(name) else name


def is_pattern(name: str | os.PathLike[str]) -> bool:
    """Whether it stands for several files, with `*`, `?` or `[...]`, and is no file itself."""
    return not os.path.lexists(as_path(name)) and glob.has_magic(os.fspath(name))


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by another program."""
    return name.startswith(".") or name.lower() in _FOREIGN


def fault(where: str | os.PathLike[str], what: str) -> DataError:
    """An error that says what is wrong with the file, or the part of a file, at `where`."""
    return DataError(f"{shown(where)}: {what}")


@contextmanager
def reporting(where: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turns any exception of a parser into a one-line `DataError` about `where`.

    What parsers of zip, NPY and images raise on damaged bytes is open-ended: besides `OSError`
    and `ValueError` also `SyntaxError`, `struct.error`, `RecursionError`, `MemoryError`, ...
    """
    try:
        yield
    except (DataError, ConfigError):
        raise
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = textwrap.shorten(reason, 200) or type(error).__name__
        raise fault(where, f"{what}: {reason}") from error


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file at `path`, which `as_path` finds, open for reading.

    Raises:
        DataError: it does not exist, is a folder, or may not be read; or the body raises anything
            else.
    """
    with reporting(path, "cannot be read"), as_path(path).open("rb") as file:
        yield file


def read_up_to(stream: SupportsRead[bytes], count: int) -> bytearray:
    """The next `count` bytes, fewer at the end; memory grows with what is there, not `count`."""
    data = bytearray()
    while block := stream.read(min(2**18, count - len(data))):
        data += block
    return data
