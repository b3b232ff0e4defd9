"""A folder of images, one sub-folder per class, as a dataset; or one such folder per part."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from loopax.batches.dataset import Dataset
from loopax.data.classes import class_order
from loopax.data.files import PART_NAMES, as_path, fault, is_foreign, reporting
from loopax.data.images.decode import Form, WhiteLevel, at_one_white_level
from loopax.data.images.many import EncodedImage, decode_images
from loopax.data.words import abridged, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def read_folder(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | None = None,
) -> Dataset:
    """The images in a folder, which has one sub-folder per class.

    Classes are numbered in the order of their sorted names, or of their numbers if all names are
    numbers; images are in the order of class and file name. A folder in which the images lie
    directly is one class, named after the folder. What is hidden or left there by other programs
    (`Thumbs.db`, `__MACOSX`, ...) is passed over; so are files of other kinds and empty folders,
    which `Dataset.notes` count.

    Args:
        path: the folder.
        size: (height, width) in pixels that every image is resized to, stretched where the
            proportions differ, with antialiasing. Without it all images must have one size.
        channels, background: as `load` has them.

    Returns:
        Columns `image`, uint8 `(examples, height, width, channels)`, as `decode_images` has it,
        and `label`, int32 `(examples,)`; the name of class `k` is `class_names[k]`.

    Raises:
        ConfigError: an argument has a value that cannot work.
        DataError: the folder or that of a class is missing or holds no image; images and folders
            are mixed; or an image cannot be used.
    """
    form, path = Form(size, channels, background).checked(), as_path(path)
    return at_one_white_level(lambda form: {"": _dataset(path, form)}, form)[""]


def read_images(
    files: Sequence[str | os.PathLike[str]],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | None = None,
) -> UInt8[np.ndarray, "images height width channels"]:
    """Image files as pixels, in the order given; the arguments are those of `read_folder`.

    Raises:
        ConfigError: an argument has a value that cannot work.
        DataError: a file is missing, or is no image that can be used.
    """
    form, paths = Form(size, channels, background).checked(), [*map(as_path, files)]
    images = map(EncodedImage, paths)
    return decode_images(images, len(paths), form._replace(white=WhiteLevel()))


def folder_parts(folder: Path, form: Form) -> dict[str, Dataset]:
    """The images in the folder of each part, or else in one folder, as `read_folder` reads them."""
    below = _listing(folder).folders
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
        return {"": _dataset(folder, form)}
    parts = {part: _dataset(each, form) for part, each in named.items()}
    if all(data.class_names == (named[part].name,) for part, data in parts.items()):
        # No classes: the images lie directly in each of them.
        name = folder.resolve().name
        return {part: replace(data, class_names=(name,)) for part, data in parts.items()}
    for part, data in parts.items():
        if differing := {*data.class_names} ^ {*parts["train"].class_names}:
            raise fault(
                folder,
                f"only one of {named['train'].name}/ and {named[part].name}/ has the class "
                f"{min(differing)!r}; both must have the same classes",
            )
    if passed_over := [each.name for each in below if each.name.lower() not in PART_NAMES]:
        note = f"left out beside the parts: {abridged(map(shown, passed_over))}"
        parts = {part: replace(data, notes=(*data.notes, note)) for part, data in parts.items()}
    return parts


def _dataset(folder: Path, form: Form) -> Dataset:
    classes, notes = _classes(folder)
    files = [file for members in classes.values() for file in members]
    counts = [len(members) for members in classes.values()]
    images = decode_images(map(EncodedImage, files), len(files), form)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Dataset(
        {"image": images, "label": labels},
        name=folder.resolve().name,
        class_names=tuple(classes),
        source="folder of images",
        notes=notes,
    )


class _Listing(NamedTuple):
    """What is in a folder: folders, images, and how many other files of each suffix."""

    folders: list[Path]
    images: list[Path]
    others: Counter[str]


def _listing(folder: Path) -> _Listing:
    """What is in a folder and was put there to be read, sorted by name."""
    found = _Listing([], [], Counter())
    # Listed with their kinds, which asked for one by one would take most of the time.
    with reporting(folder, "cannot be read as a folder"), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            each = folder / entry.name
            if is_foreign(entry.name):
                continue
            # A link that leads nowhere is not passed over: it was the folder of a class.
            if entry.is_dir() or (not each.suffix and entry.is_symlink() and not each.exists()):
                found.folders.append(each)
            elif each.suffix.lower() in SUFFIXES:
                found.images.append(each)
            else:
                found.others[each.suffix.lower() or "without suffix"] += 1
    return found


def _classes(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The image files of each class, by its name; and what was left out, in words."""
    found = _listing(folder)
    if found.images and found.folders:
        raise fault(
            folder,
            f"holds the image {found.images[0].name!r} beside the folder "
            f"{found.folders[0].name!r}; it must hold either images or one folder per class",
        )
    below = {each: _listing(each) for each in found.folders}
    empty = [each.name for each, inside in below.items() if not any(inside)]
    filled = {each: inside for each, inside in below.items() if any(inside)} or {folder: found}
    for each, inside in filled.items():
        inner = inside.folders if each in below else []
        if inner or not inside.images:
            held = f"the folder {inner[0].name!r}" if inner else "no image"
            raise fault(
                each,
                f"holds {held}; the folder of a class must hold images only, which end in "
                f"{', '.join(SUFFIXES)}",
            )
    notes = (f"empty folders left out: {abridged(empty)}",) if empty else ()
    if others := sum((each.others for each in below.values()), found.others):
        kinds = abridged(f"{count:,} {suffix}" for suffix, count in others.most_common())
        notes = (*notes, f"other files left out: {kinds}")
    images = {
        each.name if below else folder.resolve().name: inside.images
        for each, inside in filled.items()
    }
    return {name: images[name] for name in sorted(images, key=class_order(images))}, notes
