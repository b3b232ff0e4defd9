"""Decodes images (PNG, JPEG, ...), and brings them to one size and number of channels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from loopax.data.files import fault, reporting
from loopax.errors import ConfigError
from loopax.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

    from loopax.batches.dataset import Dataset

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""Pillow's names of the formats that are read; it knows others, some of which run programs."""
_LUMA = np.array([19595, 38470, 7471]) / 2**16  # ITU-R BT.601, as Pillow has it for integers


def require_pillow() -> None:
    """Raises a ConfigError where Pillow is not installed."""
    require("images", "reading pictures", "PIL")


class WhiteLevel:
    """The value of 16-bit images that becomes 255: the largest that the bits in use can hold.

    Scanners and cameras keep 10, 12 or 14 bits in 16; by the range of the type they would be black.
    """

    value = 0
    has_grown = False

    def meet(self, other: WhiteLevel) -> None:
        """Takes over what another one has seen, of images beside those of this."""
        levels = {self.value, other.value} - {0}
        self.has_grown |= other.has_grown or len(levels) > 1
        self.value = max(self.value, other.value)

    def scaled(self, wide: np.ndarray) -> np.ndarray:
        """Scales pixels of 16 bits to uint8, by the white level of all images so far."""
        needed = max(255, 2 ** int(wide.max()).bit_length() - 1)
        self.has_grown |= 0 < self.value < needed
        self.value = max(self.value, needed)
        return ((wide.astype(np.uint32) * 255 + self.value // 2) // self.value).astype(np.uint8)


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


class Form(NamedTuple):
    """Size (height, width), channels and background that all images get; None: as stored.

    16-bit images are scaled by `white`. `place` gives the array, uint8, that many are put in.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    background: str | None = None
    white: WhiteLevel | None = None
    place: Callable[[tuple[int, ...]], np.ndarray] = _in_memory

    def checked(self) -> Form:
        """Itself, after a check of its values.

        Raises:
            ConfigError: the size is not two positive whole numbers, the channels not 1 or 3, or the
                background is no colour.
        """
        numbers = self.size if isinstance(self.size, Sequence) else ()
        whole = [each for each in numbers if isinstance(each, int) and each > 0]
        if self.size is not None and not len(numbers) == len(whole) == 2:
            raise ConfigError(
                f"size is {self.size!r}; it must be (height, width) in pixels, both positive"
            )
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels is {self.channels!r}; it must be 1 (grey) or 3 (colour)")
        if self.background is not None:
            _colour(self.background)
        return self


def _colour(background: str) -> tuple[int, ...]:
    require_pillow()
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"background is {background!r}; it must be a colour: white, black or '#rrggbb'"
        ) from error


def at_one_white_level(
    read: Callable[[Form], Mapping[str, Dataset]], form: Form
) -> dict[str, Dataset]:
    """Reads parts so that the 16-bit images of all are scaled by one white level.

    They are read twice where the first ones are darker than others.
    """
    white = WhiteLevel()
    parts = read(form._replace(white=white))
    if white.has_grown:
        del parts
        parts = read(form._replace(white=white))
    notes: tuple[str, ...] = ()
    if 0 < white.value < 2**16 - 1:
        bits = white.value.bit_length()
        notes = (f"16-bit images hold {bits} bits ({white.value:,} became 255)",)
    return {name: replace(part, notes=(*part.notes, *notes)) for name, part in parts.items()}


def resized(images: np.ndarray, where: str, form: Form) -> np.ndarray:
    """Pixels `(examples, height, width, channels)` as the form says, in their own type.

    Raises:
        DataError: they do not fit in memory.
    """
    if form.size in (None, images.shape[1:3]) and form.channels in (None, images.shape[3]):
        return images
    with reporting(where, "its images cannot be resized"):
        return np.stack([_resized_array(pixels, form) for pixels in images])


def _resized_array(pixels: np.ndarray, form: Form) -> np.ndarray:
    require_pillow()
    from PIL import Image

    if form.channels == 1 and pixels.shape[2] == 3:
        grey = pixels @ _LUMA
        grey = np.floor(grey + 0.5) if pixels.dtype == np.uint8 else grey
        pixels = grey.astype(pixels.dtype)[..., None]
    if form.size not in (None, pixels.shape[:2]):
        planes = [Image.fromarray(np.ascontiguousarray(each)) for each in np.moveaxis(pixels, 2, 0)]
        pixels = np.stack([np.asarray(_resized_image(plane, form)) for plane in planes], axis=-1)
    channels = form.channels or pixels.shape[2]
    return np.repeat(pixels, channels // pixels.shape[2], axis=2)


def decoded(where: str | os.PathLike[str], stream: BinaryIO, form: Form) -> np.ndarray:
    """One image, uint8 (height, width, 1 or 3)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with reporting(where, "cannot be read as an image"):
        try:
            stored = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise fault(where, f"is none of {', '.join(FORMATS)}, or damaged") from error
        frames = getattr(stored, "n_frames", 1)
        if frames > 1 and stored.format != "MPO":  # a camera's JPEG with previews
            raise fault(where, f"is animated or has pages, {frames} of them; it must be one image")
        image = _eight_bit(where, ImageOps.exif_transpose(stored), form)
        if form.channels is not None:
            image = image.convert("L" if form.channels == 1 else "RGB")
        image = _resized_image(image, form)
        return np.asarray(image).reshape(image.height, image.width, -1)


def _resized_image(image: Image, form: Form) -> Image:
    """Resizes with antialiasing; stretches where the proportions differ."""
    from PIL import Image

    if form.size is None:
        return image
    height, width = form.size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _eight_bit(where: str | os.PathLike[str], image: Image, form: Form) -> Image:
    """The image in Pillow's mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        assert form.white is not None, "read by at_one_white_level"
        return Image.fromarray(form.white.scaled(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise fault(where, "has 32 bits per pixel; a pixel must have 8 or 16 bits: convert it")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        opacity = clear.getchannel("A").getextrema()[0]
        if opacity != 255 and form.background is None:
            raise fault(
                where,
                f"has transparent pixels (opacity {opacity} of 255), whose colour is not known; "
                "put them on a background: background='white', or --background white",
            )
        if opacity != 255:
            ground = Image.new("RGBA", clear.size, _colour(form.background or ""))
            ground.alpha_composite(clear)
            red, green, blue, _ = ground.split()
            return red if red == green == blue else ground.convert("RGB")
        image.info.pop("transparency", None)  # or Pillow warns that it is lost
    return image.convert("L" if _is_grey(image) else "RGB")


def _is_grey(image: Image) -> bool:
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA")
