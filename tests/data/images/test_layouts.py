import gzip
import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from loopax.data.images.layouts import load
from loopax.errors import ConfigError, DataError

IMAGES = np.arange(20 * 6 * 4, dtype=np.int64).reshape(20, 6, 4) % 256
LABELS = np.arange(20) % 2
KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def write_idx(path, array, pack=bytes):
    array = array.astype(np.uint8)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(pack(header + array.tobytes()))


def write_mnist(folder, separator="-", suffix="", pack=bytes):
    folder.mkdir(exist_ok=True)
    for part, rows in [("train", slice(0, 14)), ("t10k", slice(14, 20))]:
        write_idx(folder / f"{part}-images{separator}idx3-ubyte{suffix}", IMAGES[rows], pack)
        write_idx(folder / f"{part}-labels{separator}idx1-ubyte{suffix}", LABELS[rows], pack)
    return folder


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_images(folder, count=1, value=0, shape=(6, 4)):
    """Images of one value each, but in a corner, where those of each folder are different."""
    for index in range(count):
        pixels = np.full(shape, value + index, np.uint8)
        # All four bytes: of two, some folders of a thousand runs are equal.
        pixels[-1].flat[-4:] = [*zlib.crc32(str(folder).encode()).to_bytes(4)]
        write_image(folder / f"{index:03}.png", pixels)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": png(each), "path": None} for each in images]}
    pq.write_table(pa.table(columns if labels is None else {**columns, "label": labels}), path)
    return path


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def split_npz(path, names=KERAS, **changed):
    arrays = dict(
        zip(KERAS, (IMAGES[:14], LABELS[:14], IMAGES[14:], LABELS[14:]), strict=True)
    ) | dict(changed)
    return npz(path, **dict(zip(names, arrays.values(), strict=True)))


def assert_standard(splits, name):
    """The parts of `IMAGES` and `LABELS`, 14 and 6 of them."""
    assert splits.parts.keys() == {"train", "test"}
    for part, rows in ((splits.train, slice(0, 14)), (splits.test, slice(14, 20))):
        assert part.name.startswith(f"{name} ")
        assert part.class_names == ("0", "1")
        image, label = part.columns["image"], part.columns["label"]
        assert image.dtype == np.uint8
        assert label.dtype == np.int32
        np.testing.assert_array_equal(image, IMAGES[rows, ..., None])
        np.testing.assert_array_equal(label, LABELS[rows])


# A folder with the files of MNIST


@pytest.mark.parametrize(
    ("separator", "suffix", "pack"), [("-", "", bytes), (".", ".gz", gzip.compress)]
)
def test_the_files_of_mnist(tmp_path, separator, suffix, pack):
    assert_standard(load(write_mnist(tmp_path / "d", separator, suffix, pack)), "d")


def test_a_plain_file_is_preferred_to_its_gzip(tmp_path):
    write_mnist(tmp_path / "d")
    (tmp_path / "d" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"broken")
    assert_standard(load(tmp_path / "d"), "d")


def test_a_missing_file_of_mnist_is_named(tmp_path, refuses):
    write_mnist(tmp_path / "d")
    (tmp_path / "d" / "t10k-labels-idx1-ubyte").unlink()
    with refuses("d: holds no t10k-labels-idx1-ubyte, plain or .gz"):
        load(tmp_path / "d")


def test_a_damaged_file_of_mnist_is_named(tmp_path, refuses):
    write_mnist(tmp_path / "d")
    write_idx(tmp_path / "d" / "t10k-labels-idx1-ubyte", LABELS[:5])
    with refuses("t10k-labels-idx1-ubyte", "(5,) for 6 images"):
        load(tmp_path / "d")


def test_a_test_label_that_is_no_class_of_training_is_named(tmp_path, refuses):
    write_mnist(tmp_path / "d")
    write_idx(tmp_path / "d" / "t10k-labels-idx1-ubyte", np.array([0, 1, 0, 7, 0, 9]))
    with refuses("t10k-labels-idx1-ubyte", "label 3 is 7", "0 to 1"):
        load(tmp_path / "d")


