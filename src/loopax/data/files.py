"""The user's own files as a dataset: `load` finds out what they are."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from os.path import isdir, isfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from loopax.data.checks import as_images, as_labels
from loopax.data.dataset import Dataset
from loopax.data.folder import read_folder
from loopax.data.idx import read_idx
from loopax.data.images import Form, fitted
from loopax.data.npz import read_npz
from loopax.data.parquet import read_parquet
from loopax.data.reading import fault, open_file, shown
from loopax.data.shards import TEST_NAMES, find_shards
from loopax.data.splits import Splits
from loopax.errors import ConfigError

Layout = Literal["idx", "npz", "folder", "parquet"]
"""What a path may be taken for."""

_IDX_NAMES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_NPZ_SPLIT = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
_NPZ_WHOLE = (("image", "label"), ("images", "labels"), ("x", "y"))
_NPZ_SPLIT_IMAGES = tuple(names[::2] for names in _NPZ_SPLIT)


def load(
    path: str | os.PathLike[str],
    *,
    test_fraction: float = 0.1,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: Layout | None = None,
) -> Splits:
    """Images from the user's own files, in two parts; `Splits.description` says what was found.

    `path` is one of these, tried in this order:

    - a folder with the four files of MNIST, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`
      and the same with `t10k`, each plain or `.gz` (plain is preferred);
    - a folder with Parquet files, which `find_shards` puts together, or a Parquet file, each as
      `read_parquet` reads it: the form of Hugging Face's image sets;
    - a folder with `train/` and one of `test/`, `val/`, `valid/`, `validation/` (the first that is
      there), each as `read_folder` reads it and with the same classes;
    - a folder as `read_folder` reads it;
    - an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`, or with `train_images`,
      `train_labels`, `test_images`, `test_labels`, or, not split, with `image` and `label`,
      `images` and `labels`, or `x` and `y`; or with nothing but images: one array of any name,
      `x_train` and `x_test`, or `train_images` and `test_images`;
    - an IDX file of images, not split; the labels are in the file beside it whose name has
      `labels-idx1` for `images-idx3`.

    What is not split is split by `stratified_split`. A label of -1, or null in Parquet, means that
    the class is not known; it is kept as -1. Where there are no labels, or all are -1, there is one
    class, named after the data, and all labels are 0.

    Args:
        path: the folder or file.
        test_fraction: the part of the examples to test on, where the files are not split.
        size: (height, width) in pixels to resize the images to.
        channels: 1 makes the images grey (ITU-R BT.601 luma), 3 makes them colour.
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
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    if layout not in (None, *get_args(Layout)):
        raise ConfigError(f"layout is {layout!r}; it must be one of {', '.join(get_args(Layout))}")
    path, form = Path(path), Form(size, channels).checked()
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
            parts = _from_images(path, form)
        case "parquet":
            parts = _from_parquet(path, form, image_column, label_column)
    whole, *tests = (replace(part, name=_name(path)) for part in parts)
    splits = _pair(whole, tests[0]) if tests else stratified_split(whole, test_fraction)
    _require_agreement(path, splits)
    return _with_a_class(path, splits)


def stratified_split(dataset: Dataset, test_fraction: float) -> Splits:
    """Splits each class of `dataset` in the same proportion, without chance.

    Of the `n` examples of a class `test_fraction * n`, rounded, are for testing, but never all.
    They are evenly spaced in the stored order, and both parts keep that order: the split is a
    function of the labels alone. Those of an unknown class, -1, are split as if they were a class.

    Raises:
        DataError: no class has enough examples to give one up.
    """
    labels = dataset.columns["label"]
    chosen = np.zeros(len(labels), bool)
    values, counts = np.unique(labels, return_counts=True)
    for label, n in zip(values, counts, strict=True):
        tests = min(int(n * test_fraction + 0.5), n - 1)
        chosen[labels == label] = np.diff(np.arange(n + 1) * tests // n) == 1
    if not chosen.any():
        raise fault(
            dataset.name,
            f"the largest class has {counts.max()} examples; it must have at least "
            f"{max(2, math.ceil(0.5 / test_fraction))} for test_fraction={test_fraction:g}",
        )
    return _pair(
        *(
            replace(
                dataset,
                columns={key: column[rows] for key, column in dataset.columns.items()},
                held_out=test_fraction,
            )
            for rows in (~chosen, chosen)
        )
    )


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
) -> list[Dataset]:
    parts = find_shards(path) if isdir(path) else [[path]]
    if not parts:
        raise fault(path, "holds no Parquet file; their names must end in .parquet")
    return read_parquet(parts, form=form, image_column=image_column, label_column=label_column)


