"""IDX, the format of MNIST: a header of type and shape, then big-endian values; often gzipped."""

from __future__ import annotations

import gzip
import math
import os
import struct
from typing import TYPE_CHECKING

import numpy as np

from loopax.data.files import fault, open_file, read_up_to, reporting

if TYPE_CHECKING:
    from _typeshed import SupportsRead

_GZIP_MAGIC = b"\x1f\x8b"
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_RANK = 64  # NumPy's own limit


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, in native byte order; gzip is recognised by its first bytes.

    The header is not trusted: memory is taken only for bytes that are there.

    Raises:
        DataError: the file is missing, is not IDX, is damaged, or holds fewer or more bytes than
            its header says.
    """
    with open_file(path) as file:
        gzipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not gzipped:
            return _read(path, file)
        with reporting(path, "the gzip stream is damaged"), gzip.GzipFile(fileobj=file) as stream:
            return _read(path, stream)


def _read(path: str | os.PathLike[str], stream: SupportsRead[bytes]) -> np.ndarray:
    dtype, shape = _read_header(path, stream)
    promised = math.prod(shape) * dtype.itemsize
    claim = f"its header says {shape} of {dtype.name}, {promised:,} bytes"
    data = read_up_to(stream, promised)
    if len(data) < promised:
        raise fault(path, f"{claim}, but only {len(data):,} follow; the file is truncated")
    if stream.read(1):
        raise fault(path, f"{claim}, but more bytes follow; the file must end there")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_header(
    path: str | os.PathLike[str], stream: SupportsRead[bytes]
) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        found = f"begins with the bytes {magic.hex(' ')}" if magic else "is empty"
        raise fault(path, f"{found}; an IDX file begins with 00 00, a type code and a rank")
    code, rank = magic[2:]
    if code not in _DTYPES:
        known = ", ".join(f"0x{each:02x}" for each in _DTYPES)
        raise fault(path, f"the IDX type code is 0x{code:02x}; it must be one of {known}")
    if not 1 <= rank <= _MAX_RANK:
        raise fault(path, f"the IDX header says {rank} dimensions; it must be 1 to {_MAX_RANK}")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise fault(path, f"ends inside its header, which lists the sizes of {rank} dimensions")
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise fault(path, f"the IDX header says the shape is {shape}; no dimension may be 0")
    return np.dtype(_DTYPES[code]), shape
