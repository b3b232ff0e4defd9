"""Texts as they come, and what a classifier says of each, without waiting for more of them."""

from __future__ import annotations

import csv
import io
import json
import os
import select
import sys
from collections import deque
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

BLOCK = 2**16
"""Bytes read at once: what a pipe holds."""
MAX_LINE = 2**26
"""Bytes of a line; beyond this it is taken for something else than text."""
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
    columns = columns_of(trained)
    if format == "csv":
        texts = ["text"] if len(columns) == 1 else ["text_1", "text_2"]
        each = [f"probability_{name}" for name in trained.class_names]
        yield _csv_line([*texts, "label", "probability", *each])
    write = {"text": _as_text, "jsonl": _as_json, "csv": _as_csv}[format]
    for rows in groups:
        if not rows:
            continue
        size = 1  # A text alone must not pay for a batch, nor each number of texts be compiled for.
        while size < len(rows):
            size *= FEWER
        found = trained.probabilities(rows, batch_size=min(size, batch_size))
        yield "".join(
            write(row, each, trained.class_names) for row, each in zip(rows, found, strict=True)
        )


def columns_of(trained: TrainedClassifier) -> tuple[str, ...]:
    """The column of the texts that a run was trained on, or the two of pairs."""
    return trained.columns.text


def rows_from_file(trained: TrainedClassifier, path: Path, size: int) -> Iterator[Sequence[Row]]:
    """The rows of a table, or of a `.txt` with one on each line, up to `size` at a time.

    Raises:
        DataError: it is damaged, or has texts where the run was trained on pairs.
    """
    columns = columns_of(trained)
    if path.suffix.lower() == ".txt":
        try:
            file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        with file:
            lines = lines_from(file.fileno(), size)
            yield from rows_from_lines(lines, len(columns), f"{path}: line")
        return
    texts = read_texts(path, text=columns, labelled=False)
    if len(texts.columns.text) != len(columns):
        raise DataError(
            f"{path}: holds {_kind(len(texts.columns.text))}, in {', '.join(texts.columns.text)}; "
            f"this run was trained on {_kind(len(columns))}, in {', '.join(columns)}"
        )
    for note in texts.notes:  # Such as that there are fewer rows than lines, and so answers.
        print(f"{path}: {note}", file=sys.stderr)
    for first in range(0, len(texts), size):
        yield texts.rows[first : first + size]


def lines_from(descriptor: int, size: int) -> Iterator[Sequence[bytes]]:
    """The lines of a file, a pipe or a terminal, without their ends.

    They come up to `size` at a time, and fewer where more would have to be waited for. What is
    behind the last end of a line is a line if there is anything.
    """
    lines: deque[bytes] = deque()
    rest = bytearray()
    while block := os.read(descriptor, BLOCK):
        *whole, last = block.split(b"\n")
        if whole:
            lines.extend([bytes(rest) + whole[0], *whole[1:]])
            rest = bytearray()
        rest += last
        if len(rest) > MAX_LINE:
            raise DataError(f"a line of the input is longer than {MAX_LINE:,} bytes; is it text?")
        while len(lines) >= size or (lines and not _is_ready(descriptor)):
            yield [lines.popleft() for _ in range(min(size, len(lines)))]
    lines.extend([bytes(rest)] if rest else [])
    while lines:
        yield [lines.popleft() for _ in range(min(size, len(lines)))]


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


def _is_ready(descriptor: int) -> bool:
    """Whether there is something to read, or the end."""
    return bool(select.select([descriptor], [], [], 0)[0])


def _row(line: bytes, width: int, where: str) -> Row:
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}; "
            "save the texts as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{where} holds a NUL character, as UTF-16 does; save the texts as UTF-8")
    if "\r" in text:
        raise DataError(
            f"{where} holds a carriage return, which some programs end lines with; end them "
            "with a line feed"
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


def _as_text(row: Row, probabilities: Float[np.ndarray, " classes"], names: Sequence[str]) -> str:
    best = int(probabilities.argmax())
    # What a cell of a table holds may have several lines, which would be taken for several texts.
    texts = (" ".join(text.splitlines()) for text in row)
    return "\t".join([names[best], f"{probabilities[best]:.4f}", *texts]) + "\n"


def _as_json(row: Row, probabilities: Float[np.ndarray, " classes"], names: Sequence[str]) -> str:
    each = {name: _rounded(value) for name, value in zip(names, probabilities, strict=True)}
    best = names[int(probabilities.argmax())]
    answer: dict[str, Any] = {
        "text": row[0] if len(row) == 1 else list(row),
        "label": best,
        "probability": each[best],
        "probabilities": each,
    }
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _as_csv(row: Row, probabilities: Float[np.ndarray, " classes"], names: Sequence[str]) -> str:
    each = [_rounded(value) for value in probabilities]
    best = int(probabilities.argmax())
    return _csv_line([*row, names[best], each[best], *each])


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _rounded(value: Any) -> float:
    """As many digits as float32 is sure of."""
    return float(f"{value:.6g}")


def _kind(width: int) -> str:
    return "single texts" if width == 1 else "pairs of texts"
