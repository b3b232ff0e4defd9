"""Examples in ArrayRecord files and tars: written, read at any place, and trained on."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import loopax
from loopax.cli import main
from loopax.data import conversion, read_text_parts, records

pytest.importorskip("array_record")
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path):
    """A part to train on and one to test on, of two classes."""
    for index, pixels in enumerate(PIXELS):
        folder = (
            tmp_path / "photos" / ("test" if index > 6 else "train") / ["cat", "dog"][index % 2]
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(png(pixels))
    return tmp_path / "photos"


def same(one, other):
    for name, part in one.parts.items():
        there = other.parts[name]
        assert part.class_names == there.class_names
        for column in ("image", "label"):
            np.testing.assert_array_equal(part.columns[column], there.columns[column])
    return True


def test_converted_images_are_the_same_and_what_was_begun_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "SHARD_BYTES", 3 * 48)
    target = tmp_path / "records"
    assert main(["data", "convert", str(photos), str(target)]) == 0
    files = sorted(target.glob("*.array_record"))
    assert [file.name[:20] for file in files[:2]] == [
        "test-00000-of-00001.",
        "train-00000-of-00003",
    ]
    assert same(loopax.data.load(target), loopax.data.load(photos))
    kept, lost = files[1], files[2]
    before, content = kept.stat(), lost.read_bytes()
    lost.unlink()
    loopax.data.convert(photos, target)
    assert lost.read_bytes() == content
    assert kept.stat() == before


def test_records_are_read_by_grain_at_any_place(photos, tmp_path):
    grain = pytest.importorskip("grain")
    loopax.data.convert(photos, tmp_path / "records")
    source = records(tmp_path / "records" / "train-*")
    batches = grain.MapDataset.source(source).shuffle(1).batch(3)
    assert batches[0]["image"].shape == (3, 4, 4, 3)
    train = loopax.data.load(photos).train
    np.testing.assert_array_equal(source[5]["image"], train.columns["image"][5])
    assert source[5]["label"] == train.columns["label"][5]


def test_converted_texts_are_the_same(tmp_path):
    rows = ["text,label,movie", "fine,good,up", "dull,bad,up", '"a ""b""",good,', "poor,bad,down"]
    (tmp_path / "reviews.csv").write_text("\n".join(rows))
    loopax.data.convert(tmp_path / "reviews.csv", tmp_path / "records")
    (one,), (other,) = (
        read_text_parts(tmp_path / name).values() for name in ("reviews.csv", "records")
    )
    assert (one.rows, one.groups, one.class_names) == (other.rows, other.groups, other.class_names)
    assert one.fingerprint == other.fingerprint


def test_other_data_in_the_folder_is_refused(photos, tmp_path, refuses):
    target = tmp_path / "records"
    loopax.data.convert(photos / "train", target)
    with refuses("records: holds what was converted of other data; name another folder"):
        loopax.data.convert(photos / "test", target)
    with refuses("photos: holds '", "name a folder that is new or empty"):
        loopax.data.convert(photos, photos)


def test_a_tar_of_webdataset_is_read_at_any_place(tmp_path, refuses):
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for index, pixels in enumerate(PIXELS):
            fields = {"png": png(pixels), "cls": str(index % 2).encode(), "json": b'{"a": 1}'}
            for field, content in fields.items():
                member = tarfile.TarInfo(f"all/{index:03}.{field}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = records(tmp_path / "shard-*.tar")
    assert len(source) == 10
    np.testing.assert_array_equal(source[7]["png"], PIXELS[7])
    assert (source[7]["cls"], source[7]["json"]) == (1, {"a": 1})
    splits = loopax.data.load(tmp_path, test_fraction=0.2)
    found = np.concatenate([splits.train.columns["image"], splits.test.columns["image"]])
    assert {each.tobytes() for each in found} == {each.tobytes() for each in PIXELS}
    assert "WebDataset, images in 'png', labels in 'cls'" in splits.description
    assert same(loopax.data.load(tmp_path / "shard-*.tar", test_fraction=0.2), splits)
    content = (tmp_path / "shard-0.tar").read_bytes()
    (tmp_path / "shard-0.tar").write_bytes(b"x" * 512 + content[512:])
    with refuses("shard-0.tar: cannot be read as a tar file"):
        records(tmp_path)


def test_damaged_records_are_named(tmp_path, refuses):
    (tmp_path / "a.array_record").write_bytes(b"no record")
    with refuses("a.array_record: cannot be read as ArrayRecord"):
        records(tmp_path / "a.array_record")
    (tmp_path / "empty").mkdir()
    with refuses("empty: holds no files that end in .array_record"):
        records(tmp_path / "empty")
