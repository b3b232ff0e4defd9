"""The user's own files as a dataset: `load` finds out what they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from os.path import isdir, isfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.files import PART_NAMES, VALIDATION_NAMES, as_path, fault, open_file
from loopax.data.images.arrays import as_images, as_labels, as_named_labels
from loopax.data.images.decode import Form, at_one_white, fitted
from loopax.data.images.folder import dataset_of, listing
from loopax.data.images.idx import read_idx
from loopax.data.images.npz import read_npz
from loopax.data.images.parquet import read_parquet
from loopax.data.shards import find_shards
from loopax.data.splits import (
    Splits,
    check_fraction,
    stratified_split,
    without_copies,
)
from loopax.data.words import shown
from loopax.errors import ConfigError

Layout = Literal["idx", "npz", "folder", "parquet"]
"""What a path may be taken for."""

_IDX_NAMES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_NPZ_SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_MANY = 6
_NPZ_WHOLE = (("image", "label"), ("images", "labels"), ("x", "y"))

Parts = Mapping[str, Dataset]
"""What was read, by the names of `PART_NAMES`, or a whole that is called "" or train."""


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
      `read_parquet` reads it: the form of Hugging Face's image sets;
    - a folder with `train/` beside `test/` or `validation/` (`val/`, `valid/`) or both, each as
      `read_folder` reads it and with the same classes;
    - a folder as `read_folder` reads it;
    - an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`, or with `train_images`,
      `train_labels`, `test_images`, `test_labels`, and either with the same for `val`, `valid` or
      `validation`, which may also stand in for `test`; or, not split, with those for `train` only,
      with `image` and `label`, `images` and `labels`, or `x` and `y`; or with nothing but images:
      one array of any name, or those of such parts;
    - an IDX file of images, not split; the labels are in the file beside it whose name has
      `labels-idx1` for `images-idx3`.

    A part to choose by is `Splits.validation` if there is also one to test on; alone it is the
    part to test on. What is not split is split by `stratified_split`. Images to train on, or to
    choose by, that come again in a later part, of equal pixels, are left out. A label of -1, or
    null in Parquet, means that the class is not known; it is kept as -1. Where there are no labels,
    or all are -1, there is one class, named after the data, and all labels are 0.

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
    if layout not in (None, *get_args(Layout)):
        raise ConfigError(f"layout is {layout!r}; it must be one of {', '.join(get_args(Layout))}")
    path, form = as_path(path), Form(size, channels, background).checked()
    layout = layout or (_layout_of_folder(path) if isdir(path) else _layout_of_file(path))
    if layout != "parquet" and (image_column, label_column) != (None, None):
        raise ConfigError(
            f"image_column and label_column are of Parquet, but {shown(path)} is taken for "
            f'{layout}; leave them out, or pass layout="parquet"'
        )
    match layout:
        case "idx":
            parts = _from_mnist_files(path, form) if isdir(path) else _from_idx(path, form)
        case "npz":
            parts = _from_npz(path, form)
        case "folder":
            parts = at_one_white(lambda form: _from_images(path, form), form)
        case "parquet":
            parts = at_one_white(
                lambda form: _from_parquet(path, form, image_column, label_column), form
            )
    splits = _split(path, parts, test_fraction)
    _require_agreement(path, splits)
    return _with_a_class(path, splits if len(parts) == 1 else without_copies(splits))


def _split(path: Path, parts: Parts, test_fraction: float) -> Splits:
    """The parts as they were given; a whole is split."""
    name = _name(path)
    if len(parts) == 1:
        whole = next(iter(parts.values()))
        return stratified_split(replace(whole, name=name), test_fraction)
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
    if any(_idx_file(folder, name) for name in _IDX_NAMES):
        return "idx"
    return "parquet" if find_shards(folder) else "folder"


def _layout_of_file(path: Path) -> Layout:
    with open_file(path) as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return "parquet"
    if magic[:2] == b"PK":
        return "npz"
    if magic[:2] in (b"\0\0", b"\x1f\x8b"):
        return "idx"
    found = f"begins with the bytes {magic.hex(' ')}" if magic else "is empty"
    raise fault(
        path,
        f"{found}; it must be an .npz file, an IDX file, a Parquet file or a folder of images",
    )


def _from_parquet(
    path: Path, form: Form, image_column: str | None, label_column: str | None
) -> Parts:
    parts = find_shards(path) if isdir(path) else {"": [path]}
    if not parts:
        raise fault(path, "holds no Parquet file; their names must end in .parquet")
    # The part to train on says what classes there are, so it is read first.
    names = sorted(parts, key=lambda part: part != "train")
    files = [parts[part] for part in names]
    read = read_parquet(files, form=form, image_column=image_column, label_column=label_column)
    return dict(zip(names, read, strict=True))


def _from_images(folder: Path, form: Form) -> Parts:
    below = listing(folder).folders
    named: dict[str, Path] = {}
    for each in below:
        part = each.name.lower()
        if part in named:
            raise fault(folder, f"holds {named[part].name!r} and {each.name!r}; make them one")
        if part in PART_NAMES:
            named[part] = each
    if 1 < len(below) == len(named) and "train" not in named:
        first, second = (each.name for each in below[:2])
        raise fault(folder, f"holds {first!r} and {second!r}, but no 'train' beside them")
    if "train" not in named or (len(named) == 1 and len(below) > 1):
        return {"": dataset_of(folder, form)}
    parts = {part: dataset_of(each, form) for part, each in named.items()}
    if all(data.class_names == (named[part].name,) for part, data in parts.items()):
        # No classes: the images lie directly in each of them.
        return {part: replace(data, class_names=(_name(folder),)) for part, data in parts.items()}
    for part, data in parts.items():
        if differing := sorted({*data.class_names} ^ {*parts["train"].class_names}):
            has, lacks = part, "train"
            if differing[0] in parts["train"].class_names:
                has, lacks = lacks, has
            raise fault(
                folder,
                f"{named[has].name}/ has the class {differing[0]!r}, {named[lacks].name}/ has not; "
                "both must have the same classes",
            )
    if passed_over := [each.name for each in below if each.name.lower() not in PART_NAMES]:
        note = f"left out beside the parts: {', '.join(map(shown, passed_over[:_MANY]))}"
        parts = {part: replace(data, notes=(*data.notes, note)) for part, data in parts.items()}
    return parts


class _Source(NamedTuple):
    """An array and where it was read from."""

    where: str
    array: np.ndarray


def _from_npz(path: Path, form: Form) -> Parts:
    arrays = {
        name: _Source(f"{shown(path)}: {name}", array) for name, array in read_npz(path).items()
    }
    for images, labels in _NPZ_SPLIT:
        parts = [part for part in PART_NAMES if images.format(part) in arrays]
        if "train" not in parts:
            continue
        pixels = {part: arrays[images.format(part)] for part in parts}
        if arrays.keys() >= {labels.format(part) for part in parts}:
            classes = {part: arrays[labels.format(part)] for part in parts}
            return _datasets("NPZ", pixels, classes, form)
        if len(arrays) == len(parts):
            return _datasets("NPZ", pixels, None, form)
    for names in _NPZ_WHOLE:
        if arrays.keys() >= set(names):
            images, labels = names
            return _datasets("NPZ", {"": arrays[images]}, {"": arrays[labels]}, form)
    if len(arrays) == 1:
        return _datasets("NPZ", {"": next(iter(arrays.values()))}, None, form)
    splits = [
        " ".join(form.format(part) for part in ("train", "test") for form in forms)
        for forms in _NPZ_SPLIT
    ]
    accepted = ", or ".join([*splits, *map(" ".join, _NPZ_WHOLE)])
    raise fault(
        path,
        f"holds {', '.join(map(repr, arrays))}; it must hold {accepted}, or only images; of each "
        "part both",
    )


def _from_mnist_files(folder: Path, form: Form) -> Parts:
    files = {name: _idx_file(folder, name) for name in _IDX_NAMES}
    found = [file for file in files.values() if file is not None]
    if missing := [name for name, file in files.items() if file is None]:
        beside = f" beside {found[0].name}" if found else ""
        raise fault(folder, f"holds no {missing[0]}-ubyte, plain or .gz{beside}")
    train, train_labels, test, test_labels = (
        _Source(shown(file), read_idx(file)) for file in found
    )
    labels = {"train": train_labels, "test": test_labels}
    return _datasets("IDX", {"train": train, "test": test}, labels, form)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file that has the data called `name`, in any of the spellings in use."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for ending in ("-ubyte", "-ubyte.gz"):
            if isfile(file := folder / (spelling + ending)):
                return file
    return None


def _from_idx(path: Path, form: Form) -> Parts:
    images = _Source(shown(path), read_idx(path))
    name = path.name.removesuffix(".gz")
    wanted = name.replace("images", "labels").replace("idx3", "idx1")
    for file in (path.with_name(wanted), path.with_name(f"{wanted}.gz")):
        if wanted != name and isfile(file):
            labels = _Source(shown(file), read_idx(file))
            return _datasets("IDX", {"": images}, {"": labels}, form)
    expected = "train-labels-idx1-ubyte for train-images-idx3-ubyte" if wanted == name else wanted
    raise fault(path, f"its labels must lie beside it, named like {expected}, plain or .gz")


def _datasets(
    kind: str, images: Mapping[str, _Source], labels: Mapping[str, _Source] | None, form: Form
) -> Parts:
    """A dataset from each of `images`; the first labels say what classes there are."""
    datasets: dict[str, Dataset] = {}
    class_names: tuple[str, ...] = ()
    for part, (where, array) in images.items():
        image = as_images(array, where)
        if labels is None:
            label = np.full(len(image), -1, np.int32)
        else:
            label, class_names = _labels(labels[part], len(image), class_names)
        class_names = class_names or tuple(map(str, range(label.max() + 1)))
        columns = {"image": fitted(image, where, form), "label": label}
        datasets[part] = Dataset(columns, class_names=class_names, source=kind)
    return datasets


def _labels(
    source: _Source, examples: int, known: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, and the classes by name, as far as they are known by now."""
    where, array = source
    if array.dtype.kind in "SU":
        return as_named_labels(array, where, examples=examples, known=known)
    if known and known != tuple(map(str, range(len(known)))):
        raise fault(where, f"labels are {array.dtype}, but those to train on are names of classes")
    return as_labels(array, where, examples=examples, classes=len(known) or None), known


def _name(path: Path) -> str:
    return path.resolve().name or shown(path)


_PURPOSE = {"test": "to test on", "validation": "to choose by"}


def _require_agreement(path: Path, splits: Splits) -> None:
    train = splits.train.columns["image"]
    for part, purpose in _PURPOSE.items():
        if part not in splits.parts:
            continue
        other = splits.parts[part].columns["image"]
        if (train.shape[1:], train.dtype) != (other.shape[1:], other.dtype):
            alike = "give size= or channels= (--image-size, --channels)"
            advice = alike if train.dtype == other.dtype else "convert one of them"
            raise fault(
                path,
                f"the images to train on are {train.dtype} {train.shape[1:]}, those {purpose} "
                f"{other.dtype} {other.shape[1:]}; both must be the same: {advice}",
            )


def _with_a_class(path: Path, splits: Splits) -> Splits:
    """The splits, whose labels mean one class where all are missing."""
    known = {name: (each.columns["label"] >= 0).sum() for name, each in splits.parts.items()}
    if known.pop("train"):
        return splits
    for part, count in known.items():
        if count:
            raise fault(
                path,
                f"all labels to train on are missing, but {count:,} of those {_PURPOSE[part]} are "
                "not; both parts must have labels, or neither",
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
