"""A folder of images, one sub-folder per class, as a dataset."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loopax.data.checks import class_order
from loopax.data.dataset import Dataset
from loopax.data.images import EncodedImage, Form, decode_images
from loopax.data.reading import as_path, blaming, fault, is_foreign, open_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def read_folder(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """The images in a folder, which has one sub-folder per class.

    Classes are numbered in the order of their sorted names, or of their numbers if all names are
    numbers; images are in the order of class and file name. A folder in which the images lie
    directly is one class, named after the folder. What is hidden, left there by other programs
    (`Thumbs.db`, `__MACOSX`, ...) or has no image suffix is passed over. Images are turned as
    their EXIF data say. If all are stored as greyscale they have 1 channel, otherwise 3 (RGB).
    16-bit greyscale is scaled to 8 bits, so 65535 becomes 255.

    Args:
        path: the folder.
        size: (height, width) in pixels that every image is resized to, stretched where the
            proportions differ, with antialiasing. Without it all images must have one size.
        channels: 1 makes all images grey (ITU-R BT.601 luma), 3 makes them colour.

    Returns:
        Columns `image`, uint8 `(examples, height, width, channels)`, and `label`, int32
        `(examples,)`; the name of class `k` is `class_names[k]`.

    Raises:
        ConfigError: `size` is not two positive whole numbers, or `channels` not 1 or 3.
        DataError: the folder is missing or holds no image; images and folders are mixed; an image
            is damaged, animated, has transparent pixels (which colour would they be?) or 32-bit
            ones, or is a decompression bomb; or images differ in size and no `size` is given.
    """
    form, path = Form(size, channels).checked(), as_path(path)
    classes, others = _classes(path)
    files = [file for members in classes.values() for file in members]
    counts = [len(members) for members in classes.values()]
    images = decode_images(
        (EncodedImage(file, open_file(file)) for file in files), len(files), form
    )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Dataset(
        {"image": images, "label": labels},
        name=path.resolve().name,
        class_names=tuple(classes),
        source="folder of images" + (f", {others:,} other files passed over" if others else ""),
    )


class Listing(NamedTuple):
    """What is in a folder: folders, images, and the number of other files."""

    folders: list[Path]
    images: list[Path]
    others: int


def listing(folder: Path) -> Listing:
    """What is in `folder` and was put there to be read, sorted by name.

    Raises:
        DataError: it cannot be read.
    """
    with blaming(folder, "cannot be read as a folder"):
        entries = sorted(each for each in folder.iterdir() if not is_foreign(each.name))
        # A link that leads nowhere is not passed over: it was the folder of a class.
        folders = [
            each
            for each in entries
            if each.is_dir() or (not each.suffix and each.is_symlink() and not each.exists())
        ]
        files = sorted({*entries} - {*folders})
    images = [each for each in files if each.suffix.lower() in SUFFIXES]
    return Listing(folders, images, len(files) - len(images))


def _classes(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """The image files of each class, by its name; how many other files there are."""
    found = listing(folder)
    if found.images and found.folders:
        raise fault(
            folder,
            f"holds the image {found.images[0].name!r} beside the folder "
            f"{found.folders[0].name!r}; it must hold either images or one folder per class",
        )
    if found.folders:
        classes = _by_name(folder, found.folders)
    else:
        classes = {folder.resolve().name: _images_of_class(folder)}
    return (
        {name: listing.images for name, listing in classes.items()},
        (found.others if found.folders else 0) + sum(each.others for each in classes.values()),
    )


def _by_name(folder: Path, classes: list[Path]) -> dict[str, Listing]:
    """What is in the folder of each class; its name is the same in either form of Unicode."""
    named: dict[str, Path] = {}
    for each in classes:
        name = unicodedata.normalize("NFC", each.name)
        if name in named:
            raise fault(folder, f"holds two folders that are written {name!r}; make them one")
        named[name] = each
    return {name: _images_of_class(named[name]) for name in sorted(named, key=class_order(named))}


def _images_of_class(folder: Path) -> Listing:
    found = listing(folder)
    if found.folders:
        raise fault(
            folder,
            f"is taken for the folder of a class, but holds the folder "
            f"{found.folders[0].name!r}; it must hold images only",
        )
    if not found.images:
        raise fault(
            folder,
            f"holds no image, only {found.others} files of other kinds; images end in "
            f"{', '.join(SUFFIXES)}",
        )
    return found
