"""Weights in a file: every bit comes back, nothing hostile gets in, an old file stays whole."""

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open

from loopax.errors import CheckpointError, ConfigError, StorageError
from loopax.paths import leaf_paths
from loopax.weights import DTYPES, read_weights, save_weights, with_weights

PARAMS = {
    "params": {
        "encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "bias": jnp.ones(3, jnp.bfloat16),
    }
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def assert_same_bits(left, right):
    left, right = np.asarray(left), np.asarray(right)
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert left.tobytes() == right.tobytes()


def one_line(error):
    """The message of an error, which must be one line that a terminal can show."""
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


# --- What is written and read -------------------------------------------------


@st.composite
def any_array(draw):
    """Any bits in any shape, so any NaN too; also laid out by columns."""
    dtype = np.dtype(jnp.dtype(draw(st.sampled_from(DTYPES))))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == np.bool_:
        content = bytearray(byte % 2 for byte in content)
    array = np.frombuffer(content, dtype).reshape(shape)
    return np.asarray(array, order=draw(st.sampled_from("CF")))


names = st.text(st.characters(exclude_categories=("C", "Z")), max_size=9)
trees = st.recursive(any_array(), lambda inner: st.dictionaries(names, inner), max_leaves=6)


@given(tree=trees.filter(lambda tree: len(set(leaf_paths(tree))) == len(leaf_paths(tree))))
def test_every_bit_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("weights") / "any.safetensors"
    save_weights(path, tree)
    weights = read_weights(path)
    assert weights.keys() == set(leaf_paths(tree))
    again = with_weights(tree, weights, source="here")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(assert_same_bits, again, tree)


def test_the_names_are_those_of_the_patterns_and_other_programs_read_them(path):
    save_weights(path, PARAMS, {"step": "100"})
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["bias", "encoder/kernel"]
        assert file.metadata() == {"step": "100"}
        assert_same_bits(file.get_tensor("bias"), PARAMS["params"]["bias"])


def test_the_file_has_the_permissions_that_the_user_asked_for(path):
    old = os.umask(0o027)
    try:
        save_weights(path, PARAMS)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1]])
