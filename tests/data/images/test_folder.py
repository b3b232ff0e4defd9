import warnings

import numpy as np
import pytest
from PIL import Image

from loopax.data.images.folder import read_folder
from loopax.data.images.layouts import load
from loopax.errors import ConfigError

GREY = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def only_image(folder, **options):
    return read_folder(folder, **options).columns["image"][0]


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for position, name in enumerate(["dog/2.png", "cat/b.png", "dog/1.png", "cat/a.png"]):
        save(tmp_path / name, np.full((6, 4), position, np.uint8))
    found = read_folder(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert found.name == tmp_path.name
    assert found.columns["label"].dtype == np.int32
    assert found.columns["label"].tolist() == [0, 0, 1, 1]
    assert found.columns["image"].dtype == np.uint8
    assert found.columns["image"].shape == (4, 6, 4, 1)
    assert found.columns["image"][:, 0, 0, 0].tolist() == [3, 1, 2, 0]


def test_images_that_lie_directly_in_the_folder_are_one_class(tmp_path, monkeypatch):
    save(tmp_path / "faces" / "b.png", GREY)
    save(tmp_path / "faces" / "a.png", GREY)
    found = read_folder(tmp_path / "faces")
    assert found.class_names == ("faces",)
    assert found.columns["label"].tolist() == [0, 0]
    monkeypatch.chdir(tmp_path / "faces")
    assert read_folder(".").class_names == ("faces",)
    assert read_folder(".").name == "faces"


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path):
    save(tmp_path / "a" / "1.png", GREY)
    for name in ("a/.hidden.png", "a/notes.txt", ".cache/x.png", "a/.thumbs/1.png", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not an image")
    found = read_folder(tmp_path)
    assert len(found) == 1
    assert found.class_names == ("a",)


def test_symbolic_links_are_followed(tmp_path):
    target = save(tmp_path / "elsewhere" / "one.png", GREY)
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "link.png").symlink_to(target)
    (tmp_path / "data" / "b").symlink_to(target.parent)
    assert read_folder(tmp_path / "data").class_names == ("a", "b")


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.gif", "x.tif", "x.TIFF", "x.PNG"])
def test_greyscale_formats_give_the_pixels_exactly(tmp_path, name):
    save(tmp_path / name, GREY)
    np.testing.assert_array_equal(only_image(tmp_path), GREY[..., None])


@pytest.mark.parametrize("name", ["x.jpg", "x.jpeg", "x.webp"])
def test_lossy_formats_give_the_pixels_nearly(tmp_path, name):
    save(tmp_path / name, np.full((6, 4, 3), (10, 120, 240), np.uint8), quality=95)
    np.testing.assert_allclose(only_image(tmp_path), np.full((6, 4, 3), (10, 120, 240)), atol=6)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(COLOUR), COLOUR),
        (Image.fromarray(GREY > 100), np.where(GREY > 100, 255, 0)[..., None]),
        (Image.fromarray(np.stack([GREY, GREY * 0 + 255], axis=-1)), GREY[..., None]),
        (Image.fromarray(np.dstack([COLOUR, GREY * 0 + 255])), COLOUR),
        (Image.fromarray(COLOUR).quantize(24), COLOUR),
        (Image.fromarray(GREY).quantize(24), GREY[..., None]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY[..., None]),
        (Image.fromarray(np.full((6, 4), 65535, np.uint16)), np.full((6, 4, 1), 255)),
        (Image.fromarray(np.full((6, 4), 4095, np.uint16)), np.full((6, 4, 1), 255)),
        (Image.fromarray(GREY.astype(np.uint16)), GREY[..., None]),
    ],
    ids=[
        "rgb",
        "bits",
        "grey-opaque",
        "opaque",
        "palette",
        "grey-palette",
        "16-bit",
        "16-bit-max",
        "12-bit",
        "8-bit-in-16",
    ],
)
def test_every_way_to_store_pixels_becomes_grey_or_rgb(tmp_path, image, expected):
    save(tmp_path / "x.png", image)
    np.testing.assert_array_equal(only_image(tmp_path), expected)


