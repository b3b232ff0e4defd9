"""A folder of images, one sub-folder per class, as a dataset."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.classes import class_order
from loopax.data.files import as_path, blaming, fault, is_foreign, open_file
from loopax.data.images.decode import (
    EncodedImage,
    Form,
    at_one_white,
    decode_images,
    is_image,
    readable_formats,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_OTHER_IMAGES = frozenset(
    f".{each}"
    for each in (
        *("heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "ppm", "pgm", "pbm"),
        *("pnm", "tga", "ico", "exr", "hdr", "dcm", "raw", "dng", "cr2", "cr3", "nef", "arw"),
        *("raf", "orf", "rw2", "pef", "srw"),
    )
)
"""Suffixes of images that are not read."""
_MANY = 6


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
    which `Dataset.notes` count. A file without a suffix is an image if it begins like one. Images
    are turned as their EXIF data say. If all are stored as greyscale they have 1 channel,
    otherwise 3 (RGB). 16-bit greyscale is scaled to 8 bits, by as many bits as its brightest pixel
    needs: where that is 3,780, 4,095 becomes 255.

    Args:
        path: the folder.
        size: (height, width) in pixels that every image is resized to, stretched where the
            proportions differ, with antialiasing. Without it all images must have one size.
        channels: 1 makes all images grey (ITU-R BT.601 luma), 3 makes them colour.
        background: the colour that transparent pixels are put on: `white`, `#rrggbb`, ...

    Returns:
        Columns `image`, uint8 `(examples, height, width, channels)`, and `label`, int32
        `(examples,)`; the name of class `k` is `class_names[k]`.

    Raises:
        ConfigError: `size` is not two positive whole numbers, `channels` not 1 or 3, or
            `background` no colour.
        DataError: the folder is missing or holds no image, or mostly such as cannot be read
            (HEIC, ...); images and folders are mixed; an image is damaged, animated, has
            transparent pixels (which colour would they be?) and there is no `background`, or 32-bit
            ones, or is a decompression bomb; or images differ in size and no `size` is given.
    """
    form, path = Form(size, channels, background).checked(), as_path(path)
    return at_one_white(lambda form: {"": dataset_of(path, form)}, form)[""]


def dataset_of(path: Path, form: Form) -> Dataset:
    """The images in a folder as `read_folder` reads them, in a form that has a white."""
    classes, notes = _classes(path)
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
        source="folder of images",
        notes=notes,
    )


class Listing(NamedTuple):
    """What is in a folder: folders, images, and how many other files of each suffix."""

    folders: list[Path]
    images: list[Path]
    others: Counter[str]

    @property
    def is_empty(self) -> bool:
        return not (self.folders or self.images or self.others)


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
    images = [each for each in files if _is_read(each)]
    others = Counter(each.suffix.lower() or "without suffix" for each in {*files} - {*images})
    return Listing(folders, images, others)


def _is_read(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix == ".avif":
        return "AVIF" in readable_formats()
    return suffix in SUFFIXES or (not suffix and is_image(file))


def _classes(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The image files of each class, by its name; and what was left out, in words."""
    found = listing(folder)
    if found.images and found.folders:
        raise fault(
            folder,
            f"holds the image {found.images[0].name!r} beside the folder "
            f"{found.folders[0].name!r}; it must hold either images or one folder per class",
        )
    notes, others = [], Counter(found.others)
    if found.folders:
        listings = {each: listing(each) for each in found.folders}
        if empty := [each.name for each, inside in listings.items() if inside.is_empty]:
            listed = f"{', '.join(empty[:_MANY])}{', ...' if len(empty) > _MANY else ''}"
            if len(empty) == len(listings):
                raise fault(folder, f"holds no image, only empty folders: {listed}")
            notes.append(f"{len(empty):,} empty folder{'s'[: len(empty) > 1]} left out: {listed}")
        filled = {each: inside for each, inside in listings.items() if not inside.is_empty}
        for inside in filled.values():
            others.update(inside.others)
    else:
        filled = {folder: found}
    _require_readable(folder, sum(len(each.images) for each in filled.values()), others)
    for each, inside in filled.items():
        _require_images_only(each, inside)
    classes = _by_name(folder, filled) if found.folders else {folder.resolve().name: found}
    if total := others.total():
        notes.append(f"{total:,} file{'s'[: total > 1]} left out: {_by_kind(others)}")
    return {name: inside.images for name, inside in classes.items()}, tuple(notes)


def _by_kind(others: Counter[str]) -> str:
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in ranked[:_MANY])
    return listed + (", ..." if len(ranked) > _MANY else "")


def _require_readable(folder: Path, images: int, others: Counter[str]) -> None:
    unread = Counter({kind: count for kind, count in others.items() if kind in _OTHER_IMAGES})
    if unread.total() > images:
        raise fault(
            folder,
            f"{unread.total():,} of its {unread.total() + images:,} images cannot be read "
            f"({_by_kind(unread)}); convert them to PNG or JPEG first",
        )


def _by_name(folder: Path, classes: Mapping[Path, Listing]) -> dict[str, Listing]:
    """What is in the folder of each class; its name is the same in either form of Unicode."""
    named: dict[str, Path] = {}
    for each in classes:
        name = unicodedata.normalize("NFC", each.name)
        if name in named:
            raise fault(folder, f"holds two folders that are written {name!r}; make them one")
        named[name] = each
    return {name: classes[named[name]] for name in sorted(named, key=class_order(named))}


def _require_images_only(folder: Path, found: Listing) -> None:
    if found.folders:
        raise fault(
            folder,
            f"is taken for the folder of a class, but holds the folder "
            f"{found.folders[0].name!r}; it must hold images only",
        )
    if not found.images:
        raise fault(
            folder,
            f"holds no image, only {found.others.total()} files of other kinds; images end in "
            f"{', '.join(SUFFIXES)}",
        )