# Folders of images


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folders_that_are_split(tmp_path, test_name):
    for part, count in [("train", 3), (test_name, 2)]:
        write_images(tmp_path / "d" / part / "cat", count)
        write_images(tmp_path / "d" / part / "dog", count, value=100)
    splits = load(tmp_path / "d")
    assert [each.name for each in splits.parts.values()] == ["d train", f"d {test_name}"]
    given = "given" if test_name == "test" else f"given as {test_name}"
    assert f"6 to train on, 4 to test on ({given})" in splits.description
    assert [each.class_names for each in splits.parts.values()] == [("cat", "dog")] * 2
    assert splits.train.columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.columns["image"][:, 0, 0, 0].tolist() == [0, 1, 100, 101]


@pytest.mark.parametrize(
    ("layout", "name"), [("folder", "Validation"), ("npz", "valid"), ("parquet", "val")]
)
def test_a_validation_part_beside_a_test_part_is_one_to_choose_by(tmp_path, layout, name):
    path, parts = (
        tmp_path / "d",
        {"train": slice(0, 14), name: slice(14, 18), "test": slice(18, 20)},
    )
    if layout == "npz":
        path = npz(
            tmp_path / "d.npz",
            **{f"x_{part.lower()}": IMAGES[rows] for part, rows in parts.items()},
            **{f"y_{part.lower()}": LABELS[rows] for part, rows in parts.items()},
        )
    for part, rows in parts.items():
        if layout == "folder":
            for image, label, row in zip(IMAGES[rows], LABELS[rows], range(20), strict=False):
                write_image(path / part / str(label) / f"{row:02}.png", image.astype("u1"))
        if layout == "parquet":
            write_parquet(path / f"{part}.parquet", IMAGES[rows], LABELS[rows])
    splits = load(path)
    assert "14 to train on, 4 to choose by (given), 2 to test on (given)" in splits.description
    for part, rows in zip(splits, parts.values(), strict=True):
        assert part.class_names == ("0", "1")
        order = np.argsort(LABELS[rows], kind="stable") if layout == "folder" else slice(None)
        np.testing.assert_array_equal(part.columns["image"][..., 0], IMAGES[rows][order])
        np.testing.assert_array_equal(part.columns["label"], LABELS[rows][order])
    assert splits.with_validation(0.3) is splits


def test_the_parts_of_medmnist(tmp_path):
    names = [f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("images", "labels")]
    arrays = (IMAGES[:14], LABELS[:14], IMAGES[14:17], LABELS[14:17], IMAGES[17:], LABELS[17:])
    splits = load(npz(tmp_path / "d.npz", **dict(zip(names, arrays, strict=True))))
    assert [len(part) for part in splits] == [14, 3, 3]


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_two_parts_to_choose_by_are_refused(tmp_path, refuses, layout):
    for part in ("train", "val", "validation", "test"):
        write_images(tmp_path / part / "cat") if layout == "folder" else write_parquet(
            tmp_path / f"{part}.parquet", IMAGES, LABELS
        )
    with refuses(tmp_path.name, "'val' and 'validation'", "take one away"):
        load(tmp_path)


def test_what_lies_beside_the_parts_is_said_to_be_passed_over(tmp_path):
    for part in ("train", "test", "unsorted"):
        write_images(tmp_path / part / "cat")
    assert load(tmp_path).description.endswith("left out beside the parts: unsorted")


def test_a_training_folder_alone_is_split(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 10)
    assert [len(part) for part in load(tmp_path).parts.values()] == [18, 2]


def test_split_folders_without_classes(tmp_path):
    write_images(tmp_path / "d" / "train", 3)
    write_images(tmp_path / "d" / "test", 2)
    splits = load(tmp_path / "d")
    assert "3 to train on, 2 to test on (given)" in splits.description
    assert [each.class_names for each in splits.parts.values()] == [("d",)] * 2
    assert [len(each) for each in splits.parts.values()] == [3, 2]


@pytest.mark.parametrize("has", ["train", "test"])
def test_classes_of_one_part_only_are_refused(tmp_path, refuses, has):
    for name in ("train/cat", "test/cat", f"{has}/dog"):
        write_images(tmp_path / name)
    with refuses(tmp_path.name, "only one of train/ and test/ has the class 'dog'"):
        load(tmp_path)


