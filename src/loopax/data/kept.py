"""Images decoded once: they lie as arrays in the user's cache, and later commands map them.

An entry is a folder of `.npy` files beside `facts.json`, made whole by a rename. It is known by
what it was decoded from (names, sizes and times of the files) and by how. NumPy's own format is
mapped as it is; those of Arrow and ArrayRecord would have to be copied to give an array.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from loopax.batches.dataset import Dataset
from loopax.batches.mapped import Mapped
from loopax.caches import cache_folder
from loopax.data.files import is_foreign, reporting
from loopax.data.words import shown
from loopax.errors import ConfigError
from loopax.files import PARTIAL, remove, sync, sync_tree
from loopax.terminal import Progress, to_stderr

FORMAT = 1
LIMIT = "LOOPAX_DATA_CACHE_GIB"
"""Of the environment: how large the cache of decoded data may become; 0 keeps nothing."""
LIMIT_GIB = 100.0
SMALLEST_BYTES = 2**22
"""Of encoded images that are worth keeping; fewer are decoded in a second or two."""
SPARE_BYTES = 2**30
"""Of the disk, that are left to others."""
CHECKED = 100
"""Images of a part that are compared with their digests when it is opened."""
FACTS, DEPTH = "facts.json", 3
"""What an entry says of itself; how many folders deep images may lie."""

Place = Callable[[tuple[int, ...]], np.ndarray]
Parts = Mapping[str, Dataset]


class Entry(NamedTuple):
    """What is kept of one source: where, of what, how large, and when it was last used."""

    folder: Path
    source: str
    nbytes: int
    used: float


def kept(path: Path, options: Mapping[str, Any], read: Callable[[Place], Parts]) -> Parts:
    """The parts that `read` gives of the files at `path`: decoded now, or mapped from the cache.

    Args:
        path: a file or a folder.
        options: how it is decoded.
        read: decodes; it is given a function that makes the arrays, uint8, to decode into.

    Raises:
        DataError: the files cannot be read.
        ConfigError: `LOOPAX_DATA_CACHE_GIB` is no number.
    """
    files = [*_files(path, DEPTH)]
    is_small = sum(status.st_size for _, status in files) < SMALLEST_BYTES
    if is_small or not limit_bytes() or (cache := cache_folder("images")) is None:
        return read(_in_memory)
    folder = cache / _key(path, options, files)
    if (found := _opened(folder)) is not None:
        return found
    with _alone(folder, path):
        return _opened(folder) or _made(folder, path, read)


def entries() -> list[Entry]:
    """What is kept, the one that was used longest ago first."""
    cache = cache_folder("images")
    found = []
    for facts in [] if cache is None else cache.glob(f"*/{FACTS}"):
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


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


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


def _files(path: Path, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """The files that may be read, by name, with their sizes and times."""
    if not path.is_dir():
        with suppress(OSError):  # What reads it says what is wrong.
            yield path.name, path.stat()
        return
    with suppress(OSError), os.scandir(path) as listed:
        for entry in sorted(listed, key=lambda entry: entry.name):
            if is_foreign(entry.name):
                continue
            if not entry.is_dir():
                with suppress(OSError):
                    yield entry.name, entry.stat()
            elif depth:
                for name, status in _files(Path(entry.path), depth - 1):
                    yield f"{entry.name}/{name}", status


def _key(path: Path, options: Mapping[str, Any], files: list[tuple[str, os.stat_result]]) -> str:
    """Tells what is decoded, and how, from anything else.

    The kernel sets the time of a file's last change (`st_ctime_ns`), whoever wrote to it.
    """
    try:
        decoder = version("pillow")
    except PackageNotFoundError:
        decoder = ""
    digest = hashlib.sha256(repr((FORMAT, decoder, str(path.resolve()), options)).encode())
    for name, status in files:
        times = status.st_mtime_ns, status.st_ctime_ns
        digest.update(repr((name, status.st_size, *times)).encode())
    return digest.hexdigest()[:32]


@contextmanager
def _alone(folder: Path, path: Path) -> Iterator[None]:
    """Waits for another program that decodes the same."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        to_stderr(f"{shown(path)}: waiting for the program that decodes it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(folder: Path, path: Path, read: Callable[[Place], Parts]) -> Parts:
    """Decodes what is not kept yet, and keeps it if there is room."""
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    remove(partial)
    has_room = True

    def place(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal has_room
        has_room = has_room and _make_room(partial, int(np.prod(shape)))
        if not has_room:
            to_stderr(
                f"{shown(path)}: its decoded images ({np.prod(shape) / 2**30:.1f} GiB) do not fit "
                f"into {folder.parent}, so nothing is kept; {LIMIT} says how much may be, and "
                "LOOPAX_CACHE names another folder"
            )
            return _in_memory(shape)
        return _mapped_file(partial, shape)

    try:
        partial.mkdir()
        parts = read(place)
        size = sum(part.nbytes for part in parts.values())
        if not has_room or (not any(partial.iterdir()) and not _make_room(partial, size)):
            return parts
        with reporting(path, f"its decoded images cannot be kept in {folder.parent}"):
            _write(partial, folder.name, path, parts)
            partial.rename(folder)
            sync(folder.parent)
        del parts
        return _opened(folder) or read(_in_memory)
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


def _mapped_file(partial: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new array on the disk, whose room is taken: a full disk would kill who writes to it."""
    file = partial / f"{len([*partial.iterdir()])}.npy"
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, array.offset + array.nbytes)
    return array


def _write(partial: Path, key: str, path: Path, parts: Parts) -> None:
    """Writes all parts and what is to know of them; arrays that lie there already are renamed."""
    facts: dict[str, Any] = {"source": str(path.resolve()), "parts": {}}
    for name, part in parts.items():
        label, image = f"{name or 'whole'}-label.npy", f"{name or 'whole'}-image.npy"
        pixels = part.columns["image"]
        mapped = pixels.array if isinstance(pixels, Mapped) else pixels
        np.save(partial / label, part.columns["label"])
        if isinstance(mapped, np.memmap) and mapped.filename is not None:
            mapped.flush()
            Path(mapped.filename).rename(partial / image)
        else:
            np.save(partial / image, mapped)
        np.save(partial / f"{name or 'whole'}-digest.npy", _digests(mapped))
        facts["parts"][name] = {
            "name": part.name,
            "class_names": part.class_names,
            "source": part.source,
            "notes": part.notes,
            "shape": pixels.shape,
        }
    for left in partial.glob("[0-9]*.npy"):
        left.unlink()  # Such as grey images, of which later ones have colour.
    (partial / FACTS).write_text(json.dumps(facts))
    sync_tree(partial)


def _digests(images: np.ndarray) -> np.ndarray:
    """16 bytes of each image, `(images, 16)` uint8; they release Python's lock."""

    def digests(first: int) -> bytes:
        return b"".join(_digest(image) for image in images[first : first + 1000])

    starts = range(0, len(images), 1000)
    with ThreadPoolExecutor() as pool, Progress("comparing images", len(images)) as progress:
        found = bytearray()
        for first, part in zip(starts, pool.map(digests, starts), strict=True):
            found += part
            progress.at(first)
    return np.frombuffer(found, np.uint8).reshape(-1, 16)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _opened(folder: Path) -> Parts | None:
    """What is kept there; None where nothing is, or what is there is damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        parts = {name: _part(folder, name, about) for name, about in facts["parts"].items()}
        os.utime(folder / FACTS)
        return parts
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        to_stderr(f"{folder}: is damaged, and is made anew")
        remove(folder)
        return None


def _part(folder: Path, name: str, about: Mapping[str, Any]) -> Dataset:
    at = folder / (name or "whole")
    array = np.load(f"{at}-image.npy", mmap_mode="r", allow_pickle=False)
    digests = np.load(f"{at}-digest.npy", mmap_mode="r", allow_pickle=False)
    label = np.load(f"{at}-label.npy", allow_pickle=False)
    if [*array.shape] != about["shape"] or digests.shape != (len(array), 16):
        raise ValueError(f"{at}: is of another shape")
    for row in np.linspace(0, len(array) - 1, CHECKED).astype(int):
        if _digest(array[row]) != digests[row].tobytes():
            raise ValueError(f"{at}: image {row} is not as it was kept")
    image = Mapped(array, f"{folder.name}/{name}", digests, folder / "fingerprints")
    return Dataset(
        {"image": image, "label": label},
        name=about["name"],
        class_names=tuple(about["class_names"]),
        source=about["source"],
        notes=tuple(about["notes"]),
    )
