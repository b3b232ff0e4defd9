"""A folder of images, one sub-folder per class, as a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loopax.data.dataset import Dataset
from loopax.data.images import EncodedImage, Form, decode_images
from loopax.data.reading import blaming, fault, open_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def read_folder(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """The images in a folder, which has one sub-folder per class.

    Classes are numbered in the order of their sorted names, images are in the order of class and
    file name. A folder in which the images lie directly is one class, named after the folder.
    What is hidden or has no image suffix is passed over. Images are turned as their EXIF data say.
    If all are stored as greyscale they have 1 channel, otherwise 3 (RGB). 16-bit greyscale is
    scaled to 8 bits, so 65535 becomes 255.

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
    form = Form(size, channels).checked()
    classes = _classes(Path(path))
    files = [file for members in classes.values() for file in members]
    counts = [len(members) for members in classes.values()]
    images = decode_images(
        (EncodedImage(file, open_file(file)) for file in files), len(files), form
    )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Dataset(
        {"image": images, "label": labels},
        name=Path(path).resolve().name,
        class_names=tuple(classes),
        source="folder of images",
    )


class _Listing(NamedTuple):
    folders: list[Path]
    images: list[Path]
    others: int


def _listing(folder: Path) -> _Listing:
    """What is visible in `folder`, sorted by name."""
    with blaming(folder, "cannot be read as a folder"):
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
        folders = [each for each in entries if each.is_dir()]
        files = [each for each in entries if not each.is_dir()]
    images = [each for each in files if each.suffix.lower() in SUFFIXES]
    return _Listing(folders, images, len(files) - len(images))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class, by its name."""
    listing = _listing(folder)
    if listing.images and listing.folders:
        raise fault(
            folder,
            f"holds the image {listing.images[0].name!r} beside the folder "
            f"{listing.folders[0].name!r}; it must hold either images or one folder per class",
        )
    if listing.folders:
        return {each.name: _images_of_class(each) for each in listing.folders}
    return {folder.resolve().name: _images_of_class(folder)}


def _images_of_class(folder: Path) -> list[Path]:
    listing = _listing(folder)
    if listing.folders:
        raise fault(
            folder,
            f"is taken for the folder of a class, but holds the folder "
            f"{listing.folders[0].name!r}; it must hold images only",
        )
    if not listing.images:
        raise fault(
            folder,
            f"holds no image, only {listing.others} files of other kinds; images end in "
            f"{', '.join(SUFFIXES)}",
        )
    return listing.images
