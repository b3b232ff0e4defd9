"""Encoded images (PNG, JPEG, ...) as pixels, and pixels brought to one size and one palette."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from loopax.data.reading import blaming, fault, shown
from loopax.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it for integers


class Form(NamedTuple):
    """What all images are brought to; what is None stays as it is stored."""

    size: tuple[int, int] | None = None
    channels: int | None = None

    def checked(self) -> Form:
        """Itself, with nothing wrong in it.

        Raises:
            ConfigError: the size is not two positive whole numbers, or the channels not 1 or 3.
        """
        size, channels = self
        if size is not None and not (
            isinstance(size, Sequence)
            and len(size) == 2
            and all(isinstance(each, int) and each > 0 for each in size)
        ):
            raise ConfigError(
                f"size is {size!r}; it must be (height, width) in pixels, both positive"
            )
        if channels not in (None, 1, 3):
            raise ConfigError(f"channels is {channels!r}; it must be 1 (grey) or 3 (colour)")
        return self


class EncodedImage(NamedTuple):
    """Where an image is from, and its bytes, opened when it is read."""

    where: str | os.PathLike[str]
    opened: AbstractContextManager[BinaryIO]


def decode_images(images: Iterable[EncodedImage], count: int, form: Form) -> np.ndarray:
    """Encoded images as pixels, uint8 `(count, height, width, channels)`.

    Images are turned as their EXIF data say. If all are stored as greyscale they have 1 channel,
    otherwise 3 (RGB). 16-bit greyscale is scaled to 8 bits, so 65535 becomes 255.

    Raises:
        DataError: an image is damaged, animated, has transparent pixels (which colour would they
            be?) or 32-bit ones, or is a decompression bomb; or images differ in size and the form
            has none.
    """
    from PIL import Image

    pixels = np.zeros((0, 0, 0, 0), np.uint8)
    first: str | os.PathLike[str] = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, (where, opened) in enumerate(images):
            with opened as stream:
                image = _decoded(where, stream, form)
            height, width, channels = image.shape
            if index == 0:
                first, pixels = where, _allocated(where, (count, *image.shape))
            if (height, width) != pixels.shape[1:3]:
                raise fault(
                    where,
                    f"is {height}x{width} pixels (height x width), but {shown(first)} is "
                    f"{pixels.shape[1]}x{pixels.shape[2]}; give all one size: "
                    "size=(height, width), or --image-size HEIGHT WIDTH",
                )
            if channels > pixels.shape[3]:
                grey, pixels = pixels, _allocated(where, (count, *image.shape))
                pixels[:index] = grey[:index]
            pixels[index] = image
    return pixels


def fitted(images: np.ndarray, where: str, form: Form) -> np.ndarray:
    """Pixels `(examples, height, width, channels)` as the form says, in their own type.

    Raises:
        DataError: they do not fit in memory.
    """
    if form.size in (None, images.shape[1:3]) and form.channels in (None, images.shape[3]):
        return images
    with blaming(where, "its images cannot be resized"):
        first = _fitted(images[0], form)
        result = np.empty((len(images), *first.shape), images.dtype)
        for index, pixels in enumerate(images):
            result[index] = _fitted(pixels, form)
    return result


def _fitted(pixels: np.ndarray, form: Form) -> np.ndarray:
    from PIL import Image

    if form.channels == 1 and pixels.shape[2] == 3:
        if pixels.dtype == np.uint8:
            grey = np.asarray(Image.fromarray(pixels).convert("L"))
        else:
            grey = (pixels @ _LUMA).astype(pixels.dtype)
        pixels = grey[..., None]
    if form.size not in (None, pixels.shape[:2]):
        planes = [Image.fromarray(np.ascontiguousarray(each)) for each in np.moveaxis(pixels, 2, 0)]
        pixels = np.stack([np.asarray(_resized(plane, form)) for plane in planes], axis=-1)
    return (
        pixels if form.channels is None else np.repeat(pixels, form.channels // pixels.shape[2], 2)
    )


def _allocated(where: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise fault(
            where,
            f"is {shape[1]}x{shape[2]} pixels, and {shape[0]:,} such images do not fit in memory; "
            "pass a smaller size=(height, width)",
        ) from error


def _decoded(where: str | os.PathLike[str], stream: BinaryIO, form: Form) -> np.ndarray:
    """One image, uint8 (height, width, 1 or 3)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with blaming(where, "cannot be read as an image"):
        try:
            stored = Image.open(stream, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise fault(where, f"is none of {', '.join(_FORMATS)}, or damaged") from error
        frames = getattr(stored, "n_frames", 1)
        if frames > 1 and stored.format != "MPO":  # a camera's JPEG with previews
            raise fault(where, f"is animated or has pages, {frames} of them; it must be one image")
        image = _eight_bit(where, ImageOps.exif_transpose(stored))
        if form.channels is not None:
            image = image.convert("L" if form.channels == 1 else "RGB")
        image = _resized(image, form)
        return np.asarray(image).reshape(image.height, image.width, -1)


def _resized(image: Image, form: Form) -> Image:
    """Stretched where the proportions differ, with antialiasing."""
    from PIL import Image

    if form.size is None:
        return image
    height, width = form.size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _eight_bit(where: str | os.PathLike[str], image: Image) -> Image:
    """The image in Pillow's mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise fault(where, "has 32 bits per pixel; a pixel must have 8 or 16 bits")
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A").getextrema()[0]
        if opacity != 255:
            raise fault(
                where,
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
