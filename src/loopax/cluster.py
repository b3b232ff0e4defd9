"""Processes that train together: how they find each other, and what ends them when one is gone.

JAX's own `jax.distributed` connects them and finds out what a launcher says. It notices a lost
process too, but then aborts the others with a C++ stack trace, and has no way to ask for anything
else: its `missed_heartbeat_callback` aborts as well (an `absl::Status` cannot become Python's).
So each process watches, and is first to say in one line who is gone.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopax import processes as group
from loopax.errors import ConfigError, ProcessError

LOST, SUSPECT = 30, 10
"""After how many looks, one a second, a process without a sign of life is lost, as also a slow one
shows some; and once a run has failed in some process, which may be for want of another one."""
ENDING = 20
"""After how many looks at a process that ended by an error the others are ended too."""
TOLD_SECONDS = 10.0
"""In which process 0 still answers, so that all others come to know why they end."""
PROBE_SECONDS = 5.0
"""How long an attempt to reach process 0 may take."""
WITHOUT_END = 10**6
"""Seconds for which a process that is done waits for the others; one may still draw pictures."""
AGAIN = "start all processes again, and the run goes on from its last checkpoint"
IS_LOST = "is lost"
HINTS = {
    "SLURM_JOB_ID": "; in a job of SLURM start the program with srun",
    "OMPI_COMM_WORLD_SIZE": "; of Open MPI 5 JAX is told nothing, so give it "
    "$OMPI_COMM_WORLD_SIZE and $OMPI_COMM_WORLD_RANK",
    "KUBERNETES_SERVICE_HOST": "; in Kubernetes install 'jax[k8s]', or give $JOB_COMPLETION_INDEX",
}
"""What to do where a variable shows a launcher, and yet it does not tell."""
_ALIVE, _VERDICT = "loopax/alive/", "loopax/verdict"


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    patience: float = 300.0,
) -> None:
    """Makes this process one of several that train together; call it before JAX is used.

    What is left out JAX asks the launcher for: SLURM, Open MPI, Kubernetes (indexed jobs, with
    `pip install 'jax[k8s]'`) or Cloud TPU. From then on a process that is lost, or that failed,
    ends the others within a minute, with a line on standard error and status 9.

    It is a call of its own, and `fit` does not make it: JAX connects processes only before its
    first computation, and a program that was started many times need not mean one run.

    Args:
        coordinator: host and port on which process 0 can be reached, such as `node1:1234`.
        processes: how many there are.
        process: which one this is, from 0.
        patience: seconds to wait for all to come; after that this process ends, with status 9.

    Raises:
        ConfigError: it is not known which processes there are, an argument cannot be, or JAX was
            used already.
    """
    global _watch
    import jax

    _check(coordinator, processes, process)
    waiting = [
        _later(min(10.0, patience / 2), _tell_of_waiting),
        _later(patience, lambda: _end(_in_vain(patience))),
    ]
    try:
        with warnings.catch_warnings():  # of a client of Kubernetes, which nobody asked for
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=int(patience) + 60,
                shutdown_timeout_seconds=WITHOUT_END,
            )
    except Exception as error:  # whatever a launcher's variables, or its client, make of it
        raise ConfigError(_why_not(error)) from error
    finally:
        for timer in waiting:
            timer.cancel()
    _watch = _Watch()
    _watch.begin()


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Whether these can be, as far as this process can see.

    Raises:
        ConfigError: one of them cannot.
    """
    name = "coordinator"
    if coordinator is None and (told := os.environ.get("JAX_COORDINATOR_ADDRESS")):
        name, coordinator = "JAX_COORDINATOR_ADDRESS", told
    port = 0
    if coordinator is not None:
        found = re.fullmatch(r".+:(\d{1,5})", coordinator)
        port = int(found[1]) if found else 0
        if not 0 < port < 2**16:
            raise ConfigError(f"{name} is {coordinator!r}; it must be host:port, as in node1:1234")
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; it must be how many there are, 1 at least")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise ConfigError(
            f"process is {process}; of {processes} it must be one from 0 to {processes - 1}"
        )
    if process == 0 and port:
        try:
            # JAX would share it with another process 0, and one of the two be aborted.
            socket.create_server(("", port)).close()
        except OSError as error:
            raise ConfigError(
                f"{name} is {coordinator!r}, and port {port} is not free here: "
                f"{os.strerror(error.errno or 0)}; each process has a number of its own, and each "
                "run a port"
            ) from error


