import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from loopax.data import load
from loopax.data import parquet as files
from loopax.data.images import arrays
from loopax.data.images.decode import Form
from loopax.data.images.parquet import parquet_parts
from loopax.errors import ConfigError

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (12, 40, 40), np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 1]
BYTES_AND_PATH = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def cells(images):
    return pa.array([{"bytes": png(each), "path": None} for each in images], BYTES_AND_PATH)


def declared(table, **names):
    """The table with the metadata of Hugging Face: these columns are classes of these names."""
    features = {
        "image": {"_type": "Image"},
        **{column: {"names": each, "_type": "ClassLabel"} for column, each in names.items()},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def colours(**columns):
    return pa.table({"image": cells(COLOUR), **columns})


def write(path, table, **options):
    pq.write_table(table, path, **options)
    return path


def read(path, form=None, **options):
    return parquet_parts(path, form or Form(), **options)[""]


def image_of(dataset):
    return dataset.columns["image"]


def label_of(dataset):
    return dataset.columns["label"].tolist()


# What is read


def test_arrow_of_datasets_is_read_as_parquet_is(tmp_path, refuses):
    table = declared(colours(label=LABELS), label=["cat", "dog", "owl", "yak"])
    parquet, arrow = read(write(tmp_path / "x.parquet", table)), tmp_path / "saved"
    arrow.mkdir()
    for index, part in enumerate((table.slice(0, 5), table.slice(5))):
        file = arrow / f"data-{index:05}-of-00002.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(part, 3)
    found = read(arrow)
    np.testing.assert_array_equal(image_of(found), image_of(parquet))
    assert label_of(found) == label_of(parquet)
    assert found.class_names == parquet.class_names
    assert load(arrow).train.fingerprint == load(tmp_path / "x.parquet").train.fingerprint
    file.write_bytes(file.read_bytes()[:200])
    with refuses("data-00001-of-00002.arrow", "cannot be read as Arrow"):
        read(arrow)


@pytest.mark.parametrize("options", [{}, {"row_group_size": 5, "compression": "zstd"}])
def test_images_and_named_classes_as_hugging_face_stores_them(tmp_path, options):
    table = declared(colours(label=LABELS), label=["cat", "dog", "owl", "yak"])
    found = read(write(tmp_path / "x.parquet", table, **options))
    assert image_of(found).dtype == np.uint8
    np.testing.assert_array_equal(image_of(found), COLOUR)
    assert found.columns["label"].dtype == np.int32
    assert label_of(found) == LABELS
    assert found.class_names == ("cat", "dog", "owl", "yak")
    assert found.source == "Parquet, images in 'image', labels in 'label'"


def test_plain_bytes_and_numbers(tmp_path):
    table = pa.table({"jpg": [png(each) for each in GREY], "class": pa.array(LABELS, pa.uint8())})
    found = read(write(tmp_path / "x.parquet", table))
    np.testing.assert_array_equal(image_of(found), GREY[..., None])
    assert label_of(found) == LABELS
    assert found.class_names == ("0", "1", "2")


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.bool_()])
def test_numbers_of_other_types_mean_the_same(tmp_path, kind):
    labels = [min(label, 1) for label in LABELS]
    column = pa.array([None, *labels[1:]]).cast(kind)
    found = read(write(tmp_path / "x.parquet", colours(label=column)))
    assert label_of(found) == [-1, *labels[1:]]


def test_what_is_no_whole_number_is_no_label(tmp_path, refuses):
    path = write(tmp_path / "x.parquet", colours(label=[0.5, *LABELS[1:]]))
    with refuses("x.parquet: column 'label'", "cannot be read as labels"):
        read(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_strings_are_numbered_in_their_order(tmp_path, kind):
    column = pa.array([["owl", "cat", "elk"][label] for label in LABELS])
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    found = read(write(tmp_path / "x.parquet", colours(label=column)))
    assert found.class_names == ("cat", "elk", "owl")
    assert label_of(found) == [[2, 0, 1][label] for label in LABELS]


@settings(deadline=None, max_examples=20)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7)).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.uint8, (shape[2], *shape[:2])),
            st.lists(st.none() | st.integers(-1, 5), min_size=shape[2], max_size=shape[2]),
        )
    ),
    st.integers(1, 8),
)
def test_what_is_written_is_read(scratch, data, rows):
    images, labels = data
    table = pa.table({"image": cells(images), "label": pa.array(labels, pa.int16())})
    found = read(write(scratch / "round.parquet", table, row_group_size=rows))
    np.testing.assert_array_equal(image_of(found), images[..., None])
    assert label_of(found) == [-1 if each is None else each for each in labels]
    assert len(found.class_names) == max(label_of(found)) + 1


