"""Finds the files that belong together: shards and parts in a folder, or those of a pattern."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from os.path import isdir
from pathlib import Path

from loopax.data.files import PART_NAMES, fault, is_foreign, is_pattern

_PART = re.compile(rf"({'|'.join(PART_NAMES)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(\d{5})-of-(\d{5})")


def shards_at(path: Path, *endings: str) -> dict[str, list[Path]]:
    """The files of a folder by their part, those of a pattern, or the file that is there.

    Raises:
        DataError: as `find_shards`; or no file is like the pattern.
    """
    if isdir(path):
        return find_shards(path, *endings)
    return {"": files_like(str(path)) if is_pattern(path) else [path]}


def find_shards(folder: Path, *endings: str) -> dict[str, list[Path]]:
    """The files with such an ending in a folder, or else in those below it, by their part.

    A part is what a file's name begins with, or how its folder is called, one of `PART_NAMES`. If
    all are of one part, or none is of any, there is one, called ""; if there is no file, none.

    Raises:
        DataError: it is not clear which files belong together, or a shard is missing.
    """
    endings = endings or (".parquet",)
    files = _visible(folder, "*", endings) or _visible(folder, "*/*", endings)
    homes = sorted({file.parent for file in files})
    if len(homes) > 1 and not all(_PART.fullmatch(home.name) for home in homes):
        raise fault(
            folder,
            f"holds {endings[0]} files in the folders {homes[0].name!r} and {homes[1].name!r}; "
            "give the path of the one that is meant",
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


def files_like(pattern: str) -> list[Path]:
    """The files whose paths are like a pattern with `*`, `?` or `[...]`, by name.

    Raises:
        DataError: there are none.
    """
    found = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
    if files := [each for each in found if not each.is_dir() and not is_foreign(each.name)]:
        return files
    raise fault(pattern, "no file is called so; give the path of a file or a folder, or a pattern")


def _visible(folder: Path, pattern: str, endings: tuple[str, ...]) -> list[Path]:
    found = (each for each in folder.glob(pattern) if each.name.lower().endswith(endings))
    files = sorted(each for each in found if not each.is_dir())
    return [file for file in files if not any(map(is_foreign, file.relative_to(folder).parts))]


def _require_complete(folder: Path, files: Sequence[Path]) -> None:
    numbers = Counter(match.groups() for file in files if (match := _SHARD.search(file.name)))
    for total in sorted({total for _, total in numbers}):
        for shard in (f"{index:05}" for index in range(int(total))):
            if (count := numbers[shard, total]) != 1:
                beside = f"{count} files {shard}-of-{total} beside {files[0].name!r}"
                raise fault(folder, f"holds {beside}; it must hold one of each")
