"""Images are decoded once, and are the same wherever they lie."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

import loopax
from loopax.cli import main
from loopax.data import Dataset, Mapped, kept, load
from loopax.data.images import many
from loopax.randomness import key_words

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 4, 4, 3), np.uint8)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of two classes, of which everything is kept in a cache of its own."""
    monkeypatch.setenv("LOOPAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("loopax.data.images.kept.SMALLEST_BYTES", 0)
    for index, pixels in enumerate(PIXELS):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def in_memory(photos, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("LOOPAX_DATA_CACHE_GIB", "0")
        return load(photos).with_validation()


def same(one, other):
    assert one.parts.keys() == other.parts.keys()
    for a, b in zip(one.parts.values(), other.parts.values(), strict=True):
        np.testing.assert_array_equal(a.columns["image"], b.columns["image"])
        np.testing.assert_array_equal(a.columns["label"], b.columns["label"])
        assert a.fingerprint == b.fingerprint
    return one.description == other.description


def test_what_was_decoded_is_opened_the_next_time(photos, in_memory, monkeypatch, capfd):
    assert same(load(photos).with_validation(), in_memory)
    monkeypatch.setattr(Image, "open", None)
    again = load(photos).with_validation()
    assert isinstance(again.train.columns["image"], Mapped)
    assert same(again, in_memory)
    # Also the fingerprint is not computed again: that would read all images.
    monkeypatch.setattr("loopax.batches.mapped._digest", None)
    assert load(photos).with_validation().train.fingerprint == in_memory.train.fingerprint
    assert capfd.readouterr().err == ""


def test_a_file_that_was_changed_is_decoded_anew(photos):
    before = load(photos).train.fingerprint
    file = next(photos.rglob("*.png"))
    status = file.stat()
    Image.fromarray(255 - PIXELS[0]).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(photos).train.fingerprint != before


def test_what_is_damaged_is_made_anew(photos, in_memory, capfd):
    load(photos)
    (file,) = kept.entries()[0].folder.glob("*-image.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert same(load(photos).with_validation(), in_memory)
    assert "is damaged, and is made anew" in capfd.readouterr().err


def test_what_was_used_longest_ago_makes_room(photos, monkeypatch):
    load(photos)
    (first,) = kept.entries()
    os.utime(first.folder / "facts.json", (0, 0))
    load(photos, channels=1)
    held = sum(entry.nbytes for entry in kept.entries())
    monkeypatch.setenv("LOOPAX_DATA_CACHE_GIB", str((held + 100) / 2**30))
    load(photos, size=(3, 3))
    assert first.folder not in {entry.folder for entry in kept.entries()}
    assert len(kept.entries()) == 2


def test_too_large_for_the_cache_is_decoded_all_the_same(photos, in_memory, monkeypatch, capfd):
    monkeypatch.setenv("LOOPAX_DATA_CACHE_GIB", "1e-9")
    assert same(load(photos).with_validation(), in_memory)
    assert "LOOPAX_DATA_CACHE_GIB" in capfd.readouterr().err
    assert kept.entries() == []


def test_the_command_line_lists_and_clears(photos, capsys):
    load(photos)
    assert main(["data", "cache"]) == 0
    assert str(photos) in capsys.readouterr().out
    assert main(["data", "cache", "--clear"]) == 0
    assert kept.entries() == []


def test_processes_decode_what_one_does(tmp_path, monkeypatch):
    """Grey before colour, and a white level that grows."""
    monkeypatch.setattr(many, "TOGETHER", 3)
    for index in range(12):
        image = Image.fromarray(PIXELS[index][..., 0] if index < 8 else PIXELS[index])
        image.save(tmp_path / f"{index:02}.png")
    for index, top in ((3, 2**10 - 1), (9, 2**12 - 1)):
        wide = RNG.integers(0, top, (4, 4), np.uint16)
        Image.fromarray(wide).save(tmp_path / f"{index:02}.png")
    alone = load(tmp_path)
    monkeypatch.setattr(many, "IN_PARALLEL", 0)
    assert same(load(tmp_path), alone)
    assert alone.train.columns["image"].shape[3] == 3


def test_where_data_lies_changes_no_parameter(photos, line_loss, line_state, bits, monkeypatch):
    mapped = load(photos, channels=1).train
    assert isinstance(mapped.columns["image"], Mapped)
    copied = Dataset({name: np.asarray(column) for name, column in mapped.columns.items()})

    def loss(params, batch, rngs):
        return line_loss(params, {**batch, "image": batch["image"] / 255}, rngs)

    def trained(batches):
        return bits(loopax.fit(line_state(), loss, batches, steps=20, progress=False).state)

    options = {"scale": (), "resident": False}
    feed = copied.batches(4, **options).feed(key_words(line_state().key), 0, 2)
    streamed = [jax.tree.map(lambda leaf: leaf[0], feed.take(1).stacked) for _ in range(20)]
    resident = trained(copied.batches(4, scale=()))
    assert trained(mapped.batches(4, scale=())) == resident
    monkeypatch.setattr("loopax.batches.dataset.COPIED_LIMIT_BYTES", 0)
    assert copied.batches(4).is_resident
    assert not mapped.batches(4).is_resident
    assert trained(mapped.batches(4, **options)) == resident
    assert trained(streamed) == resident
