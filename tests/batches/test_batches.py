"""Batches are a function of (seed, step), wherever they come from and however they are taken."""

import itertools
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopax
from loopax.data import Batches, Dataset, IterableBatches, Mapped, Splits, as_batches
from loopax.errors import ConfigError, DataError
from loopax.placement import ONE
from loopax.randomness import Rngs

SEED = (0, 7)


def numbered(count):
    """A dataset whose examples are their own indices."""
    return Dataset({"index": np.arange(count, dtype=np.int32)}, name="numbered")


def batches_of(items, batches):
    """The filled part of some items as batches, as the step would see them."""

    def batch(index):
        item = jax.tree.map(lambda leaf: leaf[index], items.stacked)
        return jax.tree.map(np.asarray, batches.assemble(batches.resident(ONE), item, None))

    return [batch(index) for index in range(items.length)]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def sequence(batches, count, *, start=0, seed=SEED, takes=(1,), capacity=16):
    """The indices in the batches of `count` steps, taken in portions that repeat `takes`."""
    feed, taken, turn = batches.feed(seed, start, capacity), [], 0
    while len(taken) < count:
        wanted = min(takes[turn % len(takes)], count - len(taken))
        items = feed.take(wanted)
        assert 1 <= items.length <= wanted
        stacked = {leaf.shape[0] for leaf in jax.tree.leaves(items.stacked)}
        assert all(2 <= many <= max(2, capacity) for many in stacked)
        taken += [batch["index"].tolist() for batch in batches_of(items, batches)]
        turn += 1
    return taken


# --- Datasets -----------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_device_and_host_give_the_same_batches(shuffle, drop_last):
    data = numbered(23)
    options = {"shuffle": shuffle, "drop_last": drop_last}
    device, host = (data.batches(4, resident=resident, **options) for resident in (True, False))
    assert device.is_resident
    assert not host.is_resident
    assert sequence(device, 20) == sequence(host, 20)


def test_each_epoch_is_another_permutation_and_a_function_of_the_seed():
    batches = numbered(24).batches(4, resident=False)
    epochs = [sequence(batches, 6, start=6 * epoch) for epoch in range(5)]
    orders = list(map(flat, epochs))
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len(set(map(tuple, orders))) == 5
    assert list(range(24)) not in orders
    assert sequence(batches, 30) == flat(epochs), "epochs follow one another"
    assert sequence(numbered(24).batches(4, resident=False), 30) == flat(epochs)
    assert sequence(batches, 6, seed=(0, 8)) != epochs[0]
    assert sequence(batches, 6, seed=(1, 7)) != epochs[0]


def test_rows_on_the_disk_are_those_of_the_array_until_the_file_is_cut(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(10, 3, 2)
    np.save(tmp_path / "x.npy", array)
    mapped = Mapped(np.load(tmp_path / "x.npy", mmap_mode="r"))
    copy = pickle.loads(pickle.dumps(mapped))
    for index in (np.array([[3, 0], [9, 9]]), np.array([-1]), np.arange(10) > 6, slice(2, 5), 4):
        for column in (mapped, copy):
            np.testing.assert_array_equal(column[index], array[index])
            np.testing.assert_array_equal(column.pick(np.array([8, 1]))[:], array[[8, 1]])
    with pytest.raises(IndexError, match="index 10 is out of bounds"):
        mapped[np.array([0, 10])]
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 1)
    assert mapped[np.array([8])].tolist() == array[8:9].tolist()
    with pytest.raises(DataError, match=r"x\.npy: has become shorter; row 9 is missing"):
        mapped[np.array([8, 9])]


def test_without_shuffling_the_order_is_the_stored_one():
    batches = numbered(10).batches(3, shuffle=False, resident=False)
    assert sequence(batches, 5) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2], [3, 4, 5]]