def test_shards_follow_each_other_and_parts_share_classes(tmp_path):
    table = colours(label=["abc"[label] for label in LABELS])
    for name, start, count in [("train-0", 0, 5), ("train-1", 5, 3), ("test", 8, 4)]:
        write(tmp_path / f"{name}.parquet", table.slice(start, count))
    parts = parquet_parts(tmp_path, Form())
    train, test = parts["train"], parts["test"]
    np.testing.assert_array_equal(image_of(train), COLOUR[:8])
    np.testing.assert_array_equal(image_of(test), COLOUR[8:])
    assert label_of(train) + label_of(test) == LABELS
    assert train.class_names == test.class_names == ("a", "b", "c")


def test_an_unknown_class_is_minus_one(tmp_path):
    for position, column in enumerate(
        [
            pa.array([None, -1, *LABELS[2:]], pa.int64()),
            pa.array([None, None, *("abc"[label] for label in LABELS[2:])]),
        ]
    ):
        found = read(write(tmp_path / f"{position}.parquet", colours(label=column)))
        assert label_of(found) == [-1, -1, *LABELS[2:]]
        assert len(found.class_names) == 3


def test_without_a_column_of_labels_all_are_unknown(tmp_path):
    path = write(tmp_path / "x.parquet", colours(id=LABELS, caption=["text"] * 12))
    found = read(path)
    assert label_of(found) == [-1] * 12
    assert found.class_names == ()
    assert found.source == "Parquet, images in 'image'"


def test_images_are_brought_to_a_form(tmp_path):
    path = write(tmp_path / "x.parquet", pa.table({"image": cells([*COLOUR[:1], *GREY[:1]])}))
    assert image_of(read(path, form=Form((8, 6), 1))).shape == (2, 8, 6, 1)


# Which columns


def test_the_usual_name_decides(tmp_path):
    table = colours(mask=cells(GREY), fine_label=LABELS, coarse_label=LABELS)
    table = declared(table, fine_label=["a", "b", "c"], coarse_label=["x", "y", "z"])
    found = read(write(tmp_path / "x.parquet", table))
    np.testing.assert_array_equal(image_of(found), COLOUR)
    assert found.class_names == ("a", "b", "c")


def test_columns_can_be_named(tmp_path):
    table = colours(mask=cells(GREY), label=LABELS, kind=LABELS[::-1])
    path = write(tmp_path / "x.parquet", declared(table, kind=["a", "b", "c"]))
    found = read(path, image_column="mask", label_column="label")
    np.testing.assert_array_equal(image_of(found), GREY[..., None])
    assert label_of(found) == LABELS
    assert read(path).class_names == ("a", "b", "c")
    assert label_of(read(path, label_column="")) == [-1] * 12


def test_columns_that_can_be_taken_two_ways_are_refused(tmp_path, refuses):
    path = write(tmp_path / "images.parquet", pa.table({"a": cells(GREY), "b": cells(COLOUR)}))
    with refuses("images.parquet", "(image_column)", "'a' (struct<bytes: binary", "'b'"):
        read(path)
    table = declared(colours(age=LABELS, race=LABELS), age=["x"] * 3, race=["y"] * 3)
    with refuses("labels.parquet", "(label_column)", "'age' (int64), 'race' (int64)"):
        read(write(tmp_path / "labels.parquet", table))
    with refuses("both.parquet", "(label_column)", "'category' (int64), 'Class' (string)"):
        read(write(tmp_path / "both.parquet", colours(category=LABELS, Class=["a"] * 12)))


def test_columns_that_are_not_there_are_refused(tmp_path, refuses):
    path = write(tmp_path / "x.parquet", colours(label=LABELS))
    for options in ({"image_column": "img"}, {"label_column": "img"}):
        with refuses("x.parquet", "no column 'img'", "'image' (struct<", "'label' (int64)"):
            read(path, **options)


def test_columns_of_other_types_are_refused(tmp_path, refuses):
    nested = pa.table({"image": GREY[:3].reshape(3, -1).tolist(), "label": LABELS[:3]})
    path = write(tmp_path / "nested.parquet", nested)
    with refuses("nested.parquet", "no column", "'image' (list<element: int64>)"):
        read(path)
    with refuses("nested.parquet", "'label' is int64", "bytes of encoded images"):
        read(path, image_column="label")
    for kind, column in [
        ("list<element: int64>", [[each] for each in LABELS]),
        ("timestamp[ms]", pa.array(LABELS, pa.timestamp("ms"))),
    ]:
        path = write(tmp_path / "labels.parquet", colours(label=column))
        with refuses("labels.parquet", f"'label' is {kind}", "or a string for each image"):
            read(path)
        assert len(read(path, label_column="")) == 12