def test_wide_images_are_scaled_by_the_brightest_of_all_parts(tmp_path):
    for part, values in {"train": (500, 700), "test": (1000, 3780)}.items():
        for value in values:
            save(tmp_path / part / f"{value:04}.png", np.full((6, 4), value, np.uint16))
    splits = load(tmp_path)
    found = [each.columns["image"][:, 0, 0, 0].tolist() for each in (splits.train, splits.test)]
    assert found == [[31, 44], [62, 235]]
    assert splits.description.endswith("16-bit images hold 12 bits (4,095 became 255)")


def test_cmyk_becomes_rgb(tmp_path):
    save(tmp_path / "x.tif", Image.fromarray(COLOUR).convert("CMYK"))
    np.testing.assert_array_equal(only_image(tmp_path), COLOUR)


@pytest.mark.parametrize("order", [("grey", "colour"), ("colour", "grey")])
def test_one_colour_image_makes_all_rgb(tmp_path, order):
    for position, kind in enumerate(order):
        save(tmp_path / f"{position}.png", GREY if kind == "grey" else COLOUR)
    found = read_folder(tmp_path).columns["image"]
    assert found.shape == (2, 6, 4, 3)
    np.testing.assert_array_equal(found[order.index("colour")], COLOUR)
    np.testing.assert_array_equal(found[order.index("grey")], np.dstack([GREY] * 3))


def test_images_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    save(tmp_path / "x.png", GREY, exif=exif)
    np.testing.assert_array_equal(only_image(tmp_path), np.rot90(GREY, -1)[..., None])


def test_size_is_height_and_width_and_resizes_with_antialiasing(tmp_path):
    save(tmp_path / "a.png", np.tile(np.array([0, 200], np.uint8), (40, 40)))
    save(tmp_path / "b.png", GREY)
    found = read_folder(tmp_path, size=(10, 8)).columns["image"]
    assert found.shape == (2, 10, 8, 1)
    # Without antialiasing the stripes of the first image would be sampled as 0 or 200.
    np.testing.assert_allclose(found[0], 100, atol=15)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), (8, 8, 8), (2.5, 8), 8])
def test_a_size_that_is_none_is_refused(tmp_path, refuses, size):
    with refuses(f"size is {size}", "(height, width)", error=ConfigError):
        read_folder(tmp_path, size=size)


