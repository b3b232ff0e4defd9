"""What fine-tuning adds to the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import Positional

from loopax.errors import ConfigError
from loopax.recipe import Evaluate, OfRun, Recipe
from loopax.recipes import bert


@dataclass(frozen=True)
class EvaluateBERT(Evaluate):
    """Measure a fine-tuned classifier on texts that it was not trained on, class by class."""

    data: Path | None = None
    """A table with labels; the run's own test texts when left out."""

    def measured(self, recipe: Recipe) -> tuple[bert.TrainedClassifier, Mapping[str, Any]]:
        trained = bert.load(self.run, self.checkpoint)
        texts = None if self.data is None else bert.texts_like(trained, self.data)
        return trained, bert.evaluate(trained, texts=texts)


@dataclass(frozen=True)
class Predict(OfRun):
    """Classify texts with a fine-tuned run.

    The texts given, those of a file, or those of standard input, which has one on each line and
    each is answered as it comes. Of a run that was trained on pairs a line is two texts with a tab
    between them. An empty line is an empty text and is answered like any other, so that answers
    line up with lines.
    """

    is_ended_by_ctrl_c: ClassVar = True

    texts: Positional[tuple[str, ...]] = ()
    """The texts; standard input when there are none, and no file."""
    file: Path | None = None
    """A table with the columns that the run was trained on, or a .txt with a text on each line."""
    format: Literal["text", "jsonl", "csv"] = "text"
    """text: class, probability and text, with tabs between; the others tell of each class."""
    batch_size: int = 64
    """Texts that are classified at once, at most."""

    def __call__(self, recipe: Recipe) -> int:
        if self.texts and self.file is not None:
            raise ConfigError("give texts or --file, not both")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size is {self.batch_size}; it must be at least 1")
        if sys.stdout is None:
            raise ConfigError("standard output is closed; there is nowhere to write answers to")
        from loopax.recipes.bert.predicting import answers

        try:
            trained = bert.load(self.run, self.checkpoint)
            for lines in answers(trained, self._rows(trained), self.format, self.batch_size):
                sys.stdout.buffer.write(lines.encode())
                sys.stdout.buffer.flush()
        except KeyboardInterrupt:
            print("loopax: stopped", file=sys.stderr)
            return 130
        return 0

    def _rows(self, trained: bert.TrainedClassifier) -> Iterator[Sequence[tuple[str, ...]]]:
        from loopax.recipes.bert import predicting

        size, width = self.batch_size, len(trained.columns.text)
        if self.file is not None:
            return predicting.rows_from_file(trained, self.file, size)
        if self.texts:
            given = [os.fsencode(text) for text in self.texts]
            groups = (given[first : first + size] for first in range(0, len(given), size))
            return predicting.rows_from_lines(groups, width, "text")
        if sys.stdin is None:
            raise ConfigError("standard input is closed; give texts or --file")
        if sys.stdin.isatty():
            print("One text a line, please; Ctrl-D ends.", file=sys.stderr)
        lines = predicting.lines_from(sys.stdin.fileno(), size)
        return predicting.rows_from_lines(lines, width, "standard input: line")


COMMANDS = {"evaluate": EvaluateBERT, "predict": Predict}
