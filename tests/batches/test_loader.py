"""The thread that reads sees what its caller has set, and reads a source alone."""

import contextvars
import threading

import jax
import numpy as np
import pytest

from loopax.batches import loader as loading
from loopax.batches.loader import Loader
from loopax.data import as_batches

PLACE = contextvars.ContextVar("place", default="nowhere")


def loaded(source):
    """One batch of what `source` yields, as the device has it."""
    batches = as_batches(source)
    with Loader(batches.feed((0, 0), 0, 2)) as loader:
        loader.request(1)
        items, _ = loader.take()
    return jax.tree.map(lambda leaf: leaf[0], items.stacked["batch"])


def test_the_source_is_read_with_the_callers_context_and_settings():
    seen = {}

    def source():
        seen["place"] = PLACE.get()
        seen["ours"] = jax.config.jax_default_matmul_precision
        seen["numpy"] = np.geterr()["over"]
        seen["thread"] = threading.current_thread() is threading.main_thread()
        yield {"x": np.array([2**40])}

    token = PLACE.set("here")
    try:
        with (
            jax.enable_x64(True),
            jax.default_matmul_precision("float32"),
            np.errstate(over="ignore"),
        ):
            batch = loaded(source())
    finally:
        PLACE.reset(token)
    assert batch["x"].tolist() == [2**40]
    assert seen == {"place": "here", "ours": "float32", "numpy": "ignore", "thread": False}


def test_batches_lie_on_the_device_that_the_caller_chose():
    device = jax.devices()[-1]
    with jax.default_device(device):
        assert loaded([{"x": np.ones(2)}])["x"].devices() == {device}


def test_what_the_source_raises_comes_with_the_line_that_raised_it():
    def source():
        raise SystemExit(3)
        yield

    with pytest.raises(SystemExit) as caught:
        loaded(source())
    assert caught.traceback[-1].name == "source"


def test_a_reading_that_has_begun_is_over_before_another_can_begin():
    begun, go_on, drawn = threading.Event(), threading.Event(), []

    def source():
        begun.set()
        go_on.wait(30)
        drawn.append(1)
        yield {"x": 1}

    with Loader(as_batches(source()).feed((0, 0), 0, 2)) as loader:
        loader.request(1)
        assert begun.wait(30)
        threading.Timer(0.2, go_on.set).start()
    assert drawn == [1]


def test_a_source_that_blocks_for_ever_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE_SECONDS", 0.1)
    begun, never = threading.Event(), threading.Event()

    def source():
        begun.set()
        never.wait()
        yield {"x": 1}

    loader = Loader(as_batches(source()).feed((0, 0), 0, 2))
    loader.request(1)
    assert begun.wait(30)
    with pytest.warns(UserWarning, match="the data gave no batch"):
        loader.__exit__()
    assert all(thread.daemon for thread in loader._threads), "nor the end of the process"
    never.set()
