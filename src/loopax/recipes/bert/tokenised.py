"""Texts as tokens, made once: they lie in the user's cache, and later commands map them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from loopax.data import Dataset, Mapped, Texts, kept
from loopax.recipes.bert.tokens import CUT, encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1
SMALLEST_CHARACTERS = 2**22
"""Of texts whose tokens are worth keeping; fewer are tokenised in a second or two."""


class Tokenised(NamedTuple):
    """Texts, and what a model sees of them.

    Attributes:
        texts: the texts.
        whole: the tokens of these and of others, as `tokenised` makes them.
        rows: which of them are those of the texts.
    """

    texts: Texts
    whole: kept.Stored
    rows: Int[np.ndarray, " texts"]

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, chosen: Sequence[int] | np.ndarray) -> Tokenised:
        """The texts at these positions."""
        return Tokenised(self.texts.subset(chosen), self.whole, self.rows[np.asarray(chosen, int)])

    @property
    def contents(self) -> list[bytes]:
        """What the model sees of each text: 16 bytes, alike for equal tokens only."""
        digests = self.whole.arrays["digest"][self.rows]
        return [digest.tobytes() for digest in digests]

    @property
    def cut(self) -> int:
        """How many texts are cut."""
        return int(self.whole.arrays["cut"][self.rows].sum())

    @property
    def tokens(self) -> Dataset:
        """The tokens as columns, no longer than the longest of these texts."""
        arrays, folder = self.whole.arrays, self.whole.folder
        length = np.array(arrays["length"][self.rows])
        longest = int(length.max(initial=0))
        columns: dict[str, Any] = {"length": length, "label": self.texts.labels}
        for name in CUT:
            if name not in arrays:
                continue
            if folder is None:
                columns[name] = arrays[name][self.rows, :longest]
            else:
                identity = f"{folder.name}/{name}:{longest}"
                places = None, folder / "fingerprints", self.rows
                columns[name] = Mapped(arrays[name][:, :longest], identity, *places)
        return Dataset(columns, name=self.texts.name, class_names=self.texts.class_names)


def tokenised(tokenizer: Tokenizer, texts: Texts, longest: int) -> Tokenised:
    """Texts as tokens, at most `longest` of each: made now, or mapped from the cache."""

    def make(place: kept.Place) -> kept.Made:
        columns, cut = encode(tokenizer, texts.rows, longest, place)
        rows = zip(columns["input_ids"], columns["length"].tolist(), strict=True)
        digests = b"".join(_digest(row[:length]) for row, length in rows)
        digest = np.frombuffer(digests, np.uint8).reshape(-1, 16)
        return {**columns, "cut": cut, "digest": digest}, None

    if sum(len(text) for row in texts.rows for text in row) < SMALLEST_CHARACTERS:
        whole = kept.Stored(*make(kept.in_memory))
    else:
        made_by = FORMAT, version("tokenizers"), tokenizer.to_str(), longest, texts.fingerprint
        key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:32]
        whole = kept.stored("tokens", key, f"tokens of {texts.name}", make, _check)
    return Tokenised(texts, whole, np.arange(len(texts)))


def _check(found: kept.Stored) -> None:
    """Raises a ValueError where some tokens are not as they were kept."""
    ids, length = found.arrays["input_ids"], found.arrays["length"]
    rows = kept.some_rows(len(ids))
    kept.check_digests(
        [_digest(ids[row, : length[row]]) for row in rows], found.arrays["digest"][rows]
    )


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(ids).data, digest_size=16).digest()