def test_the_last_examples_are_dropped_or_come_as_a_smaller_batch():
    dropped, kept = (numbered(10).batches(4, drop_last=drop, resident=False) for drop in (1, 0))
    assert (dropped.steps_per_epoch, kept.steps_per_epoch) == (2, 3)
    assert [len(batch) for batch in sequence(dropped, 6)] == [4] * 6
    assert [len(batch) for batch in sequence(kept, 6)] == [4, 4, 2, 4, 4, 2]
    assert sorted(flat(sequence(kept, 3))) == list(range(10))


@given(
    count=st.integers(1, 30),
    batch=st.integers(1, 30),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    start=st.integers(0, 50),
    takes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    capacity=st.integers(1, 12),
)
def test_portions_of_any_size_from_any_step_are_the_plain_sequence(
    count, batch, drop_last, shuffle, start, takes, capacity
):
    options = {"drop_last": drop_last, "shuffle": shuffle, "resident": False}
    batches = numbered(count).batches(min(batch, count), **options)
    plain = sequence(batches, start + 20)
    assert sequence(batches, 20, start=start, takes=takes, capacity=capacity) == plain[start:]


@given(count=st.integers(1, 40), batch=st.integers(1, 40), capacity=st.integers(1, 9))
def test_one_pass_for_evaluation_has_every_example_exactly_once(count, batch, capacity):
    batches = numbered(count).batches(min(batch, count), resident=False)
    seen = [
        index
        for items in batches.once(capacity)
        for each in batches_of(items, batches)
        for index in each["index"].tolist()
    ]
    assert seen == list(range(count))


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "host"])
def test_bytes_become_fractions_and_other_columns_stay_as_they_are(resident):
    columns = {
        "image": np.array([[0, 51], [102, 255]], np.uint8),
        "label": np.array([1, 2], np.int32),
        "weight": np.array([0.5, 300.0], np.float32),
    }
    batches = Dataset(columns).batches(2, shuffle=False, resident=resident)
    (batch,) = batches_of(batches.feed(SEED, 0, 1).take(1), batches)
    np.testing.assert_allclose(batch["image"], [[0, 0.2], [0.4, 1.0]], rtol=1e-6)
    assert batch["image"].dtype == np.float32
    assert batch["label"].tolist() == [1, 2]
    assert batch["label"].dtype == np.int32
    assert batch["weight"].tolist() == [0.5, 300.0]


def test_device_and_host_scale_to_the_same_bits():
    data = Dataset({"image": np.arange(256, dtype=np.uint8)})
    plain = np.arange(256, dtype=np.float32) / 255
    one, two = (data.batches(256, resident=resident).example for resident in (True, False))
    assert one["image"].tobytes() == two["image"].tobytes()
    assert data.example["image"].tobytes() == plain[:1].tobytes()


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "host"])
def test_labels_tokens_and_masks_of_bytes_stay_bytes(resident):
    columns = {
        "image": np.full((4, 2, 2, 1), 255, np.uint8),
        "label": np.arange(4, dtype=np.uint8),
        "ids": np.full((4, 3), 200, np.uint8),
        "seen": np.ones((4, 2, 2), np.bool_),
    }
    batches = Dataset(columns).batches(2, shuffle=False, resident=resident)
    (batch,) = batches_of(batches.feed(SEED, 0, 1).take(1), batches)
    assert {name: column.dtype.name for name, column in batch.items()} == {
        "image": "float32",
        "label": "uint8",
        "ids": "uint8",
        "seen": "bool",
    }
    assert batch["label"].tolist() == [0, 1]
    assert batch["ids"].max() == 200


def test_bytes_that_could_be_images_are_scaled_or_kept_as_is_said_and_nothing_is_guessed():
    data = Dataset({"x": np.full((4, 2, 2), 255, np.uint8)}, name="d")
    with pytest.raises(
        ConfigError, match=r"d: the column 'x' is uint8 \(4, 2, 2\).*scale=\('x',\)"
    ):
        data.batches(2)
    assert data.batches(2, scale=("x",)).example["x"].max() == 1.0
    assert data.batches(2, scale=()).example["x"].max() == 255
    two, three = (data.batches(2, scale=scale).identity for scale in (("x",), ()))
    assert two != three