def _why_not(error: Exception) -> str:
    """In a line why processes could not be joined."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if "before any JAX calls" in said or "only be called once" in said:
        return "JAX was used already; call loopax.cluster.join() first of all"
    if isinstance(error, KeyError):
        return f"the processes could not be joined: the launcher has not set {error.args[0]}"
    if "defined" in said:
        hints = [hint for name, hint in HINTS.items() if name in os.environ]
        return (
            "no launcher tells which processes there are (SLURM, Open MPI, Kubernetes, "
            "Cloud TPU); give the coordinator as host:port, processes, and process from 0"
            + "".join(hints[:1])
        )
    return f"the processes could not be joined: {said}"


def _in_vain(patience: float) -> str:
    return (
        f"{_place()} waited {patience:g} s in vain for all {group.count()} to come to "
        f"{group.coordinator()}; each must be started, with a number of its own, and reach that "
        "host and port"
    )


def ended(error: BaseException) -> None:
    """Tells the others that this program ends by an error, so that they do not wait for it."""
    if _watch is not None:
        _watch.ended = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        _watch.status = getattr(error, "exit_code", 1)


class _Watch:
    """Shows signs of life of this process, and ends it when another one shows none any more.

    Process 0 looks at all the others and tells them what it saw; the others look at process 0.

    Attributes:
        ended: the error by which this program ends, in a line; empty while it goes on.
        status: that of the program then.
    """

    def __init__(self) -> None:
        self.ended, self.status = "", ProcessError.exit_code
        self._client: Any = group.client()
        self._is_leaving, self._beat = False, 0
        self._seen: dict[int, tuple[str, int]] = {}

    def begin(self) -> None:
        threads = [self._guard] if group.is_writer() else [self._listen, self._probe]
        for target in (*threads, self._speak_last):
            threading.Thread(target=target, name="loopax-watch", daemon=True).start()
        _delay_aborts()
        atexit.register(self._leave)
        sys.excepthook = _telling(sys.excepthook)

    def _leave(self) -> None:
        """The program is over. JAX still waits for the others, and so does the watch."""
        self._is_leaving = True

    def _beats(self) -> Iterator[None]:
        """Shows a sign of life once a second, until this process has left the others."""
        for self._beat in itertools.count():
            if group.client() is None:
                return
            # Of one that has ended the signs stay as they are.
            sign = [self.ended or str(self._beat), socket.gethostname(), bool(self.ended)]
            with suppress(Exception):  # what is wrong with process 0 is found by other means
                key = f"{_ALIVE}{group.index()}"
                self._client.key_value_set(key, json.dumps(sign), allow_overwrite=True)
            time.sleep(1)
            yield

    def _guard(self) -> None:
        """What process 0 does: finds who is lost or has ended, and tells all."""
        for _ in self._beats():
            with suppress(Exception):
                if line := self._wrong():
                    self._client.key_value_set(_VERDICT, line)
                    time.sleep(TOLD_SECONDS)
                    self._end(line)

    def _wrong(self) -> str:
        """Who shows no sign of life any more, or has ended while others go on, in words.

        Looks are counted and not seconds, so that nobody is lost when all stand still for a while.
        """
        patience = SUSPECT if group.failures() else LOST
        for key, found in self._client.key_value_dir_get(_ALIVE):
            process, (sign, host, has_ended) = int(key.rpartition("/")[2]), json.loads(found)
            before, looks = self._seen.get(process, ("", 0))
            looks = looks + 1 if sign == before else 0
            self._seen[process] = sign, looks
            if looks > (ENDING if has_ended else patience):
                how = f"ended: {sign}" if has_ended else IS_LOST
                return f"process {process} of {group.count()} on {host} {how}"
        return ""

    def _listen(self) -> None:
        """What the others do: hear what process 0 found."""
        for _ in self._beats():
            with suppress(Exception):  # there is nothing, or process 0 is gone
                self._end(self._client.key_value_try_get(_VERDICT))

    def _probe(self) -> None:
        """Ends this process when process 0 cannot be reached: then nobody could tell it so."""
        host, _, port = group.coordinator().rpartition(":")
        silent = 0.0
        while group.client() is not None:
            time.sleep(1)
            try:
                address = host.strip("[]"), int(port)
                socket.create_connection(address, timeout=PROBE_SECONDS).close()
                silent = 0.0
            except ConnectionRefusedError:  # its machine is there, and it is not
                silent += LOST / 2
            except OSError:
                silent += PROBE_SECONDS
            # At its end process 0 leaves first, and this one may be slow to follow.
            if silent >= LOST * (10 if self._is_leaving else 1):
                self._end(f"process 0 of {group.count()} on {host} {IS_LOST}")

    def _speak_last(self) -> None:
        """Ends this process before JAX aborts it, as it does where one of several starts anew.

        What asks JAX's service hangs meanwhile. Who finds out first that process 0 is gone says so.
        """
        looks = 0
        while group.client() is not None:
            before = self._beat
            time.sleep(1)
            looks = looks + 1 if self._beat == before and _is_aborting() else 0
            if looks > (0 if group.is_writer() else 3):
                self._end(f"JAX has ended {_place()}, for the reason that it gives above")

    def _end(self, line: str) -> None:
        """With what this program has said itself, if it has ended by an error of its own.

        Where another process is lost, its own error is but what came of that.
        """
        if self.ended and not line.endswith(IS_LOST):
            _end("", self.status)
        _end(f"{line}; {AGAIN}")


_watch: _Watch | None = None


def _place() -> str:
    return f"process {group.index()} of {group.count()}"


def _tell_of_waiting() -> None:
    print(f"loopax: {_place()} waits for the others at {group.coordinator()}", file=sys.stderr)


def _later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def _delay_aborts() -> None:
    """Gives the watch six seconds to speak before the abort of JAX's service ends this process.

    The handler of SIGABRT becomes C's `sleep`, whose argument is then the number of that signal: no
    Python could run in the thread that aborts.
    """
    c = ctypes.CDLL(None)
    c.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))


def _is_aborting() -> bool:
    """Whether a thread handles SIGABRT, which it alone has blocked meanwhile; only Linux tells."""
    blocked = f"SigBlk:\t{1 << (signal.SIGABRT - 1):016x}"
    found = False
    for task in Path("/proc/self/task").glob("*/status"):
        with suppress(OSError):  # the thread is gone
            found |= blocked in task.read_text()
    return found


def _telling(hook: Callable[..., Any]) -> Callable[..., Any]:
    """As `sys.excepthook`, and the others come to know of it."""

    def told(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        ended(error)
        hook(kind, error, trace)

    return told


def _end(line: str, status: int = ProcessError.exit_code) -> None:
    """Ends the process now: its main thread may be waiting for devices, and never come back."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if line:
        with suppress(OSError):
            os.write(2, f"loopax: {line}\n".encode())
    os._exit(status)
