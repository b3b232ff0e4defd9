"""One writer per run directory: a kernel lock, and a record of who holds it that shows a pulse."""

from __future__ import annotations

import datetime
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from loopax import files
from loopax.errors import RunDirError, RunInUseError, StorageError

BEAT_SECONDS = 5.0
"""Between two signs of life in the holder's record."""
PATIENCE_SECONDS = 16.0
"""How long a record must stand still before its holder counts as dead; three beats and some."""
NO_KERNEL_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
NOBODY_KNOWN = "another process (holder.json does not say which)"


@dataclass(frozen=True)
class Holder:
    """Who writes in a run directory; `token` is its own, and only `beat` ever changes."""

    host: str
    boot: str | None
    pid: int
    since: str
    token: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        boot = None
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), boot, os.getpid(), now, secrets.token_hex(8))

    @classmethod
    def parse(cls, record: bytes | None) -> Holder | None:
        try:
            return cls(**json.loads(record or b""))
        except (ValueError, TypeError):
            return None

    def record(self, beat: int) -> str:
        return json.dumps({**asdict(self), "beat": beat}) + "\n"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """Holds `directory` while it is entered, and tells through `say` whom it took it over from.

    The kernel lock on the file `lock` ends with its process. It decides alone when the holder named
    in `holder.json` ran under the same boot of the same host: then it is gone. Anything else, such
    as another host on a shared disk, a file system without kernel locks, or a damaged record, is
    decided by watching: neither clocks nor process numbers mean anything there, but a living holder
    changes its record every `BEAT_SECONDS`, and one that stands still for `PATIENCE_SECONDS` is
    taken over. A holder that was only suspended finds the record to be another's, and `check` says
    so before it can save.

    Of several that take over at the same time, the kernel lock lets one through. Where it does not
    reach, the last to write its record wins, or in a close race none: each looks a moment later
    whether the record is still its own, and again with each beat. Only one that stood still for
    longer than that moment between its look and its write lets two train, until the next beat.

    A forked child holds nothing: its copy of the kernel lock is closed at the fork, so that data
    workers that outlive their trainer do not keep the directory locked; leaving the block there
    releases nothing, and `check` raises.

    Raises:
        RunInUseError: another process holds the directory, or this one does already.
        RunDirError: nothing can be locked or written there.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory, self._say = directory, say
        self._file = directory / "holder.json"

    def __enter__(self) -> RunLock:
        # Not thread-local: a generator may be closed, and so leave, in another thread.
        lock = FileLock(
            self._directory / "lock", blocking=False, thread_local=False, fallback_to_soft=False
        )
        with ExitStack() as undo:
            undo.callback(lock.release)
            try:
                self._opened = os.open(self._directory, os.O_RDONLY)
                undo.callback(os.close, self._opened)
                self._take(_acquired(lock))
            except (Timeout, FileNotFoundError) as error:
                # Not found is a record that another, writing its own, moved away.
                raise self._in_use("is in use by") from error
            except OSError as error:
                raise RunDirError(
                    f"{self._directory}: cannot be locked ({error.strerror or error}); "
                    "name another run directory"
                ) from error
            self._undo = undo.pop_all()
        self._looked = time.monotonic()
        self._left = threading.Event()
        self._pulse = threading.Thread(target=self._keep_beating, daemon=True)
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder.pid != os.getpid():
            return
        with self._undo:
            self._left.set()
            self._pulse.join()
            with suppress(OSError):
                if self._is_mine(self._read()):
                    self._file.unlink()

    def check(self) -> None:
        """Raises when the directory is no longer held, as after a long suspension; cheap.

        Raises:
            RunInUseError: another process has taken the directory over.
            StorageError: the directory was removed or moved away.
        """
        if not self._is_there():
            raise StorageError(
                f"{self._directory}: cannot be written (it was removed or moved while the run "
                "went on); leave it where it is until the run has ended"
            )
        held = self._holder.pid == os.getpid()
        # After a suspension this thread may run before the one that beats.
        if held and time.monotonic() - self._looked > 2 * BEAT_SECONDS:
            self._beat()
        if self._lost or not held:
            raise self._in_use("this process stood still too long, and the run was taken over by")

    def _take(self, exclusive: bool) -> None:
        """Makes the record this process's own, once its holder is known to be gone."""
        me, found = Holder.here(), self._read()
        left = Holder.parse(found)
        seen = left is not None and (left.host, left.boot) == (me.host, me.boot)
        certain = exclusive and (found is None or seen)
        if found is not None and certain:
            self._say(f"{self._directory}: was left by {left}, which is gone; taken over")
        elif found is not None:
            self._watch(found)
        self._holder, self._beats, self._lost = me, 0, False
        files.write_text(self._file, me.record(0))
        if not certain:
            time.sleep(BEAT_SECONDS / 5)
            if not self._is_mine(self._read()):
                raise self._in_use("is in use by")

    def _watch(self, found: bytes) -> None:
        """Returns when the holder let go, or showed no sign of life for `PATIENCE_SECONDS`."""
        holder = Holder.parse(found) or NOBODY_KNOWN
        self._say(
            f"{self._directory}: was left by {holder}, which cannot be seen from here; "
            f"waiting {PATIENCE_SECONDS:g} s for a sign of life"
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 5)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._in_use("is in use by")
        self._say(f"{self._directory}: no sign of life; taken over")

    def _keep_beating(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        """One more beat, in place: nothing is created or synced, and closing shows it to NFS.

        Looked at and written through one opening, it can never overwrite the record of another,
        which comes as a new file. What fails is tried again with the next beat.
        """
        try:
            with self._file.open("r+b", buffering=0) as file:
                self._lost = not self._is_mine(file.read())
                if not self._lost:
                    self._beats += 1
                    file.seek(0)
                    file.write(self._holder.record(self._beats).encode())
            self._looked = time.monotonic()
        except FileNotFoundError:
            # Whoever took over may have finished since. A directory that is gone is another fault.
            self._lost = self._is_there()
        except OSError:
            pass

    def _is_there(self) -> bool:
        """Whether the directory's path still leads to what was locked, not to a later one."""
        try:
            return os.path.samestat(os.stat(self._directory), os.fstat(self._opened))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # which a network may say of anything; what is written next will tell

    def _is_mine(self, record: bytes | None) -> bool:
        return record is not None and self._holder.token.encode() in record

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None

    def _in_use(self, how: str) -> RunInUseError:
        holder = None
        with suppress(OSError):
            holder = Holder.parse(self._read())
        return RunInUseError(
            f"{self._directory}: {how} {holder or NOBODY_KNOWN}; "
            "wait for it, stop it, or name another run directory"
        )


def _acquired(lock: FileLock) -> bool:
    """Whether the kernel lock is held now; False where the file system has none.

    Raises:
        Timeout: another holds it.
    """
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_KERNEL_LOCKS:
            raise
        return False
    return True
