"""Which columns of a table hold the texts and the labels: by usual names, else by content."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loopax.data.files import fault, shown
from loopax.data.texts.tables import Row, Table
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
SPLIT_NAME = "split"
"""Of a column of parts, such as train and test; all rows are read, whatever it says."""

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
    columns, unfit = _scalar_columns(table, sample)
    wanted = [*given.text, *filter(None, given[1:])]
    for name in wanted:
        if name in unfit:
            raise _unfit(table, [name], unfit)
        if not any(name in row.cells for row in sample):
            raise fault(table.path, f"has no column {name!r}; its columns are {_listed(columns)}")
    if table.has_header and not wanted and not any(_plain(name) in _USUAL for name in columns):
        _require_header(table, columns)
    text = given.text or _find_text(table, columns, unfit, wanted)
    others = {name: cells for name, cells in columns.items() if name not in text}
    usual = [name for names in GROUP_NAMES for name in names]
    group = given.group or next(iter(_named(others, usual)), None)
    if group is None and (twice := _named(unfit, usual)) and table.has_header:
        raise _unfit(table, twice, unfit)
    label = given.label
    if labelled and label is None:
        label = _find_label(table, {name: others[name] for name in others if name != group}, unfit)
    return Columns(text, label, group)


def split_column(sample: Sequence[Row], chosen: Columns) -> str | None:
    """The column that says which part a row is of, unless it was chosen for something."""
    found = _named({name for row in sample for name in row.cells}, (SPLIT_NAME,))
    return next((name for name in found if name not in (*chosen.text, *chosen[1:])), None)


def _scalar_columns(
    table: Table, sample: Sequence[Row]
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The cells of the columns that could be used, and what is the matter with each of the others.

    A cell that is a list or an object makes a column unfit.
    """
    columns: dict[str, list[Any]] = {}
    unfit = dict(table.unfit)
    for name in dict.fromkeys(name for row in sample for name in row.cells):
        columns[name] = [row.cells.get(name) for row in sample]
        for row, cell in zip(sample, columns[name], strict=True):
            if isinstance(cell, list | dict):
                kind = "a list" if isinstance(cell, list) else "an object"
                unfit[name] = f"{kind} in {table.unit} {row.number}: {_brief(json.dumps(cell))}"
                break
    return {name: columns[name] for name in columns if name not in unfit}, unfit


def _unfit(table: Table, names: Iterable[str], unfit: Mapping[str, str]) -> DataError:
    return fault(table.path, _unfit_words(table, names, unfit))


def _unfit_words(table: Table, names: Iterable[str], unfit: Mapping[str, str]) -> str:
    listed = ", ".join(f"{_brief(name)!r} ({unfit[name]})" for name in names)
    listed = textwrap.shorten(listed, 400, placeholder=" ...")
    example = ', as in {"text": "...", "label": "..."}' if "JSON" in table.kind else ""
    return f"{listed} must be one column, with a string or a number in each row{example}"


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
    table: Table,
    columns: Mapping[str, Sequence[Any]],
    unfit: Mapping[str, str],
    taken: Sequence[str],
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
        if usual := _named(unfit, names):
            raise _unfit(table, usual, unfit)
    strings = {
        name: [len(cell) for cell in cells if isinstance(cell, str) and not _is_number(cell)]
        for name, cells in free.items()
    }
    lengths = {name: sum(each) / len(each) for name, each in strings.items() if each}
    longest = sorted(lengths, key=lambda name: -lengths[name])
    if not longest:
        raise fault(
            table.path,
            f"no column looks like texts; there are {_listed(columns)}, pass text= to name one"
            + (f"; {_unfit_words(table, unfit, unfit)}" if unfit else ""),
        )
    if len(longest) > 1 and lengths[longest[0]] < _MANY_TIMES * lengths[longest[1]]:
        raise _unclear(table, "texts", "text", longest)
    return (longest[0],)


def _find_label(
    table: Table, columns: Mapping[str, Sequence[Any]], unfit: Mapping[str, str]
) -> str:
    for names in LABEL_NAMES:
        if found := _named(columns, names):
            break
        if usual := _named(unfit, names):
            raise _unfit(table, usual, unfit)
    else:
        found = [
            name
            for name, cells in columns.items()
            if _has_few_values(cells) and _plain(name) != SPLIT_NAME
        ]
    if not found:
        raise fault(
            table.path,
            f"no column looks like labels; besides the texts there are {_listed(columns)}, pass "
            "label= to name one" + (f"; {_unfit_words(table, unfit, unfit)}" if unfit else ""),
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
