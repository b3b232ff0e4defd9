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

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, in native byte order; gzip is recognised by its first bytes.

    The header is not trusted: memory is taken only for bytes that are there.

    Raises:
        DataError: the file is missing, is not IDX, is damaged, or holds fewer or more bytes than
            its header says.
    """
    with open_file(path) as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not gzipped:
            return _read(path, file)
        with reporting(path, "the gzip stream is damaged"), gzip.GzipFile(fileobj=file) as stream:
            return _read(path, stream)


def _read(path: str | os.PathLike[str], stream: SupportsRead[bytes]) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        codes = ", ".join(f"{code:02x}" for code in _DTYPES)
        found = f"begins with the bytes {magic.hex(' ')}" if magic else "is empty"
        raise fault(path, f"{found}; an IDX file begins with 00 00, a type of {codes}, and a rank")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise fault(path, f"ends inside its header, which lists the sizes of {magic[3]} dimensions")
    dtype, shape = np.dtype(_DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)
    promised = math.prod(shape) * dtype.itemsize
    data = read_up_to(stream, promised)
    if len(data) < promised or stream.read(1):
        follow = f"only {len(data):,}" if len(data) < promised else "more bytes"
        raise fault(
            path,
            f"its header says {shape} of {dtype.name}, {promised:,} bytes, but {follow} follow",
        )
    with reporting(path, f"its header says {shape}, which is no array"):
        array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
