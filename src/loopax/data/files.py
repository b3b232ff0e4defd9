"""The user's own files as a dataset: `load` finds out what they are."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from os.path import isdir, isfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loopax.data.checks import as_images, as_labels
from loopax.data.dataset import Dataset, Splits
from loopax.data.folder import read_folder
from loopax.data.idx import read_idx
from loopax.data.npz import read_npz
from loopax.data.reading import fault, open_file, shown
from loopax.errors import ConfigError

_IDX_NAMES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_TEST_FOLDERS = ("test", "val", "valid")
_NPZ_SPLIT = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
_NPZ_WHOLE = (("image", "label"), ("images", "labels"), ("x", "y"))


def load(
    path: str | os.PathLike[str],
    *,
    test_fraction: float = 0.1,
    size: tuple[int, int] | None = None,
) -> Splits:
    """Labelled images from the user's own files, in two parts.

    `path` is one of these, tried in this order:

    - a folder with the four files of MNIST, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`
      and the same with `t10k`, each plain or `.gz` (plain is preferred);
    - a folder with `train/` and one of `test/`, `val/`, `valid/` (the first that is there), each
      as `read_folder` reads it and with the same classes;
    - a folder as `read_folder` reads it;
    - an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`, or with `train_images`,
      `train_labels`, `test_images`, `test_labels`, or, not split, with `image` and `label`,
      `images` and `labels`, or `x` and `y`;
    - an IDX file of images, not split; the labels are in the file beside it whose name has
      `labels-idx1` for `images-idx3`.

    What is not split is split by `stratified_split`.

    Args:
        path: the folder or file.
        test_fraction: the part of the examples to test on, where the files are not split.
        size: (height, width) in pixels to resize the images of a folder to.

    Returns:
        Splits with the columns `image`, uint8 or float32 in [0, 1], `(examples, height, width,
        1 or 3)`, and `label`, int32 `(examples,)`.

    Raises:
        ConfigError: `test_fraction` is not between 0 and 1, or `size` cannot be had.
        DataError: the files are none of the above, are damaged, or do not fit together.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    path = Path(path)
    found = _from_folder(path, size) if isdir(path) else _from_file(path)
    splits = found if isinstance(found, Splits) else stratified_split(found, test_fraction)
    _require_agreement(path, splits)
    _require_size(path, splits.train, size)
    return splits


