"""Batches are a function of (seed, step), wherever they come from and however they are taken."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopax.data import Batches, Dataset, as_batches
from loopax.errors import ConfigError, DataError

SEED = (0, 7)


def numbered(count):
    """A dataset whose examples are their own indices."""
    return Dataset({"index": np.arange(count, dtype=np.int32)}, name="numbered")


def batches_of(items, batches):
    """The filled part of some items as batches, as the step would see them."""

    def batch(index):
        item = jax.tree.map(lambda leaf: leaf[index], items.stacked)
        return jax.tree.map(np.asarray, batches.assemble(batches.resident, item, None))

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
    assert device.resident is not None
    assert host.resident is None
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
    one, two = (data.batches(256, resident=resident).example for resident in (True, False))
    assert one["image"].tobytes() == two["image"].tobytes()


def test_a_transform_sees_the_scaled_batch_and_gives_what_the_loss_sees():
    data = Dataset({"image": np.full((4, 3), 255, np.uint8), "label": np.arange(4)})
    batches = data.batches(
        2, transform=lambda batch: {"pixels": batch["image"] - 1, "sum": batch["label"].sum()}
    )
    example = batches.example
    assert example.keys() == {"pixels", "sum"}
    np.testing.assert_allclose(example["pixels"], 0, atol=1e-6)


def test_examples_that_were_never_filled_in_are_not_counted():
    batches = numbered(6).batches(2, shuffle=False, resident=False)
    items = batches.feed(SEED, 0, capacity=100).take(2)
    assert items.length == 2
    assert batches_of(items, batches)[1]["index"].tolist() == [2, 3]


WRONG_SIZES = {
    "nothing": (0, "batch_size is 0"),
    "negative": (-4, "batch_size is -4"),
    "more than there are": (11, "batch_size is 11; numbered has 10 examples.*from 1 to 10"),
    "a fraction": (2.5, "batch_size is 2.5; it must be a whole number"),
    "words": ("four", "batch_size is 'four'; it must be a whole number"),
    "a truth": (True, "batch_size is True; it must be a whole number"),
    "none": (None, "batch_size is None; it must be a whole number"),
}


@pytest.mark.parametrize(("size", "message"), WRONG_SIZES.values(), ids=WRONG_SIZES.keys())
def test_a_batch_size_that_cannot_work_is_named(size, message):
    with pytest.raises(ConfigError, match=message) as caught:
        numbered(10).batches(size)
    assert "\n" not in str(caught.value)


def test_numpy_integers_are_batch_sizes():
    assert numbered(10).batches(np.int64(4)).steps_per_epoch == 2


def test_columns_of_different_lengths_and_no_columns_are_refused():
    with pytest.raises(DataError, match=r"columns differ in length: .*'a': 2, 'b': 3"):
        Dataset({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(DataError, match="at least one column"):
        Dataset({})


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
