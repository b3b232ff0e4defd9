"""What a signal does to a process in which something is to be ended politely."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import optax
import pytest

from loopax import TrainState, steps
from loopax.signals import PoliteStop

PROGRAM = """
import ctypes, os, signal, sys, threading, time
from loopax.errors import Stopped
from loopax.signals import PoliteStop

signal.alarm(60)  # What hangs is to fail.

def tell(line):
    # Whole lines, whichever threads they come from.
    os.write(1, f"{line}\\n".encode())

def train():
    with PoliteStop(tell) as stop:
        tell("ready")
        while not stop.received:
            time.sleep(0.01)
    raise Stopped(stop.received, step=3)

def long_call():
    # A mutex locked twice: without the GIL, and no signal brings the main thread back.
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    c.pthread_mutex_lock(mutex)
    tell("ready")
    c.pthread_mutex_lock(mutex)

"""


@contextmanager
def running(code, **options):
    """A program that has printed `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_the_loop_end(number):
    with running("train()") as process:
        process.send_signal(number)
        out, errors = process.communicate()
    assert process.returncode == 128 + number
    assert out == f"{number.name}: finishing the chunk and saving; once more stops at once\n"
    assert errors == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_a_second_signal_ends_a_call_that_never_returns(first, second):
    with running("with PoliteStop(tell): long_call()") as process:
        process.send_signal(first)
        assert process.stdout.readline().startswith(f"{first.name}: finishing")
        process.send_signal(second)
        assert process.wait() == 128 + second


def test_two_signals_at_once_are_two():
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
with PoliteStop(tell):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    tell("ready")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
    long_call()
"""
    with running(code) as process:
        assert process.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.mark.parametrize("announce", ["lambda _: 1 / 0", "lambda _: (tell(_), long_call())"])
def test_an_announcement_that_fails_or_hangs_changes_nothing(announce):
    code = f"""
with PoliteStop({announce}) as stop:
    tell("ready")
    while not stop.received:
        time.sleep(0.01)
    tell("seen")
    long_call()
"""
    with running(code) as process:
        process.send_signal(signal.SIGTERM)
        assert "seen\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert process.stderr.read() == ""


def test_an_ignored_signal_stays_ignored():
    """As `nohup` and background jobs of a shell want it."""
    with running("train()", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as one:
        for _ in range(3):
            one.send_signal(signal.SIGINT)
        one.send_signal(signal.SIGTERM)
        out, _ = one.communicate()
    assert one.returncode == 128 + signal.SIGTERM
    assert out.startswith("SIGTERM: finishing")


def test_ctrl_c_afterwards_is_as_before():
    code = """
for _ in range(2):
    with PoliteStop(tell):
        pass
try:
    tell("ready")
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(9)
"""
    with running(code) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait() == 9


def test_ctrl_c_in_a_terminal_also_reaches_forked_workers_and_counts_once():
    code = """
with PoliteStop(tell) as stop:
    if os.fork() == 0:
        try:
            tell("ready")
            time.sleep(60)
        except KeyboardInterrupt:
            os._exit(0)
    while not stop.received:
        time.sleep(0.01)
    _, status = os.wait()
tell(status)
raise Stopped(stop.received, step=3)
"""
    with running(code, start_new_session=True) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert sorted(out.splitlines())[0] == "0"


def test_a_forked_worker_does_not_end_the_watch():
    code = """
with PoliteStop(tell):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    long_call()
"""
    with running(code) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("SIGTERM: finishing")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


def test_a_forked_worker_does_not_keep_the_trainer_from_leaving():
    code = """
with PoliteStop(tell):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
tell("ready")
os.kill(pid, signal.SIGKILL)
"""
    with running(code) as process:
        assert process.wait() == 0


HANDLED = (signal.SIGINT, signal.SIGTERM)


def situation():
    """All that is to be restored."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    handlers = [signal.getsignal(number) for number in HANDLED]
    return wakeup, handlers, threading.active_count(), sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def custom():
    """Handlers and a wakeup descriptor that are not those of a fresh process."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    handlers = {number: signal.signal(number, lambda *_: None) for number in HANDLED}
    previous = signal.set_wakeup_fd(writing)
    yield reading
    signal.set_wakeup_fd(previous)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.close(reading)
    os.close(writing)


def test_a_signal_to_oneself_is_seen_at_once_and_announced_before_the_end():
    told = []

    def announce(message):
        time.sleep(0.1)
        told.append(message)

    with PoliteStop(announce) as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
    assert told == ["SIGTERM: finishing the chunk and saving; once more stops at once"]


def test_a_signal_that_nobody_answered_goes_to_whoever_handles_it_now():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    batches, state = [np.ones(2)] * 9, TrainState.create(params={"x": np.ones(2)}, tx=optax.sgd(1))
    try:
        with closing(steps(state, lambda p, b, _: (p["x"] * b).sum(), batches, steps=9)) as chunks:
            for _ in chunks:
                os.kill(os.getpid(), signal.SIGTERM)
                break  # as early stopping does, which does not look at signals
            assert heard == []
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_an_announcement_that_fails_is_nobodys_concern(monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with PoliteStop(lambda _: 1 / 0):
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised == []


def test_everything_is_restored(custom):
    before = situation()
    stop = PoliteStop(lambda _: None)
    for _ in range(3):
        with stop:
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is signal.SIGINT
            assert situation() != before
        assert stop.received is signal.SIGINT
        assert situation() == before
    with pytest.raises(KeyError), stop:
        raise KeyError
    assert situation() == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_are_told_together_and_end_in_any_order(custom, order):
    """Two loops in turns are two generators, and either may end first."""
    before, told = situation(), []
    stops = [PoliteStop(lambda _, i=i: told.append(i)) for i in range(2)]
    for stop in stops:
        stop.__enter__()
    stops[order[0]].__exit__()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stops[order[0]].received is None
    assert stops[order[1]].received is signal.SIGTERM
    stops[order[1]].__exit__()
    assert told == [order[1]]
    assert situation() == before


def test_nested_ones_both_know_and_the_inner_one_announces(custom):
    before, by_outer, by_inner = situation(), [], threading.Event()
    with PoliteStop(by_outer.append) as outer, PoliteStop(lambda _: by_inner.set()) as inner:
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.received is inner.received is signal.SIGINT
        assert by_inner.wait(60)
    assert by_outer == []
    assert situation() == before


def test_other_signals_still_wake_whom_they_woke(custom):
    told, previous = [], signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with PoliteStop(told.append) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.received is None
        assert told == []
        assert os.read(custom, 9) == bytes([signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_inside_asyncio():
    async def train():
        with PoliteStop(lambda _: None) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            return stop.received

    before = situation()
    assert asyncio.run(train()) is signal.SIGTERM
    assert situation() == before


def test_in_a_thread_it_does_nothing():
    before, seen = situation()[:2], []

    def body():
        with PoliteStop(seen.append) as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None]
    assert situation()[:2] == before