def test_an_array_that_is_a_view_of_another_is_written_as_it_reads(path, view):
    array = view(np.arange(12, dtype=np.float32).reshape(3, 4))
    save_weights(path, {"a": array})
    assert_same_bits(read_weights(path)["a"], array)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rng": jax.random.key(0)}, r"rng is key<fry>; weights are arrays of bool, "),
        ({"a": 1.5}, r"a is float; weights are"),
        ({"a": np.array(["x"], object)}, r"a is object; weights are"),
        ({"a": np.zeros(1, np.complex128)}, r"a is complex128; weights are"),
        ({"a": jnp.zeros(1, jnp.float8_e4m3fn)}, r"a is float8_e4m3fn; weights are"),
        (
            {"params": {"a": np.zeros(1)}, "a": np.zeros(2)},
            r"two of the parameters are named 'a'; rename",
        ),
        (
            {"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)},
            r"two of the parameters are named 'a/b'",
        ),
        ({"__metadata__": np.zeros(1)}, r"'__metadata__' cannot name a parameter"),
        ({"a\n": np.zeros(1)}, r"'a\\n' cannot name a parameter"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_it_is_written(path, params, message):
    with pytest.raises(ConfigError, match=message) as error:
        save_weights(path, params)
    one_line(error)
    assert not path.exists()


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.npz: .* name it model\.safetensors"):
        save_weights(tmp_path / "model.npz", PARAMS)
    assert not list(tmp_path.iterdir())


# --- A write that is cut short ------------------------------------------------

BIG = {"a": np.zeros(2**20, np.float32)}


def test_a_write_that_fails_leaves_the_old_file_whole(path):
    save_weights(path, PARAMS)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written \(File too large\)") as error:
            save_weights(path, BIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one_line(error).startswith(str(path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_file_whole(path):
    save_weights(path, PARAMS)
    before = path.read_bytes()
    # The system itself kills a process in the middle of the write that crosses the limit.
    code = (
        "import resource, signal, sys, numpy\n"
        "from loopax.weights import save_weights\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "save_weights(sys.argv[1], {'a': numpy.zeros(2**20, numpy.float32)})\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert result.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == before
    save_weights(path, BIG)
    assert_same_bits(read_weights(path)["a"], BIG["a"])
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"gone/a\.safetensors: cannot be written \(No such"):
        save_weights(tmp_path / "gone" / "a.safetensors", PARAMS)


# --- Files that are not to be trusted -----------------------------------------

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def encoded(header, data=b"0000", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def twice(text):
    return text.replace(b"ONE", json.dumps(ONE).encode())


HOSTILE = {
    "empty": b"",
    "shorter than a length": b"1234",
    "a length of 2^63": encoded({"a": ONE}, length=2**63),
    "a length of 200 MB": encoded({"a": ONE}, length=200_000_000),
    "a length into the data": encoded({"a": ONE}, length=len(json.dumps({"a": ONE})) + 2),
    "cut": encoded({"a": ONE}, b"00"),
    "trailing bytes": encoded({"a": ONE}, b"00000"),
    "a hole": encoded({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, b"0" * 12),
    "overlap": encoded({"a": ONE, "b": ONE}),
    "the same name twice": encoded(twice(b'{"a":ONE,"a":ONE}')),
    "the same name written otherwise": encoded(twice(b'{"a":ONE,"\\u0061":ONE}')),
    "the same name twice in the metadata": encoded(
        twice(b'{"__metadata__":{"x":"1","x":"2"},"a":ONE}')
    ),
    "deep lists": encoded(b"[" * 200_000 + b"]" * 200_000),
    "deep objects": encoded(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "not JSON": encoded(b'{"a":NaN}'),
    "not UTF-8": encoded(b'{"\xff":1}'),
    "a negative size": encoded({"a": {**ONE, "shape": [-1]}}),
    "a size that overflows": encoded({"a": {**ONE, "shape": [2**62, 2**62]}}),
    "nothing of an enormous size": encoded(
        {"a": {**ONE, "shape": [0, 2**63], "data_offsets": [0, 0]}}, b""
    ),
    "a hundred dimensions": encoded({"a": {**ONE, "shape": [1] * 100}}),
    "an unknown dtype": encoded({"a": {**ONE, "dtype": "\x1b[31mX\n" + "x" * 10_000}}),
    "a dtype that NumPy lacks": encoded({"a": {**ONE, "dtype": "F8_E8M0", "shape": [4]}}),
    "a boolean that is 48": encoded({"a": {**ONE, "dtype": "BOOL", "shape": [4]}}),
    "a name that moves the cursor": encoded({"a\n\x1b[31m": ONE}),
    "a pickle": pickle.dumps({"a": np.zeros(1)}),
    "text": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_not_sound_is_refused_in_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    assert one_line(error).startswith(f"{path}: is not a sound safetensors file: ")
    assert error.value.__cause__ is not None


def test_a_sound_file_made_by_hand_is_read(path):
    path.write_bytes(encoded({"a": ONE, "__metadata__": {"format": "pt"}}, np.float32(2).tobytes()))
    assert_same_bits(read_weights(path)["a"], np.array([2], np.float32))


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_refused_or_changes_values_only(tmp_path_factory, position, byte, cut):
    path = tmp_path_factory.mktemp("weights") / "any.safetensors"
    save_weights(path, PARAMS, {"step": "100"})
    content = bytearray(path.read_bytes())
    position %= len(content)
    content[position] = byte
    path.write_bytes(content[:position] if cut else content)
    with contextlib.suppress(CheckpointError):
        assert sum(array.size for array in read_weights(path).values()) == 9


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_a_pickle_is_never_loaded(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"may be a pickle.*convert it to \.safetensors"):
        read_weights(path)
    path.rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a sound safetensors file"):
        read_weights(tmp_path / "model.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_file_is_said(tmp_path):
    folder, pipe = tmp_path / "folder.safetensors", tmp_path / "pipe.safetensors"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe, tmp_path / "missing.safetensors"):
        with pytest.raises(CheckpointError, match=f"{path.name}: there is no such file"):
            read_weights(path)
    with pytest.raises(CheckpointError, match=r"a\.npz: is not a \.safetensors file"):
        read_weights(tmp_path / "a.npz")


def test_a_link_is_followed_because_caches_of_models_are_made_of_links(tmp_path, path):
    save_weights(path, PARAMS)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert sorted(read_weights(link)) == ["bias", "encoder/kernel"]


# --- Into a tree --------------------------------------------------------------


def test_weights_take_the_place_of_parameters_of_the_same_form(path):
    save_weights(path, PARAMS)
    weights = read_weights(path)
    blank = jax.tree.map(jnp.zeros_like, PARAMS)
    filled = with_weights(blank, weights, source=str(path))
    jax.tree.map(assert_same_bits, filled, PARAMS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(filled))


def test_what_was_filled_in_does_not_change_with_the_weights():
    # At such an address JAX on a CPU takes an array's memory for its own.
    memory = np.zeros(128, np.uint8)
    start = -memory.ctypes.data % 64
    weights = {"a": memory[start : start + 64].view(np.float32)}
    filled = with_weights({"a": jnp.ones(16)}, weights, source="")
    weights["a"][...] = 7
    assert_same_bits(filled["a"], np.zeros(16, np.float32))


def test_shapes_alone_are_enough(path):
    save_weights(path, PARAMS)
    shapes = jax.eval_shape(lambda: PARAMS)
    jax.tree.map(assert_same_bits, with_weights(shapes, read_weights(path), source=""), PARAMS)


def test_a_leaf_stays_where_it_was_laid():
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec("data")
    )
    params = {"laid": jax.device_put(jnp.zeros(4), sharding), "free": jnp.zeros(4)}
    weights = {name: np.ones(4, np.float32) for name in params}
    filled = with_weights(params, weights, source="")
    assert filled["laid"].sharding == sharding
    assert not filled["free"].committed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": np.zeros(3, np.float32)}, "a is float32[3] there and float32[2] here"),
        ({"a": np.zeros(2, np.float16)}, "a is float16[2] there and float32[2] here"),
        ({"a": None}, "a is absent there and float32[2] here"),
        ({"z": np.zeros((), bool)}, "z is bool[] there and absent here"),
        (
            dict.fromkeys([*"abcde", "x", "y"], None) | {"x": np.zeros(1), "y": np.zeros(1)},
            "a is absent there and float32[2] here; b is absent there and float32[2] here; "
            "c is absent there and float32[2] here; d is absent there and float32[2] here; "
            "e is absent there and float32[2] here (and 2 more)",
        ),
        (
            dict.fromkeys("abc"),
            "a is absent there and float32[2] here; b is absent there and float32[2] here; "
            "c is absent there and float32[2] here",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(changed, message):
    params = {"params": {name: jnp.zeros(2) for name in "abcde"}}
    weights = {**{name: np.ones(2, np.float32) for name in "abcde"}, **changed}
    given = {name: array for name, array in weights.items() if array is not None}
    with pytest.raises(CheckpointError) as error:
        with_weights(params, given, source="runs/first")
    assert one_line(error) == f"runs/first: of another model: {message}"
