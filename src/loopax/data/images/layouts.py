"""`load`: finds out what the user's files of images are, and reads them."""

from __future__ import annotations

import os
from dataclasses import replace
from os.path import isdir
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from loopax.data.files import VALIDATION_NAMES, as_path, fault, is_pattern, open_file
from loopax.data.images.arrays import MNIST_IMAGES, Parts, idx_parts, mnist_files, npz_parts
from loopax.data.images.decode import Form, at_one_white_level
from loopax.data.images.folder import folder_parts
from loopax.data.images.kept import kept
from loopax.data.images.parquet import parquet_parts
from loopax.data.images.records import record_parts
from loopax.data.kept import Place
from loopax.data.parquet import ARROW
from loopax.data.records import RECORDS
from loopax.data.shards import files_like, find_shards
from loopax.data.splits import Splits, check_fraction, deduplicated, hold_out
from loopax.data.words import shown
from loopax.errors import ConfigError

Layout = Literal["idx", "npz", "folder", "parquet", "records"]
"""What a path may be taken for."""


def load(
    path: str | os.PathLike[str],
    *,
    test_fraction: float = 0.1,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: Layout | None = None,
) -> Splits:
    """Images from the user's own files, in their parts; `Splits.description` says what was found.

    `path` is one of these, tried in this order:

    - a folder with the four files of MNIST, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`
      and the same with `t10k`, each plain or `.gz` (plain is preferred);
    - a folder with Parquet files, which `find_shards` puts together, or a Parquet file, each as
      `parquet_parts` reads it: the form of Hugging Face's image sets; or the Arrow files of
      `datasets.save_to_disk`;
    - ArrayRecord files or WebDataset tars, one or those in a folder, as `record_parts` reads them;
      of these and of Parquet also all that are like a pattern (`train-*.tar`);
    - a folder with `train/` beside `test/` or `validation/` (`val/`, `valid/`) or both, each as
      `read_folder` reads it and with the same classes;
    - a folder as `read_folder` reads it;
    - an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`, or with `train_images`,
      `train_labels`, `test_images`, `test_labels`, and either with the same for `val`, `valid` or
      `validation`, which may also stand in for `test`; or, not split, with those for `train` only,
      with `image` and `label`, `images` and `labels`, or `x` and `y`; or with nothing but images:
      one array of any name, or those of such parts.

    A part to choose by is `Splits.validation` if there is also one to test on; alone it is the
    part to test on. What is not split is split as `hold_out` does. Images to train on, or to
    choose by, that come again in a later part, of equal pixels, are left out. A label of -1, or
    null in Parquet, means that the class is not known; it is kept as -1. Where there are no labels,
    or all are -1, there is one class, named after the data, and all labels are 0.

    What takes long to decode is decoded once: then it lies in the user's cache, as
    `data.images.kept` describes it, and its column `image` is a `Mapped`, of which rows are read
    when they are asked for.

    Args:
        path: the folder or file.
        test_fraction: the part of the examples to test on, where the files are not split.
        size: (height, width) in pixels to resize the images to.
        channels: 1 makes the images grey (ITU-R BT.601 luma), 3 makes them colour.
        background: the colour that transparent pixels are put on: `white`, `#rrggbb`, ...; without
            one they are refused.
        image_column: the column of a Parquet file that holds the images.
        label_column: the column of a Parquet file that holds the labels, "" for none.
        layout: what `path` is, instead of finding out.

    Returns:
        Splits with the columns `image`, uint8 or float32 in [0, 1], `(examples, height, width,
        1 or 3)`, and `label`, int32 `(examples,)`.

    Raises:
        ConfigError: an argument has a value that cannot work.
        DataError: the files are none of the above, are damaged, or do not fit together.
    """
    check_fraction("test_fraction", test_fraction)
    path = as_path(path)
    parts = given_parts(
        path,
        Form(size, channels, background),
        image_column=image_column,
        label_column=label_column,
        layout=layout,
    )
    splits = _split(path, parts, test_fraction)
    _require_agreement(path, splits)
    return _with_a_class(path, splits if len(parts) == 1 else deduplicated(splits))


