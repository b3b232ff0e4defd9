"""Streams go on exactly where they stood, and are sent to the device as they are."""

import itertools
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.account import waiting
from loopax.batches.loader import Loader
from loopax.batches.positions import packed, unpacked
from loopax.batches.readers import StreamReader
from loopax.batches.stacks import on_device
from loopax.data import IterableBatches
from loopax.errors import ConfigError, DataError, Stopped
from loopax.placement import ONE

COUNT = 20


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """However slow the machine is."""
    monkeypatch.setattr("loopax.batches.readers.PATIENCE_SECONDS", float("inf"))


def batch(number):
    return {"index": np.array([number])}


class Counting:
    """Counts what is read; the base of sources below."""

    def __init__(self):
        self.read = 0

    def numbers(self, first=0):
        for number in range(first, COUNT):
            self.read += 1
            yield batch(number)


class Plain(Counting):
    def __iter__(self):
        return self.numbers()


class OfEpochs(Counting):
    """Has another order in each epoch, as it is told."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (batch(100 * self.epoch + each["index"][0]) for each in self.numbers())


class WithState(OfEpochs):
    """As `datasets` and torchdata have it: the source knows where it stands."""

    at = start = 0

    def state_dict(self):
        return {"at": self.at, "bytes": b"\0", (1, 2): np.arange(2)}

    def load_state_dict(self, state):
        assert state["bytes"] == b"\0"
        assert state[1, 2].tolist() == [0, 1]
        self.start = state["at"]

    def __iter__(self):
        self.at, self.start = self.start, 0
        for each in self.numbers(self.at):
            self.at += 1
            yield batch(100 * self.epoch + each["index"][0])


def grain_source(kind):
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(range(COUNT)).shuffle(seed=3)
    data = data.map(lambda number: {"index": np.array(number)})
    if kind == "map":
        return data.batch(1)
    if kind == "iter":
        return data.repeat(2).to_iter_dataset().filter(lambda each: each["index"] % 3 > 0).batch(1)
    sampler = grain.samplers.IndexSampler(COUNT, shuffle=True, seed=1, num_epochs=2)
    source = [batch(number) for number in range(COUNT)]
    return grain.DataLoader(data_source=source, sampler=sampler, worker_count=0)


def taken(batches, count, start=0, position=None):
    """The numbers of some batches, and where the source stood after each chunk."""
    feed, numbers, positions = batches.feed_from((0, 7), start, 16, position), [], {}
    while len(numbers) < count:
        items = feed.take(min(3, count - len(numbers)))
        stacked = items.stacked["batch"]["index"]
        numbers += [int(stacked[index].item()) for index in range(items.length)]
        positions[start + len(numbers)] = items.position
    return numbers, positions


SOURCES = {
    "a sequence": lambda: [batch(number) for number in range(COUNT)],
    "an iterable": Plain,
    "one of epochs": OfEpochs,
    "one with a state": WithState,
    "Grain's map": lambda: grain_source("map"),
    "Grain's iter": lambda: grain_source("iter"),
    "Grain's loader": lambda: grain_source("loader"),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_a_stream_goes_on_with_exactly_the_batches_that_were_not_trained_on(source):
    whole, positions = taken(IterableBatches(source()), 60)
    for step in (6, 21, 42):
        position = json.loads(json.dumps(positions[step]))
        again = IterableBatches(source())
        assert again.identity
        assert taken(again, 5, step, position)[0] == whole[step : step + 5]
    assert taken(IterableBatches(source()), 5, 42)[0] == whole[42:47], "read again"


@pytest.mark.parametrize("kind", ["map", "loader"])
def test_grains_order_is_another_one_in_each_epoch(kind):
    numbers, _ = taken(IterableBatches(grain_source(kind)), 2 * COUNT)
    one, two = numbers[:COUNT], numbers[COUNT:]
    assert sorted(one) == sorted(two) == list(range(COUNT))
    assert one != two


def test_what_has_a_state_is_not_read_again():
    _, positions = taken(IterableBatches(WithState()), 18)
    source = WithState()
    taken(IterableBatches(source), 1, 18, positions[18])
    assert source.read == 1
    source = Plain()
    taken(IterableBatches(source), 1, 18)
    assert source.read == 19


def test_a_state_that_no_checkpoint_can_keep_is_done_without():
    class Odd(WithState):
        def state_dict(self):
            return {"lock": threading.Lock()}

    whole, positions = taken(IterableBatches(Odd()), 30)
    assert positions[21] is None
    assert taken(IterableBatches(Odd()), 5, 21)[0] == whole[21:26]


def test_a_state_is_kept_as_it_was():
    state = {"a": [1, 2.5, None, "x", float("inf")], "b": (b"\1", np.float32(3)), 4: True}
    assert unpacked(json.loads(json.dumps(packed(state), allow_nan=False))) == state
    with pytest.raises(DataError, match="holds a lock"):
        packed({"a": [threading.Lock()]})


def test_how_long_it_takes_to_read_again_is_said(monkeypatch):
    monkeypatch.setattr("loopax.batches.readers.PATIENCE_SECONDS", 0.0)
    with pytest.warns(UserWarning, match=r"Plain is read again .* up to step 12: .* s to go"):
        taken(IterableBatches(Plain()), 1, 12)


# --- Runs ---------------------------------------------------------------------


def loss(params, batch, rngs):
    return ((params["w"] - batch["index"]) ** 2).mean()


def trained(source, steps, run_dir=None, **options):
    state = loopax.TrainState.create(params={"w": jnp.zeros(1)}, tx=optax.sgd(0.01))
    settings = {"progress": False, "probe_every": None, "log_every": 5, **options}
    return loopax.fit(state, loss, source, steps=steps, run_dir=run_dir, **settings)


def test_a_run_goes_on_with_the_state_of_what_it_was_trained_on(tmp_path):
    whole = trained(WithState(), 30)
    trained(WithState(), 17, tmp_path, chunk_steps=4)
    source = WithState()
    parts = trained(source, 30, tmp_path)
    assert source.read < 30, "two for the identity, and from step 17 on, perhaps some ahead"
    assert float(parts.state.params["w"][0]) == float(whole.state.params["w"][0])
    assert [row["loss"] for row in parts.history] == [row["loss"] for row in whole.history]


def test_a_signal_that_ends_the_processes_that_read_ends_the_run_politely(tmp_path):
    class Reading(Plain):
        def __iter__(self):
            yield from itertools.islice(self.numbers(), 9)
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, to all of them
            raise RuntimeError("a worker exited unexpectedly")

    source = IterableBatches(Reading(), identity="reading")
    with pytest.raises(Stopped) as stopped:
        trained(source, COUNT, tmp_path, chunk_steps=2, signals=True)
    assert 0 < stopped.value.step < 10
    assert trained(IterableBatches(Plain(), identity="reading"), COUNT, tmp_path).step == COUNT


def test_what_is_trained_on_is_not_evaluated_where_it_keeps_its_position():
    source = WithState()
    with pytest.raises(ConfigError, match="reads the very WithState that is trained on"):
        trained(source, 5, evaluation=loopax.Evaluation({"same": source}, every=5))


def test_a_generator_that_was_begun_cannot_be_found_again():
    numbers = (batch(number) for number in range(9))
    next(numbers)
    with pytest.raises(DataError, match=r"generator from which .* step 3 cannot be found"):
        IterableBatches(numbers, identity="mine").feed((0, 7), 3, 2).take(1)


# --- To the device ------------------------------------------------------------


def test_a_stack_is_sent_no_longer_than_what_it_holds_and_is_filled_up_there():
    large = {"x": np.ones((1 << 18), np.float32)}
    feed = IterableBatches([large] * 9).feed((0, 7), 0, 100)
    for count in (1, 3):
        items = feed.take(count)
        assert items.stacked["batch"]["x"].shape[0] == count
        there = on_device(items, ONE)
        assert there.stacked["batch"]["x"].shape[0] == items.capacity == 64
        assert there.stacked["batch"]["x"][count - 1].min() == 1
        assert there.stacked["filled"].tolist() == [True] * count + [False] * (64 - count)


def test_batches_may_be_parts_of_a_file_that_is_mapped(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24).reshape(12, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = IterableBatches([{"x": mapped[first : first + 3]} for first in range(0, 12, 3)])
    assert batches.identity["batch"] == "x int32[3, 2]"
    items = batches.feed((0, 7), 2, 4).take(2)
    assert items.stacked["batch"]["x"][0].tolist() == mapped[6:9].tolist()


def test_what_is_on_the_device_is_not_pulled_back():
    batches = IterableBatches([{"x": jnp.ones(3), "y": np.zeros(2)}] * 4)
    assert batches.identity["batch"] == "x float32[3], y float32[2]"
    feed = batches.feed((0, 7), 0, 4)
    with jax.transfer_guard_device_to_host("disallow"):
        items = feed.take(3)
    assert isinstance(items.stacked["batch"]["x"], jax.Array)
    assert on_device(items, ONE).stacked["batch"]["x"].tolist() == [[1.0] * 3] * 3 + [[0.0] * 3]


@pytest.mark.parametrize("threaded", [True, False])
def test_the_loops_own_thread_reads_where_that_is_asked(threaded):
    seen = set()

    class Threads:
        def __iter__(self):
            for number in range(5):
                seen.add(threading.current_thread() is threading.main_thread())
                yield batch(number)

    trained(IterableBatches(Threads(), threaded=threaded, identity="threads"), 5)
    assert seen == {not threaded}


def test_a_source_that_had_to_be_waited_for_is_read_ahead():
    source = Plain()
    gates = {2: threading.Event(), 10: threading.Event()}

    class Slow:
        def __iter__(self):
            for each in source.numbers():
                if source.read in gates:
                    gates[source.read].wait(30)
                yield each

    def taken():
        items, count = loader.take()
        return items.stacked["batch"]["index"][:count].ravel().tolist()

    with Loader(IterableBatches(Slow(), identity="slow").feed((0, 7), 0, 8), steps=16) as loader:
        loader.request(1)
        loader.take()
        loader.request(1)
        threading.Timer(0.1, gates[2].set).start()
        loader.take()
        for first in (2, 5):
            loader.request(3)
            assert taken() == [first, first + 1, first + 2]
            until = time.monotonic() + 30
            while source.read < 10 and time.monotonic() < until:
                time.sleep(0.01)
        assert source.read == 10, "it waits, and what was read before is given all the same"
        gates[10].set()
        loader.request(8)
        assert taken() == list(range(8, 16))
    assert source.read == 16, "no more than there are steps"


def test_an_error_of_what_was_read_ahead_comes_in_its_turn():
    class Broken:
        def __iter__(self):
            yield batch(1)
            yield batch(2)
            raise OSError("gone")

    feed = IterableBatches(Broken(), identity="broken").feed((0, 7), 0, 8)
    assert [feed.read_ahead() for _ in range(4)] == [True, True, True, False]
    assert feed.take(2).length == 2
    with pytest.raises(OSError, match="gone"):
        feed.take(1)


def test_a_run_says_that_it_waited_for_data():
    report = {"compute_s": 80.0, "data_s": 15.0, "host_s": 5.0}
    assert "waited for data 15% of the time" in waiting(report)
    assert waiting(report | {"data_s": 4.0}) == ""
    assert waiting({"compute_s": 1.0, "data_s": 0.5, "host_s": 0.0}) == "", "too short to tell"


# --- Other clients ------------------------------------------------------------


def test_a_stream_of_datasets_that_shuffles_is_read_again_as_its_state_leaves_out_the_buffer():
    datasets = pytest.importorskip("datasets")

    def source(buffer):
        rows = datasets.Dataset.from_dict({"index": list(range(COUNT))}).with_format("numpy")
        stream = rows.to_iterable_dataset(num_shards=2)
        return (stream.shuffle(seed=1, buffer_size=8) if buffer else stream).batch(1)

    for buffer in (True, False):
        whole, positions = taken(IterableBatches(source(buffer)), 60)
        assert (positions[21] is None) == buffer
        again = IterableBatches(source(buffer))
        assert taken(again, 5, 21, positions[21])[0] == whole[21:26]


def test_rows_of_datasets_have_its_own_fingerprint():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"index": list(range(COUNT))})
    with pytest.raises(ConfigError, match=r"rows are examples \('index' .*batch\(16\)"):
        IterableBatches(rows)
    rows = rows.batch(1)
    batches = IterableBatches(rows)
    assert batches.identity["fingerprint"] == rows._fingerprint
    assert taken(batches, 5, 33)[0] == [13, 14, 15, 16, 17]


@pytest.mark.parametrize("kind", ["torch.utils.data", "torchdata.stateful_dataloader"])
def test_a_loader_of_torch_goes_on(kind):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip(kind)
    loader = module.DataLoader if kind.startswith("torch.") else module.StatefulDataLoader

    def source():
        rows = [{"index": torch.tensor(number)} for number in range(COUNT)]
        generator = torch.Generator().manual_seed(3)
        return loader(rows, batch_size=1, shuffle=True, generator=generator)

    whole, positions = taken(IterableBatches(source()), 60)
    for step in (6, 21, 42):
        position = json.loads(json.dumps(positions[step]))
        assert (position is None) == kind.startswith("torch.")
        again = IterableBatches(source())
        assert again.identity
        assert taken(again, 5, step, position)[0] == whole[step : step + 5]


def test_a_reader_is_told_by_what_a_source_can_do():
    assert isinstance(IterableBatches(Plain()).reader, StreamReader)
    with pytest.raises(ConfigError, match="Plain cannot be indexed"):
        IterableBatches(Plain(), workers=2)
    with pytest.raises(ConfigError, match="workers is -1"):
        IterableBatches([{}], workers=-1)