def test_parts_that_differ_in_shape_are_refused(tmp_path, refuses):
    write_images(tmp_path / "train" / "cat")
    write_images(tmp_path / "test" / "cat", shape=(6, 4, 3))
    with refuses(tmp_path.name, "uint8 (6, 4, 1)", "uint8 (6, 4, 3)", "channels="):
        load(tmp_path)
    assert load(tmp_path, channels=3).train.columns["image"].shape == (1, 6, 4, 3)


def test_one_folder_is_split(tmp_path):
    write_images(tmp_path / "d" / "cat", 20)
    write_images(tmp_path / "d" / "dog", 10, value=100)
    splits = load(tmp_path / "d", test_fraction=0.2)
    assert [each.name for each in splits.parts.values()] == ["d train", "d test"]
    assert [each.class_names for each in splits.parts.values()] == [("cat", "dog")] * 2
    # They grow brighter one by one, as frames of a film may.
    assert splits.test.columns["image"][:, 0, 0, 0].tolist() == [16, 17, 18, 19, 108, 109]
    assert len(splits.train) == 24
    assert (
        "(folder of images): 24 to train on, 6 to test on (1 in 5 held out)" in splits.description
    )
    assert "neighbours are alike" in splits.description


def test_a_folder_called_train_alone_may_be_a_class(tmp_path):
    write_images(tmp_path / "bus", 9)
    write_images(tmp_path / "train", 9)
    assert load(tmp_path).train.class_names == ("bus", "train")


def test_size_resizes_a_folder(tmp_path):
    write_images(tmp_path, 9)
    assert load(tmp_path, size=(8, 8)).train.columns["image"].shape == (8, 8, 8, 1)


def test_size_resizes_arrays(tmp_path):
    path = split_npz(tmp_path / "d.npz")
    assert_standard(load(path, size=(6, 4)), "d.npz")
    assert [each.columns["image"].shape for each in load(path, size=(8, 9)).parts.values()] == [
        (14, 8, 9, 1),
        (6, 8, 9, 1),
    ]


@pytest.mark.parametrize("layout", ["folder", "npz", "parquet"])
def test_channels_and_size_mean_the_same_for_every_layout(tmp_path, layout):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 4), np.uint8)
    path = tmp_path / "d"
    if layout == "folder":
        for index, each in enumerate(pixels):
            write_image(path / str(index % 2) / f"{index:03}.png", each)
    if layout == "npz":
        path = npz(tmp_path / "d.npz", x=pixels, y=LABELS)
    if layout == "parquet":
        path = write_parquet(tmp_path / "d.parquet", pixels, LABELS)
    test = load(path, size=(12, 5), channels=3, test_fraction=0.3).test
    found = test.columns["image"][np.argsort(test.columns["label"], kind="stable")]
    expected = [
        np.asarray(Image.fromarray(pixels[row]).resize((5, 12), Image.Resampling.BILINEAR))
        for row in (2, 6, 18, 3, 7, 19)
    ]
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=-1))


# NPZ files


@pytest.mark.parametrize("names", [KERAS, MEDMNIST])
def test_an_npz_that_is_split(tmp_path, names):
    assert_standard(load(split_npz(tmp_path / "d.npz", names)), "d.npz")