# What is wrong in the cells


def test_a_cell_that_is_no_image_is_named(tmp_path, refuses):
    for content, part in [
        (b"not a picture", "is none of PNG, JPEG"),
        (b"", "is none of PNG, JPEG"),
        (png(COLOUR[0])[:-400], "cannot be read as an image"),
        (png(np.dstack([COLOUR[0], GREY[0, :32, :32]])), "transparent pixels"),
        (png(COLOUR[0, :31]), "is 31x32 pixels (height x width), but"),
    ]:
        images = [png(each) for each in [*COLOUR, *COLOUR]]
        images[19] = content
        path = write(tmp_path / "x.parquet", pa.table({"image": images}), row_group_size=21)
        with refuses("x.parquet: row 19: ", part):
            read(path)


def test_a_bomb_in_a_cell_is_refused(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 31)
    with refuses("x.parquet: row 0", "limit of 992"):
        read(write(tmp_path / "x.parquet", colours()))


def test_a_cell_without_an_image_is_named(tmp_path, refuses):
    for cell, part in [
        ({"bytes": None, "path": "cats/1.png"}, "only the path 'cats/1.png'"),
        ({"bytes": None, "path": None}, "only null"),
        (None, "only null"),
    ]:
        images = pa.array([*cells(COLOUR[:3]).to_pylist(), cell], BYTES_AND_PATH)
        with refuses("x.parquet: row 3: column 'image'", part, "bytes of an image"):
            read(write(tmp_path / "x.parquet", pa.table({"image": images})))
    with refuses("x.parquet: row 0: column 'image'", "only null"):
        read(write(tmp_path / "x.parquet", pa.table({"image": pa.array([None], pa.binary())})))


