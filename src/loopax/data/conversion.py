"""Images or texts of any kind as ArrayRecord files, which can be read at any place."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os.path import isdir
from pathlib import Path
from typing import Any

import numpy as np

from loopax.data.examples import Fields, as_example
from loopax.data.files import as_path, fault
from loopax.data.images.decode import Form, require_pillow
from loopax.data.images.layouts import given_parts
from loopax.data.images.parquet import holds_images
from loopax.data.parquet import ARROW, open_table
from loopax.data.records import MANIFEST
from loopax.data.shards import find_shards, shards_at
from loopax.data.texts.tables import TABLES
from loopax.data.texts.texts import Texts, read_text_parts
from loopax.data.words import shown
from loopax.errors import ConfigError
from loopax.extras import require
from loopax.files import replacing, write_text
from loopax.terminal import Progress

SHARD_BYTES = 2**26
"""Of a file, about, as the examples are in memory."""
TOGETHER = 256
"""Examples that are written at once."""


@dataclass(frozen=True)
class _Part:
    """What is converted: how many examples, of how many bytes each, and the fields of some."""

    count: int
    nbytes: int
    fingerprint: str
    class_names: tuple[str, ...]
    fields: Callable[[int], Fields]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
) -> Path:
    """Images or texts as ArrayRecord files in a folder, of which `load` and `read_texts` read both.

    An example is a `tf.train.Example`: `image` (a PNG) or `text` (`sentence1` and `sentence2` of
    pairs, and `group`), and `label`, the number of its class, -1 if unknown. The names of the
    classes are in `loopax.json`. Parts that the source has are kept (`train-00000-of-00004...`).
    What was begun goes on: files that are whole are left alone.

    Args:
        source: what `load` or `read_text_parts` reads.
        target: a folder, which is made.
        size: (height, width) that images are resized to.

    Returns:
        The folder.

    Raises:
        ConfigError: Grain is not installed, or Pillow for images.
        DataError: the source cannot be read, or the folder holds something else.
    """
    require("grain", f"{shown(target)}: writing ArrayRecord", "array_record", "google.protobuf")
    path, folder = as_path(source), as_path(target)
    is_text = _holds_texts(path)
    if is_text and size is not None:
        raise ConfigError(f"size is {size}, and {shown(path)} holds texts; leave it out")
    parts = _text_parts(path) if is_text else _image_parts(path, size)
    shards = {
        f"{name or 'data'}-{index:05}-of-{count:05}.array_record": (part, rows)
        for name, part in parts.items()
        for count in [-(-part.count * part.nbytes // SHARD_BYTES) or 1]
        for index, rows in enumerate(np.array_split(np.arange(part.count), count))
    }
    manifest = {
        "of": {name: part.fingerprint for name, part in parts.items()},
        "class_names": next(iter(parts.values())).class_names,
        "files": [*shards],
    }
    _begin(folder, json.dumps(manifest, indent=1))
    with Progress("writing examples", sum(part.count for part in parts.values())) as progress:
        done = 0
        for name, (part, rows) in shards.items():
            if not (folder / name).exists():
                _write(folder / name, part, rows, partial(_at, progress, done))
            done += len(rows)
    return folder


def _at(progress: Progress, before: int, done: int) -> None:
    progress.at(before + done)


def _begin(folder: Path, manifest: str) -> None:
    """Makes the folder, or finds it as it was left."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MANIFEST
    if not file.exists():
        if other := next(folder.iterdir(), None):
            raise fault(folder, f"holds {other.name!r}; name a folder that is new or empty")
        write_text(file, manifest)
    elif file.read_text() != manifest:
        raise fault(folder, "holds what was converted of other data; name another folder")


def _write(file: Path, part: _Part, rows: np.ndarray, at: Callable[[int], None]) -> None:
    """The examples of some rows as a file, which is there whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    def example(row: int) -> bytes:
        return as_example(part.fields(row))

    remaining, done = iter(rows.tolist()), 0
    with replacing(file) as unfinished, ThreadPoolExecutor() as pool:
        # Of groups of one, as each example is read alone.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        while some := [*islice(remaining, TOGETHER)]:
            for content in pool.map(example, some):
                writer.write(content)
            done += len(some)
            at(done)
        writer.close()


def _holds_texts(path: Path) -> bool:
    """Whether a path is that of tables of texts, and not of images."""
    texts = tuple(each for each in TABLES if each not in (".parquet", ARROW, ".array_record"))
    if isdir(path):
        files = find_shards(path, ".parquet") or find_shards(path, ARROW)
        if not files:
            return bool(find_shards(path, *texts))
        first = next(iter(files.values()))[0]
    else:
        first = shards_at(path)[""][0]
    if first.suffix.lower() not in (".parquet", ARROW):
        return first.name.lower().endswith((*texts, ".zip"))
    with open_table(first) as table:
        return not any(holds_images(field.type) for field in table.schema)


def _image_parts(path: Path, size: tuple[int, int] | None) -> dict[str, _Part]:
    require_pillow()
    from PIL import Image

    def part(data: Any) -> _Part:
        images, labels = data.columns["image"], data.columns["label"]
        if images.dtype != np.uint8:
            raise fault(path, f"its images are {images.dtype}; only uint8 can be written as PNG")

        def fields(row: int) -> Fields:
            pixels = images[row]
            png = io.BytesIO()
            grey = pixels.shape[2] == 1
            Image.fromarray(pixels[..., 0] if grey else pixels).save(png, "PNG", compress_level=1)
            return {"image": png.getvalue(), "label": labels[row]}

        nbytes = images.nbytes // len(images)
        return _Part(len(data), nbytes, data.fingerprint, data.class_names, fields)

    return {name: part(data) for name, data in given_parts(path, Form(size)).items()}


def _text_parts(path: Path) -> dict[str, _Part]:
    def part(texts: Texts) -> _Part:
        names = ("text",) if len(texts.columns.text) == 1 else ("sentence1", "sentence2")

        def fields(row: int) -> Fields:
            found = {**dict(zip(names, texts.rows[row], strict=True)), "label": texts.labels[row]}
            return found if texts.groups is None else {**found, "group": texts.groups[row]}

        characters = sum(len(text) for row in texts.rows for text in row)
        nbytes = 1 + characters // len(texts)
        return _Part(len(texts), nbytes, texts.fingerprint, texts.class_names, fields)

    return {name: part(texts) for name, texts in read_text_parts(path).items()}