@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels"), ("x", "y")])
def test_an_npz_that_is_not_split(tmp_path, names):
    path = npz(tmp_path / "d.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    splits = load(path, test_fraction=0.3)
    assert [len(each) for each in splits.parts.values()] == [14, 6]
    assert splits.test.columns["label"].tolist() == [0, 1] * 3


def test_an_npz_with_other_names_is_refused(tmp_path, refuses):
    with refuses("d.npz", "'x_train', 'pixels'", "x_train y_train x_test y_test", "images labels"):
        load(npz(tmp_path / "d.npz", x_train=IMAGES, pixels=LABELS))


def test_parts_that_differ_in_type_are_refused(tmp_path, refuses):
    with refuses("d.npz", "uint8 (6, 4, 1)", "float32 (6, 4, 1)"):
        load(split_npz(tmp_path / "d.npz", x_test=IMAGES[14:] / 255))


# Parquet files


def test_a_parquet_file_is_split(tmp_path):
    splits = load(write_parquet(tmp_path / "d.parquet", IMAGES, LABELS), test_fraction=0.3)
    assert [each.name for each in splits.parts.values()] == ["d.parquet train", "d.parquet test"]
    assert [each.class_names for each in splits.parts.values()] == [("0", "1")] * 2
    rows = [2, 3, 6, 7, 18, 19]
    np.testing.assert_array_equal(splits.test.columns["image"][..., 0], IMAGES[rows])
    assert splits.test.columns["label"].tolist() == [0, 1] * 3


@pytest.mark.parametrize(("home", "test_name"), [("d", "test"), ("d/data", "validation")])
def test_a_folder_of_parquet_files_is_split_as_given(tmp_path, home, test_name):
    for part, rows in [("train", slice(0, 14)), (test_name, slice(14, 20))]:
        path = tmp_path / home / f"{part}-00000-of-00001.parquet"
        write_parquet(path, IMAGES[rows], LABELS[rows])
    (tmp_path / "d" / "README.md").write_text("About the data.")
    assert_standard(load(tmp_path / "d"), "d")


def test_a_folder_of_parquet_shards_is_one_whole(tmp_path):
    for shard, rows in enumerate([slice(0, 3), slice(3, 4), slice(4, 20)]):
        path = tmp_path / f"train-{shard:05}-of-00003.parquet"
        write_parquet(path, IMAGES[rows], LABELS[rows])
    splits = load(tmp_path, test_fraction=0.3)
    np.testing.assert_array_equal(
        splits.train.columns["image"][..., 0], np.delete(IMAGES, [2, 3, 6, 7, 18, 19], axis=0)
    )


def test_parts_of_parquet_that_differ_are_refused(tmp_path, refuses):
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS)
    write_parquet(tmp_path / "test.parquet", IMAGES[:, :5], LABELS)
    with refuses(tmp_path.name, "uint8 (6, 4, 1)", "uint8 (5, 4, 1)", "size="):
        load(tmp_path)
    assert load(tmp_path, size=(6, 4)).test.columns["image"].shape == (20, 6, 4, 1)
    write_parquet(tmp_path / "test.parquet", IMAGES, LABELS + 1)
    with refuses("test.parquet: column 'label'", "label 1 is 2"):
        load(tmp_path)


def test_columns_of_parquet_can_be_named(tmp_path, refuses):
    images = [png(each) for each in IMAGES]
    table = pa.table({"this": images, "that": images, "kind": LABELS, "label": LABELS * 0})
    pq.write_table(table, tmp_path / "d.parquet")
    with refuses("d.parquet", "(image_column)"):
        load(tmp_path / "d.parquet")
    splits = load(tmp_path / "d.parquet", image_column="this", label_column="kind")
    assert splits.train.class_names == ("0", "1")
    path = split_npz(tmp_path / "d.npz")
    for options in ({"image_column": "x"}, {"label_column": "y"}):
        with refuses("d.npz is taken for npz", 'layout="parquet"', error=ConfigError):
            load(path, **options)


# Labels that are missing


@pytest.mark.parametrize("layout", ["npz", "parquet", "folder", "named", "minus one", "null"])
def test_without_labels_there_is_one_class(tmp_path, layout):
    path = tmp_path / "d"
    if layout == "npz":
        path = npz(tmp_path / "d.npz", x_train=IMAGES[:14], x_test=IMAGES[14:])
    if layout == "named":
        path = npz(tmp_path / "d.npz", whatever=IMAGES)
    if layout == "minus one":
        path = split_npz(tmp_path / "d.npz", y_train=LABELS[:14] * 0 - 1, y_test=[-1] * 6)
    if layout == "parquet":
        path = write_parquet(tmp_path / "d.parquet", IMAGES)
    if layout == "null":
        path = write_parquet(tmp_path / "d.parquet", IMAGES, pa.array([None] * 20, pa.string()))
    if layout == "folder":
        write_images(path, 20)
    splits = load(path)
    for part in splits.parts.values():
        assert part.class_names == (path.name,)
        assert part.columns["label"].dtype == np.int32
        assert set(part.columns["label"]) == {0}
    if layout != "folder":
        assert "no labels): " in splits.description
    assert splits.description.endswith(f", 1 class ({path.name})")


