"""NPZ, NumPy's archive of named arrays: read without pickle and without trusting a header."""

from __future__ import annotations

import math
import os
import zipfile

import numpy as np

from loopax.data.files import (
    MAX_EXPANSION,
    blaming,
    fault,
    open_file,
    read_up_to,
    shown,
    size_of,
)

_KINDS = "biufcSU"  # numbers and text of fixed length: bytes that need no interpretation
_EXPANSION = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_EXPANSION}


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every array in an `.npz` file by name, in native byte order.

    Nothing is unpickled. The headers are not trusted: memory is taken only for bytes that are
    there, and checksums are verified.

    Raises:
        DataError: the file is missing, is not a zip or is damaged; or a member is not an array of
            numbers or text, or is not as large as its header says.
    """
    arrays: dict[str, np.ndarray] = {}
    with (
        open_file(path) as file,
        blaming(path, "is not a readable .npz file"),
        zipfile.ZipFile(file) as archive,
    ):
        members = archive.infolist()
        if sum(member.compress_size for member in members) > size_of(file):
            raise fault(path, "its members are together larger than the file; it is damaged")
        if not members:
            raise fault(path, "holds no array")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise fault(path, f"holds two arrays named {name!r}; names must differ")
            where = f"{shown(path)}: member {member.filename!r}"
            with blaming(where, "cannot be read"):
                arrays[name] = _read_member(archive, member, where)
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    _require_plausible(member, where)
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        # Later versions exist for structured arrays, and their headers may be 4 GiB long.
        if version != (1, 0):
            raise fault(where, f"is in NPY format {version}; it must be (1, 0)")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in _KINDS:
            raise fault(
                where, f"holds {dtype}, which is never unpickled; it must be numbers or text"
            )
        if min(shape, default=0) < 0:
            raise fault(where, f"its header says the shape is {shape}; no size may be negative")
        promised = math.prod(shape) * dtype.itemsize
        held = member.file_size - stream.tell()
        if promised == held:
            data = read_up_to(stream, promised)
            held = len(data)
    if promised != held:
        raise fault(
            where, f"its header says {shape} of {dtype}, {promised:,} bytes, but it holds {held:,}"
        )
    array: np.ndarray = np.ndarray(shape, dtype, data, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _require_plausible(member: zipfile.ZipInfo, where: str) -> None:
    if not member.filename.endswith(".npy"):
        raise fault(where, "is not an array; an .npz file holds only .npy members")
    if member.compress_type not in _EXPANSION:
        raise fault(
            where, f"is compressed by method {member.compress_type}; NumPy writes only 0 and 8"
        )
    ceiling = member.compress_size * _EXPANSION[member.compress_type]
    if member.file_size > ceiling:
        raise fault(where, f"says it holds {member.file_size:,} bytes, but at most {ceiling:,} fit")
