"""Images decoded once: they lie as arrays in the user's cache, and later commands map them.

They are known by what they were decoded from (names, sizes and times of the files) and by how.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.batches.mapped import Mapped
from loopax.data.files import is_foreign, is_pattern
from loopax.data.kept import Made, Place, Stored, check_digests, in_memory, some_rows, stored
from loopax.data.shards import files_like
from loopax.errors import DataError
from loopax.terminal import Progress

FORMAT = 2
SMALLEST_BYTES = 2**22
"""Of encoded images that are worth keeping; fewer are decoded in a second or two."""
DEPTH = 3
"""How many folders deep images may lie."""

Parts = Mapping[str, Dataset]


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
    if sum(status.st_size for _, status in files) < SMALLEST_BYTES:
        return read(in_memory)

    def make(place: Place) -> Made:
        return _as_arrays(read(place))

    key = _key(path, options, files)
    return _as_parts(stored("images", key, str(path.resolve()), make, _check))


def _files(path: Path, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """The files that may be read, by name, with their sizes and times."""
    if not path.is_dir():
        with suppress(OSError, DataError):  # What reads it says what is wrong.
            for file in files_like(str(path)) if is_pattern(path) else [path]:
                yield file.name, file.stat()
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


def _as_arrays(parts: Parts) -> Made:
    """The columns of all parts, with a digest of each image, and what else is to know of them."""
    arrays, facts = {}, {}
    for name, part in parts.items():
        column = part.columns["image"]
        pixels = column.array if isinstance(column, Mapped) else column
        each = {"image": pixels, "label": part.columns["label"], "digest": _digests(pixels)}
        arrays.update({f"{name or 'whole'}-{column}": array for column, array in each.items()})
        facts[name] = {
            "name": part.name,
            "class_names": part.class_names,
            "source": part.source,
            "notes": part.notes,
        }
    return arrays, facts


def _as_parts(found: Stored) -> Parts:
    return {name: _part(found, name, about) for name, about in found.facts.items()}


def _part(found: Stored, name: str, about: Mapping[str, Any]) -> Dataset:
    pixels, label, digests = (
        found.arrays[f"{name or 'whole'}-{column}"] for column in ("image", "label", "digest")
    )
    image: Any = pixels
    if found.folder is not None:
        identity = f"{found.folder.name}/{name}"
        image = Mapped(pixels, identity, digests, found.folder / "fingerprints")
    return Dataset(
        {"image": image, "label": np.array(label)},
        name=about["name"],
        class_names=tuple(about["class_names"]),
        source=about["source"],
        notes=tuple(about["notes"]),
    )


def _check(found: Stored) -> None:
    """Raises a ValueError where some images are not as they were kept."""
    for name in found.facts:
        pixels, digests = (
            found.arrays[f"{name or 'whole'}-{each}"] for each in ("image", "digest")
        )
        rows = some_rows(len(pixels))
        check_digests([_digest(pixels[row]) for row in rows], digests[rows])


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
