"""Which columns of a table hold the texts and the labels: by usual names, else by content."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loopax.data.reading import fault, shown
from loopax.data.tables import Row, Table
from loopax.errors import DataError

TEXT_NAMES = (
    ("text",),
    (
        *("sentence", "review", "content", "body", "message", "comment", "document", "tweet"),
        *("utterance", "article", "abstract", "passage", "snippet", "post", "description"),
    ),
)
"""Usual names, the surest first; spelled without case, spaces, `_` and `-`."""
PAIR_NAMES = (
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
LABEL_NAMES = (
    ("label", "labels"),
    ("class", "classes", "classname", "category", "target", "sentiment"),
    ("topic", "intent", "emotion", "polarity", "rating", "stars", "gold", "goldlabel", "y"),
)
GROUP_NAMES = (("group", "groups", "groupid"), ("movie",))

_NO_TEXT = {name for names in (*LABEL_NAMES, *GROUP_NAMES) for name in names}
_USUAL = _NO_TEXT.union(*TEXT_NAMES, *PAIR_NAMES)
_MANY_TIMES = 2
"""By how much the texts of a column must be longer than those of all others to be chosen."""
_LONG_NAME = 60


class Columns(NamedTuple):
    """Which column is which; `text` is one, or two for pairs."""

    text: tuple[str, ...]
    label: str | None = None
    group: str | None = None


def find_columns(table: Table, sample: Sequence[Row], given: Columns, *, labelled: bool) -> Columns:
    """The columns of `table`, of which `sample` is the first rows.

    Args:
        table: where the rows are from.
        sample: the rows to judge by, at least one.
        given: what is known already, which is believed.
        labelled: whether there must be a column of labels; otherwise it is only one given.

    Raises:
        DataError: a column that is given is not there, or it is not clear which one is meant.
    """
    columns = _scalar_columns(sample)
    wanted = [*given.text, *filter(None, given[1:])]
    for name in wanted:
        if not any(name in row.cells for row in sample):
            raise fault(table.path, f"has no column {name!r}; its columns are {_listed(columns)}")
    if table.has_header and not wanted and not any(_plain(name) in _USUAL for name in columns):
        _require_header(table, columns)
    text = given.text or _find_text(table, columns, wanted)
    others = {name: cells for name, cells in columns.items() if name not in text}
    groups = [name for names in GROUP_NAMES for name in _named(others, names)]
    group = given.group or next(iter(groups), None)
    label = given.label
    if labelled and label is None:
        label = _find_label(table, {name: others[name] for name in others if name != group})
    return Columns(text, label, group)


def _scalar_columns(sample: Sequence[Row]) -> dict[str, list[Any]]:
    """The cells of every column that has no lists or objects."""
    names = dict.fromkeys(name for row in sample for name in row.cells)
    columns = {name: [row.cells.get(name) for row in sample] for name in names}
    return {
        name: cells
        for name, cells in columns.items()
        if not any(isinstance(cell, list | dict) for cell in cells)
    }


def _require_header(table: Table, columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a first line that looks like data: it would be lost, and name nothing."""
    for name, cells in columns.items():
        is_number = re.fullmatch(r"[-+]?\d+(\.\d*)?", name)
        if is_number or len(name) > _LONG_NAME or name in cells:
            raise fault(
                f"{shown(table.path)}: line 1",
                f"looks like data, with {_brief(name)!r} in it; it must name the columns (if it "
                "does, pass text= and label=)",
            )


def _find_text(
    table: Table, columns: Mapping[str, Sequence[Any]], taken: Sequence[str]
) -> tuple[str, ...]:
    free = {
        name: cells
        for name, cells in columns.items()
        if name not in taken and _plain(name) not in _NO_TEXT
    }
    pairs = [pair for names in PAIR_NAMES if len(pair := _in_order(free, names)) == len(names)]
    in_pairs = {name for pair in pairs for name in pair}
    for names in TEXT_NAMES:
        found = [*pairs, *((name,) for name in _named(free, names) if name not in in_pairs)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _unclear(table, "texts", "text", [name for each in found for name in each])
    strings = {
        name: [len(cell) for cell in cells if isinstance(cell, str) and not _is_number(cell)]
        for name, cells in free.items()
    }
    lengths = {name: sum(each) / len(each) for name, each in strings.items() if each}
    longest = sorted(lengths, key=lambda name: -lengths[name])
    if not longest:
        raise fault(
            table.path,
            f"no column looks like texts; there are {_listed(columns)}, pass text= to name one",
        )
    if len(longest) > 1 and lengths[longest[0]] < _MANY_TIMES * lengths[longest[1]]:
        raise _unclear(table, "texts", "text", longest)
    return (longest[0],)


def _find_label(table: Table, columns: Mapping[str, Sequence[Any]]) -> str:
    for names in LABEL_NAMES:
        if found := _named(columns, names):
            break
    else:
        found = [name for name, cells in columns.items() if _has_few_values(cells)]
    if not found:
        raise fault(
            table.path,
            f"no column looks like labels; besides the texts there are {_listed(columns)}, pass "
            "label= to name one",
        )
    if len(found) > 1:
        raise _unclear(table, "labels", "label", found)
    return found[0]


def _named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns with one of `names`, however it is spelled."""
    return [column for column in columns if _plain(column) in names]


def _in_order(columns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    found = {_plain(column): column for column in columns}
    return tuple(found[name] for name in names if name in found)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _has_few_values(cells: Sequence[Any]) -> bool:
    """Whether they could be classes: at least two, and each of them twice on average."""
    return 2 <= len(set(cells) - {None, ""}) <= max(2, len(cells) // 2)


def _unclear(table: Table, what: str, option: str, names: Sequence[str]) -> DataError:
    return fault(
        table.path,
        f"which column holds the {what} is not clear; pass {option}=, one of {_listed(names)}",
    )


def _listed(names: Iterable[str]) -> str:
    listed = ", ".join(repr(_brief(name)) for name in dict.fromkeys(names))
    return textwrap.shorten(listed, 400, placeholder=" ...") or "none"


def _brief(text: str) -> str:
    return text if len(text) <= _LONG_NAME else f"{text[: _LONG_NAME - 3]}..."
