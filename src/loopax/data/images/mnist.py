"""The MNIST handwritten digits, bundled with the package."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.files import fault, reporting
from loopax.data.splits import Splits

_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist() -> Splits:
    """MNIST: 60,000 handwritten digits to train on and 10,000 to test on.

    By Yann LeCun, Corinna Cortes and Christopher J.C. Burges; the licence is commonly stated as
    CC BY-SA 3.0. The four files are theirs, verified by MD5 each time.

    Returns:
        Splits with the columns `image`, uint8 `(examples, 28, 28, 1)`, ink 255 on paper 0, and
        `label`, int32 `(examples,)`, the digit. There is no validation part; `with_validation()`
        holds one out.

    Raises:
        DataError: a bundled file is missing or not the official one.
    """
    return Splits(train=_part("train", "train"), validation=None, test=_part("t10k", "test"))


def _part(prefix: str, name: str) -> Dataset:
    # The checksum leaves nothing to doubt about what the headers say, so they are skipped.
    images = np.frombuffer(_official(f"{prefix}-images-idx3-ubyte"), "u1", offset=16)
    labels = np.frombuffer(_official(f"{prefix}-labels-idx1-ubyte"), "u1", offset=8)
    return Dataset(
        {"image": images.reshape(-1, 28, 28, 1), "label": labels.astype(np.int32)},
        name=f"MNIST {name}",
        class_names=tuple("0123456789"),
        source="bundled",
    )


def _official(name: str) -> bytearray:
    file = resources.files("loopax.data.images") / "mnist_idx" / f"{name}.gz"
    with reporting(str(file), "cannot be read, install loopax again"):
        content = gzip.decompress(file.read_bytes())
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MD5[name]:
        raise fault(
            str(file),
            f"the MD5 of its content is {found}, not the official {_MD5[name]}; "
            "install loopax again",
        )
    return bytearray(content)  # an array over it can be written to
