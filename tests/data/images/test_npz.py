import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopax.data.images.npz import read_npz

quick = settings(deadline=None, max_examples=24)
ARRAYS = {
    "x": np.arange(6, dtype=">i2").reshape(2, 3),
    "y": np.asfortranarray(np.ones((2, 3), "f4")),
    "é": np.array(["a", "bc"]),
    "none": np.zeros((0, 4), "?"),
    "scalar": np.array(b"abc"),
}
writers = st.sampled_from([np.savez, np.savez_compressed])


def npz_bytes(writer):
    buffer = io.BytesIO()
    writer(buffer, **ARRAYS)
    return buffer.getvalue()


def member(shape, descr="'<f8'", data=b""):
    """An NPY file that says what it is told to say."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zip_file(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return path


def assert_same(found):
    for name, array in found.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, writer):
    (tmp_path / "round.npz").write_bytes(npz_bytes(writer))
    found = read_npz(tmp_path / "round.npz")
    assert found.keys() == ARRAYS.keys()
    assert_same(found)


@quick
@given(writers, st.data())
def test_every_truncation_is_refused(scratch, refuses, writer, data):
    path, packed = scratch / "cut.npz", npz_bytes(writer)
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with refuses("cut.npz"):
        read_npz(path)


@settings(deadline=None, max_examples=60)
@given(writers, st.data())
def test_one_changed_byte_changes_no_array(scratch, outcome, writer, data):
    path, packed = scratch / "flip.npz", bytearray(npz_bytes(writer))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(packed)
    found = outcome(read_npz, path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert "flip.npz" in found
    else:
        # The list of members has no checksum, so one may be missing, but not another one there.
        assert_same(found)


@pytest.mark.parametrize("array", [np.array([{}, 1], object), np.array([(1, None)], "i4,O")])
def test_objects_are_not_unpickled(tmp_path, refuses, array):
    path = tmp_path / "objects.npz"
    np.savez(path, good=np.ones(3), bad=array)
    with refuses("objects.npz", "'bad.npy'", "Object arrays cannot be loaded"):
        read_npz(path)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"just text", ["magic string"]),
        (member((2,), data=bytes(15)), ["expected 16 bytes got 15"]),
        (member((2,), data=bytes(17)), ["more bytes than its header says"]),
        (member((-2, -1), data=bytes(16)), ["cannot be read"]),
        (member((2**40,), data=bytes(80)), ["cannot be read"]),
        (member((2**62, 2**62), data=bytes(80)), ["cannot be read"]),
        (member((1,) * 65, data=bytes(8)), ["cannot be read"]),
        (member((2,), "{[]: 1}", b""), ["cannot be read"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path, refuses, content, parts):
    path = zip_file(tmp_path / "wrong.npz", content)
    with refuses("wrong.npz", "member 'x.npy'", *parts):
        read_npz(path)


def test_what_is_no_npz_is_refused(tmp_path, refuses):
    with refuses("absent.npz", "No such file"):
        read_npz(tmp_path / "absent.npz")
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04 noise")
    with refuses("noise.npz", "not a zip file"):
        read_npz(tmp_path / "noise.npz")
    np.savez(tmp_path / "empty.npz")
    with refuses("empty.npz", "holds no array"):
        read_npz(tmp_path / "empty.npz")
