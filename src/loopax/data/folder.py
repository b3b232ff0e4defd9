"""A folder of images, one sub-folder per class, as a dataset."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loopax.data.dataset import Dataset
from loopax.data.reading import blaming, fault, open_file, shown
from loopax.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def read_folder(path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> Dataset:
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

    Returns:
        Columns `image`, uint8 `(examples, height, width, channels)`, and `label`, int32
        `(examples,)`; the name of class `k` is `class_names[k]`.

    Raises:
        ConfigError: `size` is not two positive whole numbers.
        DataError: the folder is missing or holds no image; images and folders are mixed; an image
            is damaged, animated, has transparent pixels (which colour would they be?) or 32-bit
            ones, or is a decompression bomb; or images differ in size and no `size` is given.
    """
    _require_size(size)
    classes = _classes(Path(path))
    files = [file for members in classes.values() for file in members]
    counts = [len(members) for members in classes.values()]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    columns = {"image": _read_images(files, size), "label": labels}
    return Dataset(columns, name=Path(path).resolve().name, class_names=tuple(classes))


def _require_size(size: tuple[int, int] | None) -> None:
    if size is not None and not (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(each, int) and each > 0 for each in size)
    ):
        raise ConfigError(f"size is {size!r}; it must be (height, width) in pixels, both positive")


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


def _read_images(files: Sequence[Path], size: tuple[int, int] | None) -> np.ndarray:
    """The images of `files`, uint8 (examples, height, width, channels)."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        images = _allocate(files[0], (len(files), *_read_image(files[0], size).shape))
        for index, file in enumerate(files):
            pixels = _read_image(file, size)
            height, width, channels = pixels.shape
            if (height, width) != images.shape[1:3]:
                raise fault(
                    file,
                    f"is {height}x{width} pixels (height x width), but {shown(files[0])} is "
                    f"{images.shape[1]}x{images.shape[2]}; pass size=(height, width) to resize all",
                )
            if channels > images.shape[3]:
                images = np.repeat(images, channels, axis=3)
            images[index] = pixels
    return images


def _allocate(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise fault(
            file,
            f"is {shape[1]}x{shape[2]} pixels, and {shape[0]:,} such images do not fit in memory; "
            "pass a smaller size=(height, width)",
        ) from error


def _read_image(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """One image, uint8 (height, width, 1 or 3)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with open_file(file) as stream, blaming(file, "cannot be read as an image"):
        try:
            stored = Image.open(stream, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise fault(file, f"is none of {', '.join(_FORMATS)}, or damaged") from error
        frames = getattr(stored, "n_frames", 1)
        if frames > 1 and stored.format != "MPO":  # a camera's JPEG with previews
            raise fault(file, f"is animated or has pages, {frames} of them; it must be one image")
        image = _eight_bit(file, ImageOps.exif_transpose(stored))
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image.height, image.width, -1)


def _eight_bit(file: Path, image: Image) -> Image:
    """The image in Pillow's mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise fault(file, "has 32 bits per pixel; a pixel must have 8 or 16 bits")
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A").getextrema()[0]
        if opacity != 255:
            raise fault(
                file,
                f"has transparent pixels (opacity {opacity} of 255), whose colour is not known; "
                "put it on a background first",
            )
        image.info.pop("transparency", None)  # or Pillow warns that it is lost
    return image.convert("L" if _is_grey(image) else "RGB")


def _is_grey(image: Image) -> bool:
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA")
