"""Columns that lie on the disk: rows are read when they are asked for."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from loopax.errors import DataError
from loopax.files import write_text

BLOCK_BYTES = 2**26
"""Of what is read at once where a whole column is."""

Column = Shaped[np.ndarray, "examples ..."]


class Mapped:
    """Some rows of an array on the disk, in the order in which they count here.

    It is indexed as a NumPy array is, along its first axis, and gives NumPy arrays; `pick` chooses
    among its rows and reads none. `numpy.asarray` reads them all.

    Raises:
        DataError: rows are asked for of a file that has become shorter.

    Args:
        array: what is mapped, `[examples, ...]`.
        identity: tells it from all others.
        digests: 16 bytes of each row of `array`, alike for equal rows only.
        folder: where what was computed of it is kept.
        rows: which rows, None for all.
    """

    def __init__(
        self,
        array: Column,
        identity: str = "",
        digests: UInt8[np.ndarray, "examples 16"] | None = None,
        folder: Path | None = None,
        rows: Int[np.ndarray, " rows"] | None = None,
        file: _File | None = None,
    ) -> None:
        self.array, self.rows = array, rows
        self._file = file or _File.of(array)
        self._identity, self._digests, self._folder = identity, digests, folder
        self.dtype, self.ndim = array.dtype, array.ndim
        self.shape = (len(array) if rows is None else len(rows), *array.shape[1:])
        self.size = int(np.prod(self.shape))
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, chosen: Any) -> np.ndarray:
        rows = chosen if self.rows is None else self.rows[chosen]
        found = None if self._file is None else self._file.read(rows)
        return np.asarray(self.array[rows]) if found is None else found

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in blocks(self):
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # The array on the disk may not be written to.
        return np.array(self[:], dtype)

    def pick(self, chosen: np.ndarray) -> Mapped:
        """The rows at these positions, or where a mask is true."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        about = self._identity, self._digests, self._folder
        return Mapped(self.array, *about, rows[chosen], self._file)

    @property
    def identity(self) -> str:
        """Tells these rows from any others."""
        rows = b"" if self.rows is None else np.ascontiguousarray(self.rows, "<i8").tobytes()
        return hashlib.sha256(self._identity.encode() + rows).hexdigest()

    @property
    def digests(self) -> Shaped[np.ndarray, " rows"] | None:
        """16 bytes of each row, alike for equal rows only; None where they are not kept."""
        if self._digests is None:
            return None
        found = np.asarray(self._digests if self.rows is None else self._digests[self.rows])
        return np.ascontiguousarray(found).view("S16")[:, 0]

    def remembered(self, name: str, compute: Callable[[], str]) -> str:
        """What was computed of these rows before under this name; else it is, and kept."""
        if self._folder is None:
            return compute()
        file = self._folder / name
        try:
            return file.read_text()
        except OSError:
            found = compute()
        try:
            self._folder.mkdir(exist_ok=True)
            write_text(file, found)
        except OSError:
            pass  # It is a convenience.
        return found


class _File:
    """The file that an array is mapped from, to read single rows of.

    A row that is read through the map maps 64 KiB around it, which then count as memory in use, and
    what lies cold on the disk is read with 128 KiB around it: four times the work of the processor
    with images of 12 KiB.
    """

    def __init__(self, array: Any) -> None:
        self._array, self._size = array, array[:1].nbytes
        self._descriptor = os.open(array.filename, os.O_RDONLY)

    @classmethod
    def of(cls, array: Any) -> _File | None:
        """None of what is mapped as a part, or to be written to, or whose file is gone."""
        is_whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
        if not (is_whole and array.mode == "r" and array.flags.c_contiguous and array.size):
            return None
        try:
            return cls(array)
        except OSError:
            return None

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __reduce__(self) -> Any:
        return type(None), ()  # In another process the number would be that of another file.

    def read(self, rows: Any) -> np.ndarray | None:
        """The rows of these numbers; None where they are said in another way."""
        array, rows = self._array, np.asarray(rows) if np.isscalar(rows) else rows
        is_plain = isinstance(rows, np.ndarray) and rows.dtype.kind in "iu" and rows.size
        if not is_plain or rows.min() < 0 or rows.max() >= len(array):
            return None
        found = np.empty((*rows.shape, *array.shape[1:]), array.dtype)
        content, size = found.reshape(-1).view(np.uint8).data, self._size
        for place, row in enumerate(rows.ravel().tolist()):
            part = content[place * size : (place + 1) * size]
            if os.preadv(self._descriptor, [part], array.offset + row * size) != size:
                raise DataError(f"{array.filename}: has become shorter; row {row:,} is missing")
        return found


def picked(column: Any, chosen: np.ndarray) -> Any:
    """The rows of a column at these positions, or where a mask is true; what is mapped stays so."""
    return column.pick(chosen) if isinstance(column, Mapped) else column[chosen]


def blocks(column: Any) -> Iterator[np.ndarray]:
    """A whole column, in order, as much at a time as fits into memory."""
    size = max(1, BLOCK_BYTES * len(column) // max(1, column.nbytes))
    for first in range(0, len(column), size):
        yield np.ascontiguousarray(column[first : first + size])


def fingerprint_of(columns: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of columns."""
    mapped = [each for each in columns.values() if isinstance(each, Mapped)]
    if not mapped:
        return _digest(columns)
    short = hashlib.sha256()
    for key, column in sorted(columns.items()):
        content = column.identity.encode() if isinstance(column, Mapped) else column.tobytes()
        short.update(f"{key}:{column.dtype.str}:{column.shape};".encode() + content)
    return mapped[0].remembered(short.hexdigest(), lambda: _digest(columns))


def _digest(columns: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, column in sorted(columns.items()):
        digest.update(f"{key}:{column.dtype.str}:{column.shape};".encode())
        for block in blocks(column):
            digest.update(block.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
