"""Finds the Parquet files of a folder that belong together: parts, each in shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loopax.data.files import PART_NAMES, fault, is_foreign

_PART = re.compile(rf"({'|'.join(PART_NAMES)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(\d{5})-of-(\d{5})")


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files in a folder, or else in those below it, by their part.

    A file is of the part that its name begins with, or of that its folder is named after, one of
    `PART_NAMES`. If all are of one part, or none is of any, there is one part, called ""; if there
    is no file, there is none. What is hidden, or left there by other programs, is passed over.

    Raises:
        DataError: it is not clear which files belong together, or a shard is missing.
    """
    files = _visible(folder, "*.parquet") or _visible(folder, "*/*.parquet")
    homes = sorted({file.parent for file in files})
    if len(homes) > 1 and not all(_PART.fullmatch(home.name) for home in homes):
        raise fault(
            folder,
            f"holds Parquet files in the folders {homes[0].name!r} and {homes[1].name!r}; give the "
            "path of the one that is meant",
        )
    parts: dict[str, list[Path]] = {}
    for file in files:
        match = _PART.match(file.name) or _PART.fullmatch(file.parent.name)
        parts.setdefault(match[1].lower() if match else "", []).append(file)
    if len(parts) > 1 and ("" in parts or "train" not in parts):
        one, two = list(parts.values())[:2]
        raise fault(
            folder,
            f"holds {one[0].name!r} beside {two[0].name!r}; some names must begin with train and "
            "all others with test or validation, or none with any of these",
        )
    for part in parts.values():
        _require_complete(folder, part)
    return parts if len(parts) > 1 else {"": files} if files else {}


def _visible(folder: Path, pattern: str) -> list[Path]:
    files = sorted(each for each in folder.glob(pattern) if not each.is_dir())
    return [file for file in files if not any(map(is_foreign, file.relative_to(folder).parts))]


def _require_complete(folder: Path, files: Sequence[Path]) -> None:
    numbers = Counter(match.groups() for file in files if (match := _SHARD.search(file.name)))
    for total in sorted({total for _, total in numbers}):
        for index in range(int(total)):
            if (count := numbers[f"{index:05}", total]) != 1:
                raise fault(
                    folder,
                    f"holds {count} files {index:05}-of-{total} beside {files[0].name!r}; it must "
                    "hold one of each",
                )