def given_parts(
    path: Path,
    form: Form,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: Layout | None = None,
) -> Parts:
    """The images at a path as their files part them; the arguments are those of `load`.

    Raises:
        ConfigError: an argument has a value that cannot work.
        DataError: the files cannot be read.
    """
    if layout not in (None, *get_args(Layout)):
        raise ConfigError(f"layout is {layout!r}; it must be one of {', '.join(get_args(Layout))}")
    form = form.checked()
    layout = layout or (_layout_of_folder(path) if isdir(path) else _layout_of_file(path))
    if layout != "parquet" and (image_column, label_column) != (None, None):
        raise ConfigError(
            f"image_column and label_column are of Parquet, but {shown(path)} is taken for "
            f'{layout}; leave them out, or pass layout="parquet"'
        )

    def read_as(form: Form) -> Parts:
        match layout:
            case "idx":
                return idx_parts(path, form)
            case "npz":
                return npz_parts(path, form)
            case "folder":
                return folder_parts(path, form)
            case "records":
                return record_parts(path, form)
        return parquet_parts(path, form, image_column, label_column)

    def read(place: Place) -> Parts:
        return at_one_white_level(read_as, form._replace(place=place))

    options = {
        "layout": layout,
        "form": form[:3],
        "image_column": image_column,
        "label_column": label_column,
    }
    return kept(path, options, read)


def _split(path: Path, parts: Parts, test_fraction: float) -> Splits:
    """The parts as they were given; a whole is split."""
    name = _name(path)
    if len(parts) == 1:
        whole = next(iter(parts.values()))
        train, test = hold_out(replace(whole, name=f"{name} train"), test_fraction, "test")
        return Splits(train, None, test)
    given = {part: replace(data, name=f"{name} {part}") for part, data in parts.items()}
    choosing = [part for part in VALIDATION_NAMES if part in given]
    if len(choosing) > 1:
        raise fault(
            path,
            f"holds the parts {choosing[0]!r} and {choosing[1]!r}, and either could be the one to "
            "choose by; take one away",
        )
    validation = given[choosing[0]] if choosing else None
    if "test" in given:
        return Splits(given["train"], validation, given["test"])
    assert validation is not None, "there are two parts"
    return Splits(given["train"], None, validation)


def _layout_of_folder(folder: Path) -> Layout:
    if mnist_files(folder, *MNIST_IMAGES.values()):
        return "idx"
    if find_shards(folder) or find_shards(folder, ARROW):
        return "parquet"
    return "records" if find_shards(folder, *RECORDS) else "folder"


def _layout_of_file(path: Path) -> Layout:
    first = files_like(str(path))[0] if is_pattern(path) else path
    if first.name.lower().endswith(RECORDS):
        return "records"
    if first.name.lower().endswith(ARROW):
        return "parquet"
    with open_file(first) as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return "parquet"
    if magic[:2] == b"PK":
        return "npz"
    found = f"begins with the bytes {magic.hex(' ')}" if magic else "is empty"
    raise fault(
        path,
        f"{found}; it must be an .npz or Parquet file, one of {', '.join(RECORDS)}, or a folder of "
        "images",
    )


def _name(path: Path) -> str:
    return path.resolve().name or shown(path)


def _require_agreement(path: Path, splits: Splits) -> None:
    stored = [part.columns["image"] for part in splits.parts.values()]
    kinds = list(dict.fromkeys(f"{each.dtype} {each.shape[1:]}" for each in stored))
    if len(kinds) > 1:
        raise fault(
            path,
            f"the images to train on are {kinds[0]}, others {kinds[1]}; all must be the same: give "
            "size= or channels= (--image-size, --channels), or convert some",
        )


def _with_a_class(path: Path, splits: Splits) -> Splits:
    """Gives data without any label one class."""
    known = {name: int((part.columns["label"] >= 0).sum()) for name, part in splits.parts.items()}
    if known["train"]:
        return splits
    if any(known.values()):
        raise fault(
            path,
            f"all labels to train on are missing, but not {sum(known.values()):,} others; all "
            "parts must have labels, or none",
        )
    return splits._replace(
        **{
            name: replace(
                each,
                columns={**each.columns, "label": np.zeros(len(each), np.int32)},
                class_names=(_name(path),),
                source=f"{each.source}, no labels",
            )
            for name, each in splits.parts.items()
        }
    )
