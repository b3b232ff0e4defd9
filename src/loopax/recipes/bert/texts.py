"""The texts that a configuration names, in three parts of which none has a text of another."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loopax.caches import cache_dir
from loopax.data import Texts, read_texts, split_texts
from loopax.errors import ConfigError, DataError
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.tokens import encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Parts(NamedTuple):
    """Texts to train on, to choose a checkpoint by, and never looked at before the end.

    `notes` are lines on what was found in them.
    """

    train: Texts
    validation: Texts
    test: Texts
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the texts and labels of each part."""
        parts = (part.fingerprint for part in self[:3])
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def texts_of(config: FineTuneConfig, tokenizer: Tokenizer, longest: int) -> Parts:
    """The texts that a configuration names, in three parts, of which none has a text of another.

    What is compared are tokens, as the model sees them, at most `longest` of a text: many models
    see no case, and no model sees what is cut off.

    Raises:
        LoopaxError: they cannot be used.
    """
    seen = functools.partial(_seen, tokenizer, longest=longest)
    texts = read_texts(
        located(config.data), text=config.text, label=config.label, group=config.group
    )
    contents, cut = seen(texts)
    notes, count = [], len(texts)
    if config.test_data is None:
        first, second = _split(texts, contents, config.test_fraction, config.seed)
        texts, test = texts.subset(first), texts.subset(second)
        contents = [contents[index] for index in first]
    else:
        names, columns = texts.class_names, texts.columns
        test = read_texts(
            config.test_data, text=columns.text, label=columns.label, class_names=names
        )
        notes += [f"{test.name}: {note}" for note in test.notes]
        tested, cut_there = seen(test)
        cut, count = cut + cut_there, count + len(test)
        there = {*tested}
        kept = [index for index, each in enumerate(contents) if each not in there]
        if left_out := len(texts) - len(kept):
            notes.append(
                f"{left_out:,} of {len(texts):,} texts are also in {test.name}; they are left out "
                "of the training"
            )
        texts, contents = texts.subset(kept), [contents[index] for index in kept]
        if not len(texts):
            raise DataError(
                f"{config.test_data}: every text of {config.data} is also there; test on others"
            )
    first, second = _split(texts, contents, config.validation_fraction, config.seed)
    train, validation = texts.subset(first), texts.subset(second)
    notes += _notes(train, [contents[index] for index in first])
    if cut:
        notes.append(
            f"{cut:,} of {count:,} texts are longer than {longest} tokens and are cut there"
        )
    if longest < config.max_length:
        notes.append(f"the model reads at most {longest} tokens, not {config.max_length}")
    if len(train) < (config.batch_size or 1):
        raise ConfigError(
            f"batch_size is {config.batch_size}, and {len(train)} texts are left to train on; "
            "it must not be larger"
        )
    return Parts(train, validation, test, tuple(notes))


def _seen(tokenizer: Any, texts: Texts, longest: int) -> tuple[list[bytes], int]:
    """Of each text what the model sees of it, and how many are cut."""
    columns, cut = encode(tokenizer, texts.rows, longest)
    rows = zip(columns["input_ids"], columns["length"].tolist(), strict=True)
    return [row[:end].tobytes() for row, end in rows], int(cut.sum())


def _split(
    texts: Texts, contents: Sequence[bytes], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """The places of the two parts that `split_texts` makes."""
    numbered = dataclasses.replace(texts, rows=[(str(index),) for index in range(len(texts))])
    first, second = split_texts(numbered, fraction, seed, contents=contents)
    return [int(row[0]) for row in first.rows], [int(row[0]) for row in second.rows]


def _notes(texts: Texts, contents: Sequence[bytes]) -> list[str]:
    """What to know of texts that come more than once."""
    labels: dict[bytes, set[int]] = {}
    for content, label in zip(contents, texts.labels.tolist(), strict=True):
        labels.setdefault(content, set()).add(label)
    again, torn = len(contents) - len(labels), sum(len(each) > 1 for each in labels.values())
    notes = {
        f"of the texts to train on {again:,} repeat others; such stay in one part together": again,
        f"different labels of the same text: {torn:,} times; one of them must be wrong": torn,
    }
    return [note for note, count in notes.items() if count]


def located(name: str) -> str:
    """A path or name, or where `loopax data get` has put what is called so."""
    from loopax.data import catalogue

    if Path(name).exists() or name not in catalogue.ENTRIES:
        return name
    return str(catalogue.located(name, cache_dir()))
