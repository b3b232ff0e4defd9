"""NPZ, NumPy's archive of named arrays: read without pickle and without trusting a header."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO

import numpy as np

from loopax.data.files import fault, open_file, read_up_to, reporting
from loopax.data.words import shown

_KINDS = "biufcSU"  # numbers and text of fixed length: bytes that need no interpretation


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every array in an `.npz` file by name, in native byte order.

    Nothing is unpickled, memory is taken only for bytes that are there, and checksums are verified.

    Raises:
        DataError: the file is missing, is not a zip or is damaged; or a member is not an array of
            numbers or text, or is not as large as its header says.
    """
    arrays: dict[str, np.ndarray] = {}
    with (
        open_file(path) as file,
        reporting(path, "is not a readable .npz file"),
        zipfile.ZipFile(file) as archive,
    ):
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise fault(path, f"holds two arrays named {name!r}; names must differ")
            where = f"{shown(path)}: member {member.filename!r}"
            with (
                reporting(where, "cannot be read as an .npy array"),
                archive.open(member) as stream,
            ):
                arrays[name] = _read_array(stream, member.file_size, where)
    if not arrays:
        raise fault(path, "holds no array")
    return arrays


def _read_array(stream: IO[bytes], size: int, where: str) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    # Later versions exist for structured arrays, and their headers may be 4 GiB long.
    if version != (1, 0):
        raise fault(where, f"is in NPY format {version}; it must be (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in _KINDS:
        raise fault(where, f"holds {dtype}, which is never unpickled; it must be numbers or text")
    promised, held = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if promised == held:
        data = read_up_to(stream, promised)
        held = len(data)
    if promised != held:
        raise fault(
            where, f"its header says {shape} of {dtype}, {promised:,} bytes, but it holds {held:,}"
        )
    array: np.ndarray = np.ndarray(shape, dtype, data, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