WRONG_SCALES = {
    "a name alone": ("image", r"it must be a tuple of columns: scale=\('image',\)"),
    "a truth": (True, "it must be a tuple of columns"),
    "a typo": (("imgae",), "scale names 'imgae'; d has image, label, warm"),
    "not of bytes": (("warm",), "'warm', which is float32; only uint8 is divided by 255"),
}


@pytest.mark.parametrize(("scale", "message"), WRONG_SCALES.values(), ids=WRONG_SCALES.keys())
def test_a_scale_that_cannot_be_meant_is_named(scale, message):
    columns = {"image": np.zeros((2, 4), np.uint8), "label": np.zeros(2), "warm": np.ones(2, "f4")}
    with pytest.raises(ConfigError, match=message):
        Dataset(columns, name="d").batches(1, scale=scale)


def test_a_transform_sees_the_scaled_batch_and_gives_what_the_loss_sees():
    data = Dataset({"image": np.full((4, 3), 255, np.uint8), "label": np.arange(4)})
    batches = data.batches(
        2, transform=lambda batch: {"pixels": batch["image"] - 1, "sum": batch["label"].sum()}
    )
    example = batches.example
    assert example.keys() == {"pixels", "sum"}
    np.testing.assert_allclose(example["pixels"], 0, atol=1e-6)


def keyed(batch, rngs):
    noise = jax.random.normal(rngs["augment"], batch["x"].shape)
    return {**batch, "x": batch["x"] + noise, "step": rngs.step}


def doubled(batch):
    batch["x"] = 2 * batch.pop("x")
    return batch


def test_a_transform_with_keys_is_applied_in_training_only_and_one_without_always():
    data = Dataset({"x": np.ones(6, np.float32)})
    batches = data.batches(3, transform=[doubled, keyed])
    item, key = np.arange(3, dtype=np.int32), jax.random.key(0)
    train = [batches.assemble(batches.resident(ONE), item, Rngs(key, step)) for step in (4, 5, 4)]
    assert [int(batch["step"]) for batch in train] == [4, 5, 4]
    first, second, again = (np.asarray(batch["x"]).tolist() for batch in train)
    assert first == again != second
    evaluated = batches.assemble(batches.resident(ONE), item, Rngs(key, 4, training=False))
    assert {name: column.tolist() for name, column in evaluated.items()} == {"x": [2.0] * 3}
    assert batches.example.keys() == {"x", "step"}, "the example is one to train on"


def test_the_noise_of_a_transform_is_new_in_each_step_and_absent_from_an_evaluation():
    data = Dataset({"x": np.ones(4, np.float32)}).batches(4, transform=keyed)
    state = loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.1), seed=1)

    def loss(params, batch, rngs):
        return params["w"] ** 2 + 0 * batch["x"].mean(), {"x": batch["x"].mean()}

    run = loopax.fit(
        state, loss, data, steps=3, log_every=1, evaluation=data, progress=False, probe_every=None
    )
    seen = [row["x"] for row in run.history if row["source"] == "train"]
    assert len(set(seen)) == 3
    assert run.latest("test")["x"] == 1.0


def of_numpy(batch):
    return {"x": batch["x"] + np.random.normal(size=batch["x"].shape).astype(np.float32)}


WRONG_TRANSFORMS = {
    "numpy's randomness": (of_numpy, "the transform draws random numbers.*transform.batch, rngs"),
    "nothing given back": (lambda batch: None, "the transform returned None"),
    "a number": (3, "transform is 3; it must be a function"),
    "another second argument": (lambda batch, key: batch, r"takes \(batch, key\); it must take"),
    "three arguments": (lambda batch, rngs, scale: batch, "it must take"),
}


