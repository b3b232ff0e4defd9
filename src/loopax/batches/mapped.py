"""Columns that lie on the disk: rows are read when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from loopax.files import write_text

BLOCK_BYTES = 2**26
"""Of what is read at once where a whole column is."""

Column = Shaped[np.ndarray, "examples ..."]


class Mapped:
    """Some rows of an array on the disk, in the order in which they count here.

    It is indexed as a NumPy array is, along its first axis, and gives NumPy arrays; `pick` chooses
    among its rows and reads none. `numpy.asarray` reads them all.

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
    ) -> None:
        self.array, self.rows = array, rows
        self._identity, self._digests, self._folder = identity, digests, folder
        self.dtype, self.ndim = array.dtype, array.ndim
        self.shape = (len(array) if rows is None else len(rows), *array.shape[1:])
        self.size = int(np.prod(self.shape))
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, chosen: Any) -> np.ndarray:
        return np.asarray(self.array[chosen if self.rows is None else self.rows[chosen]])

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in blocks(self):
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # The array on the disk may not be written to.
        return np.array(self[:], dtype)

    def pick(self, chosen: np.ndarray) -> Mapped:
        """The rows at these positions, or where a mask is true."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return Mapped(self.array, self._identity, self._digests, self._folder, rows[chosen])

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