def test_an_npz_of_images_holds_nothing_else(tmp_path, refuses):
    for arrays in ({"y_train": LABELS[:14]}, {"other": LABELS}):
        path = npz(tmp_path / "d.npz", x_train=IMAGES[:14], x_test=IMAGES[14:], **arrays)
        with refuses("d.npz", *map(repr, arrays), "x_train y_train", "or only images"):
            load(path)


def test_single_labels_may_be_missing(tmp_path):
    labels = LABELS.copy()
    labels[[0, 5, 15]] = -1
    found = [
        load(split_npz(tmp_path / "d.npz", y_train=labels[:14], y_test=labels[14:])),
        load(npz(tmp_path / "e.npz", x=IMAGES, y=labels)),
        load(write_parquet(tmp_path / "d.parquet", IMAGES, labels)),
    ]
    for splits in found:
        stored = np.concatenate([each.columns["label"] for each in splits.parts.values()])
        assert stored.dtype == np.int32
        assert sorted(stored) == sorted(labels)
        assert splits.train.class_names == ("0", "1")
        assert splits.description.endswith(", 3 without a label")


def test_the_test_part_alone_may_lack_labels(tmp_path, refuses):
    splits = load(split_npz(tmp_path / "d.npz", y_test=[-1] * 6))
    assert splits.test.columns["label"].tolist() == [-1] * 6
    assert splits.test.class_names == ("0", "1")
    with refuses("d.npz", "to train on are missing", "not 6 others"):
        load(split_npz(tmp_path / "d.npz", y_train=LABELS[:14] * 0 - 1))


# What a path is taken for


def test_a_layout_is_taken_at_its_word(tmp_path, refuses):
    write_mnist(tmp_path / "d")
    for name in ("a", "b"):
        write_images(tmp_path / "d" / name, 10)
    write_parquet(tmp_path / "d" / "x.parquet", IMAGES, LABELS)
    for layout, source in [
        (None, "IDX"),
        ("idx", "IDX"),
        ("folder", "folder of images"),
        ("parquet", "Parquet, images in 'image', labels in 'label'"),
    ]:
        assert load(tmp_path / "d", layout=layout).train.source == source
    with refuses("d: cannot be read: Is a directory"):
        load(tmp_path / "d", layout="npz")


