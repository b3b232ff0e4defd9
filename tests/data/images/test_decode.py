import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from loopax.data.images.decode import Form, resized
from loopax.errors import ConfigError

COLOUR = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3), np.uint8)
GREY = COLOUR[..., :1]


def test_what_fits_is_left_alone():
    for form in (Form(), Form((6, 4)), Form(None, 3), Form((6, 4), 3)):
        assert resized(COLOUR, "x", form) is COLOUR


def test_colour_becomes_grey_as_pillow_has_it():
    expected = [np.asarray(Image.fromarray(each).convert("L")) for each in COLOUR]
    found = resized(COLOUR, "x", Form(None, 1))
    np.testing.assert_array_equal(found, np.stack(expected)[..., None])
    floats = resized((COLOUR / 255).astype(np.float32), "x", Form(None, 1))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats * 255, found, atol=0.51)


@pytest.mark.parametrize("images", [GREY, (GREY / 255).astype(np.float32)])
def test_grey_becomes_colour_of_equal_parts(images):
    found = resized(images, "x", Form(None, 3))
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, np.repeat(images, 3, axis=3))


def test_arrays_are_resized_as_encoded_images_are():
    expected = [
        np.asarray(Image.fromarray(each).resize((8, 5), Image.Resampling.BILINEAR))
        for each in COLOUR
    ]
    found = resized(COLOUR, "x", Form((5, 8)))
    np.testing.assert_array_equal(found, expected)
    floats = resized((COLOUR / 255).astype(np.float32), "x", Form((5, 8)))
    np.testing.assert_allclose(floats * 255, found, atol=1.01)


@settings(deadline=None, max_examples=24)
@given(
    st.sampled_from([1, 3]).flatmap(
        lambda channels: hnp.arrays(
            np.float32, (2, 5, 7, channels), elements=st.floats(0, 1, width=32)
        )
    ),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([None, 1, 3]),
)
def test_floats_stay_in_their_range(images, size, channels):
    found = resized(images, "x", Form(size, channels))
    assert found.dtype == np.float32
    assert found.shape == (2, *(size or (5, 7)), channels or images.shape[3])
    assert found.min() >= images.min() - 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_what_does_not_fit_in_memory_is_refused(refuses):
    with refuses("x: its images cannot be resized"):
        resized(GREY, "x", Form((2**31, 2**31)))


@pytest.mark.parametrize("channels", [0, 2, 4, "grey", 1.5])
def test_channels_that_are_none_are_refused(refuses, channels):
    with refuses(f"channels is {channels!r}", "1 (grey) or 3 (colour)", error=ConfigError):
        Form(None, channels).checked()