def stratified_split(dataset: Dataset, test_fraction: float) -> Splits:
    """Splits each class of `dataset` in the same proportion, without chance.

    Of the `n` examples of a class `test_fraction * n`, rounded, are for testing, but never all.
    They are evenly spaced in the stored order, and both parts keep that order: the split is a
    function of the labels alone.

    Raises:
        DataError: no class has enough examples to give one up.
    """
    labels = dataset.columns["label"]
    chosen = np.zeros(len(labels), bool)
    counts = np.bincount(labels)
    for label in np.flatnonzero(counts):
        n = int(counts[label])
        tests = min(int(n * test_fraction + 0.5), n - 1)
        chosen[labels == label] = np.diff(np.arange(n + 1) * tests // n) == 1
    if not chosen.any():
        raise fault(
            dataset.name,
            f"the largest class has {counts.max()} examples; it must have at least "
            f"{max(2, math.ceil(0.5 / test_fraction))} for test_fraction={test_fraction:g}",
        )
    return Splits(
        train=_subset(dataset, ~chosen, f"{dataset.name} train"),
        test=_subset(dataset, chosen, f"{dataset.name} test"),
    )


def _subset(dataset: Dataset, rows: np.ndarray, name: str) -> Dataset:
    columns = {key: column[rows] for key, column in dataset.columns.items()}
    return replace(dataset, columns=columns, name=name)


def _from_folder(path: Path, size: tuple[int, int] | None) -> Dataset | Splits:
    idx_files = [_idx_file(path, name) for name in _IDX_NAMES]
    if any(idx_files):
        return _from_mnist_files(path, idx_files)
    tests = [path / name for name in _TEST_FOLDERS if isdir(path / name)]
    if tests and isdir(path / "train"):
        return _from_split_folders(path, path / "train", tests[0], size)
    return read_folder(path, size=size)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file that has the data called `name`, in any of the spellings in use."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for ending in ("-ubyte", "-ubyte.gz"):
            if isfile(file := folder / (spelling + ending)):
                return file
    return None


def _from_mnist_files(folder: Path, files: Sequence[Path | None]) -> Splits:
    found = [file for file in files if file is not None]
    if len(found) < len(files):
        missing = _IDX_NAMES[files.index(None)]
        raise fault(folder, f"holds {found[0].name}, but not {missing}-ubyte, plain or .gz")
    return _split_arrays(folder, [_Source(shown(file), read_idx(file)) for file in found])


def _from_split_folders(
    folder: Path, train_folder: Path, test_folder: Path, size: tuple[int, int] | None
) -> Splits:
    train, test = (read_folder(each, size=size) for each in (train_folder, test_folder))
    if (train.class_names, test.class_names) == ((train_folder.name,), (test_folder.name,)):
        # No classes: the images lie directly in both.
        train, test = (replace(each, class_names=(_name(folder),)) for each in (train, test))
    if differing := sorted(set(train.class_names) ^ set(test.class_names)):
        has, lacks = train_folder, test_folder
        if differing[0] in test.class_names:
            has, lacks = lacks, has
        raise fault(
            folder,
            f"{has.name}/ has the class {differing[0]!r}, {lacks.name}/ has not; both must have "
            "the same classes",
        )
    return Splits(
        replace(train, name=f"{_name(folder)} train"), replace(test, name=f"{_name(folder)} test")
    )


class _Source(NamedTuple):
    """An array and where it was read from."""

    where: str
    array: np.ndarray


def _from_file(path: Path) -> Dataset | Splits:
    with open_file(path) as file:
        magic = file.read(2)
    if magic == b"PK":
        return _from_npz(path)
    if magic in (b"\0\0", b"\x1f\x8b"):
        return _from_idx(path)
    found = f"begins with the bytes {magic.hex(' ')}" if magic else "is empty"
    raise fault(path, f"{found}; it must be an .npz file, an IDX file or a folder of images")


def _from_npz(path: Path) -> Dataset | Splits:
    arrays = read_npz(path)
    for names in (*_NPZ_SPLIT, *_NPZ_WHOLE):
        if arrays.keys() >= set(names):
            sources = [_Source(f"{shown(path)}: {name}", arrays[name]) for name in names]
            return _split_arrays(path, sources) if len(sources) == 4 else _dataset(path, sources)
    accepted = ", or ".join(" ".join(names) for names in (*_NPZ_SPLIT, *_NPZ_WHOLE))
    held = ", ".join(map(repr, arrays)) or "nothing"
    raise fault(path, f"holds {held}; it must hold {accepted}")


def _from_idx(path: Path) -> Dataset:
    images = _Source(shown(path), read_idx(path))
    name = path.name.removesuffix(".gz")
    wanted = name.replace("images", "labels").replace("idx3", "idx1")
    for file in (path.with_name(wanted), path.with_name(f"{wanted}.gz")):
        if wanted != name and isfile(file):
            return _dataset(path, [images, _Source(shown(file), read_idx(file))])
    expected = "train-labels-idx1-ubyte for train-images-idx3-ubyte" if wanted == name else wanted
    raise fault(path, f"its labels must lie beside it, named like {expected}, plain or .gz")


def _split_arrays(path: Path, sources: Sequence[_Source]) -> Splits:
    """From the images and labels to train on, and those to test on."""
    train = _dataset(path, sources[:2])
    test = _dataset(path, sources[2:], train.class_names)
    return Splits(
        replace(train, name=f"{train.name} train"), replace(test, name=f"{test.name} test")
    )


def _dataset(path: Path, sources: Sequence[_Source], class_names: tuple[str, ...] = ()) -> Dataset:
    """From images and labels."""
    images, labels = sources
    image = as_images(images.array, images.where)
    label = as_labels(
        labels.array, labels.where, examples=len(image), classes=len(class_names) or None
    )
    class_names = class_names or tuple(map(str, range(label.max() + 1)))
    return Dataset({"image": image, "label": label}, name=_name(path), class_names=class_names)


def _name(path: Path) -> str:
    return path.resolve().name or shown(path)


def _require_agreement(path: Path, splits: Splits) -> None:
    train, test = (each.columns["image"] for each in splits)
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise fault(
            path,
            f"the images to train on are {train.dtype} {train.shape[1:]}, those to test on "
            f"{test.dtype} {test.shape[1:]}; both must be the same",
        )


def _require_size(path: Path, dataset: Dataset, size: tuple[int, int] | None) -> None:
    stored = dataset.columns["image"].shape[1:3]
    if size is not None and stored != tuple(size):
        raise ConfigError(
            f"size is {size}, but {shown(path)} holds images of {stored}; "
            "only folders of images are resized"
        )