@pytest.mark.parametrize(
    ("transform", "message"), WRONG_TRANSFORMS.values(), ids=WRONG_TRANSFORMS.keys()
)
def test_a_transform_that_cannot_work_is_named(transform, message):
    data = Dataset({"x": np.zeros(4, np.float32)})
    with pytest.raises(ConfigError, match=message):
        print(data.batches(2, transform=transform).example)


def test_examples_that_were_never_filled_in_are_not_counted():
    batches = numbered(6).batches(2, shuffle=False, resident=False)
    items = batches.feed(SEED, 0, capacity=100).take(2)
    assert items.length == 2
    assert batches_of(items, batches)[1]["index"].tolist() == [2, 3]


WRONG_SIZES = {
    "nothing": (0, "batch_size is 0"),
    "more than there are": (11, "batch_size is 11; numbered has 10 examples.*from 1 to 10"),
    "a fraction": (2.5, "batch_size is 2.5; it must be a whole number"),
    "a truth": (True, "batch_size is True; it must be a whole number"),
}


@pytest.mark.parametrize(("size", "message"), WRONG_SIZES.values(), ids=WRONG_SIZES.keys())
def test_a_batch_size_that_cannot_work_is_named(size, message):
    with pytest.raises(ConfigError, match=message) as caught:
        numbered(10).batches(size)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_any_type_are_batch_sizes():
    batches = numbered(10).batches(np.int64(4))
    assert batches.steps_per_epoch == 2
    assert type(batches.batch_size) is int


@pytest.mark.parametrize("name", ["shuffle", "drop_last", "resident"])
def test_a_switch_that_is_neither_on_nor_off_is_named(name):
    with pytest.raises(ConfigError, match=f"{name} is 'yes'; it must be True or False"):
        numbered(10).batches(4, **{name: "yes"})


def test_no_examples_are_no_batches():
    with pytest.raises(DataError, match="numbered has no examples"):
        numbered(0).batches(1)


