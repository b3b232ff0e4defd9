"""NPZ, NumPy's archive of named arrays."""

from __future__ import annotations

import os
import zipfile

import numpy as np

from loopax.data.files import fault, open_file, reporting
from loopax.data.words import shown


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every array in an `.npz` file, by name. Nothing is unpickled, and checksums are verified.

    Raises:
        DataError: the file is missing, is not a zip or is damaged; or a member is no array, or one
            of objects.
    """
    arrays: dict[str, np.ndarray] = {}
    with (
        open_file(path) as file,
        reporting(path, "is not a readable .npz file"),
        zipfile.ZipFile(file) as archive,
    ):
        for member in archive.namelist():
            where = f"{shown(path)}: member {member!r}"
            with reporting(where, "cannot be read as an .npy array"), archive.open(member) as data:
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(
                    data, allow_pickle=False
                )
                if data.read(1):  # which also compares the checksum
                    raise fault(where, "holds more bytes than its header says")
    if not arrays:
        raise fault(path, "holds no array")
    return arrays
