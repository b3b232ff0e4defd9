"""Texts as they come, and what a classifier says of each, without waiting for more of them."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from loopax.data import read_texts
from loopax.errors import DataError
from loopax.recipes.bert.trained import TrainedClassifier

Format = Literal["text", "jsonl", "csv"]
Row = tuple[str, ...]
"""A text, or a pair of them."""
Probabilities = Float[np.ndarray, " classes"]

BLOCK = 2**16
"""Bytes read at once: what a pipe holds."""
FEWER = 8
"""By this factor the batches differ for which the model is compiled."""


def answers(
    trained: TrainedClassifier, groups: Iterable[Sequence[Row]], format: Format, batch_size: int
) -> Iterator[str]:
    """What is printed: the head of the format, then the lines for each group of rows.

    Args:
        trained: the classifier.
        groups: of at most `batch_size` rows each; an answer does not wait for the next group.
        format: `text` is class, probability and text in a line, with tabs between; `jsonl` and
            `csv` have the probability of each class.
        batch_size: rows that the model is given at once.
    """
    names = trained.class_names
    if format == "csv":
        texts = ["text"] if len(trained.columns.text) == 1 else ["text_1", "text_2"]
        each = [f"probability_{name}" for name in names]
        yield _csv_line([*texts, "label", "probability", *each])
    write = {"text": _as_text, "jsonl": _as_json, "csv": _as_csv}[format]
    for rows in groups:
        if not rows:
            continue
        size = 1  # A text alone must not pay for a batch, nor each number of texts be compiled for.
        while size < len(rows):
            size *= FEWER
        found = trained.probabilities(rows, batch_size=min(size, batch_size))
        answered = zip(rows, found, found.argmax(-1).tolist(), strict=True)
        yield "".join(write(row, names[best], best, each, names) for row, each, best in answered)


def rows_from_file(trained: TrainedClassifier, path: Path, size: int) -> Iterator[Sequence[Row]]:
    """The rows of a table, or of a `.txt` with one on each line, up to `size` at a time.

    Raises:
        DataError: it is damaged, or lacks a column that the run was trained on.
    """
    columns = trained.columns.text
    if path.suffix.lower() == ".txt":
        try:
            file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        with file:
            yield from rows_from_lines(
                lines_from(file.fileno(), size), len(columns), f"{path}: line"
            )
        return
    texts = read_texts(path, text=columns, labelled=False)
    for note in texts.notes:  # Such as that there are fewer rows than lines, and so answers.
        print(f"{path}: {note}", file=sys.stderr)
    for first in range(0, len(texts), size):
        yield texts.rows[first : first + size]


def lines_from(descriptor: int, size: int) -> Iterator[Sequence[bytes]]:
    """The lines of a file, a pipe or a terminal, without their ends, up to `size` at a time.

    What is there is given before more is waited for. What is behind the last end of a line is a
    line if there is anything.
    """
    rest = b""
    while block := os.read(descriptor, BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for first in range(0, len(lines), size):
            yield lines[first : first + size]
    if rest:
        yield [rest]


def rows_from_lines(
    groups: Iterable[Sequence[bytes]], width: int, name: str
) -> Iterator[Sequence[Row]]:
    """Lines of UTF-8 as rows of `width` texts, between which there is a tab.

    A line that is empty is an empty text: the nth answer is of the nth line.

    Raises:
        DataError: a line, which is told by `name` and its number, is no such row; what came before
            it was given.
    """
    number = 0
    for lines in groups:
        rows: list[Row] = []
        try:
            for line in lines:
                number += 1
                rows.append(_row(line, width, f"{name} {number}"))
        except DataError:
            yield rows
            raise
        yield rows


def _row(line: bytes, width: int, where: str) -> Row:
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}; "
            "save the texts as UTF-8"
        ) from error
    if found := {"\0", "\r"} & {*text}:
        raise DataError(
            f"{where} holds {min(found)!a}; save the texts as UTF-8, with a line feed behind each"
        )
    if width == 1:
        return (text,)
    pair = tuple(text.split("\t"))
    if len(pair) != width:
        raise DataError(
            f"{where} has {len(pair) - 1} tabs; this run was trained on pairs, so it must be two "
            "texts with a tab between them"
        )
    return pair


def _as_text(row: Row, label: str, best: int, each: Probabilities, names: Sequence[str]) -> str:
    # What a cell of a table holds may have several lines, which would be taken for several texts.
    texts = (" ".join(text.splitlines()) for text in row)
    return "\t".join([label, f"{each[best]:.4f}", *texts]) + "\n"


def _as_json(row: Row, label: str, best: int, each: Probabilities, names: Sequence[str]) -> str:
    answer = {
        "text": row[0] if len(row) == 1 else list(row),
        "label": label,
        "probability": _rounded(each[best]),
        "probabilities": dict(zip(names, map(_rounded, each), strict=True)),
    }
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _as_csv(row: Row, label: str, best: int, each: Probabilities, names: Sequence[str]) -> str:
    return _csv_line([*row, label, _rounded(each[best]), *map(_rounded, each)])


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _rounded(value: Any) -> float:
    """As many digits as float32 is sure of."""
    return float(f"{value:.6g}")
