"""Where chunks end, and what a turn is to do, without a training."""

import math
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopax.run.signals import PoliteStop
from loopax.run.turns import Clock, Plan

COUNTS = st.integers(1, 60)


@given(
    total=st.integers(0, 200),
    marks=st.lists(COUNTS, max_size=4),
    probe_every=st.none() | COUNTS,
    capacity=COUNTS,
    limits=st.lists(st.integers(1, 100), min_size=1, max_size=5),
)
def test_chunks_end_wherever_something_is_due_whatever_their_limits(
    total, marks, probe_every, capacity, limits
):
    plan, step, ends = Plan(total, marks, probe_every, capacity), 0, [0]
    while length := plan.length(step, limits[len(ends) % len(limits)]):
        assert 0 < length <= min(capacity, limits[len(ends) % len(limits)])
        step += length
        ends.append(step)
    due = {end for mark in marks for end in range(mark, total, mark)}
    if probe_every:  # The step that is measured begins a chunk.
        due |= {step - 1 for step in range(probe_every, total, probe_every)}
    assert step == total
    assert due <= {*ends}


def clock(**options):
    given = {"began": time.monotonic(), "max_seconds": math.inf, "chunk_steps": None}
    parts = {"store": None, "lock": None, "stop": SimpleNamespace(received=None)}
    return Clock(**{**given, **parts, **options})


def test_a_signal_and_a_deadline_stop_but_never_before_a_step():
    stop = PoliteStop(print, wanted=False)
    asked = clock(stop=stop)
    assert not asked.decide().stop
    stop.received = 15
    assert asked.decide().stop
    late = clock(began=time.monotonic() - 10, max_seconds=1.0, chunk_steps=50)
    assert late.limit() == 1
    assert not late.decide().stop
    assert late.decide().stop


def test_chunks_grow_fourfold_at_most_towards_a_second():
    growing = clock()
    assert growing.decide().limit == 1
    growing.read(1, growing.dispatched())
    assert growing.decide().limit == 4
    assert clock(chunk_steps=7).decide().limit == 7


@pytest.mark.parametrize(("seconds", "saves"), [(0.0, True), (60.0, False), (None, False)])
def test_a_save_by_time_is_due_after_the_seconds_that_were_asked_for(seconds, saves):
    settings = SimpleNamespace(seconds=seconds)
    store = SimpleNamespace(settings=settings, is_saving=False, has_settled=False, seconds=0.0)
    saving = clock(store=store)
    assert saving.decide().save is saves, "what was not read yet has taken no time"
    saving.read(1, saving.dispatched())
    turn = saving.decide()
    assert (turn.save, turn.rank) == (saves, True)
