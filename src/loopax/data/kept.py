"""What took long to make of files: it lies as arrays in the user's cache, and is mapped later.

An entry is a folder of `.npy` files beside `facts.json`, made whole by a rename. It is known by a
key of what it was made from, and how. NumPy's own format is mapped as it is; those of Arrow and
ArrayRecord would have to be copied to give an array.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int, UInt8

from loopax.caches import cache_dir, cache_folder
from loopax.data.files import reporting
from loopax.data.words import shown
from loopax.errors import ConfigError
from loopax.files import PARTIAL, remove, sync, sync_tree
from loopax.terminal import to_stderr

ROOMS = ("images", "tokens")
"""The folders of the cache that are limited together."""
LIMIT = "LOOPAX_DATA_CACHE_GIB"
"""Of the environment: how large the cache of decoded data may become; 0 keeps nothing."""
LIMIT_GIB = 100.0
SPARE_BYTES = 2**30
"""Of the disk, that are left to others."""
CHECKED = 100
"""Rows of an array that `some_rows` gives at most."""
FACTS = "facts.json"
"""What an entry says of itself."""

Place = Callable[..., np.ndarray]
"""Makes an array of a shape, uint8 or of the type given second, to write into."""
Made = tuple[Mapping[str, np.ndarray], Any]
"""Arrays by name, and what else is to know, in values that JSON can hold."""


class Entry(NamedTuple):
    """What is kept of one source: where, of what, how large, and when it was last used."""

    folder: Path
    source: str
    nbytes: int
    used: float


class Stored(NamedTuple):
    """What was made: mapped from the files of a folder, or in memory where there is none."""

    arrays: Mapping[str, np.ndarray]
    facts: Any
    folder: Path | None = None


def stored(
    room: str,
    key: str,
    source: str,
    make: Callable[[Place], Made],
    check: Callable[[Stored], None],
) -> Stored:
    """What `make` makes: now, or mapped from the cache.

    Args:
        room: one of `ROOMS`.
        key: tells it from all else in that room.
        source: what it is made of, for people.
        make: is given a function that makes the arrays to write into.
        check: raises a ValueError or a KeyError where what was kept is damaged.

    Raises:
        ConfigError: `LOOPAX_DATA_CACHE_GIB` is no number.
    """
    if not limit_bytes() or (cache := cache_folder(room)) is None:
        return Stored(*make(in_memory))
    folder = cache / key
    if (found := _opened(folder, check)) is not None:
        return found
    with _alone(folder, source):
        return _opened(folder, check) or _made(folder, source, make, check)


def entries() -> list[Entry]:
    """What is kept, the one that was used longest ago first."""
    found = []
    for facts in (each for room in ROOMS for each in (cache_dir() / room).glob(f"*/{FACTS}")):
        with suppress(OSError, ValueError, KeyError):
            files = [each.stat() for each in facts.parent.rglob("*") if each.is_file()]
            source, used = json.loads(facts.read_text())["source"], facts.stat().st_mtime
            found.append(Entry(facts.parent, source, sum(each.st_size for each in files), used))
    return sorted(found, key=lambda entry: entry.used)


def clear() -> int:
    """Removes all that is kept; returns how many bytes that were."""
    found = entries()
    for entry in found:
        remove(entry.folder)
    return sum(entry.nbytes for entry in found)


def in_memory(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """A `Place` that keeps nothing."""
    return np.empty(shape, dtype)


def limit_bytes() -> int:
    """How large all of it may become.

    Raises:
        ConfigError: `LOOPAX_DATA_CACHE_GIB` is no number.
    """
    given = os.environ.get(LIMIT, "")
    try:
        return int(float(given or LIMIT_GIB) * 2**30)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{LIMIT} is {given!r}; it must be a number of GiB, 0 to keep nothing"
        ) from error


def some_rows(count: int) -> Int[np.ndarray, " some"]:
    """The rows of an array that are compared with their digests when it is opened."""
    return np.linspace(0, count - 1, min(CHECKED, count)).astype(int)


def check_digests(found: Sequence[bytes], digests: UInt8[np.ndarray, "some 16"]) -> None:
    """Raises a ValueError where one of the digests is not as it was kept."""
    if b"".join(found) != digests.tobytes():
        raise ValueError("it is not as it was kept")


@contextmanager
def _alone(folder: Path, source: str) -> Iterator[None]:
    """Waits for another program that makes the same."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        to_stderr(f"{shown(source)}: waiting for the program that reads it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(
    folder: Path, source: str, make: Callable[[Place], Made], check: Callable[[Stored], None]
) -> Stored:
    """Makes what is not kept yet, and keeps it if there is room."""
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    remove(partial)
    has_room = True

    def place(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
        nonlocal has_room
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        has_room = has_room and _make_room(partial, nbytes)
        if not has_room:
            to_stderr(
                f"{shown(source)}: what was made of it ({nbytes / 2**30:.1f} GiB) does not fit "
                f"into {folder.parent}, so nothing is kept; {LIMIT} says how much may be, and "
                "LOOPAX_CACHE names another folder"
            )
            return in_memory(shape, dtype)
        return _mapped_file(partial, shape, dtype)

    try:
        partial.mkdir()
        arrays, facts = make(place)
        size = sum(each.nbytes for each in arrays.values())
        if not has_room or (not any(partial.iterdir()) and not _make_room(partial, size)):
            return Stored(arrays, facts)
        with reporting(source, f"what was made of it cannot be kept in {folder.parent}"):
            _write(partial, source, arrays, facts)
            partial.rename(folder)
            sync(folder.parent)
        del arrays
        return _opened(folder, check) or Stored(*make(in_memory))
    finally:
        remove(partial)


def _make_room(partial: Path, nbytes: int) -> bool:
    """Whether so much can be written, after what was used longest ago has been removed."""
    there = entries()
    held = sum(entry.nbytes for entry in there)
    while True:
        is_free = shutil.disk_usage(partial.parent).free > nbytes + SPARE_BYTES
        if held + nbytes <= limit_bytes() and is_free:
            return True
        if not there or nbytes > limit_bytes():
            return False
        oldest = there.pop(0)
        remove(oldest.folder)
        held -= oldest.nbytes


def _mapped_file(partial: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A new array on the disk, whose room is taken: a full disk would kill who writes to it."""
    file = partial / f"{len([*partial.iterdir()])}.npy"
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, array.offset + array.nbytes)
    return array


def _write(partial: Path, source: str, arrays: Mapping[str, np.ndarray], facts: Any) -> None:
    """Writes all arrays and what is to know of them; those that lie there already are renamed."""
    for name, array in arrays.items():
        if isinstance(array, np.memmap) and array.filename is not None:
            array.flush()
            Path(array.filename).rename(partial / f"{name}.npy")
        else:
            np.save(partial / f"{name}.npy", array)
    for left in partial.glob("[0-9]*.npy"):
        left.unlink()  # Such as grey images, of which later ones have colour.
    shapes = {name: array.shape for name, array in arrays.items()}
    written = {"source": source, "shapes": shapes, "facts": facts}
    (partial / FACTS).write_text(json.dumps(written))
    sync_tree(partial)


def _opened(folder: Path, check: Callable[[Stored], None]) -> Stored | None:
    """What is kept there; None where nothing is, or what is there is damaged."""
    try:
        written = json.loads((folder / FACTS).read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in written["shapes"]
        }
        if any([*arrays[name].shape] != shape for name, shape in written["shapes"].items()):
            raise ValueError("an array is of another shape")
        found = Stored(arrays, written["facts"], folder)
        check(found)
        os.utime(folder / FACTS)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        to_stderr(f"{folder}: is damaged, and is made anew")
        remove(folder)
        return None
