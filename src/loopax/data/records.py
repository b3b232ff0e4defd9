"""Examples by number from ArrayRecord files and WebDataset tars, as Grain reads them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from loopax.data.examples import Fields, from_example
from loopax.data.files import as_path, fault, is_foreign, open_file, reporting
from loopax.data.shards import shards_at
from loopax.data.words import shown
from loopax.extras import require

MANIFEST = "loopax.json"
"""Beside files that `loopax data convert` has written: the names of the classes, and of what."""
ARRAY_RECORD, TAR = (".array_record", ".arrayrecord"), (".tar",)
RECORDS = (*ARRAY_RECORD, *TAR)
"""What the names of files of examples end in."""
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
"""How encoded images begin."""

Files = Sequence[Path]


class Source(Protocol):
    """Examples by number, as `grain.MapDataset.source` takes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Fields: ...


def records(path: str | os.PathLike[str]) -> Source:
    """The examples of ArrayRecord files or WebDataset tars, decoded, for `grain.MapDataset.source`.

    Fields that are encoded images become arrays, uint8 `(height, width, 1 or 3)`; whole numbers
    int64, text `str`. Any example is read without those before it.

    Args:
        path: a file, a pattern such as `train-*.tar`, or a folder whose files are one part.

    Raises:
        ConfigError: Grain is not installed, for ArrayRecord, or Pillow is not, for images.
        DataError: there are no such files, they are several parts, or one is damaged; reading an
            example raises it where its image is damaged.
    """
    parts = shards_at(as_path(path), *RECORDS)
    if not parts:
        raise fault(path, f"holds no files that end in {', '.join(RECORDS)}")
    if len(parts) > 1:
        raise fault(
            path, f"holds the parts {', '.join(parts)}; give a pattern for the files of one"
        )
    return _Decoded(encoded_records(next(iter(parts.values()))))


def encoded_records(files: Files) -> Source:
    """The examples of files as they are stored: images and texts are bytes.

    Raises:
        ConfigError: Grain is not installed, for ArrayRecord.
        DataError: a file is damaged, or neither.
    """
    kinds = {file.suffix.lower() for file in files}
    if kinds <= {*TAR}:
        return _Tars(files)
    if kinds <= {*ARRAY_RECORD}:
        return _ArrayRecords(files)
    raise fault(files[0], f"its name must end in {', '.join(RECORDS)}, as those of all others")


def declared_names(file: Path) -> tuple[str, ...]:
    """The names of the classes that are written beside a file; none where nothing is.

    Raises:
        DataError: what is written cannot be read.
    """
    manifest = file.parent / MANIFEST
    if not manifest.exists():
        return ()
    with reporting(manifest, "cannot be read"):
        return tuple(json.loads(manifest.read_text())["class_names"])


def is_image(field: Any) -> bool:
    """Whether a field holds an encoded image."""
    return isinstance(field, bytes) and field.startswith(_SIGNATURES)


class _Decoded:
    def __init__(self, encoded: Source) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Fields:
        example = self.encoded[index]
        return {name: _decoded(f"example {index}: {name}", each) for name, each in example.items()}


def _decoded(where: str, field: Any) -> Any:
    if is_image(field):
        from loopax.data.images.decode import Form, WhiteLevel, decoded, require_pillow

        require_pillow()
        return decoded(where, io.BytesIO(field), Form(white=WhiteLevel()))
    if isinstance(field, bytes):
        try:
            return field.decode()
        except UnicodeDecodeError:
            return field
    return field


class _ArrayRecords:
    """`tf.train.Example`s in ArrayRecord files, which Grain reads."""

    def __init__(self, files: Files) -> None:
        require("grain", f"{shown(files[0])}: reading ArrayRecord", "grain", "array_record")
        import grain

        self._name = shown(files[0])
        with reporting(files[0], "cannot be read as ArrayRecord"):
            self._source = grain.sources.ArrayRecordDataSource([*map(str, files)])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Fields:
        with reporting(f"{self._name}: example {index}", "is no tf.train.Example"):
            return from_example(self._source[index])


class _Member(NamedTuple):
    """A field of an example in a tar file, and where it lies."""

    name: str
    offset: int
    size: int


class _Tars:
    """WebDataset: files that differ in what follows the first dot are fields of one example."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._examples = [
            (number, members)
            for number, file in enumerate(files)
            for members in _members(file).values()
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Fields:
        number, members = self._examples[index]
        fields = {}
        with open_file(self._files[number]) as file:
            for name, offset, size in members:
                file.seek(offset)
                fields[name] = _as_field(name, file.read(size))
        return fields


def _members(file: Path) -> dict[str, list[_Member]]:
    """Where the fields of each example lie; only the headers are read."""
    found: dict[str, list[_Member]] = {}
    with open_file(file) as stream, reporting(file, "cannot be read as a tar file"):
        archive = tarfile.TarFile(fileobj=stream)
        while (each := archive.next()) is not None:
            # It would keep a kilobyte of each; typeshed leaves the list out.
            archive.members.clear()  # type: ignore[attr-defined]
            folder, name = os.path.split(each.name)
            key, _, field = name.partition(".")
            if each.isfile() and field and not is_foreign(name):
                member = _Member(field.lower(), each.offset_data, each.size)
                found.setdefault(f"{folder}/{key}", []).append(member)
    return found


def _as_field(name: str, content: bytes) -> Any:
    """A class or JSON as what it says; all else as it is."""
    if name in ("cls", "cls2", "id"):
        text = content.decode().strip()
        return np.int64(text) if text.lstrip("-").isdigit() else text
    return json.loads(content) if name == "json" else content
