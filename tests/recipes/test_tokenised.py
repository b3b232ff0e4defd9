"""Texts are tokenised once, and are the same wherever their tokens lie."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import loopax
from loopax.data import Mapped, kept, read_texts
from loopax.recipes import bert
from loopax.recipes.bert import tokenised as module
from loopax.recipes.bert.pretrained import read_pretrained
from loopax.recipes.bert.texts import texts_of
from loopax.recipes.bert.tokenised import tokenised

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
LINES = [
    f"{'the film is ' * (1 + index % 9)}{index},{['good', 'bad'][index % 2]}" for index in range(60)
]


def table(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return read_pretrained(TINY).tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SMALLEST_CHARACTERS", 0)


def test_tokens_are_kept_for_the_next_time(cache, tokenizer, tmp_path, monkeypatch):
    config = bert.FineTuneConfig(data=str(table(tmp_path / "t.csv", LINES)), model=str(TINY))
    with monkeypatch.context() as patch:
        patch.setenv("LOOPAX_DATA_CACHE_GIB", "0")
        in_memory = texts_of(config, tokenizer, 20)
    texts_of(config, tokenizer, 20)
    monkeypatch.setattr(module, "encode", None)
    mapped = texts_of(config, tokenizer, 20)
    assert mapped.fingerprint == in_memory.fingerprint
    for name, tokens in mapped.tokens.items():
        assert isinstance(tokens.columns["input_ids"], Mapped)
        assert tokens.fingerprint == in_memory.tokens[name].fingerprint
    with pytest.raises(TypeError):
        texts_of(config, tokenizer, 19)


def test_damaged_tokens_are_made_anew(cache, tokenizer, tmp_path, capfd):
    texts = read_texts(table(tmp_path / "t.csv", LINES))
    before = np.asarray(tokenised(tokenizer, texts, 20).tokens.columns["input_ids"])
    (entry,) = kept.entries()
    file = entry.folder / "input_ids.npy"
    content = bytearray(file.read_bytes())
    content[-80] ^= 1
    file.write_bytes(content)
    after = tokenised(tokenizer, texts, 20).tokens.columns["input_ids"]
    np.testing.assert_array_equal(after, before)
    assert "is damaged, and is made anew" in capfd.readouterr().err


def test_the_parts_of_a_folder_stay_parts_and_share_no_text(tokenizer, tmp_path):
    for name, part in (("train", LINES[:40]), ("validation", LINES[38:50]), ("test", LINES[48:])):
        table(tmp_path / "reviews" / f"{name}.csv", part)
    config = bert.FineTuneConfig(data=str(tmp_path / "reviews"), model=str(TINY))
    parts = texts_of(config, tokenizer, 40)
    assert [len(part) for part in parts[:3]] == [38, 10, 12]
    assert any("2 of 40 texts are also in reviews validation" in note for note in parts.notes)
    assert any("2 of 12 texts are also in reviews test" in note for note in parts.notes)
    two = dataclasses.replace(config, test_data=str(table(tmp_path / "other.csv", LINES[:3])))
    parts = texts_of(two, tokenizer, 40)
    assert len(parts.test) == 3
    assert any("reviews test: not looked at, as" in note for note in parts.notes)


def test_a_pattern_is_found_from_any_folder(tmp_path, monkeypatch):
    table(tmp_path / "reviews-1.csv", LINES)
    monkeypatch.chdir(tmp_path)
    assert loopax.data.absolute("reviews-*.csv") == str(tmp_path / "reviews-*.csv")
