import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loopax.data.images.npz import read_npz

MIB = 2**20
quick = settings(deadline=None, max_examples=80)
dtypes = st.sampled_from(["?", "u1", ">i2", "<i8", "f2", ">f4", "f8", "c8", "S3", "<U2"])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
named = st.dictionaries(
    st.text("abcé_", min_size=1, max_size=4), arrays | arrays.map(np.asfortranarray), min_size=1
)
writers = st.sampled_from([np.savez, np.savez_compressed])


def npz_bytes(writer, arrays):
    buffer = io.BytesIO()
    writer(buffer, **arrays)
    return buffer.getvalue()


def member(shape, descr="'<f8'", data=b"", version=b"\x01\x00"):
    """An NPY file that says what it is told to say."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def zip_file(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].dtype.isnative
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.astype(found[name].dtype).tobytes()


@quick
@given(named, writers)
def test_what_numpy_writes_is_read(scratch, arrays, writer):
    path = scratch / "round.npz"
    path.write_bytes(npz_bytes(writer, arrays))
    assert_same(read_npz(path), arrays)


@quick
@given(named, writers, st.data())
def test_every_truncation_is_refused(scratch, refuses, arrays, writer, data):
    path, packed = scratch / "cut.npz", npz_bytes(writer, arrays)
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with refuses("cut.npz"):
        read_npz(path)


@settings(deadline=None, max_examples=200)
@given(named, writers, st.data())
def test_one_changed_byte_changes_no_array(scratch, outcome, arrays, writer, data):
    path, packed = scratch / "flip.npz", bytearray(npz_bytes(writer, arrays))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(packed)
    found = outcome(read_npz, path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert "flip.npz" in found
    else:
        # The list of members has no checksum, so one may be missing, but not another one there.
        assert_same(found, {name: arrays[name] for name in found})


@quick
@given(st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06"]), st.binary(max_size=64))
def test_any_bytes_are_refused(scratch, refuses, start, rest):
    path = scratch / "noise.npz"
    path.write_bytes(start + rest)
    with refuses("noise.npz"):
        read_npz(path)


@quick
@given(st.text(max_size=60) | st.recursive(st.just("0"), lambda s: s.map("({},)".format)))
def test_any_header_text_is_refused(scratch, refuses, shape):
    path = zip_file(scratch / "text.npz", {"x.npy": member(shape, data=b"\0")})
    with refuses("text.npz", "x.npy"):
        read_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("shape", "descr"), [((2**40,), "'<f8'"), ((2**62, 2**62), "'<u1'"), ((3,), "'<U500000000'")]
)
def test_a_promise_beyond_the_member_takes_no_memory(
    tmp_path, refuses, within, method, shape, descr
):
    path = zip_file(tmp_path / "liar.npz", {"x.npy": member(shape, descr, bytes(80))}, method)
    with within(MIB), refuses("liar.npz", "'x.npy'", shape, "it holds 80"):
        read_npz(path)


def test_a_zip_that_lies_about_sizes_takes_no_memory(tmp_path, refuses, within):
    promised = 2**31
    path = zip_file(tmp_path / "liar.npz", {"x.npy": member((promised,), "'|u1'", bytes(9))})
    packed = path.read_bytes()
    size = struct.pack("<I", len(member((promised,), "'|u1'", bytes(9))))
    lie = struct.pack("<I", promised + len(member((promised,), "'|u1'")))
    path.write_bytes(packed.replace(size, lie))
    with within(MIB), refuses("liar.npz", "'x.npy'", f"{promised:,}"[:5], "holds 9"):
        read_npz(path)


def test_members_that_share_their_bytes_are_refused(tmp_path, refuses):
    path = zip_file(tmp_path / "shared.npz", {"x.npy": np.random.default_rng(0).bytes(5000)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.append(archive.filelist[0])
        archive._didModify = True
    with refuses("shared.npz", "x.npy"):
        read_npz(path)


@pytest.mark.parametrize("array", [np.array([{}, 1], object), np.array([(1, None)], "i4,O")])
def test_objects_are_not_unpickled(tmp_path, refuses, array):
    path = tmp_path / "objects.npz"
    np.savez(path, good=np.ones(3), bad=array)
    with refuses("objects.npz", "'bad.npy'", array.dtype, "never unpickled"):
        read_npz(path)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"just text", ["magic string"]),
        (member((2,), data=bytes(15)), ["(2,) of float64", "16 bytes", "holds 15"]),
        (member((2,), data=bytes(17)), ["(2,) of float64", "16 bytes", "holds 17"]),
        (member((-2, -1), data=bytes(16)), ["negative dimensions"]),
        (member((2,), data=bytes(16), version=b"\x02\x00"), ["(2, 0)", "(1, 0)"]),
        (member((2,), "'<M8[s]'", bytes(16)), ["datetime64[s]", "numbers or text"]),
        (member((1,) * 65, data=bytes(8)), ["cannot be read"]),
        (member((2,), "[]", b""), ["x.npy"]),
        (member((2,), "{[]: 1}", b""), ["cannot be read"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path, refuses, content, parts):
    path = zip_file(tmp_path / "wrong.npz", {"x.npy": content})
    with refuses("wrong.npz", "member 'x.npy'", *parts):
        read_npz(path)


def test_what_is_in_the_zip_beside_arrays_is_refused(tmp_path, refuses):
    path = zip_file(tmp_path / "more.npz", {"notes.txt": b"hello"})
    with refuses("more.npz", "'notes.txt'", ".npy"):
        read_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path, refuses):
    path = tmp_path / "twice.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member((), data=bytes(8)))
        archive.writestr("x.npy", member((), data=bytes(8)))
    with refuses("twice.npz", "'x'", "two arrays"):
        read_npz(path)


def test_what_is_no_npz_is_refused(tmp_path, refuses):
    with refuses("absent.npz", "No such file"):
        read_npz(tmp_path / "absent.npz")
    with refuses(tmp_path.name, "is a folder"):
        read_npz(tmp_path)
    np.savez(tmp_path / "empty.npz")
    with refuses("empty.npz", "holds no array"):
        read_npz(tmp_path / "empty.npz")
