"""One writer per run directory: a kernel lock, and a record of who holds it that shows a pulse.

Ours and not `filelock.SoftFileLease`: that one takes a process for dead when its number is not
found on a host of the same name, as another machine's or another container's may be.
"""

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

from loopax.errors import RunDirError, RunInUseError, StorageError
from loopax.files import write_text

BEAT_SECONDS = 5.0
"""Between two signs of life in the holder's record."""
PATIENCE_SECONDS = 16.0
"""How long a record must stand still before its holder counts as dead; three beats and some."""
NO_KERNEL_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
UNKNOWN = "another process (holder.json does not say which)"


@dataclass(frozen=True)
class Holder:
    """Who writes in a run directory: `token` is its own, and only `beat` ever changes."""

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

    def record(self, beat: int = 0) -> str:
        return json.dumps({**asdict(self), "beat": beat}) + "\n"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """Holds `directory` while it is entered, and tells through `say` whom it took it over from.

    The kernel lock on the file `lock` ends with its process, and decides alone when the holder in
    `holder.json` ran under the same boot of the same host. Any other record (another host on a
    shared disk, a file system without kernel locks, damage) is watched: a living holder changes it
    every `BEAT_SECONDS`, and one that stands still for `PATIENCE_SECONDS` is taken over. A holder
    that was only suspended then fails in `check`, before it can save. Of several that take over
    where no kernel lock reaches, the last to write its record wins.

    A forked child holds nothing.

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
        self._left = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder.pid != os.getpid():
            return
        with self._undo:
            self._left.set()
            self._pulse.join()
            with suppress(OSError):
                if self._is_mine():
                    self._file.unlink()

    def check(self) -> None:
        """Raises when the directory is no longer held, as after a long suspension; cheap.

        Raises:
            RunInUseError: another process has taken the directory over.
            StorageError: the directory was removed or moved away.
        """
        if not self._directory.is_dir():
            raise StorageError(
                f"{self._directory}: cannot be written (it was removed or moved while the run "
                "went on); leave it where it is until the run has ended"
            )
        if self._holder.pid != os.getpid() or not self._is_mine():
            raise self._in_use("this process stood still too long, and the run was taken over by")

    def _take(self, exclusive: bool) -> None:
        """Writes a record of this process, once the holder of the one found is known to be gone."""
        me, found = Holder.here(), self._read()
        left = Holder.parse(found)
        is_seen = left is not None and (left.host, left.boot) == (me.host, me.boot)
        certain = exclusive and (found is None or is_seen)
        if found is not None and certain:
            self._say(f"{self._directory}: was left by {left}, which is gone; taken over")
        elif found is not None:
            self._watch(found)
        write_text(self._file, me.record())
        self._holder = me
        if not certain:
            time.sleep(BEAT_SECONDS / 5)
            if not self._is_mine():
                raise self._in_use("is in use by")

    def _watch(self, found: bytes) -> None:
        """Returns when the holder let go, or showed no sign of life for `PATIENCE_SECONDS`."""
        holder = Holder.parse(found) or UNKNOWN
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

    def _beat(self) -> None:
        """Shows signs of life, in place: closing the file shows them to NFS.

        Read and written through one opening, it can never overwrite the record of another, which
        comes as a new file. What fails is tried again with the next beat.
        """
        beat = 0
        while not self._left.wait(BEAT_SECONDS):
            with suppress(OSError), self._file.open("r+b", buffering=0) as file:
                if self._holder.token.encode() in file.read():
                    beat += 1
                    file.seek(0)
                    file.write(self._holder.record(beat).encode())

    def _is_mine(self) -> bool:
        try:
            found = self._read()
        except OSError:
            return True  # which a network may say of anything; what is written next will tell
        return found is not None and self._holder.token.encode() in found

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
            f"{self._directory}: {how} {holder or UNKNOWN}; "
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