def test_columns_of_different_lengths_and_no_columns_are_refused():
    with pytest.raises(DataError, match=r"columns differ in length: .*'a': 2, 'b': 3"):
        Dataset({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(DataError, match="at least one column"):
        Dataset({})
    with pytest.raises(DataError, match=r"columns is ndarray; .*Dataset\(\{'x': x"):
        Dataset(np.zeros((3, 2)))


SOUND_COLUMNS = {
    "big-endian": np.arange(4, dtype=">i4"),
    "not contiguous": np.arange(8, dtype=np.float32)[::2],
    "masked nowhere": np.ma.array([1, 2, 3, 4]),
    "a list": [1, 2, 3, 4],
    "of JAX": jnp.arange(4),
    "bfloat16": np.ones(4, jnp.bfloat16),
    "float16": np.ones(4, np.float16),
    "truths": np.array([True, False] * 2),
    "complex": np.full(4, 1 + 2j),
    "64 bits that fit": np.full(4, 2**31 - 1),
    "unsigned": np.full(4, 2**32 - 1, np.uint64),
    "infinite": np.array([np.inf, -np.inf, np.nan, 0.0]),
    "empty axis": np.zeros((4, 0), np.float32),
}


@pytest.mark.parametrize("column", SOUND_COLUMNS.values(), ids=SOUND_COLUMNS.keys())
def test_numbers_of_any_kind_arrive_with_their_values(column):
    data = Dataset({"x": column})
    expected = np.asarray(column)[:3].tolist()
    for resident in (True, False):
        batches = data.batches(3, shuffle=False, resident=resident)
        np.testing.assert_array_equal(batches.example["x"].tolist(), expected)
    assert data.fingerprint


WRONG_COLUMNS = {
    "strings": (["cat", "dog"], "is <U3, not numbers of one type; .*numpy.unique"),
    "objects": (np.array([1, None]), "is object, not numbers"),
    "nothing": (None, "is NoneType, not numbers"),
    "rows of different lengths": ([[1], [2, 3]], "cannot be read as an array"),
    "times": (np.array(["2020-01-01"], "M8[D]"), r"is datetime64\[D\], not numbers.*times"),
    "structured": (np.zeros(2, [("a", "i4"), ("b", "f4")]), "'a', '<i4'.*not numbers"),
    "masked": (np.ma.array([1, 2], mask=[0, 1]), "has masked values; .*filled"),
    "a single number": (3.0, "is 3.0; its first axis must be examples"),
    "random keys": (jax.random.split(jax.random.key(0)), "cannot be read as an array"),
    "an integer too large": ([0, 2**31], "has the value 2147483648, .*int64 as int32, up to"),
    "an integer too small": ([0, -(2**31) - 1], "has the value -2147483649"),
    "unsigned and too large": (np.array([2**32], np.uint64), "has the value 4294967296"),
    "a float too large": ([np.inf, -1e39], r"has the value -1e\+39, .*float64 as float32, up to"),
}


@pytest.mark.parametrize(("column", "message"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS.keys())
def test_a_column_that_the_device_cannot_hold_is_named(column, message):
    with pytest.raises(DataError, match=f"^d: the column 'x' .*{message}") as caught:
        Dataset({"x": column}, name="d").batches(1)
    assert "\n" not in str(caught.value)


WRONG_LEAVES = {
    "objects": WRONG_COLUMNS["objects"],
    "a string": ("cat", "is str, not numbers.*numpy.unique"),
    "an integer too large": (2**31, "has the value 2147483648, .*int64 as int32, up to"),
    "a float too large": (-1e39, r"has the value -1e\+39, .*float64 as float32, up to"),
}


@pytest.mark.parametrize(("leaf", "message"), WRONG_LEAVES.values(), ids=WRONG_LEAVES.keys())
def test_a_leaf_of_a_batch_that_the_device_cannot_hold_is_named(leaf, message):
    feed = as_batches([{"x": 1}, {"x": leaf}]).feed(SEED, 0, 3)
    with pytest.raises(DataError, match=f"^the batch's 'x' .*{message}") as caught:
        feed.take(2)
    assert "\n" not in str(caught.value)


def test_with_64_bits_on_the_device_64_bits_are_taken():
    with jax.enable_x64(True):
        for column in ([2**40], [1e300]):
            data = Dataset({"x": column}, name="d").batches(1)
            assert data.example["x"].tolist() == column


def test_the_identity_tells_data_and_order_apart():
    def identity(columns, size=2, **options):
        return dict(Dataset(columns).batches(size, **options).identity)

    x = np.arange(6, dtype=np.int32)
    plain = identity({"x": x})
    assert identity({"x": x.copy()}) == plain
    assert identity({"x": x}, resident=False) == plain
    changed = x.copy()
    changed[3] += 1
    others = [
        identity({"x": changed}),
        identity({"y": x}),
        identity({"x": x.astype(np.int64)}),
        identity({"x": x.reshape(6, 1)}),
        identity({"x": x[::-1]}),
        identity({"x": x}, 3),
        identity({"x": x}, shuffle=False),
        identity({"x": x}, drop_last=False),
    ]
    assert all(other != plain for other in others)


# --- Iterables ----------------------------------------------------------------


class Stream:
    """Can be begun again, and tells neither its length nor a single item."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return ({"index": np.array([i])} for i in range(self.count))


def listed(count):
    return list(Stream(count))


@pytest.mark.parametrize("source", [listed, Stream])
@given(
    count=st.integers(1, 12),
    start=st.integers(0, 40),
    takes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    capacity=st.integers(1, 9),
)
def test_an_iterable_goes_round_and_can_be_entered_at_any_step(
    source, count, start, takes, capacity
):
    batches = as_batches(source(count))
    expected = [[step % count] for step in range(start, start + 20)]
    assert sequence(batches, 20, start=start, takes=takes, capacity=capacity) == expected


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    takes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    capacity=st.integers(1, 9),
)
def test_batches_of_changing_shapes_keep_their_order(sizes, takes, capacity):
    items = [{"index": np.full(size, i)} for i, size in enumerate(sizes)]
    taken = sequence(as_batches(items), len(sizes), takes=takes, capacity=capacity)
    assert taken == [[i] * size for i, size in enumerate(sizes)]


def test_an_iterator_that_cannot_be_begun_again_says_how_far_it_came():
    feed = as_batches(iter(listed(3))).feed(SEED, 0, 2)
    assert feed.take(2).length == 2
    with pytest.raises(DataError, match=r"ended after 3 batches, and list_iterator cannot"):
        feed.take(2)


def test_a_sequence_is_entered_without_reading_what_came_before():
    class Lazy:
        read = ()

        def __len__(self):
            return 10

        def __getitem__(self, index):
            self.read += (index,)
            return {"index": np.array([index])}

        def __iter__(self):
            raise AssertionError("a sequence is indexed")

    lazy = Lazy()
    assert sequence(as_batches(lazy), 3, start=28, takes=(3,)) == [[8], [9], [0]]
    assert lazy.read == (8, 9, 0)


def test_batches_may_be_any_tree_of_numbers():
    data = [(np.ones((2, 3)), [np.int64(4), 5.0])] * 2
    batches = as_batches(data)
    items = batches.feed(SEED, 0, 4).take(2)
    pair, (four, five) = batches_of(items, batches)[1]
    assert pair.tolist() == np.ones((2, 3)).tolist()
    assert (four.item(), five.item()) == (4, 5.0)


def test_a_reused_buffer_is_copied_before_it_changes():
    """As data loaders do that fill one array again and again."""

    class Reusing:
        def __iter__(self):
            buffer = np.zeros(1, np.int64)
            for index in range(5):
                buffer[:] = index
                yield {"index": buffer}

    assert sequence(as_batches(Reusing()), 5, takes=(3,)) == [[0], [1], [2], [3], [4]]


def test_what_is_already_batches_is_taken_as_it_is():
    batches = numbered(4).batches(2)
    assert isinstance(batches, Batches)
    assert as_batches(batches) is batches


class Indexed:
    """Tells its length and gives an item, and no more."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"index": np.array([index])}


SOURCES = {
    "a list": listed,
    "a tuple": lambda count: tuple(listed(count)),
    "a generator": lambda count: (batch for batch in listed(count)),
    "an iterator": lambda count: iter(listed(count)),
    "a map": lambda count: map(dict, listed(count)),
    "what can be begun again": Stream,
    "a class with items": Indexed,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_to_tell_the_identity_loses_no_batch(source):
    batches = as_batches(source(4))
    assert batches.identity == batches.identity
    assert sequence(batches, 4, takes=(3,)) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_the_identity_is_that_of_the_batches_and_not_of_the_class(source):
    identity = as_batches(source(4)).identity
    assert identity["batch"] == "index int32[1]"
    assert {**identity, "batches_per_epoch": 4} == as_batches(listed(4)).identity


def test_other_batches_have_another_identity():
    def identity(batches):
        return as_batches(batches).identity

    plain = identity([{"x": np.zeros(3)}] * 2)
    others = [
        identity([{"x": np.ones(3)}] * 2),
        identity([{"x": np.zeros(4)}] * 2),
        identity([{"x": np.zeros(3, np.int32)}] * 2),
        identity([{"y": np.zeros(3)}] * 2),
        identity([np.zeros(3)] * 2),
        identity([{"x": np.zeros(3)}] * 3),
        identity([{}] * 2),
        identity([]),
    ]
    assert all(other != plain for other in others)
    assert len({repr(other) for other in others}) == len(others)


def test_a_name_stands_for_batches_that_are_never_the_same():
    shuffled = [IterableBatches([{"x": x}], identity="reviews v2") for x in (1, 2)]
    assert shuffled[0].identity == shuffled[1].identity == {"data": "reviews v2"}
    with pytest.raises(ConfigError, match="identity is 3; it must be a name"):
        IterableBatches([], identity=3)


def test_workers_are_started_once_for_the_identity_and_the_first_epoch():
    class Counted(Stream):
        begun = 0

        def __iter__(self):
            self.begun += 1
            return super().__iter__()

    source = Counted(3)
    batches = as_batches(source)
    assert batches.identity
    assert sequence(batches, 3) == [[0], [1], [2]]
    assert source.begun == 1
    assert sequence(batches, 4) == [[0], [1], [2], [0]]
    assert source.begun == 3


def test_what_can_be_read_once_is_not_begun_a_second_time_somewhere_in_its_middle():
    """As a run would that goes back to a checkpoint."""
    batches = as_batches(batch for batch in listed(9))
    assert sequence(batches, 4) == [[0], [1], [2], [3]]
    with pytest.raises(DataError, match="generator can be read only once, and cannot be begun"):
        batches.feed(SEED, 2, 2).take(1)


def test_an_empty_source_says_that_it_is_empty():
    for empty in ([], iter(()), Indexed(0)):
        with pytest.raises(DataError, match="there is no batch to train on"):
            as_batches(empty).feed(SEED, 0, 2).take(1)


class Pair(NamedTuple):
    x: Any
    y: Any


ODD_BATCHES = {
    "empty": {},
    "nothing beside something": {"x": np.ones(2, np.float32), "mask": None},
    "a named tuple": Pair(np.ones(2, np.float32), np.int32(4)),
}


@pytest.mark.parametrize("batch", ODD_BATCHES.values(), ids=ODD_BATCHES.keys())
def test_a_batch_is_any_tree_of_numbers(batch):
    def loss(params, seen, rngs):
        assert jax.tree.structure(seen) == jax.tree.structure(batch)
        return params["w"] ** 2 + sum(0.0 * leaf.sum() for leaf in jax.tree.leaves(seen))

    state = loopax.TrainState.create(params={"w": jnp.ones(())}, tx=optax.sgd(0.25))
    run = loopax.fit(state, loss, [batch] * 2, steps=3, progress=False)
    assert run.state.params["w"] == 0.125


COLUMNS = r"; one batch is given as \[batch\], columns as loopax.data.Dataset"
OTHER = "; it must be dataset.batches"
MISTAKEN = {
    "splits": (Splits(numbered(2), None, numbered(2)), r"a Splits; .*data.train.batches\(16\)"),
    "a dataset": (numbered(2), r"a Dataset; say how large a batch is: data.batches\(16\)"),
    "columns": ({"x": np.zeros(4)}, f"dict{COLUMNS}"),
    "a path": (Path("images"), r".*if this is a path, say loopax.data.load\(path\)"),
    "an array": (np.zeros((4, 2)), f"ndarray{COLUMNS}"),
    "an array of JAX": (jnp.zeros(4), f"ArrayImpl{COLUMNS}"),
    "a pair of arrays": ((np.zeros((4, 2)), np.zeros(4)), f"tuple{COLUMNS}"),
    "a named tuple": (Pair(np.zeros(4), np.zeros(4)), f"Pair{COLUMNS}"),
    "nothing": (None, f"NoneType{OTHER}"),
    "a function": (listed, f"function listed{OTHER}"),
    "a class": (Stream, f"type Stream{OTHER}"),
    "a number": (3, f"int{OTHER}"),
}


@pytest.mark.parametrize(("data", "message"), MISTAKEN.values(), ids=MISTAKEN.keys())
def test_what_is_no_source_of_batches_is_named_with_what_would_be(data, message):
    with pytest.raises(ConfigError, match=f"^data is {message}"):
        as_batches(data)


def test_a_batch_that_is_none_does_not_end_the_data():
    with pytest.raises(DataError, match="a batch is None"):
        as_batches([{"x": 1}, None, {"x": 2}]).feed(SEED, 0, 3).take(3)
