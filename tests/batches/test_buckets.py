"""Batches of sequences by length: every example once, nothing cut off, resumed at any step."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopax
from loopax.batches.buckets import BucketedBatches, bucket_lengths
from loopax.errors import ConfigError, LoopaxError
from loopax.placement import ONE


def sequences(lengths):
    lengths = np.asarray(lengths, np.int32)
    ids = np.where(
        np.arange(max(lengths)) < lengths[:, None], 1 + np.arange(len(lengths))[:, None], 0
    )
    return loopax.data.Dataset({"ids": ids.astype(np.int32), "length": lengths})


def chunked(feed, steps):
    """The items of the next steps, one by one."""
    while steps:
        items = feed.take(steps)
        steps -= items.length
        for index in range(items.length):
            yield jax.tree.map(lambda leaf, at=index: leaf[at], items.stacked)


def walked(batches, feed, steps, resident=None):
    """The batches of the next steps, as the loss sees them; of NumPy, which compiles nothing."""
    resident = resident or batches.dataset.columns
    return [batches.assemble(resident, item, None) for item in chunked(feed, steps)]


LENGTHS = st.lists(st.integers(1, 200), min_size=4, max_size=60)
FEW = settings(max_examples=20)


@FEW
@given(LENGTHS, st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_holds_each_example_at_most_once_whole_and_in_full_batches(lengths, size, seed):
    data = sequences(lengths)
    batches = BucketedBatches(data, size, cut=("ids",))
    seen = walked(batches, batches.feed([seed], 0, 8), batches.steps_per_epoch)
    assert batches.steps_per_epoch == len(lengths) // size
    examples = np.concatenate([batch["ids"].max(axis=1) for batch in seen])
    assert len(set(examples)) == len(examples) == size * batches.steps_per_epoch
    for batch in seen:
        assert ((batch["ids"] > 0).sum(axis=1) == batch["length"]).all()
        assert batch["ids"].shape[1] in {min(b, max(lengths)) for b in batches.buckets}


@FEW
@given(LENGTHS, st.integers(1, 4), st.integers(0, 40), st.integers(1, 5))
def test_a_feed_that_begins_later_goes_on_with_the_same_batches(lengths, size, start, many):
    batches = BucketedBatches(sequences(lengths), size, cut=("ids",))
    whole = walked(batches, batches.feed([3], 0, 8), start + many)[start:]
    parts = walked(batches, batches.feed([3], start, 3), many)
    for one, other in zip(whole, parts, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


@FEW
@given(LENGTHS, st.integers(1, 4))
def test_one_pass_meets_every_example_once(lengths, size):
    data, met = sequences(lengths), []
    batches = BucketedBatches(data, size, cut=("ids",))
    for items in batches.once(4):
        for index in range(items.length):
            item = jax.tree.map(lambda leaf, at=index: leaf[at], items.stacked)
            batch = batches.assemble(data.columns, item, None)
            assert ((batch["ids"] > 0).sum(axis=1) == batch["length"]).all()
            met += batch["ids"].max(axis=1).tolist()
    assert sorted(met) == list(range(1, len(lengths) + 1))


def test_epochs_differ_in_order_and_long_batches_are_few():
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / 20, 1000).clip(1, 128)
    batches = BucketedBatches(sequences(lengths), 10, cut=("ids",))
    seen = walked(batches, batches.feed([0], 0, 50), 200)
    assert not np.array_equal(seen[0]["ids"], seen[100]["ids"])
    computed = sum(batch["ids"].size for batch in seen[:100])
    assert computed < 0.5 * 1000 * 128
    assert computed > sum(lengths)


def test_the_order_is_the_same_for_columns_that_are_not_cut():
    """So that features can stand in for the sequences that they were made of."""
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    data = sequences(lengths)
    features = loopax.data.Dataset(
        {"feature": data.columns["ids"].max(axis=1), "length": data.columns["length"]}
    )
    long = BucketedBatches(data, 8, cut=("ids",))
    short = BucketedBatches(features, 8, cut=())
    for one, other in zip(
        walked(long, long.feed([5], 0, 9), 12),
        walked(short, short.feed([5], 0, 4), 12),
        strict=True,
    ):
        assert np.array_equal(one["ids"].max(axis=1), other["feature"])


def test_batches_of_a_bucket_follow_each_other_and_runs_of_them_are_shuffled():
    lengths = np.random.default_rng(0).integers(1, 129, 4096)  # half of them in the longest bucket
    batches = BucketedBatches(sequences(lengths), 8, cut=("ids",))
    feed, counts, spans = batches.feed([3], 0, 50), [], []
    while sum(counts) < batches.steps_per_epoch:
        items = feed.take(50)
        counts.append(items.length)
        spans.append(items.stacked["span"].shape[-1])
    assert np.mean(counts) >= 8
    assert len(spans) > 15
    assert len(set(spans)) == 3


def test_few_batches_are_shuffled_one_by_one_and_runs_are_told_apart():
    data = sequences(np.random.default_rng(0).integers(1, 100, 160))
    few, before = (BucketedBatches(data, 8, cut=("ids",), **more) for more in ({}, {"in_a_row": 1}))
    assert few.identity == before.identity
    assert "in_a_row" not in before.identity
    runs = BucketedBatches(data, 8, cut=("ids",), in_a_row=4)
    assert runs.identity == {**before.identity, "in_a_row": 4}
    with pytest.raises(ConfigError, match="in_a_row is 0; it must be a whole number from 1 on"):
        BucketedBatches(data, 8, cut=("ids",), in_a_row=0)


def test_batches_are_the_same_off_the_device():
    data = sequences(np.random.default_rng(0).integers(1, 100, 60))
    on, off = (BucketedBatches(data, 8, cut=("ids",), resident=where) for where in (True, False))
    assert off.resident(ONE) is None
    one = walked(on, on.feed([5], 0, 4), 9)
    for batch, items in zip(one, chunked(off.feed([5], 0, 4), 9), strict=True):
        found = off.assemble(None, items, None)
        assert jax.tree.all(jax.tree.map(np.array_equal, batch, found))


def test_features_need_a_single_shape():
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    features = loopax.data.Dataset({"feature": lengths.astype(np.float32), "length": lengths})
    batches = BucketedBatches(features, 8, cut=())
    assert batches.feed([0], 0, 6).take(6).length == 6


@pytest.mark.parametrize("size", [0, 51])
def test_a_batch_larger_than_the_data_is_refused(size):
    with pytest.raises(ConfigError, match="it must be from 1 to 50"):
        BucketedBatches(sequences([3] * 50), size, cut=("ids",))


def test_buckets_double():
    assert bucket_lengths(10) == (32,)
    assert bucket_lengths(128) == (32, 64, 128)
    assert bucket_lengths(129) == (32, 64, 128, 256)


WRONG = {
    "no such column": (["idz"], {}, "cut names 'idz', which is no column of padded.*are: ids"),
    "no axis to cut": (["length"], {}, "cut names 'length'"),
    "a name alone": ("ids", {}, r"it must be a list of columns: cut=\['ids'\]"),
    "longer than the columns": (["ids"], {"length": np.array([3, 9])}, "'length' has the value 9"),
    "no lengths": (["ids"], {"length": np.ones(2)}, "need a column 'length' of integers"),
}


@pytest.mark.parametrize(("cut", "columns", "message"), WRONG.values(), ids=WRONG.keys())
def test_sequences_that_cannot_be_cut_are_named(cut, columns, message):
    columns = {"ids": np.ones((2, 5), np.int32), "length": np.array([3, 5]), **columns}
    with pytest.raises(LoopaxError, match=message):
        BucketedBatches(loopax.data.Dataset(columns), 1, cut=cut)


def test_tokens_of_bytes_stay_bytes_and_images_are_scaled_here_too():
    lengths = np.array([3, 5])
    columns = {"ids": np.full((2, 5), 7, np.uint8), "image": np.full((2, 4), 255, np.uint8)}
    data = loopax.data.Dataset({**columns, "length": lengths})
    batches = BucketedBatches(data, 2, cut=["ids"])
    (batch,) = walked(batches, batches.feed([0], 0, 2), 1, batches.resident(ONE))
    assert (batch["ids"].max(), batch["image"].max()) == (7, 1.0)
