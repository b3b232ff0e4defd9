"""What a signal does to a process in which something is to be ended politely."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import optax
import pytest

from loopax import TrainState, training
from loopax.errors import ConfigError, Stopped
from loopax.run.signals import PoliteStop, handles_signals

PROGRAM = """
import ctypes, os, signal, sys, threading, time
from loopax.errors import Stopped
from loopax.run.signals import PoliteStop

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
    ("first", "second", "announce"),
    [
        (signal.SIGINT, signal.SIGINT, "tell"),
        (signal.SIGTERM, signal.SIGHUP, "lambda _: 1 / 0"),
        (signal.SIGTERM, signal.SIGTERM, "lambda _: long_call()"),
    ],
)
def test_a_second_signal_ends_a_call_that_never_returns(first, second, announce):
    """Also where announcing the first one fails or hangs."""
    code = f"""
with PoliteStop({announce}) as stop:
    tell("ready")
    while not stop.received:
        time.sleep(0.01)
    long_call()
"""
    with running(code) as process:
        process.send_signal(first)
        assert "ready\n" in iter(process.stdout.readline, "")
        process.send_signal(second)
        assert process.wait() == -second
        assert process.stderr.read() == ""


def test_signals_in_a_long_call_are_one():
    code = """
with PoliteStop(tell) as stop:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    tell("ready")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    while not stop.received:
        time.sleep(0.01)
raise Stopped(stop.received, step=3)
"""
    with running(code) as process:
        assert process.wait() == 128 + signal.SIGINT


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


HANDLED = (signal.SIGINT, signal.SIGTERM)


def situation():
    """All that is to be restored."""
    return [signal.getsignal(number) for number in HANDLED], threading.active_count()


@pytest.fixture
def heard():
    """What handlers hear that are not those of a fresh process."""
    heard = []
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number)) for number in HANDLED
    }
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.mark.parametrize("signals", [True, False])
def test_a_signal_that_comes_as_the_loop_is_left_ends_the_program_where_it_is_asked_to(
    signals, heard
):
    batches, state = [np.ones(2)] * 9, TrainState.create(params={"x": np.ones(2)}, tx=optax.sgd(1))

    def train():
        with training(
            state, lambda p, b, _: (p["x"] * b).sum(), batches, steps=9, signals=signals
        ) as run:
            next(iter(run))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) if signals else nullcontext():
        train()
    assert heard == ([] if signals else [signal.SIGTERM])


def test_everything_is_restored(heard):
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
def test_two_may_end_in_any_order(heard, order):
    """Two loops in turns are two generators, and either may end first."""
    stops = [PoliteStop(lambda _: None) for _ in range(2)]
    for stop in stops:
        stop.__enter__()
    stops[order[0]].__exit__()
    os.kill(os.getpid(), signal.SIGTERM)
    assert [stop.received for stop in stops].count(signal.SIGTERM) == 1
    assert stops[order[1]].received is signal.SIGTERM
    stops[order[1]].__exit__()
    os.kill(os.getpid(), signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_inside_asyncio():
    async def train():
        with PoliteStop(lambda _: None) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            return stop.received

    before = situation()
    assert asyncio.run(train()) is signal.SIGTERM
    assert situation() == before


# --- Who handles them ---------------------------------------------------------


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_by_default_the_main_thread_of_a_script_does(monkeypatch):
    assert handles_signals()
    assert not in_a_thread(handles_signals)
    monkeypatch.setattr(sys, "ps1", "> ", raising=False)
    assert not handles_signals()
    assert handles_signals(True)
    assert not handles_signals(False)


def test_a_notebook_is_no_script(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    assert not handles_signals()


def test_a_thread_cannot():
    with pytest.raises(ConfigError, match="signals is True in a thread"):
        in_a_thread(lambda: handles_signals(True))


def test_where_they_are_not_handled_nothing_changes(heard):
    before = situation()
    with PoliteStop(lambda _: None, wanted=False) as stop:
        assert situation() == before
        os.kill(os.getpid(), signal.SIGTERM)
    assert (heard, stop.received) == ([signal.SIGTERM], None)


def test_a_second_ctrl_c_at_a_prompt_is_what_it_was(heard, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "> ", raising=False)
    with PoliteStop(lambda _: None, wanted=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert (heard, stop.received) == ([signal.SIGINT], signal.SIGINT)
