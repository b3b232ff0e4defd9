"""Who may write in a run directory, between real processes and across pretended hosts."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import loopax.run.lock
from loopax.errors import RunDirError, RunInUseError
from loopax.run.lock import Holder, RunLock

HOLDER = """
import os, signal, socket, sys
signal.alarm(60)  # What hangs is to fail.
from pathlib import Path
import loopax.run.lock
loopax.run.lock.BEAT_SECONDS = 0.05
if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
with loopax.run.lock.RunLock(Path(sys.argv[1]), print) as lock:
    print("held", flush=True)
    {body}
"""
WAIT = "sys.stdin.readline()"


@contextmanager
def holding(directory, *host, body=WAIT):
    """Another process that holds the directory, until it is given a line."""
    code = HOLDER.format(body=body)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, directory, *host], text=True, **pipes)
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loopax.run.lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(loopax.run.lock, "PATIENCE_SECONDS", 0.5)


@pytest.fixture
def patient(monkeypatch):
    """For a living holder, whose next beat ends the waiting however slow the machine is."""
    monkeypatch.setattr(loopax.run.lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(loopax.run.lock, "PATIENCE_SECONDS", 60.0)


@pytest.fixture
def no_kernel_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)


def record_of(directory):
    return json.loads((directory / "holder.json").read_text())


def leave_record(directory, **changes):
    """What a holder that was killed leaves behind."""
    record = {**json.loads(Holder.here().record(7)), "pid": 4242, **changes}
    (directory / "holder.json").write_text(json.dumps(record))


def silent(message):
    raise AssertionError(f"there was nothing to say: {message}")


def test_the_second_process_is_refused_at_once_and_told_who_is_there(tmp_path):
    with holding(tmp_path) as other:
        with pytest.raises(RunInUseError) as refusal, RunLock(tmp_path, silent):
            pass
        message = str(refusal.value)
        assert message == (
            f"{tmp_path}: is in use by process {other.pid} on {socket.gethostname()}, "
            f"since {record_of(tmp_path)['since']}; "
            "wait for it, stop it, or name another run directory"
        )
        assert refusal.value.exit_code == 5


def test_a_clean_release_leaves_nothing_to_say_and_only_the_lock_file(tmp_path):
    threads = threading.active_count()
    with holding(tmp_path) as other:
        other.communicate("\n")
    assert other.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    for _ in range(2):
        with RunLock(tmp_path, silent) as lock:
            lock.check()
            assert record_of(tmp_path)["pid"] == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert threading.active_count() == threads


def test_a_killed_holder_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loopax.run.lock.time, "sleep", lambda _: pytest.fail("it waited"))
    with holding(tmp_path) as other:
        other.kill()
    said = []
    with RunLock(tmp_path, said.append) as lock:
        lock.check()
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert len(said) == 1
    assert f"was left by process {other.pid} on" in said[0]
    assert "gone; taken over" in said[0]


def test_one_process_cannot_hold_it_twice(tmp_path):
    with RunLock(tmp_path, silent) as lock:
        for again in (RunLock(tmp_path, silent), lock):
            with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), again:
                pass
        lock.check()
        with pytest.raises(RunInUseError), RunLock(tmp_path, silent):
            pass


def test_an_error_inside_releases(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path, silent):
        raise KeyError
    with RunLock(tmp_path, silent):
        pass


def test_it_may_be_left_in_another_thread(tmp_path):
    lock = RunLock(tmp_path, silent).__enter__()
    thread = threading.Thread(target=lock.__exit__)
    thread.start()
    thread.join()
    with RunLock(tmp_path, silent):
        pass


def test_of_many_that_find_a_dead_holder_one_wins(tmp_path):
    leave_record(tmp_path)
    start, end = threading.Barrier(8, timeout=60), threading.Barrier(8, timeout=60)
    won, refused = [], []

    def take():
        start.wait()
        try:
            with RunLock(tmp_path, won.append):
                end.wait()
        except RunInUseError as error:
            refused.append(error)
            end.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    assert "process 4242" in won[0]


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another boot"}])
def test_a_record_from_another_machine_is_watched_before_it_is_taken_over(
    tmp_path, impatient, change
):
    leave_record(tmp_path, **change)
    said = []
    with RunLock(tmp_path, said.append) as lock:
        lock.check()
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert len(said) == 2
    assert f"process 4242 on {change.get('host', socket.gethostname())}" in said[0]
    assert "waiting 0.5 s for a sign of life" in said[0]
    assert said[1] == f"{tmp_path}: no sign of life; taken over"


def test_a_living_holder_whose_kernel_lock_does_not_reach_here_is_respected(tmp_path, patient):
    with holding(tmp_path, "elsewhere") as other:
        (tmp_path / "lock").unlink()
        said = []
        with (
            pytest.raises(RunInUseError, match=f"process {other.pid} on elsewhere"),
            RunLock(tmp_path, said.append),
        ):
            pass
        assert len(said) == 1
        assert record_of(tmp_path)["pid"] == other.pid
        # Nor did the attempt leave anything locked.
        other.communicate("\n")
        assert other.returncode == 0
    with RunLock(tmp_path, silent):
        pass


def test_who_lets_go_while_being_watched_is_followed(tmp_path, patient):
    leave_record(tmp_path, host="elsewhere")
    lock = RunLock(tmp_path, lambda _: (tmp_path / "holder.json").unlink())
    with lock:
        assert record_of(tmp_path)["pid"] == os.getpid()


def test_a_holder_that_was_suspended_notices_that_it_was_taken_over(tmp_path, impatient):
    body = f"{WAIT}; lock.check()"
    with holding(tmp_path, "elsewhere", body=body) as other:
        (tmp_path / "lock").unlink()
        other.send_signal(signal.SIGSTOP)
        with RunLock(tmp_path, lambda _: None) as lock:
            other.send_signal(signal.SIGCONT)
            _, errors = other.communicate("\n")
            assert other.returncode == 1
            assert "RunInUseError" in errors
            assert f"was taken over by process {os.getpid()} on" in errors
            # The loser's leaving is not the winner's.
            assert record_of(tmp_path)["pid"] == os.getpid()
            lock.check()


@pytest.mark.parametrize("by", ["another", "nobody"])
def test_a_lost_directory_is_noticed_and_its_record_left_alone(tmp_path, impatient, by):
    with RunLock(tmp_path, silent) as lock:
        if by == "another":
            (tmp_path / "theirs").write_text(Holder.here().record(0))
            (tmp_path / "theirs").replace(tmp_path / "holder.json")
        else:
            (tmp_path / "holder.json").unlink()
        time.sleep(3 * loopax.run.lock.BEAT_SECONDS)  # The next beats must leave it alone.
        with pytest.raises(RunInUseError, match="was taken over by"):
            lock.check()
    assert (tmp_path / "holder.json").exists() == (by == "another")


def until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_beat_changes_nothing_but_its_number(tmp_path, impatient):
    with RunLock(tmp_path, silent) as lock:
        file = tmp_path / "holder.json"
        first, inode = record_of(tmp_path), file.stat().st_ino
        until(lambda: record_of(tmp_path)["beat"] > 10)
        assert {**record_of(tmp_path), "beat": 0} == {**first, "beat": 0}
        assert file.stat().st_ino == inode
        lock.check()


GARBLED = [b"", b"[1, 2]", b'{"host": "h"}', b"\xff\xfe\xfa"]


def test_a_damaged_record_of_a_living_holder(tmp_path):
    with RunLock(tmp_path, silent):
        (tmp_path / "holder.json").write_bytes(GARBLED[-1])
        with pytest.raises(RunInUseError) as refusal, RunLock(tmp_path, silent):
            pass
        assert str(refusal.value) == (
            f"{tmp_path}: is in use by another process (holder.json does not say which); "
            "wait for it, stop it, or name another run directory"
        )


@pytest.mark.parametrize("record", GARBLED)
def test_a_damaged_record_of_nobody_is_watched_and_taken_over(tmp_path, impatient, record):
    (tmp_path / "holder.json").write_bytes(record)
    said = []
    with RunLock(tmp_path, said.append):
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert "holder.json does not say which" in said[0]
    assert said[1].endswith("no sign of life; taken over")


def test_without_kernel_locks_a_living_holder_is_respected(tmp_path, no_kernel_locks, patient):
    with RunLock(tmp_path, silent) as lock:
        said = []
        with (
            pytest.raises(RunInUseError, match=f"process {os.getpid()} on"),
            RunLock(tmp_path, said.append),
        ):
            pass
        assert "waiting 60 s for a sign of life" in said[0]
        lock.check()
    assert not (tmp_path / "holder.json").exists()


def test_without_kernel_locks_a_dead_holder_is_taken_over(tmp_path, no_kernel_locks, impatient):
    leave_record(tmp_path)
    said = []
    with RunLock(tmp_path, said.append):
        assert record_of(tmp_path)["pid"] == os.getpid()
    assert said[1].endswith("no sign of life; taken over")


def test_where_kernel_locks_do_not_reach_the_last_to_write_wins(
    tmp_path, no_kernel_locks, impatient, monkeypatch
):
    """Another newcomer's record comes as soon as this one's is there."""
    stale = Holder.here().record(7).encode()
    (tmp_path / "holder.json").write_bytes(stale)
    monkeypatch.setattr(loopax.run.lock, "BEAT_SECONDS", 5.0)
    outcome = []

    def take():
        try:
            with RunLock(tmp_path, lambda _: None):
                outcome.append("won")
        except RunInUseError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=take)
    thread.start()
    until(lambda: (tmp_path / "holder.json").read_bytes() != stale)
    (tmp_path / "theirs").write_text(Holder("elsewhere", None, 77, "then", "token").record(0))
    (tmp_path / "theirs").replace(tmp_path / "holder.json")
    thread.join()
    assert "is in use by process 77 on elsewhere, since then" in outcome[0]
    assert record_of(tmp_path)["pid"] == 77


def test_a_forked_worker_that_outlives_a_killed_trainer_does_not_hold(tmp_path):
    body = "print(os.getpid(), flush=True) if os.fork() == 0 else None; signal.pause()"
    with holding(tmp_path, body=body) as other:
        pid = int(other.stdout.readline())
        other.kill()
        other.wait()
        try:
            os.kill(pid, 0)
            said = []
            with RunLock(tmp_path, said.append):
                pass
            assert f"process {other.pid}" in said[0]
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_forked_child_neither_releases_nor_keeps(tmp_path):
    body = """
    if os.fork() == 0:
        try:
            lock.check()
        except loopax.run.lock.RunInUseError:
            print("child checked", flush=True)
    else:
        os.wait()
        print("child left", flush=True)
        sys.stdin.readline()
        lock.check()
    """
    with holding(tmp_path, body=body.strip()) as other:
        assert other.stdout.readline() == "child checked\n"
        assert other.stdout.readline() == "child left\n"
        with pytest.raises(RunInUseError, match=f"process {other.pid} on"):
            RunLock(tmp_path, silent).__enter__()
        other.communicate("\n")
        assert other.returncode == 0


@pytest.mark.parametrize("name", ["lock", "holder.json"])
def test_a_folder_in_the_place_of_a_file_is_an_error_of_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(RunDirError, match="cannot be locked") as refusal:
        RunLock(tmp_path, silent).__enter__()
    assert "\n" not in str(refusal.value)
