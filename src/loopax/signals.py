"""A first SIGINT, SIGTERM or SIGHUP asks the loop to end; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Asked from a keyboard, by a scheduler, and by a terminal that is closed."""


class PoliteStop:
    """While it is entered, a first signal sets `received`, and a second one of either kind exits.

    Signals are for the process, so where several are active each of them receives the first, in
    whatever order they end; the innermost announces it. The second ends the process with status
    128 plus its number, whatever the main thread is doing, as long as that does not hold the GIL:
    compilations and reads from a device do not. Signals that are ignored (`nohup`), or are handled
    outside Python, stay so. Entered anywhere but in the main thread, nothing happens. A forked
    child is as if nothing had been entered.

    In a notebook or at a prompt a second Ctrl-C raises `KeyboardInterrupt` instead: it must not end
    the interpreter with all that it holds.

    A signal that comes after the last look at `received` is still there to see after the block.

    Args:
        announce: told what the first signal does, from a thread of its own, so that one which
            waits for its turn to print does not hold up the second signal.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.received: signal.Signals | None = None
        self._announce = announce

    def __enter__(self) -> PoliteStop:
        global _undo
        self.received = None
        if threading.current_thread() is threading.main_thread():
            if not _active:
                _undo = _listen()
            _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in _active:
            try:
                # A signal that has just come is still to be announced by this one.
                if _active == [self]:
                    _undo.close()
            finally:
                _active.remove(self)

    def pass_on(self) -> None:
        """After the block: sends what was received and not answered to whoever handles it now."""
        if self.received is not None and not _active:
            signal.raise_signal(self.received)


_active: list[PoliteStop] = []
_undo = ExitStack()


def is_interactive() -> bool:
    """Whether a person talks to this interpreter: a prompt, IPython, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def _listen() -> ExitStack:
    """Handles the signals until what is returned is closed."""
    with ExitStack() as undo:
        inbox, outbox = (undo.enter_context(end) for end in socket.socketpair())
        outbox.setblocking(False)
        # Python handlers wait until the main thread is back from C; this socket is written to by
        # the C handler itself, once for every signal, and that wakes the watcher.
        previous = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        handled: list[int] = []
        _heard.clear()
        watcher = threading.Thread(target=_watch, args=(inbox, handled, previous), daemon=True)
        watcher.start()
        undo.callback(_end, watcher, outbox, os.getpid())
        undo.callback(signal.set_wakeup_fd, previous)
        for number in POLITE:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                handled.append(number)
                undo.callback(signal.signal, number, handler)
                signal.signal(number, _handle)
        return undo.pop_all()


_heard: list[int] = []
"""What the main thread has handled since it began to listen."""


def _handle(number: int, _: FrameType | None = None) -> None:
    """The Python handler: the main thread sees at once a signal that it sent to itself."""
    _note(number)
    _heard.append(number)
    if number == signal.SIGINT and len(_heard) > 1 and is_interactive():
        raise KeyboardInterrupt


def _note(number: int) -> None:
    for stop in _active:
        stop.received = stop.received or signal.Signals(number)


def _watch(inbox: socket.socket, handled: list[int], previous: int) -> None:
    teller = None
    while number := inbox.recv(1)[0]:
        if number not in handled:
            # Whoever listened before, such as asyncio, is still to hear of the other signals.
            with suppress(OSError):
                os.write(previous, bytes([number]))
        elif teller:
            if number != signal.SIGINT or not is_interactive():
                os._exit(128 + number)
        else:
            _note(number)
            teller = threading.Thread(target=_tell, args=(number,), daemon=True)
            teller.start()
    if teller:
        teller.join(timeout=1)


def _tell(number: int) -> None:
    with suppress(Exception):
        name = signal.Signals(number).name
        _active[-1]._announce(f"{name}: finishing the chunk and saving; once more stops at once")


def _end(watcher: threading.Thread, outbox: socket.socket, owner: int) -> None:
    """Not by closing the socket: a forked child may still hold a copy of it."""
    if os.getpid() == owner:
        outbox.send(b"\0")
        watcher.join()


def _forget() -> None:
    """In a forked child, whose signals the parent's watcher would take for its own."""
    if _active:
        _undo.close()
        _active.clear()


os.register_at_fork(after_in_child=_forget)
