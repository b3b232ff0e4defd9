"""The texts that a configuration names, in three parts of which none has a text of another."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from loopax.caches import cache_dir
from loopax.data import Dataset, Texts, read_text_parts, read_texts, split_texts
from loopax.errors import ConfigError, DataError
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.tokenised import Tokenised, tokenised

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Parts(NamedTuple):
    """Texts to train on, to choose a checkpoint by, and never looked at before the end.

    `notes` are lines on what was found in them, `tokens` what a model sees of `train` and of
    `validation`.
    """

    train: Texts
    validation: Texts
    test: Texts
    notes: tuple[str, ...] = ()
    tokens: Mapping[str, Dataset] = MappingProxyType({})

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
    given, notes = _given(config)
    parts = {name: tokenised(tokenizer, texts, longest) for name, texts in given.items()}
    cut = sum(part.cut for part in parts.values())
    train, test, validation = (parts.get(name) for name in ("train", "test", "validation"))
    assert train is not None, "it is always given"
    if test is None:
        train, test = _split(train, config.test_fraction, config.seed)
    else:
        train = _without(train, test, "training", notes)
    if validation is None:
        train, validation = _split(train, config.validation_fraction, config.seed)
    else:
        validation = _without(validation, test, "choice of a checkpoint", notes)
        train = _without(train, validation, "training", notes)
    notes += _notes(train)
    if cut:
        count = sum(map(len, given.values()))
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
    tokens = {"train": train.tokens, "validation": validation.tokens}
    return Parts(train.texts, validation.texts, test.texts, tuple(notes), tokens)


def _given(config: FineTuneConfig) -> tuple[dict[str, Texts], list[str]]:
    """The texts as their files part them, and notes on these; a part alone is to test on."""
    parts = read_text_parts(
        located(config.data), text=config.text, label=config.label, group=config.group
    )
    given, notes = {"train": next(iter(parts.values()))}, list[str]()
    train, validation, test = given["train"], parts.get("validation"), parts.get("test")
    if config.test_data is not None:
        if test is not None:
            notes.append(f"{test.name}: not looked at, as {config.test_data} is to test on")
        columns = train.columns
        test = read_texts(
            config.test_data, text=columns.text, label=columns.label, class_names=train.class_names
        )
    elif test is None:
        test, validation = validation, None
    for name, part in (("test", test), ("validation", validation)):
        if part is not None:
            given[name] = part
            notes += [f"{part.name}: {note}" for note in part.notes]
    return given, notes


def _split(whole: Tokenised, fraction: float, seed: int) -> tuple[Tokenised, Tokenised]:
    """The two parts that `split_texts` makes."""
    numbers = [(str(index),) for index in range(len(whole))]
    numbered = dataclasses.replace(whole.texts, rows=numbers)
    parts = split_texts(numbered, fraction, seed, contents=whole.contents)
    first, second = (whole.at([int(row) for (row,) in part.rows]) for part in parts)
    return first, second


def _without(texts: Tokenised, others: Tokenised, what: str, notes: list[str]) -> Tokenised:
    """The texts that are not among others, and a note on how many are.

    Raises:
        DataError: all of them are.
    """
    there, name = {*others.contents}, others.texts.name
    rows = [row for row, content in enumerate(texts.contents) if content not in there]
    if not rows:
        raise DataError(f"{name}: every text of {texts.texts.name} is also there; test on others")
    if left_out := len(texts) - len(rows):
        notes.append(
            f"{left_out:,} of {len(texts):,} texts are also in {name}; they are left out of the "
            f"{what}"
        )
    return texts.at(rows)


def _notes(train: Tokenised) -> list[str]:
    """What to know of texts that come more than once."""
    contents = train.contents
    labels: dict[bytes, set[int]] = {}
    for content, label in zip(contents, train.texts.labels.tolist(), strict=True):
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