def test_the_first_image_of_another_size_is_named(tmp_path, refuses):
    save(tmp_path / "a" / "1.png", GREY)
    save(tmp_path / "a" / "2.png", GREY)
    save(tmp_path / "b" / "3.png", GREY.T)
    save(tmp_path / "b" / "4.png", GREY[1:])
    with refuses("b/3.png", "4x6", "a/1.png", "6x4", "--image-size HEIGHT WIDTH"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp", "x.webp", "x.tif"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_truncated_image_is_refused(tmp_path, refuses, name, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with refuses(name):
        read_folder(tmp_path)


def test_content_of_another_kind_is_refused(tmp_path, refuses):
    (tmp_path / "x.png").write_text("not a picture")
    with refuses("x.png", "PNG, JPEG, BMP, GIF, WEBP, TIFF"):
        read_folder(tmp_path)
    # Pillow knows more formats, some of which run programs.
    save(tmp_path / "x.png", GREY, format="PPM")
    with refuses("x.png", "PNG, JPEG, BMP, GIF, WEBP, TIFF"):
        read_folder(tmp_path)


def test_the_suffix_need_not_match_the_format(tmp_path):
    save(tmp_path / "x.jpg", GREY, format="PNG")
    np.testing.assert_array_equal(only_image(tmp_path), GREY[..., None])


def test_a_broken_link_is_refused(tmp_path, refuses):
    (tmp_path / "x.png").symlink_to("nowhere.png")
    with refuses("x.png", "No such file"):
        read_folder(tmp_path)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_decompression_bomb_is_refused(tmp_path, refuses, monkeypatch, factor):
    save(tmp_path / "bomb.png", np.zeros((100, 100 * factor + 1), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    with warnings.catch_warnings(), refuses("bomb.png", f"limit of {10_000 * factor}"):
        warnings.simplefilter("ignore")
        read_folder(tmp_path)


def test_more_than_fits_in_memory_is_refused(tmp_path, refuses, monkeypatch):
    def full(*_):
        raise MemoryError

    save(tmp_path / "x.png", GREY)
    monkeypatch.setattr(np, "empty", full)
    with refuses("x.png", "do not fit in memory", "size="):
        read_folder(tmp_path)


def test_transparent_pixels_are_refused(tmp_path, refuses):
    alpha = np.full((6, 4), 255, np.uint8)
    alpha[2, 3] = 7
    for name, pixels in [("rgba", np.dstack([COLOUR, alpha])), ("la", np.dstack([GREY, alpha]))]:
        save(tmp_path / name / "x.png", pixels)
        with refuses(f"{name}/x.png", "transparent", "7 of 255", "--background white"):
            read_folder(tmp_path / name)
        for background, value in (("white", 255), ("#00f", (0, 0, 255))):
            found = only_image(tmp_path / name, background=background)
            assert found.shape[2] == (3 if name == "rgba" or background == "#00f" else 1)
            np.testing.assert_allclose(found[2, 3], value, atol=7)
            expected = pixels[:2, :, :3] if name == "rgba" else pixels[:2, :, :1]
            np.testing.assert_array_equal(found[:2] + 0 * expected, expected + 0 * found[:2])
    save(tmp_path / "keyed" / "x.png", GREY, transparency=int(GREY[0, 1]))
    with refuses("keyed/x.png", "0 of 255"):
        read_folder(tmp_path / "keyed")
    assert only_image(tmp_path / "keyed", background="#0b0b0b")[0, 1] == 11
    with refuses("background is 'mauvish'", "white, black or", error=ConfigError):
        read_folder(tmp_path / "keyed", background="mauvish")


@pytest.mark.filterwarnings("error")
def test_a_palette_may_say_that_it_is_opaque(tmp_path):
    save(tmp_path / "x.png", Image.fromarray(COLOUR).quantize(24), transparency=bytes([255] * 24))
    np.testing.assert_array_equal(only_image(tmp_path), COLOUR)


def test_wide_pixels_are_refused(tmp_path, refuses):
    for name, kind in [("float", np.float32), ("int", np.int32)]:
        save(tmp_path / name / "x.tif", GREY.astype(kind))
        with refuses(f"{name}/x.tif", "32 bits", "8 or 16"):
            read_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_an_animation_is_refused(tmp_path, refuses, name):
    frames = [Image.fromarray(pixels) for pixels in (GREY, 255 - GREY, GREY // 2)]
    save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    with refuses(name, "3 of them", "one image"):
        read_folder(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path, refuses):
    with refuses("absent", "No such file"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with refuses("file", "Not a directory"):
        read_folder(tmp_path / "file")


def test_a_folder_without_images_is_refused(tmp_path, refuses):
    with refuses(tmp_path.name, "holds no image", ".png"):
        read_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with refuses(tmp_path.name, "holds no image"):
        read_folder(tmp_path)
    save(tmp_path / "cat" / "x.png", GREY)
    (tmp_path / "dog" / "picture.heic").touch()
    with refuses("dog", "holds no image"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("STRASSE", "straße"), ("cat", "cat "), ("A\u0301", "\u00e1")]
)
def test_classes_that_differ_only_in_spelling_are_said(tmp_path, names):
    for position, name in enumerate((*names, "🐕 كلب")):
        for index in range(2):
            save(tmp_path / name / f"{index}.png", GREY + position * 10 + index)
    assert "differ in case or spaces alone" in load(tmp_path).description


def test_a_folder_that_can_be_taken_two_ways_is_refused(tmp_path, refuses):
    save(tmp_path / "cat" / "inner" / "x.png", GREY)
    with refuses("cat", "'inner'", "images only"):
        read_folder(tmp_path)
    save(tmp_path / "loose.png", GREY)
    with refuses(tmp_path.name, "'loose.png'", "'cat'"):
        read_folder(tmp_path)
