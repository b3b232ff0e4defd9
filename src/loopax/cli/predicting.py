"""The command that classifies texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from loopax.cli.parsing import parse, recipe_of
from loopax.errors import ConfigError


@dataclass(frozen=True)
class Predict:
    """Classify texts with a fine-tuned run: those given, those of a file, or standard input.

    Standard input has a text on each line, and each is answered as it comes. Of a run that was
    trained on pairs a line is two texts with a tab between them. An empty line is an empty text
    and is answered like any other, so that answers line up with lines.
    """

    run: Positional[Path]
    """The run directory."""
    texts: Positional[tuple[str, ...]] = ()
    """The texts; standard input when there are none, and no file."""
    file: Path | None = None
    """A table with the columns that the run was trained on, or a .txt with a text on each line."""
    checkpoint: str = "best"
    """best, latest, or the number of a step."""
    format: Literal["text", "jsonl", "csv"] = "text"
    """text: class, probability and text, with tabs between; the others tell of each class."""
    batch_size: int = 64
    """Texts that are classified at once, at most."""


def predict(words: list[str]) -> int:
    """`loopax predict RUN`."""
    command = parse(Predict, words, "loopax predict")
    if command.texts and command.file is not None:
        raise ConfigError("give texts or --file, not both")
    if command.batch_size < 1:
        raise ConfigError(f"--batch-size is {command.batch_size}; it must be at least 1")
    if sys.stdout is None:
        raise ConfigError("standard output is closed; there is nowhere to write answers to")
    recipe = recipe_of(command.run, "bert")
    from loopax.caches import keep_compiled
    from loopax.recipes.bert.predicting import answers

    keep_compiled()
    try:
        trained = recipe.load(command.run, command.checkpoint)
        rows = _rows(command, trained)
        for lines in answers(trained, rows, command.format, command.batch_size):
            sys.stdout.buffer.write(lines.encode())
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        print("loopax: stopped", file=sys.stderr)
        return 130
    return 0


def _rows(command: Predict, trained: Any) -> Iterator[Sequence[tuple[str, ...]]]:
    from loopax.recipes.bert import predicting

    size, width = command.batch_size, len(predicting.columns_of(trained))
    if command.file is not None:
        return predicting.rows_from_file(trained, command.file, size)
    if command.texts:
        given = [os.fsencode(text) for text in command.texts]
        groups = (given[first : first + size] for first in range(0, len(given), size))
        return predicting.rows_from_lines(groups, width, "text")
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give texts or --file")
    if sys.stdin.isatty():
        print("One text a line, please; Ctrl-D ends.", file=sys.stderr)
    lines = predicting.lines_from(sys.stdin.fileno(), size)
    return predicting.rows_from_lines(lines, width, "standard input: line")
