"""Which columns of a table hold the texts and the labels: by usual names, else by content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loopax.data.columns import (
    GROUP_NAMES,
    LABEL_NAMES,
    PAIR_NAMES,
    SPLIT_NAMES,
    TEXT_NAMES,
    Columns,
    only_column,
    plain,
    require_column,
    usual,
)
from loopax.data.files import fault
from loopax.data.texts.tables import Row, TextTable
from loopax.data.words import brief, quoted, shown
from loopax.errors import DataError

_NO_TEXT = {name for names in (*LABEL_NAMES, *GROUP_NAMES) for name in names}
_USUAL = _NO_TEXT.union(*TEXT_NAMES, *PAIR_NAMES)
_MANY_TIMES = 2
"""By how much the texts of a column must be longer than those of all others to be chosen."""
_LONG_NAME = 60

Cells = Mapping[str, Sequence[Any]]
"""The cells of each column."""


def find_columns(
    table: TextTable, sample: Sequence[Row], given: Columns, *, labelled: bool
) -> Columns:
    """The columns of `table`, judged by a sample of its rows; `given` is known and believed.

    Unless it must be `labelled`, there is a column of labels only if it is given.

    Raises:
        DataError: a column that is given is not there, or it is not clear which one is meant.
    """
    names = dict.fromkeys(name for row in sample for name in row.cells)
    cells = {name: [row.cells.get(name) for row in sample] for name in names}
    wanted = [*given.text, *filter(None, given[1:])]
    for name in wanted:
        require_column(table.path, name, cells)
    if table.has_header and not wanted and not any(plain(name) in _USUAL for name in cells):
        _require_header(table, cells)
    free = {name: each for name, each in cells.items() if name not in wanted}
    text = given.text or _find_text(table, free)
    others = {name: each for name, each in cells.items() if name not in text}
    group = given.group or next(iter(usual(others, GROUP_NAMES)), None)
    label = given.label
    if labelled and label is None:
        label = _find_label(table, {name: others[name] for name in others if name != group})
    return Columns(text, label, group)


def split_column(sample: Sequence[Row], chosen: Columns) -> str | None:
    """The column that says which part a row is of, unless it was chosen for something."""
    found = usual(dict.fromkeys(name for row in sample for name in row.cells), SPLIT_NAMES)
    return next((name for name in found if name not in (*chosen.text, *chosen[1:])), None)


def _require_header(table: TextTable, cells: Cells) -> None:
    """Refuses a first line that looks like data: it would be lost, and name nothing."""
    for name, each in cells.items():
        is_number = re.fullmatch(r"[-+]?\d+(\.\d*)?", name)
        if is_number or len(name) > _LONG_NAME or name in each:
            raise fault(
                f"{shown(table.path)}: line 1",
                f"looks like data, with {brief(name)!r} in it; it must name the columns (if it "
                "does, name the columns of text and label)",
            )


def _find_text(table: TextTable, cells: Cells) -> tuple[str, ...]:
    free = {name: each for name, each in cells.items() if plain(name) not in _NO_TEXT}
    spelled = {plain(name): name for name in free}
    pairs = [tuple(spelled[name] for name in pair) for pair in PAIR_NAMES if {*pair} <= {*spelled}]
    named = usual(free, TEXT_NAMES[:1] if pairs else TEXT_NAMES)
    found = [*pairs, *((name,) for name in named)]
    if len(found) == 1:
        return found[0]
    candidates = [name for each in found for name in each] or _longest(table, free)
    return (only_column(table.path, candidates, "texts", "text"),)


def _longest(table: TextTable, cells: Cells) -> list[str]:
    """The column of strings that are by far the longest, or else all columns of strings."""
    strings = {
        name: [len(cell) for cell in each if isinstance(cell, str) and not _is_number(cell)]
        for name, each in cells.items()
    }
    lengths = {name: sum(each) / len(each) for name, each in strings.items() if each}
    longest = sorted(lengths, key=lambda name: -lengths[name])
    if not longest:
        raise _none_found(table, "texts", "text", cells)
    is_far = len(longest) > 1 and lengths[longest[0]] >= _MANY_TIMES * lengths[longest[1]]
    return longest[:1] if is_far else longest


def _find_label(table: TextTable, cells: Cells) -> str:
    parts = usual(cells, SPLIT_NAMES)
    few = [name for name in cells if name not in parts and _has_few_values(cells[name])]
    if not (found := usual(cells, LABEL_NAMES) or few):
        raise _none_found(table, "labels", "label", cells)
    return only_column(table.path, found, "labels", "label")


def _none_found(table: TextTable, what: str, option: str, cells: Cells) -> DataError:
    return fault(
        table.path,
        f"no column looks like {what}; there are {quoted(cells)}; name one ({option}), each "
        "of whose cells is a string or a number",
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _has_few_values(cells: Sequence[Any]) -> bool:
    """Whether they could be classes: at least two, and each of them twice on average."""
    if not all(cell is None or isinstance(cell, str | int | float) for cell in cells):
        return False
    return 2 <= len(set(cells) - {None, ""}) <= max(2, len(cells) // 2)