def _from_images(folder: Path, form: Form) -> list[Dataset]:
    tests = [folder / name for name in TEST_NAMES if isdir(folder / name)]
    if not tests or not isdir(folder / "train"):
        return [read_folder(folder, **form._asdict())]
    folders = folder / "train", tests[0]
    train, test = (read_folder(each, **form._asdict()) for each in folders)
    if (train.class_names, test.class_names) == tuple((each.name,) for each in folders):
        # No classes: the images lie directly in both.
        return [replace(each, class_names=(_name(folder),)) for each in (train, test)]
    if differing := sorted(set(train.class_names) ^ set(test.class_names)):
        has, lacks = folders if differing[0] in train.class_names else reversed(folders)
        raise fault(
            folder,
            f"{has.name}/ has the class {differing[0]!r}, {lacks.name}/ has not; both must have "
            "the same classes",
        )
    return [train, test]


class _Source(NamedTuple):
    """An array and where it was read from."""

    where: str
    array: np.ndarray


def _from_npz(path: Path, form: Form) -> list[Dataset]:
    arrays = {
        name: _Source(f"{shown(path)}: {name}", array) for name, array in read_npz(path).items()
    }
    labelled: tuple[tuple[str, ...], ...] = (*_NPZ_SPLIT, *_NPZ_WHOLE)
    for names in labelled:
        if arrays.keys() >= set(names):
            sources = [arrays[name] for name in names]
            return _datasets("NPZ", sources[::2], sources[1::2], form)
    for names in (*_NPZ_SPLIT_IMAGES, tuple(arrays)[:1]):
        if arrays.keys() == set(names):
            return _datasets("NPZ", [arrays[name] for name in names], None, form)
    accepted = ", or ".join(" ".join(names) for names in labelled)
    raise fault(
        path,
        f"holds {', '.join(map(repr, arrays))}; it must hold {accepted}, or only images",
    )


def _from_mnist_files(folder: Path, form: Form) -> list[Dataset]:
    files = {name: _idx_file(folder, name) for name in _IDX_NAMES}
    found = [file for file in files.values() if file is not None]
    if missing := [name for name, file in files.items() if file is None]:
        beside = f" beside {found[0].name}" if found else ""
        raise fault(folder, f"holds no {missing[0]}-ubyte, plain or .gz{beside}")
    sources = [_Source(shown(file), read_idx(file)) for file in found]
    return _datasets("IDX", sources[::2], sources[1::2], form)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file that has the data called `name`, in any of the spellings in use."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for ending in ("-ubyte", "-ubyte.gz"):
            if isfile(file := folder / (spelling + ending)):
                return file
    return None


def _from_idx(path: Path, form: Form) -> list[Dataset]:
    images = _Source(shown(path), read_idx(path))
    name = path.name.removesuffix(".gz")
    wanted = name.replace("images", "labels").replace("idx3", "idx1")
    for file in (path.with_name(wanted), path.with_name(f"{wanted}.gz")):
        if wanted != name and isfile(file):
            labels = _Source(shown(file), read_idx(file))
            return _datasets("IDX", [images], [labels], form)
    expected = "train-labels-idx1-ubyte for train-images-idx3-ubyte" if wanted == name else wanted
    raise fault(path, f"its labels must lie beside it, named like {expected}, plain or .gz")


def _datasets(
    kind: str, images: Sequence[_Source], labels: Sequence[_Source] | None, form: Form
) -> list[Dataset]:
    """A dataset from each of `images`; the first labels say what classes there are."""
    datasets: list[Dataset] = []
    class_names: tuple[str, ...] = ()
    for index, (where, array) in enumerate(images):
        image = as_images(array, where)
        if labels is None:
            label = np.full(len(image), -1, np.int32)
        else:
            where_labels, array = labels[index]
            label = as_labels(
                array, where_labels, examples=len(image), classes=len(class_names) or None
            )
        class_names = class_names or tuple(map(str, range(label.max() + 1)))
        columns = {"image": fitted(image, where, form), "label": label}
        datasets.append(Dataset(columns, class_names=class_names, source=kind))
    return datasets


def _pair(train: Dataset, test: Dataset) -> Splits:
    return Splits(
        replace(train, name=f"{train.name} train"), replace(test, name=f"{test.name} test")
    )


def _name(path: Path) -> str:
    return path.resolve().name or shown(path)


def _require_agreement(path: Path, splits: Splits) -> None:
    train, test = (each.columns["image"] for each in splits)
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        alike = "give size= or channels= (--image-size, --channels)"
        advice = alike if train.dtype == test.dtype else "convert one of them"
        raise fault(
            path,
            f"the images to train on are {train.dtype} {train.shape[1:]}, those to test on "
            f"{test.dtype} {test.shape[1:]}; both must be the same: {advice}",
        )


def _with_a_class(path: Path, splits: Splits) -> Splits:
    """The splits, whose labels mean one class where all are missing."""
    train, test = ((each.columns["label"] >= 0).sum() for each in splits)
    if train:
        return splits
    if test:
        raise fault(
            path,
            f"all labels to train on are missing, but {test:,} of those to test on are not; both "
            "parts must have labels, or neither",
        )
    return Splits(
        *(
            replace(
                each,
                columns={**each.columns, "label": np.zeros(len(each), np.int32)},
                class_names=(_name(path),),
                source=f"{each.source}, no labels",
            )
            for each in splits
        )
    )