def test_a_layout_that_is_not_there_is_refused(tmp_path, refuses):
    path = split_npz(tmp_path / "d.npz")
    for layout, part in [
        ("idx", "Not a directory"),
        ("folder", "Not a directory"),
        ("parquet", "cannot be read as Parquet"),
    ]:
        with refuses("d.npz", part):
            load(path, layout=layout)
    for layout, part in [
        ("idx", "holds no train-images-idx3-ubyte, plain or .gz"),
        ("folder", "holds no image"),
        ("parquet", "holds no Parquet file"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with refuses("empty", part):
            load(tmp_path / "empty", layout=layout)
    with refuses("layout is 'zip'", "idx, npz, folder, parquet", error=ConfigError):
        load(path, layout="zip")


# Anything else


def test_what_is_none_of_these_is_refused(tmp_path, refuses):
    with refuses("absent", "No such file"):
        load(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with refuses("notes.txt", "68 65", ".npz or Parquet file, one of", "or a folder of images"):
        load(tmp_path / "notes.txt")
    (tmp_path / "empty").touch()
    with refuses("empty", "is empty"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("fraction", [0, 1, float("nan"), "0.1"])
def test_a_fraction_that_is_none_is_refused(tmp_path, refuses, fraction):
    with refuses(f"test_fraction is {fraction!r}", "between 0 and 1", error=ConfigError):
        load(tmp_path, test_fraction=fraction)


# What images and labels must be


@pytest.mark.parametrize("kind", ["i2", "u8", ">i4"])
def test_integers_become_uint8(tmp_path, kind):
    path = split_npz(tmp_path / "d.npz", x_train=IMAGES[:14].astype(kind))
    assert_standard(load(path), "d.npz")


@pytest.mark.parametrize("kind", ["f2", "f8"])
def test_floats_become_float32(tmp_path, kind):
    images = (IMAGES / 255).astype(kind)
    splits = load(split_npz(tmp_path / "d.npz", x_train=images[:14], x_test=images[14:]))
    assert splits.train.columns["image"].dtype == np.float32
    np.testing.assert_array_equal(
        splits.test.columns["image"][..., 0], images[14:].astype(np.float32)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_last(tmp_path, channels):
    images = np.repeat(IMAGES[:14, ..., None], channels, axis=-1)
    splits = load(npz(tmp_path / "d.npz", x=images, y=LABELS[:14]))
    assert splits.train.columns["image"].shape == (12, 6, 4, channels)


def changed(index, value, kind=np.int64):
    images = IMAGES[:14].astype(kind) if kind is np.int64 else np.zeros((14, 6, 4), kind)
    images[index] = value
    return images


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (changed((3, 2, 1), 256), ["int64 from 0 to 256", "0 to 255"]),
        (changed((3, 2, 1), -1), ["int64 from -1 to", "0 to 255"]),
        (changed((3, 2, 1), 1.5, np.float32), ["float32 from 0.0 to 1.5", "floats from 0 to 1"]),
        (changed((3, 2, 1), -0.5, np.float64), ["float64 from -0.5 to 0.0"]),
        (changed((3, 2, 1), np.inf, np.float16), ["float16 from 0.0 to inf"]),
        (changed((3, 2, 1), np.nan, np.float32), ["float32 from nan to nan"]),
        (np.zeros((14, 6, 4), bool), ["images are bool"]),
        (np.zeros((14, 6, 4), "S1"), ["images are |S1"]),
        (np.zeros((14, 6, 4), complex), ["images are complex128"]),
        (np.zeros((14, 24), np.uint8), ["(14, 24)", "(examples, height, width)"]),
        (np.zeros((14, 6, 4, 4), np.uint8), ["(14, 6, 4, 4)", "1 or 3"]),
        (np.zeros((14, 3, 6, 4), np.uint8), ["(14, 3, 6, 4)", "(0, 2, 3, 1)"]),
        (np.zeros((0, 6, 4), np.uint8), ["(0, 6, 4)", "not empty"]),
        (np.zeros((14, 6, 0), np.uint8), ["(14, 6, 0)", "not empty"]),
        (np.zeros((), np.uint8), ["the shape ()"]),
    ],
)
def test_what_are_no_images_is_refused(tmp_path, refuses, images, parts):
    with refuses("d.npz: x_train", *parts):
        load(split_npz(tmp_path / "d.npz", x_train=images))


@pytest.mark.parametrize("kind", ["i1", ">i8", "u8"])
def test_labels_become_int32(tmp_path, kind):
    column = LABELS[:14, None].astype(kind)
    assert_standard(load(split_npz(tmp_path / "d.npz", y_train=column)), "d.npz")


@pytest.mark.parametrize("kind", [bool, "f2", "f8", "U1", "S1"])
def test_labels_of_other_types_mean_the_same(tmp_path, kind):
    given = {name: rows.astype(kind) for name, rows in (("y_train", LABELS[:14]),)}
    if kind in ("U1", "S1"):
        given = {
            "y_train": LABELS[:14].astype("i1").astype(kind),
            "y_test": LABELS[14:].astype("U"),
        }
    assert_standard(load(split_npz(tmp_path / "d.npz", **given)), "d.npz")


def test_labels_may_be_names(tmp_path, refuses):
    names = np.array(["dog", "cat", "äffle"])[np.arange(20) % 3]
    for whole in (names, np.char.encode(names, "utf-8")[:, None]):
        train = load(npz(tmp_path / "d.npz", x=IMAGES, y=whole)).train
        assert train.class_names == ("cat", "dog", "äffle")
    path = split_npz(tmp_path / "d.npz", y_train=names[:14], y_test=np.array(["owl"] * 6))
    with refuses("d.npz: y_test", "label 0 is 'owl'", "no image to train on"):
        load(path)
    with refuses("d.npz: y_test", "int64", "those to train on names"):
        load(split_npz(tmp_path / "d.npz", y_train=names[:14]))


def labelled(index, value, kind=np.int64):
    labels = LABELS[:14].astype(kind)
    labels[index] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (labelled(5, -2), ["label 5 is -2", "0 to 65535, or -1"]),
        (labelled(5, 2**40), ["label 5 is 1099511627776", "0 to 65535"]),
        (labelled(5, 2**63, np.uint64), ["label 5 is 9223372036854775808"]),
        (labelled([4, 5], 65_536), ["label 4 is 65536", "0 to 65535"]),
        (labelled(5, 0.5, float), ["label 5 is 0.5", "whole numbers"]),
        (labelled(5, np.nan, float), ["label 5 is nan", "-1 for unknown"]),
        (labelled(5, np.inf, float), ["label 5 is inf", "0 to 65535"]),
        (labelled(5, 1e30, float), ["label 5 is 1e+30", "0 to 65535"]),
        (LABELS[:14].astype(complex), ["labels are complex128", "or text"]),
        (np.array([b"\xff"] * 14), ["no text in UTF-8"]),
        (LABELS[:13], ["(13,) for 14 images"]),
        (np.eye(10, dtype=int), ["(10, 10)", "argmax(axis=1)"]),
        (np.zeros((14, 1, 1), int), ["(14, 1, 1)"]),
        (np.zeros((), int), ["the shape ()"]),
    ],
)
def test_what_are_no_labels_is_refused(tmp_path, refuses, labels, parts):
    with refuses("d.npz: y_train", *parts):
        load(split_npz(tmp_path / "d.npz", y_train=labels))


def test_the_classes_of_training_bound_those_of_testing(tmp_path, refuses):
    with refuses("d.npz: y_test", "label 2 is 2", "0 to 1"):
        load(split_npz(tmp_path / "d.npz", y_test=np.array([0, 1, 2, 0, 3, 0])))


# The split


def test_every_class_of_two_is_tested(tmp_path):
    write_images(tmp_path / "cat", 4)
    write_images(tmp_path / "dog", 2)
    write_images(tmp_path / "owl", 1)
    splits = load(tmp_path)
    assert splits.test.columns["label"].tolist() == [0, 1]
    assert "5 to train on, 2 to test on (1 in 3.5 held out)" in splits.description


# Images that come again


def distinct(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 4), np.uint8)


