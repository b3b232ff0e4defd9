import gzip
import hashlib
import importlib
import shutil
from importlib import resources

import numpy as np
import pytest

from loopax.data.images.layouts import load
from loopax.data.images.mnist import mnist

# By name: the package may have the function where the module was.
module = importlib.import_module("loopax.data.images.mnist")


@pytest.fixture(scope="module")
def splits():
    return mnist()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the bundled files that `mnist` reads instead."""
    bundled = resources.files("loopax.data.images") / "mnist_idx"
    with resources.as_file(bundled) as folder:
        shutil.copytree(folder, tmp_path / "mnist_idx")
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
    return tmp_path / "mnist_idx"


def test_all_digits_are_there(splits):
    for part, name, count in [(splits.train, "train", 60_000), (splits.test, "test", 10_000)]:
        image, label = part.columns["image"], part.columns["label"]
        assert part.name == f"MNIST {name}"
        assert part.class_names == tuple("0123456789")
        assert (image.shape, image.dtype) == ((count, 28, 28, 1), np.uint8)
        assert (label.shape, label.dtype) == ((count,), np.int32)
        assert image.flags.writeable
    assert splits.train.columns["label"][:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert splits.test.columns["label"][:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert np.bincount(splits.train.columns["label"]).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert splits.train.columns["image"].mean() == pytest.approx(0.1306604762 * 255)


def test_the_headers_that_were_skipped_say_the_same(splits):
    with resources.as_file(resources.files("loopax.data.images") / "mnist_idx") as folder:
        read = load(folder)
    assert splits.parts.keys() == read.parts.keys() == {"train", "test"}
    for ours, theirs in zip(splits.parts.values(), read.parts.values(), strict=True):
        assert ours.fingerprint == theirs.fingerprint
        assert ours.class_names == theirs.class_names


def test_files_that_are_not_the_official_ones_are_refused(copied, refuses):
    path = copied / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(content))
    found, right = hashlib.md5(content).hexdigest(), "a25bea736e30d166cdddb491f175f624"
    with refuses(path.name, found, right, "install loopax again"):
        mnist()


def test_a_damaged_or_missing_file_is_refused(copied, refuses):
    path = copied / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with refuses(path.name, "install loopax again"):
        mnist()
    path.unlink()
    with refuses(path.name, "No such file", "install loopax again"):
        mnist()
