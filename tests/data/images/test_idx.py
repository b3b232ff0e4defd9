import gzip
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loopax.data.images.idx import read_idx
from loopax.errors import DataError

MIB = 2**20
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
quick = settings(deadline=None, max_examples=20)
arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(max_dims=5, max_side=4))
)
packings = st.sampled_from([bytes, gzip.compress])


def header(code, *shape):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)


def packed(content):
    """The same bytes at any time: they are in the names of tests, which two processes compare."""
    return gzip.compress(content, mtime=0)


def idx_bytes(array):
    code = CODES[array.dtype.newbyteorder("=").str[1:]]
    return header(code, *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def contents(packed):
    return gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed


def assert_refused_or_exact(outcome, path, packed):
    """What is accepted must say all that is in the file, and nothing else."""
    path.write_bytes(packed)
    found = outcome(read_idx, path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert path.name in found
    else:
        assert idx_bytes(found) == contents(packed)


@quick
@given(arrays, packings)
def test_what_is_written_is_read(scratch, array, pack):
    path = scratch / "round.idx"
    path.write_bytes(pack(idx_bytes(array)))
    found = read_idx(path)
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert found.flags.writeable
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@quick
@given(arrays, packings, st.data())
def test_every_truncation_is_refused(scratch, refuses, array, pack, data):
    path, packed = scratch / "cut.idx", pack(idx_bytes(array))
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with refuses("cut.idx"):
        read_idx(path)


@quick
@given(arrays, packings, st.data())
def test_one_changed_byte_is_refused_or_read_as_it_is(scratch, outcome, array, pack, data):
    packed = bytearray(pack(idx_bytes(array)))
    # Mostly the header, which is where a byte decides about memory.
    position = data.draw(st.integers(0, 23) | st.integers(0, len(packed) - 1))
    packed[position % len(packed)] ^= data.draw(st.integers(1, 255))
    assert_refused_or_exact(outcome, scratch / "flip.idx", bytes(packed))


@quick
@given(
    st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\x1f\x8b", b"\x1f\x8b\x08\0"]),
    st.binary(max_size=64),
    packings,
)
def test_any_bytes_are_refused_or_read_as_they_are(scratch, outcome, start, rest, pack):
    assert_refused_or_exact(outcome, scratch / "noise.idx", pack(start + rest))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("shape", [(2**31,), (2**20, 2**20), (2**32 - 1,) * 8, (60_000, 28, 28)])
def test_a_promise_beyond_the_file_takes_no_memory(tmp_path, refuses, within, pack, shape):
    path = tmp_path / "liar.idx"
    path.write_bytes(pack(header(0x0E, *shape) + bytes(100)))
    with within(MIB), refuses("liar.idx", shape, "float64", "only 100"):
        read_idx(path)


def test_a_gzip_bomb_is_read_no_further_than_promised(tmp_path, refuses, within):
    path = tmp_path / "bomb.gz"
    bomb = zlib.compressobj(9, wbits=31)
    blocks = [bomb.compress(header(0x08, 10)), *(bomb.compress(bytes(MIB)) for _ in range(64))]
    path.write_bytes(b"".join(blocks) + bomb.flush())
    with within(2 * MIB), refuses("bomb.gz", "(10,) of uint8", "more bytes follow"):
        read_idx(path)


def test_memory_grows_with_what_is_there(tmp_path, refuses, within):
    path = tmp_path / "half.gz"
    # 300 KB of noise could expand to the 100 MB that are promised, but do not.
    noise = np.random.default_rng(0).bytes(300_000)
    path.write_bytes(gzip.compress(header(0x08, 100_000_000) + noise))
    with within(4 * MIB), refuses("half.gz", "100,000,000", "300,000"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["is empty", "00 00"]),
        (b"\0\0", ["00 00;"]),
        (b"\x89PNG\r\n", ["89 50 4e 47", "00 00"]),
        (header(0x0A, 3) + bytes(3), ["00 00 0a 01", "08, 09, 0b, 0c, 0d, 0e"]),
        (header(0x08, *[1] * 65) + bytes(1), ["(1, 1, ", "no array"]),
        (header(0x08, 5, 2)[:-1], ["ends inside its header", "2 dimensions"]),
        (header(0x0C, 5) + bytes(21), ["(5,) of int32", "20 bytes", "more bytes follow"]),
        (packed(header(0x0C, 5) + bytes(19)), ["(5,) of int32", "20 bytes", "only 19"]),
        (packed(header(0x08, 5) + bytes(6)), ["5 bytes", "more bytes follow"]),
        (b"\x1f\x8b", ["gzip stream is damaged"]),
        (packed(header(0x08, 5) + bytes(5))[:-4], ["gzip stream is damaged"]),
        (packed(header(0x08, 5) + bytes(5)) + b"tail", ["gzip stream is damaged"]),
        (b"\x1f\x8bnot really gzip", ["gzip stream is damaged", "Unknown compression method"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path, refuses, content, parts):
    path = tmp_path / "wrong.idx"
    path.write_bytes(content)
    with refuses("wrong.idx", *parts):
        read_idx(path)


def test_a_wrong_checksum_is_noticed(tmp_path, refuses):
    path = tmp_path / "sum.gz"
    damaged = bytearray(packed(header(0x08, 5) + bytes(5)))
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    with refuses("sum.gz", "gzip stream is damaged", "CRC"):
        read_idx(path)


def test_what_is_no_file_is_refused(tmp_path, refuses):
    with refuses("absent.idx", "No such file"):
        read_idx(tmp_path / "absent.idx")
    with refuses(tmp_path.name, "Is a directory"):
        read_idx(tmp_path)
    with refuses("null"):
        read_idx("nu\0ll/null")


def test_a_line_break_in_a_name_does_not_break_the_line(tmp_path, refuses):
    with refuses("two\\nlines", "No such file"):
        read_idx(tmp_path / "two\nlines")


def test_the_cause_is_kept(tmp_path):
    path = tmp_path / "broken.gz"
    path.write_bytes(b"\x1f\x8bx")
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert caught.value.__cause__ is not None
