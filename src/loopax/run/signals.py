"""A first SIGINT, SIGTERM or SIGHUP asks the loop to end; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from loopax.errors import ConfigError

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Asked from a keyboard, by a scheduler, and by a terminal that is closed."""


def handles_signals(wanted: bool | None = None) -> bool:
    """Whether a run handles signals; by default only in the main thread of a script.

    In a notebook and at a prompt Ctrl-C stays a `KeyboardInterrupt`.

    Raises:
        ConfigError: it is wanted in a thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if wanted and not is_main:
        raise ConfigError("signals is True in a thread; only the main thread can handle them")
    return is_main and not is_interactive() if wanted is None else wanted


def is_interactive() -> bool:
    """Whether a person talks to this interpreter: a prompt, IPython, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None or hasattr(sys, "ps1") or bool(sys.flags.interactive)


class PoliteStop:
    """While it is entered, a first signal sets `received`, and a second one ends the process.

    The second one finds the kernel's own handlers, and so needs no help of the main thread; at a
    prompt it finds those from before. Signals that come during a call that never returns to Python,
    such as a compilation, are one signal, which counts when it is over. Of several that are entered
    the last one answers. Signals that are ignored (`nohup`) or handled outside Python stay so.

    Args:
        announce: is told what the first signal does, in a thread of its own: the main thread may be
            in the middle of printing.
        wanted: as for `handles_signals`.
    """

    def __init__(self, announce: Callable[[str], None], wanted: bool | None = None) -> None:
        self.received: signal.Signals | None = None
        self._announce, self._wanted = announce, wanted
        self._handlers: dict[int, Any] = {}
        self._process: int | None = None

    def __enter__(self) -> PoliteStop:
        self.received, self._process = None, os.getpid()
        self._teller = threading.Thread(target=self._tell, daemon=True)
        if handles_signals(self._wanted):
            handlers = {number: signal.getsignal(number) for number in POLITE}
            known = (n for n in POLITE if handlers[n] not in (signal.SIG_IGN, None))
            self._handlers = {number: handlers[number] for number in known}
            for number in self._handlers:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._process = None
        if self._teller.is_alive():
            self._teller.join(timeout=1)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                # One that was entered later and is still there comes first.
                if signal.getsignal(number) in (self._handle, signal.SIG_DFL):
                    signal.signal(number, handler)

    def take_over(self, number: int) -> None:
        """Ends as after a signal that another process of the run was sent."""
        self.received = self.received or signal.Signals(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, or left in another order or thread
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
            return
        is_first, self.received = self.received is None, signal.Signals(number)
        for each, handler in self._handlers.items():
            signal.signal(each, handler if is_interactive() else signal.SIG_DFL)
        if is_first:
            self._teller.start()

    def _tell(self) -> None:
        assert self.received is not None
        with suppress(Exception):
            self._announce(
                f"{self.received.name}: finishing the chunk and saving; once more stops at once"
            )