def shared(one, other):
    return {each.tobytes() for each in one.columns["image"]} & {
        each.tobytes() for each in other.columns["image"]
    }


@pytest.mark.parametrize(
    "order", [np.repeat(np.arange(12), 10), np.tile(np.arange(12), 10), [*range(100), *range(20)]]
)
def test_copies_of_an_image_are_on_one_side_of_each_split(tmp_path, order):
    images = distinct(100)[np.array(order)]
    splits = load(npz(tmp_path / "d.npz", x=images)).with_validation(0.2)
    assert not shared(splits.train, splits.test)
    assert not shared(splits.train, splits.validation)
    assert not shared(splits.validation, splits.test)
    assert sum(map(len, splits.parts.values())) == len(order)
    assert 0.05 < len(splits.test) / len(order) < 0.2
    copies = len(order) - len(set(order))
    assert splits.description.endswith(f"copies of images kept on one side of each split: {copies}")


def test_training_copies_of_test_images_are_left_out(tmp_path, refuses):
    images = distinct(30)
    parts = {"train_images": images[:20], "val_images": images[15:26]}
    splits = load(npz(tmp_path / "d.npz", **parts, test_images=images[[3, 25, 27, 28]]))
    assert [len(part) for part in splits] == [14, 10, 4]
    assert "left out as copies of images in other parts: 6 (train)" in splits.description
    assert "left out as copies of images in other parts: 1 (validation)" in splits.description
    with refuses("e.npz train", "all its images are also in another part"):
        load(npz(tmp_path / "e.npz", train_images=images, test_images=images))


