"""Which column of a table holds what, by usual names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loopax.data.files import fault
from loopax.data.words import quoted

Names = Sequence[Sequence[str]]
"""Groups of usual names, the surest first, spelled as `plain` does."""

IMAGE_NAMES: Names = (("image", "images", "img", "picture", "pictures", "photo", "png", "jpg"),)
TEXT_NAMES: Names = (
    ("text",),
    (
        *("sentence", "review", "content", "body", "message", "comment", "document", "tweet"),
        *("utterance", "article", "abstract", "passage", "snippet", "post", "description"),
    ),
)
PAIR_NAMES: Names = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("question1", "question2"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
)
LABEL_NAMES: Names = (
    ("label", "labels"),
    ("class", "classes", "classname", "category", "target", "sentiment", "digit", "finelabel"),
    ("topic", "intent", "emotion", "polarity", "rating", "stars", "gold", "goldlabel", "y"),
)
GROUP_NAMES: Names = (("group", "groups", "groupid"), ("movie",))
SPLIT_NAMES: Names = (("split",),)
"""Of a column of parts, such as train and test; all rows are read, whatever it says."""


class Columns(NamedTuple):
    """Which column is which; `text` is one, or two for pairs."""

    text: tuple[str, ...]
    label: str | None = None
    group: str | None = None


def plain(name: str) -> str:
    """A name in lower case, without spaces, `_` and `-`, as usual names are listed here."""
    return re.sub(r"[\s_-]", "", name).casefold()


def usual(columns: Iterable[str], names: Names) -> list[str]:
    """The columns whose names are in the first group of usual names that occurs at all."""
    spelled = {column: plain(column) for column in columns}
    tiers = ([column for column in spelled if spelled[column] in tier] for tier in names)
    return next(filter(None, tiers), [])


def only_column(
    path: str | os.PathLike[str],
    found: Sequence[str],
    what: str,
    option: str,
    kinds: Mapping[str, Any] | None = None,
) -> str:
    """The only column found.

    Raises:
        DataError: there are several.
    """
    if len(found) != 1:
        raise fault(
            path,
            f"which column holds the {what} is not clear; name it ({option}), one of "
            f"{quoted(found, kinds)}",
        )
    return found[0]


def require_column(
    path: str | os.PathLike[str],
    name: str,
    columns: Iterable[str],
    kinds: Mapping[str, Any] | None = None,
) -> None:
    """Raises a DataError unless there is a column of that name."""
    if name not in columns:
        raise fault(path, f"has no column {name!r}; its columns are {quoted(columns, kinds)}")
