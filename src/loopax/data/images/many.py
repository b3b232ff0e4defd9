"""Decodes many images into one array, on all cores."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from loopax.data.files import fault, open_file, reporting
from loopax.data.images.decode import Form, WhiteLevel, decoded, require_pillow
from loopax.data.words import shown
from loopax.terminal import Progress

IN_PARALLEL = 2000
"""Images from which on several processes decode them, which take a second or two to start."""
TOGETHER, TOGETHER_BYTES = 256, 2**23
"""Images that a process is given at once, at most, and bytes of them, encoded or decoded."""
ROUND = 4
"""What each process is given before all are waited for."""
IDLE_SECONDS = 5
"""After which the processes end."""

Where = str | os.PathLike[str]
Pixels = UInt8[np.ndarray, "images height width channels"]


class EncodedImage(NamedTuple):
    """Where an image is from, and its bytes; None where it is a file that is still to be read."""

    where: Where
    content: bytes | None = None


class _Group(NamedTuple):
    """Decoded images that follow each other, and what was seen of 16-bit images."""

    pixels: Pixels
    white: WhiteLevel | None


def decode_images(images: Iterable[EncodedImage], count: int, form: Form) -> Pixels:
    """Encoded images as pixels, uint8 `(count, height, width, channels)`.

    Images are turned as their EXIF data say. If all are stored as greyscale they have 1 channel,
    otherwise 3 (RGB). 16-bit greyscale is scaled to 8 bits, by `form.white`.

    Raises:
        DataError: an image is damaged, animated, a decompression bomb, has 32-bit pixels, or
            transparent ones where the form has no background; or sizes differ and it has none.
    """
    require_pillow()
    images, pixels, done = iter(images), np.zeros((0, 0, 0, 0), np.uint8), 0
    if (first := next(images, None)) is None:
        return pixels
    like = _decoded([first], form, None).pixels[0]
    groups = _groups(images, max(1, min(TOGETHER, TOGETHER_BYTES // like.nbytes)))
    with Progress("decoding images", count) as progress:
        for group in itertools.chain(
            [_Group(like[None], None)], _all(groups, count, form, (first.where, like))
        ):
            if group.white is not None and form.white is not None:
                form.white.meet(group.white)
            if group.pixels.shape[3] > pixels.shape[3]:
                grey, pixels = pixels, _placed(first.where, count, group.pixels, form)
                for start in range(0, done, TOGETHER):
                    part = slice(start, min(done, start + TOGETHER))
                    pixels[part] = grey[part]
            pixels[done : done + len(group.pixels)] = group.pixels
            done += len(group.pixels)
            progress.at(done)
    return pixels


def _placed(where: Where, count: int, some: Pixels, form: Form) -> Pixels:
    what = f"{count:,} images of its size do not fit in memory, pass a smaller size=(height, width)"
    with reporting(where, what):
        return form.place((count, *some.shape[1:]))


def _groups(images: Iterator[EncodedImage], most: int) -> Iterator[list[EncodedImage]]:
    """The images in their order, as many together as a process is given at once."""
    group: list[EncodedImage] = []
    held = 0
    for image in images:
        group.append(image)
        held += len(image.content or b"")
        if len(group) == most or held >= TOGETHER_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _all(
    groups: Iterator[list[EncodedImage]], count: int, form: Form, first: tuple[Where, Pixels]
) -> Iterator[_Group]:
    """Each group decoded, in their order: here, or in a process for each core."""
    # What the images are put in stays here.
    form = form._replace(place=Form().place)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if count < IN_PARALLEL or cores == 1:
        yield from (_decoded(group, form, first) for group in groups)
        return
    from joblib import Parallel, delayed, parallel_config

    # Its processes import no main program, so that scripts need no guard.
    with (
        parallel_config("loky", idle_worker_timeout=IDLE_SECONDS),
        Parallel(n_jobs=cores) as pool,
    ):
        # Not as a generator: what the reader of images raises would be lost in joblib's thread.
        while taken := [*itertools.islice(groups, ROUND * (cores or 1))]:
            yield from pool(delayed(_decoded)(group, form, first) for group in taken)


def _decoded(
    images: Sequence[EncodedImage], form: Form, first: tuple[Where, Pixels] | None
) -> _Group:
    """Images of one size, that of the first of all."""
    from PIL import Image

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for where, content in images:
            opened = open_file(where) if content is None else nullcontext(io.BytesIO(content))
            with opened as stream:
                found.append(decoded(where, stream, form))
            if first is not None and found[-1].shape[:2] != first[1].shape[:2]:
                (height, width), (usual_height, usual_width) = (
                    found[-1].shape[:2],
                    first[1].shape[:2],
                )
                raise fault(
                    where,
                    f"is {height}x{width} pixels (height x width), but {shown(first[0])} is "
                    f"{usual_height}x{usual_width}; give all one size: "
                    "size=(height, width), or --image-size HEIGHT WIDTH",
                )
    channels = max(image.shape[2] for image in found)
    pixels = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in found])
    return _Group(pixels, form.white)