def test_of_frames_in_a_row_the_last_are_held_out(tmp_path):
    """Two films, of which each changes by a tenth from one frame to the next, cut at 45."""
    generator = np.random.default_rng(0)
    frames = [generator.random((8, 8))]
    for index in range(1, 100):
        new = generator.random((8, 8))
        frames.append(new if index in (45, 50, 95) else 0.9 * frames[-1] + 0.1 * new)
    images = (np.stack(frames) * 255).astype(np.uint8)
    splits = load(npz(tmp_path / "d.npz", x=images, y=np.arange(100) // 50))
    np.testing.assert_array_equal(
        splits.test.columns["image"][..., 0], images[[*range(45, 50), *range(95, 100)]]
    )
    assert "neighbours are alike, like frames of a film" in splits.description
    assert "neighbours" not in load(npz(tmp_path / "n.npz", x=distinct(100))).description


def test_an_npz_of_training_data_only_is_split(tmp_path):
    splits = load(npz(tmp_path / "d.npz", x_train=distinct(20), y_train=LABELS))
    assert [len(part) for part in (splits.train, splits.test)] == [18, 2]


# Paths as people type and move them


def test_a_path_is_found_as_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "meine bilder"
    write_images(folder / "cat", 9)
    (tmp_path / "link").symlink_to(folder)
    typed = ("~/meine bilder", "meine bilder/", "./meine bilder/.", "link", folder, folder.as_uri())
    for path in typed:
        assert load(path).train.class_names == ("cat",)
    with pytest.raises(DataError, match="No such file"):
        load("~nobody-of-this-name/x")


@pytest.mark.parametrize("where", ["", "train", "train/cat"])
def test_what_other_programs_leave_is_no_class_and_no_image(tmp_path, where):
    for part in ("train/cat", "train/dog", "test/cat", "test/dog"):
        write_images(tmp_path / part, 2)
    for left in (
        *("Thumbs.db", "desktop.ini", "__MACOSX/._001.png", "@eaDir/001.png", "Icon\r"),
        *("$RECYCLE.BIN/001.png", ".DS_Store", "._000.png", ".cache/000.png", "lost+found/1.png"),
    ):
        file = tmp_path / where / left
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(b"no picture")
    splits = load(tmp_path)
    assert splits.train.class_names == ("cat", "dog")
    assert "left out" not in splits.description
    assert len(splits.train) == 4


def test_what_could_be_meant_is_not_passed_over_in_silence(tmp_path, refuses):
    write_images(tmp_path / "a" / "cat", 9)
    (tmp_path / "a" / "cat" / "from-a-phone.heic").write_bytes(b"not read")
    (tmp_path / "a" / "README.md").write_text("about")
    (tmp_path / "a" / "New folder").mkdir()
    assert load(tmp_path / "a").description.endswith(
        "empty folders left out: New folder, other files left out: 1 .md, 1 .heic"
    )
    (tmp_path / "a" / "dog").symlink_to(tmp_path / "unplugged")
    with refuses("dog", "No such file"):
        load(tmp_path / "a")
    for part in ("Train", "train", "test"):
        write_images(tmp_path / "b" / part / "cat")
    with refuses("b:", "'Train' and 'train'"):
        load(tmp_path / "b")
    for part in ("val", "test"):
        write_images(tmp_path / "c" / part, 3)
    with refuses("c:", "'test' and 'val'", "no 'train'"):
        load(tmp_path / "c")


@pytest.mark.parametrize("path", ["", None])
def test_what_is_no_path_is_refused(path, refuses, tmp_path, monkeypatch):
    """An empty one, as of a variable that was not set, would be the folder one is in."""
    write_images(tmp_path / "cat", 9)
    monkeypatch.chdir(tmp_path)
    with refuses(f"the path is {path!r}", error=ConfigError):
        load(path)


def test_an_empty_label_is_an_unknown_class(tmp_path):
    names = np.array(["dog", "", "cat", "cat", "dog"] * 4)
    splits = load(npz(tmp_path / "d.npz", x=IMAGES, y=names))
    assert splits.train.class_names == ("cat", "dog")
    assert splits.description.endswith(", 4 without a label")


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    for number in range(12):
        write_images(tmp_path / "a" / str(number), 2, value=number)
    train = load(tmp_path / "a").train
    assert train.class_names == tuple(map(str, range(12)))
    assert train.columns["image"][:, 0, 0, 0].tolist() == train.columns["label"].tolist()
