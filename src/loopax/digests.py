"""A digest of every file of a checkpoint, in the form that `sha256sum --check` reads."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from loopax.files import sync_tree

NAME = "SHA256SUMS"


def seal(directory: Path) -> None:
    """Records the digest of every file below `directory`, and puts all of it on the disk itself."""
    digests = {name: _digest(directory / name) for name in _files(directory)}
    (directory / NAME).write_text(_written(digests))
    sync_tree(directory)


def damage(directory: Path) -> list[str]:
    """What is no longer as it was sealed, in words that name each file; nothing when all is well.

    The names in the list of digests are compared with what lies there and never opened.
    """
    if directory.is_symlink() or not directory.is_dir():
        return ["it is not a directory of its own"]
    if (directory / NAME).is_symlink() or not (directory / NAME).is_file():
        return [f"{NAME} is missing, or not a file of its own"]
    try:
        text = (directory / NAME).read_text()
    except (OSError, UnicodeDecodeError):
        return [f"{NAME} cannot be read"]
    lines = (re.fullmatch(r"(\w{64})  (.+)", line) for line in text.splitlines())
    sealed = {line[2]: line[1] for line in lines if line}
    if text != _written(sealed):
        return [f"{NAME} is damaged"]
    found = _files(directory)
    return [
        *(f"{name} is missing" for name in sorted(sealed.keys() - found)),
        *(f"{name!r} does not belong there" for name in sorted(found - sealed.keys())),
        *filter(
            None, (_difference(directory / n, n, sealed[n]) for n in sorted(found & sealed.keys()))
        ),
    ]


def stamp(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a directory: alike as long as nobody wrote there."""
    found = {}
    for name in [*_files(directory), NAME]:
        with suppress(OSError):
            status = (directory / name).lstat()
            found[name] = status.st_size, status.st_mtime_ns
    return found


def _difference(path: Path, name: str, digest: str) -> str | None:
    if path.is_symlink() or not path.is_file():
        return f"{name} is not a file of its own"
    try:
        return None if _digest(path) == digest else f"{name} is not as it was saved"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _files(directory: Path) -> set[str]:
    """Everything below `directory` but its folders; links are not followed."""
    found = set()
    for folder, folders, names in os.walk(directory):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *linked]:
            found.add((Path(folder) / name).relative_to(directory).as_posix())
    return found - {NAME}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(digests: dict[str, str]) -> str:
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