def test_cells_that_expand_are_refused_before_they_are_read(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 2**20)
    table = pa.table({"image": [bytes(2**22)] * 3})
    path = write(tmp_path / "bomb.parquet", table, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 2**14
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with refuses("bomb.parquet: a row has", "at most 1,048,576"):
        read(path)


def test_a_label_that_is_no_class_is_named(tmp_path, refuses):
    for labels, part in [
        ([*LABELS[:5], 3, *LABELS[6:]], "label 5 is 3; labels must be whole numbers, 0 to 2"),
        ([*LABELS[:5], -2, *LABELS[6:]], "label 5 is -2"),
    ]:
        path = write(tmp_path / "x.parquet", declared(colours(label=labels), label=["a", "b", "c"]))
        with refuses("x.parquet: column 'label'", part, "or -1"):
            read(path)
    beyond = pa.array([2**64 - 1] * 12, pa.uint64())
    with refuses("x.parquet: column 'label'", "cannot be read as labels"):
        read(write(tmp_path / "x.parquet", colours(label=beyond)))


@pytest.mark.parametrize(
    ("train", "test", "parts"),
    [
        (["a", "b"] * 6, ["a"] * 11 + ["zebra"], ["label 11 is 'zebra'", "to train on"]),
        (LABELS, [7] * 12, ["label 0 is 7", "0 to 2"]),
    ],
)
def test_classes_of_the_second_part_only_are_refused(tmp_path, refuses, train, test, parts):
    write(tmp_path / "train.parquet", colours(label=train))
    write(tmp_path / "test.parquet", colours(label=test))
    with refuses("test.parquet: column 'label'", *parts):
        parquet_parts(tmp_path, Form())


def test_more_strings_than_there_can_be_classes_are_refused(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_CLASSES", 2)
    with refuses("x.parquet: column 'label'", "3 different", "at most 2"):
        read(write(tmp_path / "x.parquet", colours(label=["abc"[each] for each in LABELS])))


# What is wrong in the files


def test_shards_that_differ_are_refused(tmp_path, refuses):
    write(tmp_path / "1.parquet", declared(colours(label=LABELS), label=["a", "b", "c"]))
    for table, parts in [
        (declared(colours(label=LABELS), label=["a", "c", "b"]), ["(label)", "names of classes"]),
        (colours(label=["a"] * 12), ["(label)", "type"]),
        (colours(), ["no column 'label'"]),
        (pa.table({"label": LABELS}), ["no column 'image'"]),
    ]:
        write(tmp_path / "2.parquet", table)
        with refuses("2.parquet", *parts):
            read(tmp_path)
    write(tmp_path / "1.parquet", colours())
    write(tmp_path / "2.parquet", colours(label=LABELS))
    with refuses("2.parquet: its labels (label)", "1.parquet (none)"):
        read(tmp_path)
    assert label_of(read(tmp_path, label_column="")) == [-1] * 24


def test_nothing_to_read_is_refused(tmp_path, refuses):
    for table in (colours(label=LABELS).slice(0, 0), colours().slice(0, 0)):
        with refuses("x.parquet", "no rows"):
            read(write(tmp_path / "x.parquet", table))
    with refuses("x.parquet", "no column", "columns are none"):
        read(write(tmp_path / "x.parquet", pa.table({})))


def test_an_empty_shard_among_others_is_nothing(tmp_path):
    table = colours(label=LABELS)
    write(tmp_path / "0.parquet", table.slice(0, 0))
    write(tmp_path / "1.parquet", table)
    assert len(read(tmp_path)) == 12


def test_metadata_that_cannot_be_read_are_refused(tmp_path, refuses):
    for text in ("{", "[" * 200_000, "[]", '{"info": {"features": 3}}'):
        table = colours(label=LABELS).replace_schema_metadata({"huggingface": text})
        with refuses("x.parquet", "Hugging Face metadata"):
            read(write(tmp_path / "x.parquet", table))
    for names in (5, [1, 2, 3]):
        with refuses("x.parquet", "Hugging Face metadata"):
            read(write(tmp_path / "x.parquet", declared(colours(label=LABELS), label=names)))
    table = colours(label=LABELS).replace_schema_metadata({"huggingface": '{"info": null}'})
    assert len(read(write(tmp_path / "x.parquet", table))) == 12


def test_what_is_no_parquet_is_refused(tmp_path, refuses):
    path = tmp_path / "x.parquet"
    for content in (b"", b"PAR1", b"just some text, renamed", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        with refuses("x.parquet", "cannot be read as Parquet"):
            read(path)
    with refuses("absent.parquet", "No such file"):
        read(tmp_path / "absent.parquet")
    path.unlink()
    with refuses(tmp_path.name, "holds no Parquet file"):
        read(tmp_path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "x.parquet"
    table = declared(colours(label=LABELS), label=["a", "b", "c"])
    return write(path, table, row_group_size=5, write_page_checksum=True).read_bytes()


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_every_truncation_is_refused(scratch, refuses, packed, data):
    path = scratch / "cut.parquet"
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with refuses("cut.parquet"):
        read(path)


@settings(deadline=None, max_examples=32)
@given(st.data())
def test_one_changed_byte_is_refused_or_changes_no_pixel(scratch, outcome, packed, data):
    path, flipped = scratch / "flip.parquet", bytearray(packed)
    # Half of them in the footer, which is where a byte decides about memory.
    footer = len(packed) - 8 - int.from_bytes(packed[-8:-4], "little")
    position = st.integers(0, len(packed) - 1) | st.integers(footer, len(packed) - 1)
    flipped[data.draw(position)] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    found = outcome(read, path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert "flip.parquet" in found
    else:
        np.testing.assert_array_equal(image_of(found), COLOUR)


def test_a_footer_that_lies_about_rows_is_refused(tmp_path, refuses):
    images = [png(each) for each in GREY[:1, :2, :2].repeat(77, axis=0)]
    path = write(tmp_path / "liar.parquet", pa.table({"image": images}), store_schema=False)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    stated = bytes([0x9A, 0x01])  # 77 as Thrift writes it
    assert content.count(stated, footer) >= 3
    more, fewer = bytes([0xFE, 0x01]), bytes([0x80, 0x01])  # 127 and 64
    for lie, times in [(more, -1), (more, 1), (fewer, 1)]:
        lying = content[footer:].replace(stated, lie, times)
        path.write_bytes(content[:footer] + lying)
        with refuses("liar.parquet"):
            read(path)


def test_checksums_are_verified(tmp_path, refuses):
    table = declared(colours(label=[0] * 12), label=["a", "b"])
    plain = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    path = write(tmp_path / "x.parquet", table, **plain)
    label = pq.ParquetFile(path).metadata.row_group(0).column(2)
    content = bytearray(path.read_bytes())
    content[label.data_page_offset + label.total_compressed_size - 8] ^= 1  # of the last label
    path.write_bytes(content)
    with refuses("x.parquet", "checksum"):
        read(path)


# Without pyarrow


def test_the_package_to_install_is_named(tmp_path, refuses, monkeypatch):
    path = write(tmp_path / "x.parquet", colours())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refuses("x.parquet", "pip install 'loopax[parquet]'", error=ConfigError):
        read(path)


def test_neither_pyarrow_nor_pillow_is_imported_before_it_is_needed():
    code = "import sys, loopax.data; print({'pyarrow', 'PIL'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
