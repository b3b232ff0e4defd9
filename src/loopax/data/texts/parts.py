"""Which files hold the texts: one, those of a pattern, or the shards and parts of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os.path import isdir
from pathlib import Path

from loopax.data.files import VALIDATION_NAMES, as_path, fault
from loopax.data.records import ARRAY_RECORD
from loopax.data.shards import find_shards, shards_at
from loopax.data.texts.tables import TABLES, TextTable, read_table
from loopax.data.words import quoted, shown

VALIDATION = "validation"
_FIRST = ((".arrow",), (".parquet",), ARRAY_RECORD)
"""Beside these, other tables in a folder tell of them, as those of `datasets` do."""


def tables_of(path: str | os.PathLike[str]) -> dict[str, list[TextTable]]:
    """The tables at a path, or of a pattern, by their part: "" for a whole, else train first.

    Parts are found as `find_shards` does it, and called `train`, `validation` and `test`.

    Raises:
        DataError: there are none, it is not clear which belong together, or their columns differ.
    """
    found = as_path(path)
    parts = _in_folder(found) if isdir(found) else shards_at(found)
    if len(choosing := [part for part in parts if part in VALIDATION_NAMES]) > 1:
        raise fault(path, f"holds the parts {quoted(choosing)}; take one of them away")
    named = {VALIDATION if part in choosing else part: files for part, files in parts.items()}
    ordered = sorted(named, key=lambda part: part != "train")
    tables = {part: [read_table(file) for file in named[part]] for part in ordered}
    _require_alike([table for part in tables.values() for table in part])
    return tables


def _in_folder(folder: Path) -> dict[str, list[Path]]:
    for endings in (*_FIRST, TABLES):
        if parts := find_shards(folder, *endings):
            kinds = {_kind(file) for files in parts.values() for file in files}
            if endings is TABLES and len(kinds) > 1:
                one, other = sorted(kinds)[:2]
                raise fault(
                    folder,
                    f"holds {one} files beside {other} files; give a pattern for those that are "
                    f"meant, such as {shown(folder / f'*{one}')}",
                )
            return parts
    raise fault(folder, "is a folder without tables: CSV, TSV, JSON lines, Parquet or Arrow files")


def _kind(file: Path) -> str:
    """What the name of a table ends in, however it is packed."""
    ending = next(each for each in TABLES if file.name.lower().endswith(each))
    return f".{ending.split('.')[1]}"


def _require_alike(tables: Sequence[TextTable]) -> None:
    """Raises a DataError where tables name other columns, or other classes."""
    known = [table for table in tables if table.columns]
    for table in known[1:]:
        first = known[0]
        if {*table.columns} != {*first.columns}:
            raise fault(
                table.path,
                f"its columns are {quoted(table.columns)}, those of {shown(first.path)} are "
                f"{quoted(first.columns)}; all must have the same",
            )
        if table.class_names != first.class_names:
            raise fault(
                table.path,
                f"its labels have other names than those of {shown(first.path)}; all must have the "
                "same",
            )
