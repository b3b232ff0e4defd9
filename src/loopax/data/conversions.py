"""From the files of a package to those that are kept: a tidy table, or a folder of weights."""

from __future__ import annotations

import bz2
import csv
import io
from collections.abc import Iterable, Mapping

from loopax.data.mail import text_of_mail

Files = Mapping[str, bytes]


def films(files: Files) -> Files:
    """Sentences on films: text, label and movie, each text once; summaries of plots left out."""
    (packed,) = files.values()
    corpus = io.StringIO(bz2.decompress(packed).decode(), newline="")
    rows: dict[str, tuple[str, str, str]] = {}
    for row in csv.DictReader(corpus):
        if row["category"] != "plot" and (text := row["text"].strip()):
            rows.setdefault(text, (text, row["category"], row["movie_name"]))
    return {"data.csv": _csv(("text", "label", "movie"), rows.values())}


def mails(files: Files) -> Files:
    """Mails, of which the folder says what they are: text and label, each text once."""
    rows: dict[str, tuple[str, str]] = {}
    for name in sorted(files):
        label = "spam" if "spam" in name.split("/")[-2] else "ham"
        if text := text_of_mail(files[name]):
            rows.setdefault(text, (text, label))
    return {"data.csv": _csv(("text", "label"), rows.values())}


def weights(files: Files) -> Files:
    """The files of a model as they are, without the folders around them."""
    return {name.rpartition("/")[2]: content for name, content in files.items()}


def _csv(header: Iterable[str], rows: Iterable[Iterable[str]]) -> bytes:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    return table.getvalue().encode()
